"""Server-sent events: a session's stream from any replica, resumable by ``Last-Event-ID``.

See the HTML standard, section 9.2, for the format. Entry ids are those of the registry's stream.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from gateway.errors import BadRequest, RegistryUnavailable
from gateway.registry.base import Registry, StreamEvent
from gateway.session import SessionId

_ENTRY_ID: Final = re.compile(r"\d{1,20}(?:-\d{1,20})?")
_HEARTBEAT_SECONDS: Final = 15.0
_RETRY_SECONDS: Final = 1.0


def entry_id(text: str) -> str:
    """A stream id to resume after; raises BadRequest."""
    if not _ENTRY_ID.fullmatch(text):
        raise BadRequest(f"Last-Event-ID {text[:40]!r} is none of ours: leave it out")
    return text


async def stream_events(
    request: web.Request,
    registry: Registry,
    session_id: SessionId,
    *,
    after: str,
    closing: asyncio.Event,
) -> web.StreamResponse:
    """Send the session's events until its end, or until the client or this replica goes.

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
    await response.prepare(request)
    await response.write(b": connected\n\n")
    while not closing.is_set():
        try:
            async with registry.events(session_id, after=after) as entries:
                async for entry in _with_heartbeat(entries, closing):
                    if entry is None:
                        await response.write(b": keep-alive\n\n")
                        continue
                    await response.write(_encode(entry))
                    after = entry.id
            break
        except RegistryUnavailable as exc:
            text = json.dumps({"reason": str(exc)})
            await response.write(f"event: degraded\ndata: {text}\n\n".encode())
            await asyncio.sleep(_RETRY_SECONDS)
    await response.write_eof()
    return response


async def _with_heartbeat(
    entries: AsyncIterator[StreamEvent], closing: asyncio.Event
) -> AsyncIterator[StreamEvent | None]:
    """The entries, and None whenever none has come for a while."""
    following = asyncio.ensure_future(anext(entries, None))
    closed = asyncio.ensure_future(closing.wait())
    try:
        while True:
            done, _ = await asyncio.wait(
                (following, closed),
                timeout=_HEARTBEAT_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if closed in done:
                return
            if not done:
                yield None
                continue
            entry = following.result()
            if entry is None:
                return
            yield entry
            following = asyncio.ensure_future(anext(entries, None))
    finally:
        following.cancel()
        closed.cancel()
        await asyncio.gather(following, closed, return_exceptions=True)


def _encode(entry: StreamEvent) -> bytes:
    data = json.dumps(entry.data, separators=(",", ":"))
    return f"id: {entry.id}\nevent: {entry.type}\ndata: {data}\n\n".encode()
