"""The tests in the table of faults, collected from the names of all tests.

``python scripts/fault_table.py docs/faults.md`` writes them into the last column.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parents[1] / "tests"

_NAME: Final = re.compile(r"test_faults?_(\d+)(?:_to_(\d+))?_")
_ROW: Final = re.compile(r"(?m)^(\| (\d+) \|.*\|.*\|)[^|\n]*\|$")


def faults_of(name: str) -> range:
    """The numbers of the faults that a test is about, by its name."""
    match = _NAME.match(name)
    if match is None:
        return range(0)
    first = int(match[1])
    return range(first, int(match[2] or first) + 1)


def collect(folder: Path = TESTS) -> dict[int, dict[str, list[str]]]:
    """By number and file: the names of the tests, in their order."""
    found: dict[int, dict[str, list[str]]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for name in _functions(path):
            for number in faults_of(name):
                file = path.relative_to(folder).as_posix()
                found.setdefault(number, {}).setdefault(file, []).append(name)
    return found


def _functions(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name


def with_tests(text: str, found: Mapping[int, Mapping[str, list[str]]]) -> str:
    """``text`` with the tests of each row's fault in its last column.

    Raises ValueError for a fault without a row.
    """
    rows = [int(row[2]) for row in _ROW.finditer(text)]
    if missing := sorted(found.keys() - set(rows)):
        raise ValueError(f"there are tests of faults that have no row: {missing}")
    return _ROW.sub(lambda row: f"{row[1]} {_cell(found.get(int(row[2]), {}))} |", text)


def _cell(files: Mapping[str, list[str]]) -> str:
    if not files:
        return "none yet"
    return "; ".join(
        f"`{file}`: {', '.join(f'`{name}`' for name in names)}" for file, names in files.items()
    )


def main(paths: list[str]) -> None:
    """Write the tests into the files."""
    for path in map(Path, paths):
        path.write_text(with_tests(path.read_text("utf-8"), collect()), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
