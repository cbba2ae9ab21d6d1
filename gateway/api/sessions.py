"""The session calls: create, read, list, edit, stop, delete, logs, events."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web
from pydantic import JsonValue

from gateway.api.events import Encode, EventStreams, encode_event, encode_own_event, entry_id
from gateway.api.problems import parse_body
from gateway.api.schemas import (
    CreateSession,
    PatchFiles,
    PatchSession,
    Urls,
    encode_metadata,
    merged,
    timestamp,
    view,
)
from gateway.api.targets import parse_target, resolve_target
from gateway.errors import BadRequest, SessionEnded, SessionNotFound
from gateway.lifecycle import Lifecycle
from gateway.registry.base import NewSession, Registry
from gateway.session import (
    ENDED,
    Recipe,
    Session,
    SessionId,
    State,
    content_digest,
    new_session_id,
    parse_session_id,
)
from gateway.settings import Settings

#: How long a call waits for the registration of its session.
STATUS_WAIT_SECONDS: Final = 5.0
STREAM_WAIT_SECONDS: Final = 10.0
_MAX_WAIT_SECONDS: Final = 300.0
_MAX_LOG_ENTRIES: Final = 2000


class SessionApi:
    """Handlers of ``/api/v1/sessions``.

    ``check_files`` raises BadFiles, ``check_project`` UnsupportedProject.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        lifecycle: Lifecycle,
        *,
        streams: EventStreams,
        check_files: Callable[[Mapping[str, bytes]], None],
        check_project: Callable[[Recipe, Mapping[str, bytes]], None],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._lifecycle = lifecycle
        self._streams = streams
        self._check_files = check_files
        self._check_project = check_project

    def routes(self) -> list[web.RouteDef]:
        """The routes of these calls."""
        one = "/api/v1/sessions/{id}"
        return [
            web.post("/api/v1/sessions", self.create),
            web.get("/api/v1/sessions", self.list, allow_head=False),
            web.get(one, self.get, allow_head=False),
            web.patch(one, self.patch),
            web.delete(one, self.delete),
            web.patch(one + "/files", self.patch_files),
            web.post(one + "/stop", self.stop),
            web.get(one + "/logs", self.logs, allow_head=False),
            web.get(one + "/events", self.events, allow_head=False),
            web.get("/-/previews/{id}/events", self.page_events, allow_head=False),
        ]

    # -- create ----------------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        """201 new, 200 the same again, 409 the same id with other content."""
        body = await parse_body(request, CreateSession)
        wanted, seconds = _wait_parameters(request, default=30.0)
        session, created = await self.register(body)
        if wanted:
            session = await self._ready(session.id, seconds)
        return web.json_response(
            view(session, self.urls(request)),
            status=201 if created else 200,
            headers={"Location": f"/api/v1/sessions/{session.id}"},
        )

    async def register(self, body: CreateSession) -> tuple[Session, bool]:
        """Register what ``body`` describes and begin to start it."""
        settings = self._settings
        session_id = parse_session_id(body.id) if body.id else new_session_id()
        files = body.contents()
        target = parse_target(body.target) if body.target else None
        recipe = body.recipe(str(target or ""))
        self._check_visibility(body.visibility)
        self._check(recipe, files)
        known = self._registry.addresses()
        endpoint = await resolve_target(target, settings, registry=known) if target else None
        registered = await self._lifecycle.create(
            NewSession(
                id=session_id,
                digest=content_digest(recipe, files),
                recipe=recipe,
                files=files,
                base="/" if settings.preview_domain else f"/preview/{session_id}/",
                ttl_seconds=body.ttl_seconds or settings.session_ttl_seconds,
                idle_seconds=(
                    settings.idle_seconds if body.idle_seconds is None else body.idle_seconds
                ),
                public=body.visibility == "public",
                metadata=encode_metadata(body.metadata),
                endpoint=endpoint,
            )
        )
        return registered.session, registered.created

    def _check(self, recipe: Recipe, files: Mapping[str, bytes]) -> None:
        """Refuse at once what can be known to fail."""
        if recipe.target:
            if files or recipe.command or recipe.framework or recipe.env:
                raise BadRequest(
                    "a target session runs elsewhere: leave files, command, framework and env out"
                )
            return
        if self._settings.spawner == "none":
            raise BadRequest("this gateway starts no dev servers: create sessions with a target")
        if not files and not recipe.command:
            raise BadRequest("send `files` with a package.json, a `command`, or a `target`")
        self._check_files(files)
        self._check_project(recipe, files)

    def _check_visibility(self, visibility: str | None) -> None:
        if visibility == "private" and not self._settings.tokens:
            raise BadRequest("a private preview needs GATEWAY_API_TOKENS, by which it is opened")

    # -- read ------------------------------------------------------------------------------------

    async def get(self, request: web.Request) -> web.Response:
        """The session; with ``?wait=ready`` as soon as it is ready or has ended."""
        session_id = _session_id(request)
        wanted, seconds = _wait_parameters(request, default=10.0)
        if wanted:
            session = await self._ready(session_id, seconds)
        else:
            session = await self._known(session_id)
        return web.json_response(view(session, self.urls(request)))

    async def list(self, request: web.Request) -> web.Response:
        """Sessions, newest first."""
        state = request.query.get("state")
        if state and state not in set(State):
            raise BadRequest(f"state: {state[:40]!r} is none of {', '.join(State)}")
        page = await self._registry.sessions(
            wanted=(lambda session: session.state == state) if state else None,
            limit=_whole_number(request, "limit", default=100, high=1000),
            cursor=request.query.get("cursor", ""),
        )
        urls = self.urls(request)
        return web.json_response(
            {"sessions": [view(session, urls) for session in page.sessions], "cursor": page.cursor}
        )

    async def logs(self, request: web.Request) -> web.Response:
        """The log as plain text."""
        session_id = _session_id(request)
        await self._known(session_id)
        tail = _whole_number(request, "tail", default=500, high=100_000)
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
        session_id = _session_id(request)
        after = entry_id(request.headers.get("Last-Event-ID") or "0")
        await self._lifecycle.wait(session_id, lambda _: True, seconds=STREAM_WAIT_SECONDS)
        return await self._streams.respond(request, session_id, after=after, encode=encode)

    # -- change ----------------------------------------------------------------------------------

    async def patch(self, request: web.Request) -> web.Response:
        """Change metadata, visibility, life time."""
        session_id = _session_id(request)
        body = await parse_body(request, PatchSession)
        self._check_visibility(body.visibility)
        await self._known(session_id)
        session = await self._registry.patch(
            session_id,
            metadata=_merge(body.metadata) if body.metadata is not None else None,
            public=body.visibility == "public" if body.visibility else None,
            ttl_seconds=body.ttl_seconds,
        )
        return web.json_response(view(session, self.urls(request)))

    async def patch_files(self, request: web.Request) -> web.Response:
        """Hot edit; answers the new revision."""
        session_id = _session_id(request)
        body = await parse_body(request, PatchFiles)
        write = body.contents()
        if not write and not body.delete:
            raise BadRequest("nothing to `write` and nothing to `delete`")
        session = await self._known(session_id)
        if session.recipe.target:
            raise BadRequest("a target session has no files here")
        if session.state in ENDED or session.state is State.STOPPING:
            raise SessionEnded(session.id, state=session.state, reason=session.reason)
        self._check_files(dict.fromkeys(body.delete, b""))
        self._check_files(write)
        # Deleted before written, as the registry does it: a file may become a folder.
        files = await self._registry.files(session_id)
        for path in body.delete:
            files.pop(path, None)
        self._check_files(files | write)
        session = await self._lifecycle.edit(
            session_id, write=write, delete=body.delete, base_revision=body.base_revision
        )
        return web.json_response(
            {"id": session.id, "revision": session.revision, "state": session.state}
        )

    async def stop(self, request: web.Request) -> web.Response:
        """Stop; a session that has ended already is a success that says so."""
        session_id = _session_id(request)
        session, already = await self._lifecycle.stop(session_id, reason="stopped by request")
        return web.json_response(
            {
                "id": session.id,
                "state": session.state,
                "alreadyStopped": already,
                "reason": session.reason,
                "stoppedAt": timestamp(session.ended_at_ms) if session.ended_at_ms else None,
            }
        )

    async def delete(self, request: web.Request) -> web.Response:
        """Stop and forget the files."""
        session_id = _session_id(request)
        try:
            await self._lifecycle.stop(session_id, reason="deleted by request")
            await self._registry.forget(session_id)
        except SessionNotFound:
            return web.Response(status=204)
        return web.Response(status=204)

    # -- shared ----------------------------------------------------------------------------------

    async def _known(self, session_id: SessionId) -> Session:
        return await self._lifecycle.wait(session_id, lambda _: True, seconds=STATUS_WAIT_SECONDS)

    async def _ready(self, session_id: SessionId, seconds: float) -> Session:
        """Wait until the session is ready or has ended; a sleeping one is woken."""
        session = await self._known(session_id)
        if session.state is State.SLEEPING:
            await self._lifecycle.wake(session_id, generation=session.generation)
        return await self._lifecycle.wait(
            session_id,
            lambda s: s.state is State.READY or s.state in ENDED,
            seconds=seconds,
        )

    def urls(self, request: web.Request) -> Urls:
        """Public addresses as this caller knows them."""
        settings = self._settings
        # Both are the data plane's word, which is the only one to reach this application.
        scheme = request.headers.get("X-Forwarded-Proto", "http")
        base = settings.public_url or f"{scheme}://{request.host}"
        return Urls(base=base, preview_domain=settings.preview_domain)


def _session_id(request: web.Request) -> SessionId:
    return parse_session_id(request.match_info["id"])


def _merge(patch: dict[str, JsonValue]) -> Callable[[str], str]:
    """Metadata with ``patch`` merged into it (RFC 7396): null removes a member."""
    return lambda text: encode_metadata(merged(json.loads(text), patch))


def _wait_parameters(request: web.Request, *, default: float) -> tuple[bool, float]:
    wanted = request.query.get("wait", "")
    if wanted not in ("", "ready"):
        raise BadRequest(f"wait: {wanted[:40]!r} is not `ready`")
    return bool(wanted), _number(
        request, "timeout", default=default, low=0.0, high=_MAX_WAIT_SECONDS
    )


def _number(request: web.Request, name: str, *, default: float, low: float, high: float) -> float:
    text = request.query.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError as exc:
        raise BadRequest(f"{name}: {text[:40]!r} is no number") from exc
    if not low <= number <= high:
        raise BadRequest(f"{name}: must lie between {low:g} and {high:g}")
    return number


def _whole_number(request: web.Request, name: str, *, default: int, high: int) -> int:
    number = _number(request, name, default=default, low=1, high=high)
    if number != int(number):
        raise BadRequest(f"{name}: must be a whole number")
    return int(number)
