"""A project folder on disk, as ``up`` sends and watches it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pathspec

from gateway.errors import BadFiles

#: Never sent: what is made from the sources, or is nobody's business.
_ALWAYS_IGNORED: Final = (
    "node_modules/",
    ".git/",
    ".hg/",
    ".svn/",
    ".venv/",
    "__pycache__/",
    ".vite/",
    ".cache/",
    ".DS_Store",
    "*.swp",
    "*~",
    ".#*",
    "4913",
)


class Folder:
    """The files of ``root`` that belong to the project: all but those that .gitignore names."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise BadFiles(f"{root} is no folder: name the folder that holds package.json")
        self.root = root.resolve()
        patterns = list(_ALWAYS_IGNORED)
        ignore = self.root / ".gitignore"
        if ignore.is_file():
            patterns += ignore.read_text(errors="replace").splitlines()
        self._ignored = pathspec.GitIgnoreSpec.from_lines(patterns)

    def relative(self, path: Path) -> str | None:
        """The POSIX path below the root, or None if it does not belong to the project."""
        try:
            relative = path.relative_to(self.root).as_posix()
        except ValueError:
            return None
        return None if self._ignored.match_file(relative) else relative

    def files(self) -> dict[str, bytes]:
        """All files with their contents; symbolic links are left out."""
        return dict(self._walk(self.root))

    def _walk(self, folder: Path) -> Iterable[tuple[str, bytes]]:
        for entry in sorted(folder.iterdir()):
            if entry.is_symlink():
                continue
            relative = entry.relative_to(self.root).as_posix()
            if entry.is_dir():
                if not self._ignored.match_file(relative + "/"):
                    yield from self._walk(entry)
            elif entry.is_file() and not self._ignored.match_file(relative):
                yield relative, entry.read_bytes()

    def edits(self, changed: Iterable[Path]) -> tuple[dict[str, bytes], list[str]]:
        """What has become of ``changed`` paths: (files to write, paths to delete)."""
        write: dict[str, bytes] = {}
        delete: list[str] = []
        for path in changed:
            relative = self.relative(path)
            if relative is None or path.is_dir() or path.is_symlink():
                continue
            try:
                write[relative] = path.read_bytes()
            except FileNotFoundError:
                delete.append(relative)
        return write, delete
