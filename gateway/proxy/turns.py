"""Turns: who waits for something there is not enough of, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue. ``T`` is what a turn brings along; ``unused`` gets the turn of who has just gone."""

    def __init__(self, *, unused: Callable[[T], None]) -> None:
        self._waiting: deque[asyncio.Future[T]] = deque()
        self._unused = unused

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, *, seconds: float) -> T:
        """Wait for a turn. Raises TimeoutError, or what ``refuse`` gives."""
        turn: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                return await turn
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled() and turn.exception() is None:
                self._unused(turn.result())  # it came too late
            raise

    def give(self, turn: T) -> bool:
        """Let the first one have its turn; False if nobody waits."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():  # else it is just leaving
                first.set_result(turn)
                return True
        return False

    def refuse(self, why: Callable[[], Exception]) -> None:
        """Send all away; each gets an error of its own."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(why())
