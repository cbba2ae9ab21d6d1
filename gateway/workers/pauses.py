"""How long to wait before a worker that has crashed is started again. Pure."""

from __future__ import annotations

from typing import Final

#: A worker that lived for this long has not crashed because of how it started.
STABLE_SECONDS: Final = 30.0
_FIRST_SECONDS: Final = 0.25
#: Short, because connections wait meanwhile in the queue of its socket.
LONGEST_SECONDS: Final = 5.0


class Pauses:
    """The pauses of one worker: none after the first crash, longer while it keeps crashing."""

    def __init__(self) -> None:
        self._next = 0.0

    def after(self, lived_seconds: float) -> float:
        """Seconds to wait after a crash of a process that lived for ``lived_seconds``."""
        pause = 0.0 if lived_seconds >= STABLE_SECONDS else self._next
        self._next = min(max(2 * pause, _FIRST_SECONDS), LONGEST_SECONDS)
        return pause
