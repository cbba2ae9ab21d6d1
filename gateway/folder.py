"""A project folder on disk, as ``up`` sends and watches it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
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
#: Tells whether a file is still the one that was read: its inode, size and time of change.
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Edits:
    """What has changed in a folder: contents to write, paths to delete."""

    write: dict[str, bytes] = field(default_factory=dict)
    delete: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.write or self.delete)

    def __str__(self) -> str:
        names = [*self.write, *(f"{path} (deleted)" for path in self.delete)]
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Folder:
    """The files of ``root`` that belong to the project: all but those that .gitignore names.

    Symbolic links are left out. Every method blocks on the disk; call them one at a time.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise BadFiles(f"{root} is no folder: name the folder that holds package.json")
        self.root = root.resolve()
        self._ignored = _ignored(self.root)
        self._seen: dict[str, _Stamp] = {}

    def belongs(self, path: Path) -> bool:
        """Whether a change of ``path``, file or folder, may concern the project."""
        if not path.is_relative_to(self.root):
            return False
        relative = path.relative_to(self.root).as_posix()
        return not (self._ignored.match_file(relative) or self._ignored.match_file(relative + "/"))

    def edits(self) -> Edits:
        """What has changed since the last call; at the first call, everything.

        Looks at the whole folder, for a watcher does not name each file of a folder that was moved.
        """
        self._ignored = _ignored(self.root)
        before, self._seen = self._seen, {}
        edits = Edits()
        for relative, path in self._walk(self.root, ""):
            try:
                # Stamped before it is read: a change meanwhile makes the next stamp another one.
                stamp = _stamp(path)
                if before.get(relative) != stamp:
                    edits.write[relative] = path.read_bytes()
            except FileNotFoundError:
                continue
            self._seen[relative] = stamp
        edits.delete.extend(path for path in before if path not in self._seen)
        return edits

    def forget(self, edits: Edits) -> None:
        """``edits`` did not arrive: the next call brings them again."""
        for path in edits.write:
            self._seen.pop(path, None)
        self._seen.update(dict.fromkeys(edits.delete, (0, 0, 0)))

    def _walk(self, folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for entry in entries:
            relative = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if not self._ignored.match_file(relative + "/"):
                    yield from self._walk(Path(entry.path), relative + "/")
            elif entry.is_file(follow_symlinks=False) and not self._ignored.match_file(relative):
                yield relative, Path(entry.path)


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _ignored(root: Path) -> pathspec.GitIgnoreSpec:
    patterns = list(_ALWAYS_IGNORED)
    ignore = root / ".gitignore"
    if ignore.is_file():
        patterns += ignore.read_text(errors="replace").splitlines()
    return pathspec.GitIgnoreSpec.from_lines(patterns)
