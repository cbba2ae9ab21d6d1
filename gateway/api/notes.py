"""Events that clients post to a session's stream."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from pydantic import JsonValue

from gateway.api.events import SOURCE
from gateway.api.lookup import Lookup
from gateway.api.operation import MANAGERS, Answer, Call, operation
from gateway.api.query import Query
from gateway.api.schemas import PostEvent
from gateway.api.views import NotedView
from gateway.errors import BadRequest, PayloadTooLarge, SessionEnded, SessionNotFound
from gateway.registry.base import Noted, Registry
from gateway.session import SessionId
from gateway.settings import PREFIX, Settings


class NotesApi:
    """Handler of ``POST /api/v1/sessions/{id}/events``."""

    def __init__(self, settings: Settings, registry: Registry, lookup: Lookup) -> None:
        self._settings = settings
        self._registry = registry
        self._lookup = lookup

    @operation(
        "postEvent",
        "POST",
        "/api/v1/sessions/{id}/events",
        tag="events",
        scopes=MANAGERS,
        answers={201: Answer("It is kept.", NotedView)},
        problems=(SessionNotFound, SessionEnded),
    )
    async def post(self, call: Call[Query, PostEvent]) -> web.Response:
        """Post an event.

        It comes out of the session's stream as `event` with `{type, data, t?, source: "client"}`.
        For `GATEWAY_LATE_EVENT_SECONDS` after the end it is still kept, with `late: true`; then
        410. The stream keeps about the last 2,000 entries. Who looks at the preview does not get
        these events. Nothing is ever written for a session that does not exist.
        """
        body = call.body
        noted = await self.note(call.session_id, body.type, body.data, t=body.t)
        view = NotedView(id=noted.id, session_id=call.session_id, late=noted.late)
        return call.answer(view, status=201)

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
