"""What npm says when it fails, in one sentence. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_ERROR: Final = re.compile(r"npm (?:error|ERR!) ?(.*)")
_CODE: Final = re.compile(r"code (\S+)")
#: The first word repeats the code: "404", "notarget".
_LABEL: Final = re.compile(r"(?:404|403|401|notarget|ERESOLVE|network|request)\s+")
_NOISE: Final = re.compile(
    r"Not Found - GET|A complete log|For a full report|Note that you can|tarball, folder|"
    r"In most cases you|While resolving: undefined|\S+-report\.txt|.*_logs/|\d*$"
)
#: From here on npm explains how it is used.
_USAGE: Final = re.compile(r"Clean install a project|Install a package|Usage:")
_MAX_LINES: Final = 8
_MAX_CHARACTERS: Final = 600


def npm_errors(lines: Sequence[str]) -> list[str]:
    """npm's error lines without their prefix, its usage and its references to logs."""
    found: list[str] = []
    for line in lines:
        match = _ERROR.fullmatch(line.strip())
        if not match:
            continue
        text = _LABEL.sub("", match[1].strip(), count=1)
        if _USAGE.match(text):
            break
        if not _NOISE.match(text):
            found.append(text)
    return found


def npm_reason(command: str, ending: str, lines: Sequence[str]) -> str:
    """Why npm failed, as a sentence."""
    errors = npm_errors(lines)
    code = next((match[1] for text in errors if (match := _CODE.fullmatch(text))), "")
    said = [text for text in errors if not _CODE.fullmatch(text)]
    if not said:
        return f"{command} {ending}; see the end of the log"
    text = " ".join(said[:_MAX_LINES])[:_MAX_CHARACTERS]
    return f"{command} failed{f' ({code})' if code else ''}: {text}"
