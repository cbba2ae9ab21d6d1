"""A program's output, from bytes as they come to lines fit for a log. Pure, no I/O."""

from __future__ import annotations

import codecs
import re
from collections import deque
from typing import Final

#: A longer line is cut; its rest is dropped.
MAX_LINE_CHARACTERS: Final = 4000
TAIL_LINES: Final = 40
TAIL_CHARACTERS: Final = 4096

# ECMA-48: CSI and OSC sequences, other two-character escapes, then control characters but tab.
_ESCAPES: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]|"
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class Output:
    """Splits output into lines without escapes and keeps the last of them."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = ""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes."""
        *lines, last = (self._open + self._decoder.decode(data)).split("\n")
        # Escapes may still be cut off in the middle, so an open line may be a little longer.
        self._open = last[: 2 * MAX_LINE_CHARACTERS]
        return self._keep(lines)

    def end(self) -> list[str]:
        """The last line, if it had no end."""
        last = self._open + self._decoder.decode(b"", final=True)
        self._open = ""
        return self._keep([last] if last else [])

    @property
    def tail(self) -> str:
        """The end of the log: at most TAIL_LINES lines and TAIL_CHARACTERS characters."""
        return "\n".join(self._tail)[-TAIL_CHARACTERS:]

    def _keep(self, raw: list[str]) -> list[str]:
        lines = [_clean(line) for line in raw]
        self._tail.extend(lines)
        return lines


def _clean(line: str) -> str:
    # A carriage return inside a line is a progress bar drawing over itself: the last state counts.
    shown = line.rstrip("\r").rpartition("\r")[2]
    return _ESCAPES.sub("", shown)[:MAX_LINE_CHARACTERS]
