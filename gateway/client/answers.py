"""What calls take and answer, as docs/api.md has it."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

State: TypeAlias = Literal[
    "registered", "starting", "ready", "sleeping", "stopping", "stopped", "failed", "expired"
]
Visibility: TypeAlias = Literal["public", "private"]


class Session(TypedDict):
    """A session. Times are RFC 3339, UTC."""

    id: str
    state: State
    generation: int
    revision: int
    previewUrl: str
    wsUrl: str
    eventsUrl: str
    owner: str
    createdAt: str
    expiresAt: str
    visibility: Visibility
    framework: str
    target: str
    idleSeconds: int
    metadata: dict[str, Any]
    reason: str
    endedAt: str | None


class NewSession(TypedDict, total=False):
    """Fields of a create call besides its files."""

    id: str
    packageJson: dict[str, Any]
    framework: str
    command: str | list[str]
    env: dict[str, str]
    target: str
    visibility: Visibility
    ttlSeconds: int
    idleSeconds: int
    metadata: dict[str, Any]


class Page(TypedDict):
    """A part of the list: an empty ``cursor`` is the end."""

    sessions: list[Session]
    cursor: str


class SourceFile(TypedDict):
    """A file; ``content`` is text, or base64 of any bytes."""

    path: str
    content: str
    encoding: NotRequired[Literal["utf-8", "base64"]]


class Files(TypedDict):
    """All files of a session."""

    id: str
    revision: int
    files: list[SourceFile]


class Edited(TypedDict):
    """What an edit answers."""

    id: str
    revision: int
    state: State


class Stopped(TypedDict):
    """What a stop answers, whoever asks and however often."""

    id: str
    state: Literal["stopped", "stopping"]
    endedAs: Literal["", "stopped", "failed", "expired"]
    alreadyStopped: bool
    reason: str
    stoppedAt: str | None


class Posted(TypedDict):
    """An event that is kept; ``late``: after the session's end."""

    id: str
    sessionId: str
    late: bool


class Ticket(TypedDict):
    """Opens the event stream once, at ``url``."""

    ticket: str
    expiresAt: str
    url: str


class Link(TypedDict):
    """Opens a private preview in a browser."""

    url: str
    expiresAt: str


class IssuedToken(TypedDict):
    """Reads one session."""

    token: str
    expiresAt: str


class Replica(TypedDict):
    """A replica with a lease."""

    id: str
    incarnation: str
    url: str
