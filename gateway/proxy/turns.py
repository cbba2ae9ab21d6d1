"""Turns: who waits for something there is not enough of, first come, first served.

And crowds: how many wait for something that will do for all of them.
"""

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


class Crowd:
    """How many wait, by what they wait for: at most ``most`` for each. No task, no queue."""

    def __init__(self, most: int, *, full: Callable[[str, int], Exception]) -> None:
        self.most = most
        self._full = full
        self._waiting: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def is_full(self, name: str) -> bool:
        """Whether no other one may wait for ``name``."""
        return self._waiting.get(name, 0) >= self.most

    def place(self, name: str) -> Place:
        """What who waits for ``name`` enters, and leaves. Entering raises ``full(name, most)``."""
        return Place(self, name)

    def enter(self, name: str) -> None:
        if self.is_full(name):
            raise self._full(name, self.most)
        self._waiting[name] = self._waiting.get(name, 0) + 1

    def leave(self, name: str) -> None:
        left = self._waiting[name] - 1
        if left:
            self._waiting[name] = left
        else:
            del self._waiting[name]


class Place:
    """One place in a crowd, for the time of a ``with`` block."""

    __slots__ = ("_crowd", "_name")

    def __init__(self, crowd: Crowd, name: str) -> None:
        self._crowd = crowd
        self._name = name

    def __enter__(self) -> None:
        self._crowd.enter(self._name)

    def __exit__(self, *_: object) -> None:
        self._crowd.leave(self._name)
