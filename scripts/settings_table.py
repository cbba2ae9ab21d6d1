"""The table of settings in Markdown, made from the settings class.

``python scripts/settings_table.py`` prints it; with file names it is written into each file,
between ``<!-- settings:begin -->`` and ``<!-- settings:end -->``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo

from gateway.settings import PREFIX, Settings

BEGIN: Final = "<!-- settings:begin -->"
END: Final = "<!-- settings:end -->"

#: Defaults that depend on the machine, in words.
_IN_WORDS: Final = {"data_dir": "`~/.local/share/preview-gateway`"}


def settings_table() -> str:
    """One line for each setting: variable, default, meaning."""
    lines = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{PREFIX}{name.upper()}` | {_default(name, field)} | {meaning} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """``text`` with the table between its markers. Raises ValueError if they are not there once."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"wants exactly one {BEGIN} and, after it, one {END}")
    return f"{before}{begin}\n{settings_table()}\n{end}{after}"


def _default(name: str, field: FieldInfo) -> str:
    if name in _IN_WORDS:
        return _IN_WORDS[name]
    default = field.get_default(call_default_factory=True, validated_data={})
    return "none" if default in ("", []) else f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def main(paths: list[str]) -> None:
    """Print the table, or write it into the files."""
    if not paths:
        sys.stdout.write(settings_table() + "\n")
    for path in map(Path, paths):
        path.write_text(with_table(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
