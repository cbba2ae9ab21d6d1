"""A folder tree copied by hard links: real folders, linked files, symbolic links kept."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Final

#: Other file system, or links not allowed or not known there, or too many of one file.
_CANNOT: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES})


def link_tree(source: Path, target: Path) -> None:
    """Make ``target``, whose parent exists, a tree that shares the files of ``source``.

    Files that cannot be linked are copied. Raises FileExistsError if ``target`` exists.
    """
    _link_folder(str(source), str(target))


def _link_folder(source: str, target: str) -> None:
    os.mkdir(target)
    with os.scandir(source) as entries:
        for entry in entries:
            to = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), to)
            elif entry.is_dir():
                _link_folder(entry.path, to)
            else:
                _link(entry.path, to)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as exc:
        if exc.errno not in _CANNOT:
            raise
        shutil.copy2(source, target)
