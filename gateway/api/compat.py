"""Calls of older shapes, for code that was written against them. All of them are here.

Each is a thin layer over the session calls, and each stands for a failure of what it replaces: an
event or an experiment id that came before its session (404), a row that referred to a session that
was never stored, a session that was stopped twice (404), a stream that was opened a millisecond
early. So each of them waits, or reserves the id, or says that it was done before.

A *reserved* id is a session without content: it can be written to, and the first create call with
content begins it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from gateway.api.bodies import parse_body
from gateway.api.creation import Creation
from gateway.api.events import SOURCE, EventStreams, entry_id, event_block
from gateway.api.gate import caller_of
from gateway.api.lookup import Lookup, session_id_of
from gateway.api.notes import NotesApi
from gateway.api.problems import SESSION_ID, OlderShape
from gateway.api.schemas import (
    EVENT_TYPE,
    CreateSession,
    SourceFile,
    encode_metadata,
    merged,
)
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Registry, StreamEvent
from gateway.session import (
    ENDED,
    HELD,
    Session,
    SessionId,
    State,
    new_session_id,
    parse_session_id,
)
from gateway.settings import Settings

_STOP_REASON: Final = "stopped by request"


class _Older(BaseModel):
    """Fields that are not known are of no interest: callers send many."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _File(_Older):
    path: str
    content: str


class _Sources(_Older):
    """A project; ``files`` is a list, or an object from path to content."""

    files: list[_File] | dict[str, str]
    packageJson: dict[str, JsonValue] | str | None = None  # noqa: N815 - the shape is given

    def to_create(self, session_id: str | None) -> CreateSession:
        """The call of today."""
        files = self.files
        if isinstance(files, dict):
            listed = [SourceFile(path=path, content=content) for path, content in files.items()]
        else:
            listed = [SourceFile(path=file.path, content=file.content) for file in files]
        package = self.packageJson
        if package is not None:
            # Callers of this shape send package.json in both places; the separate one counts.
            listed = [file for file in listed if file.path != "package.json"]
        if isinstance(package, str):
            listed.append(SourceFile(path="package.json", content=package))
            package = None
        return CreateSession(id=session_id, files=listed, package_json=package)


class _Preview(_Sources):
    sessionId: str | None = None  # noqa: N815


class _Event(_Older):
    type: str = Field(pattern=EVENT_TYPE)
    t: float | str | None = Field(default=None, union_mode="left_to_right")
    data: JsonValue = None


class _PostEvent(_Older):
    session_id: str
    event: _Event


class _Experiment(_Older):
    experiment_id: str | int


class _Create(_Older):
    session_id: str | None = None
    user_id: str | int | None = None


class _Interaction(_Older):
    prompt: str
    response: str


class _Start(_Create):
    files: list[_File] | dict[str, str] | None = None
    packageJson: dict[str, JsonValue] | str | None = None  # noqa: N815


class _Stop(_Older):
    session_id: str


