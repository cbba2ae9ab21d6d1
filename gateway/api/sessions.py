"""The session calls: create, read, list, change, stop, delete, events, logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from aiohttp import web
from pydantic import JsonValue

from gateway.api.bodies import Archive, validated
from gateway.api.creation import (
    CREATION_PROBLEMS,
    IDEMPOTENCY_KEY,
    Creation,
    KeyReused,
    idempotency_key,
)
from gateway.api.events import (
    LAST_EVENT_ID,
    Encode,
    EventStreams,
    encode_event,
    encode_own_event,
)
from gateway.api.gate import caller_of
from gateway.api.lookup import Lookup
from gateway.api.operation import INTERNAL, MANAGERS, OPEN, READERS, Answer, Call, operation
from gateway.api.problems import SESSION_ID
from gateway.api.query import (
    AnyQuery,
    CreateQuery,
    GetQuery,
    ListQuery,
    LogsQuery,
    Query,
    StreamQuery,
    session_filter,
)
from gateway.api.schemas import CreateSession, PatchSession, encode_metadata, merged
from gateway.api.views import SessionPage, SessionView, StopView
from gateway.errors import BadRequest, NotAcknowledged, SessionEnded, SessionNotFound
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Registry
from gateway.session import Session
from gateway.settings import Settings
from gateway.tokens import Caller, Scope

SESSIONS: Final = "/api/v1/sessions"
SESSION: Final = "/api/v1/sessions/{id}"
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

    # -- create ----------------------------------------------------------------------------------

    @operation(
        "createSession",
        "POST",
        SESSIONS,
        tag="sessions",
        scopes=MANAGERS,
        answers={
            201: Answer(
                "As soon as the registration is verified; with `wait`, see there.",
                SessionView,
                session_at="/id",
                fields={"Location": "The address of the session."},
            ),
            200: Answer(
                "The same id and content is there already.",
                SessionView,
                session_at="/id",
                fields={"Location": "The address of the session."},
            ),
        },
        problems=(*CREATION_PROBLEMS, KeyReused, NotAcknowledged),
        fields=(IDEMPOTENCY_KEY,),
        with_files=True,
    )
    async def create(self, call: Call[CreateQuery, CreateSession | Archive]) -> web.Response:
        """Create a session.

        201 with the session as soon as its registration is verified; 200 if the same id and
        content is there already; 409 `session_conflict` if the id is there with other content. An
        id that has ended begins anew. With `?wait=ready&timeout=30` the answer comes when the
        preview is ready or has failed, or after the time-out with the state as it is then.

        `Idempotency-Key`: for `GATEWAY_IDEMPOTENCY_SECONDS` a call with the same key and body
        gets the session of the first, also where the id was made up; 422
        `idempotency_key_reused` if the body is another one.

        As tar.gz (`Content-Type: application/gzip`) the body is the files; the other fields are
        JSON in `?session=`. Regular files and folders only; paths and sizes are checked as for
        JSON.
        """
        request = call.request
        caller = caller_of(request)
        key = idempotency_key(call.field(IDEMPOTENCY_KEY), caller)
        if isinstance(call.body, Archive):
            body = _options(call.query.session)
            files = await self._creation.unpacked(call.body.data)
        else:
            body = call.body
            files = body.contents()
            if call.query.session:
                raise BadRequest("session: goes with a tar.gz as body: put the fields in the JSON")
        registered = await self._creation.create(body, files, key=key, caller=caller)
        session = registered.session
        request[SESSION_ID] = session.id
        session = await self._lookup.become(session, call.query.wait, seconds=call.query.timeout)
        return call.answer(
            SessionView.of(session, self._lookup.urls(request)),
            status=201 if registered.created else 200,
            headers={"Location": f"{SESSIONS}/{session.id}"},
        )

    # -- read ------------------------------------------------------------------------------------

    @operation(
        "getSession",
        "GET",
        SESSION,
        tag="sessions",
        scopes=READERS,
        answers={200: Answer("The session.", SessionView)},
        problems=(SessionNotFound, SessionEnded),
    )
    async def get(self, call: Call[GetQuery, None]) -> web.Response:
        """Read a session.

        The session, ended ones included (410 once it is deleted); waits for a registration under
        way. `?wait=ready` answers as soon as it is ready or has ended (and wakes one that sleeps),
        `?wait=ended` as soon as it has ended; both answer after `timeout` seconds with the session
        as it is then. It is the way for callers without event streams, too: ask again while the
        state is not what you wait for.
        """
        session = await self._lookup.settled(
            call.session_id, call.query.wait, seconds=call.query.timeout
        )
        return call.answer(SessionView.of(session, self._lookup.urls(call.request)))

    @operation(
        "listSessions",
        "GET",
        SESSIONS,
        tag="sessions",
        scopes=MANAGERS,
        answers={200: Answer("A page of the list.", SessionPage)},
    )
    async def list(self, call: Call[ListQuery, None]) -> web.Response:
        """List sessions.

        Newest first. A page may hold fewer than `limit`, even none: only an empty cursor is the
        end.
        """
        page = await self._registry.sessions(
            wanted=_shown(caller_of(call.request), session_filter(call.query)),
            limit=call.query.limit,
            cursor=call.query.cursor,
        )
        urls = self._lookup.urls(call.request)
        shown = [SessionView.of(session, urls) for session in page.sessions]
        return call.answer(SessionPage(sessions=shown, cursor=page.cursor))

    @operation(
        "getLogs",
        "GET",
        SESSION + "/logs",
        tag="sessions",
        scopes=READERS,
        answers={200: Answer("The lines.", media="text/plain")},
        problems=(SessionNotFound, SessionEnded),
    )
    async def logs(self, call: Call[LogsQuery, None]) -> web.Response:
        """Read the end of the dev server's log, as plain text."""
        session_id = call.session_id
        await self._lookup.known(session_id)
        entries = await self._registry.recent_events(session_id, count=_MAX_LOG_ENTRIES)
        lines = [
            str(line)
            for entry in entries
            if entry.type == "log"
            for line in entry.data.get("lines", [])
        ]
        text = "".join(f"{line}\n" for line in lines[-call.query.tail :])
        return call.content(text.encode("utf-8", "replace"), "text/plain")

    @operation(
        "streamEvents",
        "GET",
        SESSION + "/events",
        tag="events",
        scopes=READERS,
        answers={200: Answer("The stream.", media="text/event-stream")},
        problems=(SessionNotFound, SessionEnded),
        fields=(LAST_EVENT_ID,),
        by_ticket=True,
    )
    async def events(self, call: Call[StreamQuery, None]) -> web.StreamResponse:
        """Listen to a session.

        Server-sent events, from any replica. Ids resume by `Last-Event-ID`; a comment comes every
        15 s; opened early, the stream waits for the registration.

        | Event | Data |
        |---|---|
        | `state` | `{state, generation, previousState?, reason?}` |
        | `log` | `{lines: [...]}` |
        | `event` | `{type: "phase", phase: "preparing" / "installing" / "starting", detail?}`, \
        `{type: "files", revision}`, `{type: "patch"}`, and what clients post |
        | `degraded` | `{reason}`: the registry is away; the stream goes on when it is back |
        | `end` | `{state, reason}`: the last event |
        """
        return await self._stream(call, encode_event)

    @operation(
        "pageEvents",
        "GET",
        "/-/previews/{id}/events",
        tag=INTERNAL,
        scopes=OPEN,
        answers={200: Answer("The stream.", media="text/event-stream")},
        fields=(LAST_EVENT_ID,),
    )
    async def page_events(self, call: Call[AnyQuery, None]) -> web.StreamResponse:
        """The same for the starting page, without what clients have posted."""
        return await self._stream(call, encode_own_event)

    async def _stream(self, call: Call[Any, None], encode: Encode) -> web.StreamResponse:
        """The event stream of the session that the call names, each entry as ``encode``."""
        after = call.field(LAST_EVENT_ID) or "0"
        await self._lookup.known(call.session_id, seconds=self._settings.stream_wait_seconds)
        return await self._streams.respond(
            call.request, call.session_id, after=after, encode=encode
        )

    # -- change ----------------------------------------------------------------------------------

    @operation(
        "patchSession",
        "PATCH",
        SESSION,
        tag="sessions",
        scopes=MANAGERS,
        answers={200: Answer("The session.", SessionView)},
        problems=(SessionNotFound, SessionEnded),
    )
    async def patch(self, call: Call[Query, PatchSession]) -> web.Response:
        """Change metadata, visibility, life time.

        What is left out stays. Of changes of `metadata` at the same time none is lost.
        """
        body = call.body
        self._creation.check_visibility(body.visibility)
        await self._lookup.known(call.session_id)
        session = await self._registry.patch(
            call.session_id,
            metadata=merging(body.metadata) if body.metadata is not None else None,
            public=body.visibility == "public" if body.visibility else None,
            ttl_seconds=body.ttl_seconds,
        )
        return call.answer(SessionView.of(session, self._lookup.urls(call.request)))

    @operation(
        "stopSession",
        "POST",
        SESSION + "/stop",
        tag="sessions",
        scopes=MANAGERS,
        answers={200: Answer("It has ended, by this call or before.", StopView)},
        problems=(SessionNotFound,),
    )
    async def stop(self, call: Call[Query, None]) -> web.Response:
        """Stop a session.

        The same answer from every replica, however often; a session that has ended already,
        however that came, is a success that says so. 404 only for an id that never existed.
        """
        session, already = await self._lifecycle.stop(call.session_id, reason="stopped by request")
        return call.answer(StopView.of(session, already=already))

    @operation(
        "deleteSession",
        "DELETE",
        SESSION,
        tag="sessions",
        scopes=MANAGERS,
        answers={204: Answer("It is gone.")},
    )
    async def delete(self, call: Call[Query, None]) -> web.Response:
        """Stop a session, and forget its files and events.

        204, however often. What is left is its end: reading it is 410 `session_ended` with
        `state` and `reason`, stopping it says that it has stopped, and its id can be used anew.
        """
        try:
            await self._lifecycle.stop(call.session_id, reason="deleted by request")
            await self._registry.forget(call.session_id)
        except SessionNotFound:
            return call.done()
        return call.done()


def merging(patch: dict[str, JsonValue]) -> Callable[[str], str]:
    """Makes of metadata those with ``patch`` merged into them (RFC 7396)."""
    return lambda text: encode_metadata(merged(json.loads(text), patch))


def _options(text: str) -> CreateSession:
    """What a create call with an archive says of the session beside its files."""
    body = validated(CreateSession, text or "{}")
    present: dict[str, Any] = {"files": body.files, "packageJson": body.package_json}
    for name, value in present.items():
        if value:
            raise BadRequest(f"session.{name}: the files come as the body: put them there")
    return body


def _shown(caller: Caller, wanted: Wanted | None) -> Wanted:
    """Of the sessions that are ``wanted``, those that are the caller's and not deleted."""

    def shown(session: Session) -> bool:
        is_own = caller.scope is Scope.ADMIN or caller.manages(session.creator)
        return is_own and not session.forgotten and (wanted is None or wanted(session))

    return shown
