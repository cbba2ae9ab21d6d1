"""Waiting for a session to change, without polling: the wait is registered first, then read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.errors import SessionNotFound
from gateway.registry.base import Registry
from gateway.session import Session, SessionId


class Watchers:
    """Those who wait for sessions. Whoever hears of changes says so with ``told``."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def told(self, session_id: SessionId) -> None:
        """A session has changed."""
        for event in self._waiting.get(session_id, ()):
            event.set()

    def told_all(self) -> None:
        """Any session may have changed."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def wait(
        self, session_id: SessionId, until: Callable[[Session], bool], *, seconds: float
    ) -> Session:
        """The session as soon as ``until`` holds, or as it is after ``seconds``.

        Waits for a registration still under way too. Raises SessionNotFound.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        told = asyncio.Event()
        events = self._waiting.setdefault(session_id, set())
        events.add(told)
        try:
            while True:
                session = await self._registry.session(session_id)
                remaining = started + seconds - loop.time()
                if remaining <= 0 or (session is not None and until(session)):
                    break
                try:
                    async with asyncio.timeout(remaining):
                        await told.wait()
                except TimeoutError:
                    continue
                told.clear()
        finally:
            events.discard(told)
            if not events and self._waiting.get(session_id) is events:
                del self._waiting[session_id]
        if session is None:
            raise SessionNotFound(session_id, waited=loop.time() - started)
        return session
