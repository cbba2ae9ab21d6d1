"""The session calls: create, read, list, change, stop, delete, events, logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from aiohttp import web
from pydantic import JsonValue

from gateway.api import query
from gateway.api.bodies import is_archive, parse_body, read_archive, validated
from gateway.api.creation import Creation, idempotency_key
from gateway.api.events import Encode, EventStreams, encode_event, encode_own_event, entry_id
from gateway.api.gate import caller_of
from gateway.api.lookup import Lookup, session_id_of
from gateway.api.problems import SESSION_ID
from gateway.api.schemas import (
    CreateSession,
    PatchSession,
    StopView,
    encode_metadata,
    merged,
    view,
)
from gateway.errors import BadRequest, SessionNotFound
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Registry
from gateway.session import Session
from gateway.settings import Settings
from gateway.tokens import Caller, Scope

_MAX_LOG_ENTRIES: Final = 2000

Wanted: TypeAlias = Callable[[Session], bool]


class SessionApi:
    """Handlers of ``/api/v1/sessions``."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        lifecycle: Lifecycle,
        *,
        lookup: Lookup,
        creation: Creation,
        streams: EventStreams,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._lifecycle = lifecycle
        self._lookup = lookup
        self._creation = creation
        self._streams = streams

    def routes(self) -> list[web.RouteDef]:
        """The routes of these calls."""
        one = "/api/v1/sessions/{id}"
        return [
            web.post("/api/v1/sessions", self.create),
            web.get("/api/v1/sessions", self.list, allow_head=False),
            web.get(one, self.get, allow_head=False),
            web.patch(one, self.patch),
            web.delete(one, self.delete),
            web.post(one + "/stop", self.stop),
            web.get(one + "/logs", self.logs, allow_head=False),
            web.get(one + "/events", self.events, allow_head=False),
            web.get("/-/previews/{id}/events", self.page_events, allow_head=False),
        ]

    # -- create ----------------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        """201 new, 200 the same again, 409 the same id with other content.

        The body is JSON, or the files as tar.gz with everything else as JSON in ``?session=``.
        With an ``Idempotency-Key`` a repeated call gets the session of the first, also where the
        id is made up here; 422 if the key comes with another body.
        """
        wanted, seconds = query.wait(request, default=30.0)
        key = idempotency_key(request, caller_of(request))
        if is_archive(request):
            body = _options(request)
            files = await self._creation.unpacked(await read_archive(request))
        else:
            body = await parse_body(request, CreateSession, with_files=True)
            files = body.contents()
        registered = await self._creation.create(body, files, key=key, caller=caller_of(request))
        session = registered.session
        request[SESSION_ID] = session.id
        if wanted:
            session = await self._lookup.settled(session.id, wanted, seconds=seconds)
        return web.json_response(
            view(session, self._lookup.urls(request)),
            status=201 if registered.created else 200,
            headers={"Location": f"/api/v1/sessions/{session.id}"},
        )

    # -- read ------------------------------------------------------------------------------------

    async def get(self, request: web.Request) -> web.Response:
        """The session, ended ones included; waits for a registration under way.

        ``?wait=ready`` answers as soon as it is ready or has ended, ``?wait=ended`` as soon as it
        has ended, and both after ``timeout`` seconds with the session as it is then.
        """
        wanted, seconds = query.wait(request, default=10.0)
        session = await self._lookup.settled(session_id_of(request), wanted, seconds=seconds)
        return web.json_response(view(session, self._lookup.urls(request)))

    async def list(self, request: web.Request) -> web.Response:
        """Sessions, newest first, of a ``state``, ``visibility``, ``owner`` or ``metadata.<name>``.

        Pages may hold fewer than ``limit``, or none: only an empty ``cursor`` is the end.
        """
        page = await self._registry.sessions(
            wanted=_managed(caller_of(request), query.session_filter(request)),
            limit=query.whole_number(request, "limit", default=100, high=1000),
            cursor=request.query.get("cursor", ""),
        )
        urls = self._lookup.urls(request)
        return web.json_response(
            {"sessions": [view(session, urls) for session in page.sessions], "cursor": page.cursor}
        )

    async def logs(self, request: web.Request) -> web.Response:
        """The last ``tail`` lines of the dev server's log as plain text."""
        session_id = session_id_of(request)
        await self._lookup.known(session_id)
        tail = query.whole_number(request, "tail", default=500, high=100_000)
        entries = await self._registry.recent_events(session_id, count=_MAX_LOG_ENTRIES)
        lines = [
            str(line)
            for entry in entries
            if entry.type == "log"
            for line in entry.data.get("lines", [])
        ]
        return web.Response(text="".join(f"{line}\n" for line in lines[-tail:]))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The event stream; opened early, it waits for the registration."""
        return await self.stream(request, encode_event)

    async def page_events(self, request: web.Request) -> web.StreamResponse:
        """The same for the starting page, without what clients have posted."""
        return await self.stream(request, encode_own_event)

    async def stream(self, request: web.Request, encode: Encode) -> web.StreamResponse:
        """The event stream of the session that the request names, each entry as ``encode``."""
        session_id = session_id_of(request)
        after = entry_id(request.headers.get("Last-Event-ID") or "0")
        await self._lookup.known(session_id, seconds=self._settings.stream_wait_seconds)
        return await self._streams.respond(request, session_id, after=after, encode=encode)

    # -- change ----------------------------------------------------------------------------------

    async def patch(self, request: web.Request) -> web.Response:
        """Change metadata, visibility, life time; what is left out stays.

        ``metadata`` is merged into what is there (RFC 7396): null removes a member.
        ``ttlSeconds`` counts from now. 410 for a session that has ended.
        """
        session_id = session_id_of(request)
        body = await parse_body(request, PatchSession)
        self._creation.check_visibility(body.visibility)
        await self._lookup.known(session_id)
        session = await self._registry.patch(
            session_id,
            metadata=merging(body.metadata) if body.metadata is not None else None,
            public=body.visibility == "public" if body.visibility else None,
            ttl_seconds=body.ttl_seconds,
        )
        return web.json_response(view(session, self._lookup.urls(request)))

    async def stop(self, request: web.Request) -> web.Response:
        """Stop; a session that has ended already, however that came, is a success that says so.

        404 only for an id that never existed.
        """
        session_id = session_id_of(request)
        session, already = await self._lifecycle.stop(session_id, reason="stopped by request")
        return web.json_response(StopView.of(session, already=already).model_dump(by_alias=True))

    async def delete(self, request: web.Request) -> web.Response:
        """Stop and forget files and events. 204, however often."""
        session_id = session_id_of(request)
        try:
            await self._lifecycle.stop(session_id, reason="deleted by request")
            await self._registry.forget(session_id)
        except SessionNotFound:
            return web.Response(status=204)
        return web.Response(status=204)


def merging(patch: dict[str, JsonValue]) -> Callable[[str], str]:
    """Makes of metadata those with ``patch`` merged into them (RFC 7396)."""
    return lambda text: encode_metadata(merged(json.loads(text), patch))


def _options(request: web.Request) -> CreateSession:
    """What a create call with an archive says of the session beside its files."""
    body = validated(CreateSession, request.query.get("session") or "{}")
    present: dict[str, Any] = {"files": body.files, "packageJson": body.package_json}
    for name, value in present.items():
        if value:
            raise BadRequest(f"session.{name}: the files come as the body: put them there")
    return body


def _managed(caller: Caller, wanted: Wanted | None) -> Wanted | None:
    """Of the sessions that are ``wanted``, those that are the caller's."""
    if caller.scope is Scope.ADMIN:
        return wanted
    return lambda session: caller.manages(session.creator) and (wanted is None or wanted(session))
