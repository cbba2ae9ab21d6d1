"""Server-sent events: a session's stream from any replica, resumable by ``Last-Event-ID``.

See the HTML standard, section 9.2, for the format. Entry ids are those of the registry's stream.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final, TypeAlias

from aiohttp import web

from gateway.api.operation import HeaderField
from gateway.errors import ListenerTooSlow, RegistryUnavailable
from gateway.registry.base import Registry, StreamEvent
from gateway.session import SessionId

log: Final = logging.getLogger(__name__)

#: An entry as it is sent; nothing for one that is left out.
Encode: TypeAlias = Callable[[StreamEvent], bytes]
#: In the data of every entry that a client has posted; the gateway's own have none.
SOURCE: Final = "source"

LAST_EVENT_ID: Final = HeaderField(
    "Last-Event-ID",
    pattern=r"^([0-9]{1,20}(-[0-9]{1,20})?)?$",
    meaning="the id of the last event that was received, to go on after it",
    example="1795228800123-0",
)
_HEARTBEAT_SECONDS: Final = 15.0
_RETRY_SECONDS: Final = 1.0


def event_block(kind: str, data: object, *, entry: str = "") -> bytes:
    """One server-sent event; ``kind`` holds no line end."""
    head = f"id: {entry}\n" if entry else ""
    text = json.dumps(data, separators=(",", ":"))
    return f"{head}event: {kind}\ndata: {text}\n\n".encode()


def encode_event(event: StreamEvent) -> bytes:
    """An entry under its type, as callers of the API get it."""
    return event_block(event.type, event.data, entry=event.id)


def encode_own_event(event: StreamEvent) -> bytes:
    """Without what clients have posted, which is no business of who looks at a preview."""
    return b"" if SOURCE in event.data else encode_event(event)


class _Encoded:
    """The last entry as it was sent: all listeners are sent the same one after the other."""

    __slots__ = ("encode", "entry", "sent")

    def __init__(self, encode: Encode) -> None:
        self.encode = encode
        self.entry: StreamEvent | None = None
        self.sent = b""

    def of(self, entry: StreamEvent) -> bytes:
        """The entry, encoded anew only if it is another one."""
        if entry is not self.entry:
            self.entry, self.sent = entry, self.encode(entry)
        return self.sent


class EventStreams:
    """Sends sessions' events to any number of listeners.

    ``closing`` ends every stream: the replica shuts down, and the listeners resume at another one.
    A comment is sent after ``heartbeat_seconds`` of silence, so that a listener can tell silence
    from a dead connection, and so that a listener who has gone is noticed. A listener who takes
    less than comes is sent no more: its stream ends without an ``end``, and it resumes.
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
        self._encoded: dict[Encode, _Encoded] = {}
        #: The waits of all listeners; ended by one task when the replica shuts down. A task for
        #: each listener, let alone for each event, would cost more than the event.
        self._waits: set[asyncio.Timeout] = set()
        self._listeners = 0
        self._ending: asyncio.Task[None] | None = None

    async def respond(
        self,
        request: web.Request,
        session_id: SessionId,
        *,
        after: str,
        encode: Encode = encode_event,
    ) -> web.StreamResponse:
        """Send what came after ``after``, as ``encode`` has it, and go on until the session's end.

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
        self._listeners += 1
        if self._ending is None:
            self._ending = asyncio.create_task(self._end_waits(), name="events: closing")
        try:
            await response.prepare(request)
            if request.method == "HEAD":
                return response
            await response.write(b": connected\n\n")
            encoded = self._encoded.setdefault(encode, _Encoded(encode))
            await self._relay(response, session_id, after, encoded)
        except ConnectionError:  # not always a reset: a write that waits is told "connection lost"
            log.debug("a listener to session %s has gone", session_id)
        finally:
            self._listeners -= 1
            if not self._listeners and self._ending is not None:
                self._ending.cancel()
                self._ending = None
        return response

    async def _end_waits(self) -> None:
        """Once the replica shuts down, let nobody wait for an entry any more."""
        await self._closing.wait()
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)

    async def _relay(
        self, response: web.StreamResponse, session_id: SessionId, after: str, encoded: _Encoded
    ) -> None:
        ended = False
        while not self._closing.is_set():
            try:
                async with self._registry.events(session_id, after=after) as entries:
                    while entry := await self._next(response, entries):
                        if sent := encoded.of(entry):
                            await response.write(sent)
                        after, ended = entry.id, entry.type == "end"
                if not ended and not self._closing.is_set():
                    await response.write(encoded.encode(await self._end(session_id)))
            except RegistryUnavailable as exc:
                await response.write(event_block("degraded", {"reason": str(exc)}))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS):
                        await self._closing.wait()
            except ListenerTooSlow as exc:
                log.info("a listener to session %s is dropped: %s", session_id, exc)
                return
            else:
                return

    async def _next(
        self, response: web.StreamResponse, entries: AsyncIterator[StreamEvent]
    ) -> StreamEvent | None:
        """The next entry, None at the end; says something into every long silence."""
        while not self._closing.is_set():
            wait = asyncio.timeout(self._heartbeat_seconds)
            try:
                async with wait:
                    self._waits.add(wait)
                    return await anext(entries, None)
            except TimeoutError:
                if not self._closing.is_set():
                    await response.write(b": keep-alive\n\n")
            finally:
                self._waits.discard(wait)
        return None

    async def _end(self, session_id: SessionId) -> StreamEvent:
        """An end for who comes after it, or whose entries are forgotten.

        Without one, clients would take the end of the response for a lost connection and return.
        """
        session = await self._registry.session(session_id)
        if session is None:
            return StreamEvent("", "end", {"state": "", "reason": "the session is forgotten"})
        return StreamEvent("", "end", {"state": session.state, "reason": session.reason})