class CompatApi:
    """Handlers of the older calls, in terms of the session calls."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        lifecycle: Lifecycle,
        *,
        lookup: Lookup,
        creation: Creation,
        notes: NotesApi,
        streams: EventStreams,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._lifecycle = lifecycle
        self._lookup = lookup
        self._creation = creation
        self._notes = notes
        self._streams = streams

    def routes(self) -> list[web.RouteDef]:
        """The routes of these calls."""
        return [
            web.post("/kontext/preview", self.preview),
            web.post("/api/v1/session/event", self.event),
            web.post("/api/v1/session/{id}/experiment", self.experiment),
            web.post("/session/create", self.create),
            web.post("/session/{id}/interactions", self.interaction),
            web.post("/sessions/start", self.start),
            web.post("/sessions/stop", self.stop),
            web.post("/api/v1/interview/start", self.start_interview),
            web.get("/api/v1/interview/{id}/stream", self.interview_stream, allow_head=False),
            web.get("/api/v1/interview/{id}/status", self.interview_status, allow_head=False),
        ]

    @staticmethod
    def shapes() -> dict[str, OlderShape]:
        """By route, what an error has besides the members of a problem document."""
        others = (
            "/api/v1/session/event",
            "/api/v1/session/{id}/experiment",
            "/session/create",
            "/session/{id}/interactions",
            "/sessions/start",
            "/sessions/stop",
            "/api/v1/interview/start",
            "/api/v1/interview/{id}/stream",
            "/api/v1/interview/{id}/status",
        )
        return {"/kontext/preview": _kontext_error, **dict.fromkeys(others, _coded_error)}

    # -- previews --------------------------------------------------------------------------------

    async def preview(self, request: web.Request) -> web.Response:
        """``{success, sessionId, previewUrl, wsUrl}``; the preview can be opened on any replica.

        Errors have ``{success: false, error, sessionId, retries}``, too, as has the 404 of a
        preview that does not exist.
        """
        body = await parse_body(request, _Preview, with_files=True)
        request[SESSION_ID] = body.sessionId
        session = await self._created(request, body, body.sessionId)
        urls = self._lookup.urls(request)
        return web.json_response(
            {
                "success": True,
                "sessionId": session.id,
                "previewUrl": urls.preview(session.id),
                "wsUrl": urls.hmr(session.id),
            }
        )

    async def _created(
        self, request: web.Request, sources: _Sources, session_id: str | None
    ) -> Session:
        create = sources.to_create(session_id)
        caller = caller_of(request)
        return (await self._creation.create(create, create.contents(), caller=caller)).session

    # -- events and experiments ------------------------------------------------------------------

    async def event(self, request: web.Request) -> web.Response:
        """``{success, session_id, event_id, late}``; waits for a session under way."""
        body = await parse_body(request, _PostEvent)
        session_id = _named(request, body.session_id)
        event = body.event
        noted = await self._notes.note(session_id, event.type, event.data, t=event.t)
        return web.json_response(
            {"success": True, "session_id": session_id, "event_id": noted.id, "late": noted.late}
        )

    async def experiment(self, request: web.Request) -> web.Response:
        """``{success, session_id, experiment_id}``; waits for a session under way.

        The id becomes the member ``experiment_id`` of the session's metadata.
        """
        session_id = session_id_of(request)
        body = await parse_body(request, _Experiment)
        await self._lookup.known(session_id, seconds=self._settings.event_wait_seconds)

        def with_experiment(text: str) -> str:
            patch: dict[str, JsonValue] = {"experiment_id": body.experiment_id}
            return encode_metadata(merged(json.loads(text), patch))

        await self._registry.patch(session_id, metadata=with_experiment)
        return web.json_response(
            {"success": True, "session_id": session_id, "experiment_id": body.experiment_id}
        )

    # -- sessions without content ----------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        """``{session_id}``: stored when this answers. An id that exists already is accepted."""
        body = await parse_body(request, _Create)
        session = await self._reserved(request, body)
        return web.json_response({"session_id": session.id})

    async def _reserved(self, request: web.Request, body: _Create) -> Session:
        session_id = _named(request, body.session_id)
        metadata: dict[str, JsonValue] = {}
        if body.user_id is not None:
            metadata["user_id"] = body.user_id
        return await self._creation.reserve(session_id, encode_metadata(metadata))

    async def interaction(self, request: web.Request) -> web.Response:
        """``{session_id, interaction_id}``: kept in the stream of a session that is stored.

        Waits for a session under way; 404 then: nothing refers to a session that does not exist.
        """
        session_id = session_id_of(request)
        body = await parse_body(request, _Interaction)
        data: JsonValue = {"prompt": body.prompt, "response": body.response}
        noted = await self._notes.note(session_id, "interaction", data)
        return web.json_response({"session_id": session_id, "interaction_id": noted.id})

    # -- start and stop --------------------------------------------------------------------------

    async def start(self, request: web.Request) -> web.Response:
        """``{status: "session_started", data: {session_id}}``; begun at once if files came."""
        body = await parse_body(request, _Start, with_files=True)
        if body.files is None:
            session = await self._reserved(request, body)
        else:
            sources = _Sources(files=body.files, packageJson=body.packageJson)
            session = await self._created(request, sources, body.session_id)
            request[SESSION_ID] = session.id
        return web.json_response({"status": "session_started", "data": {"session_id": session.id}})

    async def stop(self, request: web.Request) -> web.Response:
        """200 for every session that exists or existed; 404 ``session_not_found`` for others."""
        body = await parse_body(request, _Stop)
        session_id = _named(request, body.session_id)
        before = await self._registry.session(session_id)
        session, already = await self._lifecycle.stop(session_id, reason=_STOP_REASON)
        data: dict[str, Any] = {
            "session_id": session.id,
            "stopped_via": "already_stopped" if already else "request",
            "was_orphaned": before is not None and await self._is_orphaned(before),
        }
        if already:
            data["note"] = f"it was {session.state}: {session.reason or 'no reason given'}"
        return web.json_response({"status": "session_stopped", "data": data})

    async def _is_orphaned(self, session: Session) -> bool:
        """Whether the replica that was to run the session's dev server is gone."""
        is_held = session.state in HELD and not session.recipe.target and not session.reserved
        return is_held and not await self._registry.is_alive(session.owner)

    # -- interviews ------------------------------------------------------------------------------

    async def start_interview(self, request: web.Request) -> web.Response:
        """``{session_id, task_id}``, one and the same id, reserved when this answers."""
        body = await parse_body(request, _Create)
        session = await self._reserved(request, body)
        return web.json_response({"session_id": session.id, "task_id": session.id})

    async def interview_stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events, as posted to the session: ``ai_response``, ``transcription``, ...

        ``status`` tells the session's states; the end is ``complete``, or ``error`` if it failed.
        Opened early, it waits for the session.
        """
        session_id = session_id_of(request)
        after = entry_id(request.headers.get("Last-Event-ID") or "0")
        await self._lookup.known(session_id, seconds=self._settings.stream_wait_seconds)
        return await self._streams.respond(
            request, session_id, after=after, encode=_encode_interview
        )

    async def interview_status(self, request: web.Request) -> web.Response:
        """``{session_id, task_id, status, reason}``; waits for a session under way."""
        session = await self._lookup.known(session_id_of(request))
        return web.json_response(
            {
                "session_id": session.id,
                "task_id": session.id,
                "status": session.state,
                "ended": session.state in ENDED,
                "reason": session.reason,
            }
        )


def _named(request: web.Request, text: str | None) -> SessionId:
    """The id that a body names, or a new one; raises BadSessionId."""
    session_id = parse_session_id(text) if text is not None else new_session_id()
    request[SESSION_ID] = session_id
    return session_id


def _encode_interview(event: StreamEvent) -> bytes:
    """An entry under the name that a client gave it; nothing of what else is in the stream."""
    data = event.data
    if event.type == "event" and SOURCE in data:
        return event_block(str(data["type"]), data["data"], entry=event.id)
    if event.type == "state":
        return event_block("status", {"status": data["state"]}, entry=event.id)
    if event.type == "end":
        kind = "error" if data["state"] == State.FAILED else "complete"
        shown = {"status": data["state"], "reason": data["reason"]}
        return event_block(kind, shown, entry=event.id)
    return b""


def _kontext_error(request: web.Request, problem: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "success": False,
        "error": problem["detail"],
        "sessionId": request.get(SESSION_ID),
        "retries": 0,  # waiting is done here, without any
    }


def _coded_error(request: web.Request, problem: Mapping[str, Any]) -> dict[str, Any]:
    session_id = request.match_info.get("id") or request.get(SESSION_ID)
    return {"error": problem["code"], "session_id": session_id}
