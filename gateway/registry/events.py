"""A session's event stream as one listener sees it: the past first, then what comes.

The listener is subscribed before the past is read; what arrives meanwhile waits in its feed, and
what it knows already is left out by its id. So nothing is missed and nothing comes twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from gateway.errors import ListenerTooSlow, RegistryUnavailable
from gateway.registry.base import StreamEvent
from gateway.registry.records import decode_pushed_event, event_order
from gateway.session import SessionId

#: What may wait for a slow listener before it is dropped (it can resume).
_LONGEST_FEED: Final = 4096
_LARGEST_FEED_BYTES: Final = 2**20


# All listeners to a session are given the same entry one after the other: it is decoded once.
@lru_cache(maxsize=16)
def _decoded(session_id: SessionId, payload: bytes) -> tuple[StreamEvent, tuple[int, int]]:
    """An entry as published, and its place in the order."""
    event = decode_pushed_event(session_id, payload)
    return event, event_order(event.id)


@dataclass(frozen=True, slots=True)
class Past:
    """A part of the stored stream. ``complete``: nothing stored is newer. ``ended``: state then."""

    entries: list[StreamEvent]
    complete: bool
    ended: bool


class EventStream(AsyncIterator[StreamEvent]):
    """Iterates over the entries after ``after``; a Listener of the push link."""

    def __init__(
        self,
        session_id: SessionId,
        after: str,
        read: Callable[[str], Awaitable[Past]],
        *,
        longest_feed: int = _LONGEST_FEED,
    ) -> None:
        self._session_id = session_id
        self._last = after
        self._order = event_order(after)
        self._read = read
        self._longest_feed = longest_feed
        self._past: deque[StreamEvent] = deque()
        self._caught_up = False
        self._over = False
        self._feed: deque[bytes] = deque()
        self._feed_bytes = 0
        self._news = asyncio.Event()
        self._failure: RegistryUnavailable | ListenerTooSlow | None = None

    # -- the push link's side --------------------------------------------------------------------

    def heard(self, payload: bytes) -> None:
        """Take an entry as published; the one that is too much ends the stream."""
        if self._failure is None:
            self._feed_bytes += len(payload)
            if len(self._feed) >= self._longest_feed or self._feed_bytes > _LARGEST_FEED_BYTES:
                waiting = len(self._feed)
                # At once: whoever is to be given them may not come back for a long time.
                self._feed.clear()
                self._failure = ListenerTooSlow(
                    f"{waiting} events waited for a slow listener: resume"
                )
            else:
                self._feed.append(payload)
        self._news.set()

    def lost(self, error: RegistryUnavailable) -> None:
        """Fail, after what has been heard so far."""
        self._failure = self._failure or error
        self._news.set()

    # -- the reader's side -----------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        while not self._past and not self._caught_up:
            await self._read_past()
        if self._past:
            event = self._past.popleft()
            self._order = event_order(event.id)
        elif self._over:
            raise StopAsyncIteration
        else:
            event, self._order = await self._new()
            self._over = event.type == "end"
        self._last = event.id
        return event

    async def _new(self) -> tuple[StreamEvent, tuple[int, int]]:
        """The next entry from the feed that was not part of the past, and its place."""
        while True:
            while not self._feed:
                if self._failure:
                    raise self._failure
                self._news.clear()
                await self._news.wait()
            payload = self._feed.popleft()
            self._feed_bytes -= len(payload)
            event, order = _decoded(self._session_id, payload)
            if order > self._order:
                return event, order

    async def _read_past(self) -> None:
        past = await self._read(self._last)
        self._past.extend(past.entries)
        self._caught_up = past.complete
        self._over = past.ended
        for event in past.entries:
            if event.type in {"state", "end"}:
                # Newer than the state that was read with them: a session begun anew goes on.
                self._over = event.type == "end"
