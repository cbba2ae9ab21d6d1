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
from pydantic import JsonValue

from gateway.api import older
from gateway.api.creation import CREATION_PROBLEMS, Creation
from gateway.api.events import LAST_EVENT_ID, SOURCE, EventStreams, event_block
from gateway.api.gate import caller_of
from gateway.api.lookup import Lookup
from gateway.api.notes import NotesApi
from gateway.api.operation import ADMINS, TICKETED, Answer, Call, operation
from gateway.api.problems import SESSION_ID, OlderShape
from gateway.api.query import AnyQuery, OlderStreamQuery
from gateway.api.schemas import encode_metadata, merged
from gateway.errors import BadSessionId, SessionEnded, SessionNotFound
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

OLDER: Final = "older shapes"
_STOP_REASON: Final = "stopped by request"


def _kontext_error(request: web.Request, problem: Mapping[str, Any]) -> dict[str, Any]:
    return older.PreviewRefusal(
        error=problem["detail"],
        sessionId=request.get(SESSION_ID),
        retries=0,  # waiting is done here, without any
    ).model_dump()


def _coded_error(request: web.Request, problem: Mapping[str, Any]) -> dict[str, Any]:
    session_id = request.match_info.get("id") or request.get(SESSION_ID)
    return older.Refusal(error=problem["code"], session_id=session_id).model_dump()


