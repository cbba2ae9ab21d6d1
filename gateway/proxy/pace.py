"""So many a second, and after a pause as many at once. Pure.

The generic cell rate algorithm (ITU-T I.371): one number, whatever the rate and however many wait.
"""

from __future__ import annotations


class Pace:
    """Gives out turns. Times are seconds of one clock."""

    __slots__ = ("_due", "_interval")

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        #: When all turns that were given out have been paid for.
        self._due = float("-inf")

    def turn(self, now: float, *, within: float) -> float | None:
        """Seconds until the caller's turn; None, and no turn, if that is more than ``within``."""
        due = max(self._due, now)
        delay = max(due - now - 1.0, 0.0)
        if delay > within:
            return None
        self._due = due + self._interval
        return delay
