"""What the API answers: pydantic models, and how a session becomes one.

Members may be added to any of these; clients skip what they do not know.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

from gateway.session import ENDED, Session, State

#: RFC 3339 in UTC, with milliseconds.
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Uri = Annotated[str, Field(json_schema_extra={"format": "uri"})]
_EXAMPLE_ID: Final = "hello-preview"
_EXAMPLE_URL: Final = "http://127.0.0.1:8080"


class View(BaseModel):
    """Something that is answered."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, defer_build=True, frozen=True
    )


class FileView(View):
    """A file of a session. `content` is text, or base64 of any bytes."""

    path: str
    content: str
    encoding: Literal["utf-8", "base64"]

    @classmethod
    def of(cls, path: str, content: bytes) -> Self:
        """A file as JSON: as text where it is some, else in base64."""
        try:
            return cls(path=path, content=content.decode(), encoding="utf-8")
        except UnicodeDecodeError:
            text = base64.b64encode(content).decode()
            return cls(path=path, content=text, encoding="base64")


class SessionView(View):
    """A session."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": _EXAMPLE_ID,
                "state": "ready",
                "generation": 1795228800123456,
                "revision": 1,
                "previewUrl": f"{_EXAMPLE_URL}/preview/{_EXAMPLE_ID}/",
                "wsUrl": f"ws://127.0.0.1:8080/preview/{_EXAMPLE_ID}/hmr",
                "eventsUrl": f"{_EXAMPLE_URL}/api/v1/sessions/{_EXAMPLE_ID}/events",
                "owner": "laptop-8080",
                "createdAt": "2026-11-21T10:00:00.000Z",
                "expiresAt": "2026-11-22T10:00:00.000Z",
                "visibility": "public",
                "framework": "",
                "target": "",
                "idleSeconds": 1800,
                "metadata": {},
                "reason": "",
                "endedAt": None,
            }
        }
    )

    id: str
    state: State = Field(
        description="`stopped`, `failed` and `expired` are the ends; `reason` says why."
    )
    generation: int = Field(description="Grows with each new dev server.")
    revision: int = Field(description="Grows with each edit of the files.")
    preview_url: Uri = Field(description="Where a browser opens the preview.")
    ws_url: Uri = Field(description="The dev server's HMR socket, for programs.")
    events_url: Uri = Field(description="The session's event stream.")
    owner: str = Field(description="The replica that is responsible for the dev server.")
    created_at: Timestamp
    expires_at: Timestamp
    visibility: Literal["public", "private"]
    framework: str
    target: str
    idle_seconds: int
    metadata: dict[str, JsonValue]
    reason: str = Field(description="Why it has ended; else empty.")
    ended_at: Timestamp | None

    @classmethod
    def of(cls, session: Session, urls: Urls) -> Self:
        """A session as this caller sees it."""
        return cls(
            id=session.id,
            state=session.state,
            generation=session.generation,
            revision=session.revision,
            preview_url=urls.preview(session.id),
            ws_url=urls.hmr(session.id),
            events_url=urls.events(session.id),
            owner=session.replica,
            created_at=timestamp(session.created_at_ms),
            expires_at=timestamp(session.expires_at_ms),
            visibility="public" if session.public else "private",
            framework=session.recipe.framework,
            target=session.recipe.target,
            idle_seconds=session.idle_seconds,
            metadata=json.loads(session.metadata),
            reason=session.reason,
            ended_at=timestamp(session.ended_at_ms) if session.ended_at_ms else None,
        )


class SessionPage(View):
    """Part of a list, newest first. A page may hold fewer sessions than asked for, even none."""

    sessions: list[SessionView]
    cursor: str = Field(description="Fetches the next part; only an empty one is the end.")


class StopView(View):
    """What a stop answers: the same from every replica, however often."""

    id: str
    state: Literal["stopped", "stopping"] = Field(
        description="`stopped` however the session has ended; `stopping` if its dev server is "
        "still on its way out after a lease."
    )
    ended_as: Literal["", "stopped", "expired", "failed"]
    already_stopped: bool = Field(
        description="False for exactly one call, that which ended the session."
    )
    reason: str
    stopped_at: Timestamp | None

    @classmethod
    def of(cls, session: Session, *, already: bool) -> Self:
        """The answer for a session that was asked to stop."""
        ended = session.state in ENDED
        return cls.model_validate(
            {
                "id": session.id,
                "state": "stopped" if ended else "stopping",
                "ended_as": str(session.state) if ended else "",
                "already_stopped": already,
                "reason": session.reason,
                "stopped_at": timestamp(session.ended_at_ms) if session.ended_at_ms else None,
            }
        )


class FilesView(View):
    """All files of a session."""

    id: str
    revision: int
    files: list[FileView]


class EditView(View):
    """What an edit of the files has come to."""

    id: str
    revision: int
    state: State


class NotedView(View):
    """An event that was kept; its `id` is that of the stream's entry."""

    id: str
    session_id: str
    late: bool = Field(description="It came after the end of the session.")


class LinkView(View):
    """A link that opens a private preview in a browser."""

    url: Uri
    expires_at: Timestamp


class TokenView(View):
    """A token that reads one session as a bearer token, and changes nothing."""

    token: str
    expires_at: Timestamp


class TicketView(View):
    """A ticket that opens the event stream once, as `?token=`; `url` has it in it."""

    ticket: str
    expires_at: Timestamp
    url: Uri


class ReplicaView(View):
    """A replica with a lease; `incarnation` is another one after each start."""

    id: str
    incarnation: str
    url: Uri


class ReplicaList(View):
    """The replicas with a lease."""

    replicas: list[ReplicaView]


class LiveView(View):
    """The process answers."""

    status: Literal["ok"]
    version: str


class ReadyView(View):
    """Whether traffic may come."""

    status: Literal["ready", "draining"]


def timestamp(milliseconds: int) -> str:
    """RFC 3339 with milliseconds."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Urls:
    """Public addresses, as seen by the caller or as configured."""

    def __init__(self, *, base: str, preview_domain: str) -> None:
        self._base = base
        self._preview_domain = preview_domain

    def _preview_base(self, session_id: str) -> str:
        if not self._preview_domain:
            return f"{self._base}/preview/{session_id}/"
        scheme = self._base.partition("://")[0]
        return f"{scheme}://{session_id}.{self._preview_domain}/"

    def preview(self, session_id: str) -> str:
        """Where a browser opens the preview."""
        return self._preview_base(session_id)

    def link(self, session_id: str, token: str) -> str:
        """A signed link to the preview."""
        return f"{self._preview_base(session_id)}.preview/open?token={token}"

    def hmr(self, session_id: str) -> str:
        """Where a program reaches the dev server's HMR socket."""
        return "ws" + self._preview_base(session_id).removeprefix("http") + "hmr"

    def events(self, session_id: str) -> str:
        """The session's event stream."""
        return f"{self._base}/api/v1/sessions/{session_id}/events"
