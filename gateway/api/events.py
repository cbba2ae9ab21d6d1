"""Server-sent events: a session's stream from any replica, resumable by ``Last-Event-ID``.

See the HTML standard, section 9.2, for the format. Entry ids are those of the registry's stream.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Final

from aiohttp import web

from gateway.errors import BadRequest, RegistryUnavailable
from gateway.registry.base import Registry, StreamEvent
from gateway.session import SessionId

log: Final = logging.getLogger(__name__)

_ENTRY_ID: Final = re.compile(r"[0-9]{1,20}(?:-[0-9]{1,20})?")
_HEARTBEAT_SECONDS: Final = 15.0
_RETRY_SECONDS: Final = 1.0


def entry_id(text: str) -> str:
    """A stream id to resume after; raises BadRequest."""
    if not _ENTRY_ID.fullmatch(text):
        raise BadRequest(f"Last-Event-ID {text[:40]!r} is none of ours: leave it out")
    return text


class EventStreams:
    """Sends sessions' events to any number of listeners.

    ``closing`` ends every stream: the replica shuts down, and the listeners resume at another one.
    A comment is sent after ``heartbeat_seconds`` of silence, so that a listener can tell silence
    from a dead connection, and so that a listener who has gone is noticed.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        closing: asyncio.Event,
        heartbeat_seconds: float = _HEARTBEAT_SECONDS,
    ) -> None:
        self._registry = registry
        self._closing = closing
        self._heartbeat_seconds = heartbeat_seconds

    async def respond(
        self, request: web.Request, session_id: SessionId, *, after: str
    ) -> web.StreamResponse:
        """Send what came after ``after``, and go on until the session's end.

        While the registry is away the client is told so (``degraded``) and stays connected.
        """
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                **request.get("cors", {}),
            }
        )
        try:
            await response.prepare(request)
            await response.write(b": connected\n\n")
            await self._relay(response, session_id, after)
        except ConnectionResetError:
            log.debug("a listener to session %s has gone", session_id)
        return response

    async def _relay(self, response: web.StreamResponse, session_id: SessionId, after: str) -> None:
        ended = False
        while not self._closing.is_set():
            try:
                async with self._registry.events(session_id, after=after) as entries:
                    while entry := await self._next(response, entries):
                        await response.write(_encode(entry.type, entry.data, entry.id))
                        after, ended = entry.id, entry.type == "end"
                if not ended and not self._closing.is_set():
                    await response.write(await self._end(session_id))
            except RegistryUnavailable as exc:
                await response.write(_encode("degraded", {"reason": str(exc)}))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS):
                        await self._closing.wait()
            else:
                return

    async def _next(
        self, response: web.StreamResponse, entries: AsyncIterator[StreamEvent]
    ) -> StreamEvent | None:
        """The next entry, None at the end; says something into every long silence."""
        following = asyncio.ensure_future(anext(entries, None))
        closing = asyncio.create_task(self._closing.wait(), name="events: closing")
        try:
            while True:
                done, _ = await asyncio.wait(
                    (following, closing),
                    timeout=self._heartbeat_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if done:
                    return following.result() if following in done else None
                await response.write(b": keep-alive\n\n")
        finally:
            following.cancel()
            closing.cancel()
            await asyncio.gather(following, closing, return_exceptions=True)

    async def _end(self, session_id: SessionId) -> bytes:
        """An end for who comes after it, or whose entries are forgotten.

        Without one, clients would take the end of the response for a lost connection and return.
        """
        session = await self._registry.session(session_id)
        if session is None:
            return _encode("end", {"state": "", "reason": "the session is forgotten"})
        return _encode("end", {"state": session.state, "reason": session.reason})


def _encode(kind: str, data: Mapping[str, Any], entry: str = "") -> bytes:
    head = f"id: {entry}\n" if entry else ""
    text = json.dumps(data, separators=(",", ":"))
    return f"{head}event: {kind}\ndata: {text}\n\n".encode()