_KONTEXT: Final = OlderShape(older.PreviewRefusal, _kontext_error)
_CODED: Final = OlderShape(older.Refusal, _coded_error)


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

    # -- previews --------------------------------------------------------------------------------

    @operation(
        "createPreview",
        "POST",
        "/kontext/preview",
        tag=OLDER,
        scopes=ADMINS,
        answers={200: Answer("Where it is.", older.PreviewAnswer, session_at="/sessionId")},
        problems=CREATION_PROBLEMS,
        with_files=True,
        shape=_KONTEXT,
    )
    async def preview(self, call: Call[AnyQuery, older.PreviewBody]) -> web.Response:
        """Create a preview, which can be opened on any replica.

        Errors have `{success: false, error, sessionId, retries}`, too, as has the 404 of a
        preview that does not exist.
        """
        request, body = call.request, call.body
        request[SESSION_ID] = body.sessionId
        session = await self._created(request, body, body.sessionId)
        urls = self._lookup.urls(request)
        return call.answer(
            older.PreviewAnswer(
                sessionId=session.id,
                previewUrl=urls.preview(session.id),
                wsUrl=urls.hmr(session.id),
            )
        )

    async def _created(
        self, request: web.Request, sources: older.Sources, session_id: str | None
    ) -> Session:
        create = sources.to_create(session_id)
        caller = caller_of(request)
        return (await self._creation.create(create, create.contents(), caller=caller)).session

    # -- events and experiments ------------------------------------------------------------------

    @operation(
        "logEvent",
        "POST",
        "/api/v1/session/event",
        tag=OLDER,
        scopes=ADMINS,
        answers={200: Answer("It is kept.", older.EventAnswer)},
        problems=(BadSessionId, SessionNotFound, SessionEnded),
        shape=_CODED,
    )
    async def event(self, call: Call[AnyQuery, older.PostedEvent]) -> web.Response:
        """Log an event; waits for a session under way."""
        session_id = _named(call.request, call.body.session_id)
        event = call.body.event
        noted = await self._notes.note(session_id, event.type, event.data, t=event.t)
        return call.answer(
            older.EventAnswer(session_id=session_id, event_id=noted.id, late=noted.late)
        )

    @operation(
        "setExperiment",
        "POST",
        "/api/v1/session/{id}/experiment",
        tag=OLDER,
        scopes=ADMINS,
        answers={200: Answer("It is kept.", older.ExperimentAnswer)},
        problems=(SessionNotFound, SessionEnded),
        shape=_CODED,
    )
    async def experiment(self, call: Call[AnyQuery, older.ExperimentBody]) -> web.Response:
        """Set an experiment id; waits for a session under way.

        The id becomes the member `experiment_id` of the session's metadata.
        """
        session_id, body = call.session_id, call.body
        await self._lookup.known(session_id, seconds=self._settings.event_wait_seconds)

        def with_experiment(text: str) -> str:
            patch: dict[str, JsonValue] = {"experiment_id": body.experiment_id}
            return encode_metadata(merged(json.loads(text), patch))

        await self._registry.patch(session_id, metadata=with_experiment)
        return call.answer(
            older.ExperimentAnswer(session_id=session_id, experiment_id=body.experiment_id)
        )

    # -- sessions without content ----------------------------------------------------------------

    @operation(
        "reserveSession",
        "POST",
        "/session/create",
        tag=OLDER,
        scopes=ADMINS,
        answers={200: Answer("It is stored.", older.CreateAnswer, session_at="/session_id")},
        problems=(BadSessionId,),
        shape=_CODED,
    )
    async def create(self, call: Call[AnyQuery, older.CreateBody]) -> web.Response:
        """Create a session without content: stored when this answers.

        An id that exists already is accepted.
        """
        session = await self._reserved(call.request, call.body)
        return call.answer(older.CreateAnswer(session_id=session.id))

    async def _reserved(self, request: web.Request, body: older.CreateBody) -> Session:
        session_id = _named(request, body.session_id)
        metadata: dict[str, JsonValue] = {}
        if body.user_id is not None:
            metadata["user_id"] = body.user_id
        return await self._creation.reserve(session_id, encode_metadata(metadata))

    @operation(
        "addInteraction",
        "POST",
        "/session/{id}/interactions",
        tag=OLDER,
        scopes=ADMINS,
        answers={200: Answer("It is kept.", older.InteractionAnswer)},
        problems=(SessionNotFound, SessionEnded),
        shape=_CODED,
    )
    async def interaction(self, call: Call[AnyQuery, older.InteractionBody]) -> web.Response:
        """Keep an interaction in the stream of a session that is stored, as `interaction`.

        Waits for a session under way; 404 then: nothing refers to a session that does not exist.
        """
        data: JsonValue = {"prompt": call.body.prompt, "response": call.body.response}
        noted = await self._notes.note(call.session_id, "interaction", data)
        return call.answer(
            older.InteractionAnswer(session_id=call.session_id, interaction_id=noted.id)
        )

    # -- start and stop --------------------------------------------------------------------------

    @operation(
        "startSession",
        "POST",
        "/sessions/start",
        tag=OLDER,
        scopes=ADMINS,
        answers={200: Answer("It is stored.", older.StartAnswer, session_at="/data/session_id")},
        problems=CREATION_PROBLEMS,
        with_files=True,
        shape=_CODED,
    )
    async def start(self, call: Call[AnyQuery, older.StartBody]) -> web.Response:
        """Start a session; begun at once if files came."""
        request, body = call.request, call.body
        if body.files is None:
            session = await self._reserved(request, body)
        else:
            sources = older.Sources(files=body.files, packageJson=body.packageJson)
            session = await self._created(request, sources, body.session_id)
            request[SESSION_ID] = session.id
        return call.answer(older.StartAnswer(data=older.CreateAnswer(session_id=session.id)))

    @operation(
        "endSession",
        "POST",
        "/sessions/stop",
        tag=OLDER,
        scopes=ADMINS,
        answers={200: Answer("It has ended.", older.StopAnswer)},
        problems=(BadSessionId, SessionNotFound),
        shape=_CODED,
    )
    async def stop(self, call: Call[AnyQuery, older.StopBody]) -> web.Response:
        """Stop a session.

        200 for every session that exists or existed; 404 `session_not_found` only if it never did.
        """
        session_id = _named(call.request, call.body.session_id)
        before = await self._registry.session(session_id)
        session, already = await self._lifecycle.stop(session_id, reason=_STOP_REASON)
        note = f"it was {session.state}: {session.reason or 'no reason given'}" if already else None
        data = older.Stopped(
            session_id=session.id,
            stopped_via="already_stopped" if already else "request",
            was_orphaned=before is not None and await self._is_orphaned(before),
            note=note,
        )
        return call.answer(older.StopAnswer(data=data))

    async def _is_orphaned(self, session: Session) -> bool:
        """Whether the replica that was to run the session's dev server is gone."""
        is_held = session.state in HELD and not session.recipe.target and not session.reserved
        return is_held and not await self._registry.is_alive(session.owner)

    # -- interviews ------------------------------------------------------------------------------

    @operation(
        "startInterview",
        "POST",
        "/api/v1/interview/start",
        tag=OLDER,
        scopes=ADMINS,
        answers={200: Answer("It is stored.", older.InterviewAnswer, session_at="/session_id")},
        problems=(BadSessionId,),
        shape=_CODED,
    )
    async def start_interview(self, call: Call[AnyQuery, older.CreateBody]) -> web.Response:
        """Start an interview: one and the same id, reserved when this answers."""
        session = await self._reserved(call.request, call.body)
        return call.answer(older.InterviewAnswer(session_id=session.id, task_id=session.id))

    @operation(
        "streamInterview",
        "GET",
        "/api/v1/interview/{id}/stream",
        tag=OLDER,
        scopes=TICKETED,
        answers={200: Answer("The stream.", media="text/event-stream")},
        problems=(SessionNotFound, SessionEnded),
        fields=(LAST_EVENT_ID,),
        by_ticket=True,
        shape=_CODED,
    )
    async def interview_stream(self, call: Call[OlderStreamQuery, None]) -> web.StreamResponse:
        """Listen to an interview.

        Server-sent events: what is posted to the session, under its own type (`ai_response`,
        `transcription`, ...); `status` for the session's states; `complete`, or `error` if it
        failed, at the end. Opened early, it waits for the session.
        """
        after = call.field(LAST_EVENT_ID) or "0"
        await self._lookup.known(call.session_id, seconds=self._settings.stream_wait_seconds)
        return await self._streams.respond(
            call.request, call.session_id, after=after, encode=_encode_interview
        )

    @operation(
        "getInterviewStatus",
        "GET",
        "/api/v1/interview/{id}/status",
        tag=OLDER,
        scopes=ADMINS,
        answers={200: Answer("Where it stands.", older.InterviewStatus)},
        problems=(SessionNotFound, SessionEnded),
        shape=_CODED,
    )
    async def interview_status(self, call: Call[AnyQuery, None]) -> web.Response:
        """Read where an interview stands; waits for a session under way."""
        session = await self._lookup.known(call.session_id)
        return call.answer(
            older.InterviewStatus(
                session_id=session.id,
                task_id=session.id,
                status=session.state,
                ended=session.state in ENDED,
                reason=session.reason,
            )
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
