"""Who is alive among the spawners of a data directory, and what dead ones left behind.

Each spawner holds a lock on ``<data_dir>/spawners/<name>.lock`` for its whole life. The kernel
lets go of it when the process dies, however it dies; so a lock that can be taken belonged to a
dead spawner, also where process ids mean nothing (several containers, one volume).
"""

from __future__ import annotations

import fcntl
import logging
import secrets
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from gateway.spawner.workspace import TEMPORARY, discard, remove_tree

log = logging.getLogger(__name__)


class Tenure:
    """The life of one spawner in a data directory. Every method blocks on the disk."""

    def __init__(self, data_dir: Path) -> None:
        """Nothing is touched until ``begin``."""
        self.name = secrets.token_hex(8)
        self._data_dir = data_dir
        self._folder = data_dir / "spawners"
        self._file: IO[bytes] | None = None

    def begin(self) -> None:
        """Show that this spawner lives."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Locked before it has its name: nobody ever sees it unlocked.
        new = self._folder / f"{self.name}.new"
        self._file = new.open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        new.rename(self._path(self.name))

    def end(self) -> None:
        """The spawner has ended in order and left nothing. Idempotent."""
        if self._file:
            self._path(self.name).unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def find_dead(self) -> set[str]:
        """Names of dead spawners, at this moment."""
        return set(self._unlocked())

    def _unlocked(self) -> Iterator[str]:
        for path in self._folder.glob("*.lock"):
            if path.stem == self.name:
                continue
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                # Shared, so that two who look at the same time do not take each other for its life.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                yield path.stem

    def dead(self, names: Collection[str]) -> Iterator[str]:
        """The dead spawners among ``names``. Each is locked while the caller looks at it, so that
        only one cleans up after it, and forgotten when the caller goes on to the next.
        """
        for name in names:
            path = self._path(name)
            try:
                file = path.open("r+b")
            except FileNotFoundError:
                continue
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield path.stem
                path.unlink(missing_ok=True)

    def clean(self, name: str) -> None:
        """Remove the files of a dead spawner, whose processes are gone already."""
        workspaces = self._data_dir / "workspaces"
        for owner in workspaces.glob("*/owner"):
            try:
                if owner.read_text() == name:
                    discard(owner.parent, owner=self.name)
            except OSError as exc:
                log.warning("%s could not be removed: %s", owner.parent, exc)
        for parent in (workspaces, self._data_dir / "dependencies"):
            for folder in parent.glob(f"{TEMPORARY}{name}.*"):
                try:
                    remove_tree(folder)
                except OSError as exc:
                    log.warning("%s could not be removed: %s", folder, exc)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.lock"
