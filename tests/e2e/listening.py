"""A listener to server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from gateway.client import Event, EventParser


class Listening:
    """An open event stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.text = b""
        self._parser = EventParser()
        self._events: list[Event] = []

    async def next(self) -> Event | None:
        """The next event; None at the end of the response."""
        while not self._events:
            data = await self.response.content.readany()
            if not data:
                return None
            self.text += data
            self._events += self._parser.feed(data)
        return self._events.pop(0)

    async def until(self, kind: str) -> list[Event]:
        """All events up to one of ``kind``."""
        found: list[Event] = []
        while not found or found[-1].type != kind:
            event = await self.next()
            assert event is not None, found
            found.append(event)
        return found


@asynccontextmanager
async def listen(url: str, *, after: str = "") -> AsyncIterator[Listening]:
    headers = {"Last-Event-ID": after} if after else {}
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.get(url, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        yield Listening(response)
