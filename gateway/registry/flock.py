"""A lock on a file that the kernel frees when its holder dies, however it dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Final

_RETRY_SECONDS: Final = 0.02


class Flock:
    """``flock`` on ``path``. The descriptor is not inherited, unless handed over on purpose."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The open file; a process that inherits it shares the lock."""
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        return self._descriptor

    def try_exclusive(self) -> bool:
        """Take the lock alone, also from a shared one; whether that was possible."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take the lock together with others; whether that was possible."""
        return self._try(fcntl.LOCK_SH)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def exclusive(self, *, limit_seconds: float) -> None:
        """Wait for the lock; TimeoutError when it is not free in time."""
        async with asyncio.timeout(limit_seconds):
            # The kernel tells nobody when a lock gets free, and a thread that waits for it could
            # not be cancelled.
            while not self.try_exclusive():  # noqa: ASYNC110
                await asyncio.sleep(_RETRY_SECONDS)

    def release(self) -> None:
        """Give up the lock, or this process's share in it. Idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
