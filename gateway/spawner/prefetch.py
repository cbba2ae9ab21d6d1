"""What npm would be given of a project that lies in a folder of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from gateway.errors import BadFiles
from gateway.spawner.manifests import LOCK_FILES
from gateway.spawner.package_json import NAME

_NAMES: Final = frozenset({NAME, ".npmrc", "yarn.lock", *LOCK_FILES})
_PACKED: Final = ".tgz"


def npm_inputs(folder: Path, max_file_bytes: int) -> dict[str, bytes]:
    """The files of a project that can decide about its dependencies. Blocks on the disk.

    Raises BadFiles for a folder without package.json and for too large a file; OSError.
    """
    found: dict[str, bytes] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "node_modules" and name[0] != "."]
        for name in names:
            path = Path(parent, name)
            if (name in _NAMES or name.endswith(_PACKED)) and not path.is_symlink():
                if path.stat().st_size > max_file_bytes:
                    raise BadFiles(f"{path} is larger than {max_file_bytes} bytes")
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    if NAME not in found:
        raise BadFiles(f"{folder} holds no {NAME}: name the folder of a project")
    return found
