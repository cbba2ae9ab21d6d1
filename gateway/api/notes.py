"""Events that clients post to a session's stream."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from pydantic import JsonValue

from gateway.api.bodies import parse_body
from gateway.api.events import SOURCE
from gateway.api.lookup import Lookup, session_id_of
from gateway.api.schemas import PostEvent
from gateway.errors import BadRequest, PayloadTooLarge, SessionNotFound
from gateway.registry.base import Noted, Registry
from gateway.session import SessionId
from gateway.settings import PREFIX, Settings


class NotesApi:
    """Handler of ``POST /api/v1/sessions/{id}/events``."""

    def __init__(self, settings: Settings, registry: Registry, lookup: Lookup) -> None:
        self._settings = settings
        self._registry = registry
        self._lookup = lookup

    def routes(self) -> list[web.RouteDef]:
        """The routes of these calls."""
        return [web.post("/api/v1/sessions/{id}/events", self.post)]

    async def post(self, request: web.Request) -> web.Response:
        """Append an event; it comes out of the stream as ``event``, with what was posted as data.

        Waits for a registration under way. After the end it is kept, marked ``late``, for
        GATEWAY_LATE_EVENT_SECONDS; then 410. Never writes for a session that does not exist.
        """
        session_id = session_id_of(request)
        body = await parse_body(request, PostEvent)
        noted = await self.note(session_id, body.type, body.data, t=body.t)
        answer = {"id": noted.id, "sessionId": session_id, "late": noted.late}
        return web.json_response(answer, status=201)

    async def note(
        self,
        session_id: SessionId,
        kind: str,
        data: JsonValue,
        *,
        t: float | str | None = None,
    ) -> Noted:
        """Append an event of a client; ``t`` is the client's own word on when it was.

        Raises SessionNotFound after the wait, SessionEnded, PayloadTooLarge.
        """
        entry: dict[str, Any] = {"type": kind, "data": data, SOURCE: "client"}
        if t is not None:
            entry["t"] = t
        self._check_size(entry)
        late_seconds = self._settings.late_event_seconds
        try:
            return await self._registry.note(session_id, entry, late_seconds=late_seconds)
        except SessionNotFound:
            await self._lookup.known(session_id, seconds=self._settings.event_wait_seconds)
        return await self._registry.note(session_id, entry, late_seconds=late_seconds)

    def _check_size(self, entry: dict[str, Any]) -> None:
        try:
            size = len(json.dumps(entry, allow_nan=False, separators=(",", ":")))
        except ValueError as exc:
            raise BadRequest("the event holds a number that JSON does not have") from exc
        if size > self._settings.max_event_bytes:
            raise PayloadTooLarge(
                f"the event has {size} bytes as JSON, more than the "
                f"{self._settings.max_event_bytes} that {PREFIX}MAX_EVENT_BYTES allows"
            )
