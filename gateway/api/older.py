"""What calls of older shapes take and answer: the names are theirs."""

# ruff: noqa: N815

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from gateway.api.schemas import EVENT_TYPE, CreateSession, SessionIdText, SourceFile
from gateway.session import State


class Older(BaseModel):
    """Fields that are not known are of no interest: callers send many."""

    model_config = ConfigDict(defer_build=True, extra="ignore", frozen=True, strict=True)


class OlderFile(Older):
    path: str
    content: str


class Sources(Older):
    """A project; ``files`` is a list, or an object from path to content."""

    files: list[OlderFile] | dict[str, str]
    packageJson: dict[str, JsonValue] | str | None = None

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


class PreviewBody(Sources):
    sessionId: SessionIdText | None = None


class EventBody(Older):
    type: str = Field(pattern=EVENT_TYPE)
    t: float | str | None = Field(default=None, union_mode="left_to_right")
    data: JsonValue = None


class PostedEvent(Older):
    session_id: SessionIdText
    event: EventBody


class ExperimentBody(Older):
    experiment_id: str | int


class CreateBody(Older):
    session_id: SessionIdText | None = None
    user_id: str | int | None = None


class InteractionBody(Older):
    prompt: str
    response: str


class StartBody(CreateBody):
    files: list[OlderFile] | dict[str, str] | None = None
    packageJson: dict[str, JsonValue] | str | None = None


class StopBody(Older):
    session_id: SessionIdText


# -- answers ---------------------------------------------------------------------------------------


class PreviewAnswer(BaseModel):
    """Where a preview is."""

    success: Literal[True] = True
    sessionId: str
    previewUrl: str
    wsUrl: str


class PreviewRefusal(BaseModel):
    """What a problem has besides, for callers of `/kontext/preview`."""

    success: Literal[False] = False
    error: str
    sessionId: str | None
    retries: int


class Refusal(BaseModel):
    """What a problem has besides, for callers of the other older calls."""

    error: str
    session_id: str | None


class EventAnswer(BaseModel):
    """An event that was kept."""

    success: Literal[True] = True
    session_id: str
    event_id: str
    late: bool


class ExperimentAnswer(BaseModel):
    """An experiment id that was kept."""

    success: Literal[True] = True
    session_id: str
    experiment_id: str | int


class CreateAnswer(BaseModel):
    """A session that is stored."""

    session_id: str


class InteractionAnswer(BaseModel):
    """An interaction that was kept."""

    session_id: str
    interaction_id: str


class StartAnswer(BaseModel):
    """A session that has started."""

    status: Literal["session_started"] = "session_started"
    data: CreateAnswer


class Stopped(BaseModel):
    """How a session was stopped."""

    session_id: str
    stopped_via: Literal["request", "already_stopped"]
    was_orphaned: bool
    note: str | None = Field(
        default=None,
        exclude_if=lambda note: note is None,
        description="Only if it was stopped already.",
    )


class StopAnswer(BaseModel):
    """A session that has ended."""

    status: Literal["session_stopped"] = "session_stopped"
    data: Stopped


class InterviewAnswer(BaseModel):
    """An interview that has started: one and the same id."""

    session_id: str
    task_id: str


class InterviewStatus(BaseModel):
    """Where an interview stands."""

    session_id: str
    task_id: str
    status: State
    ended: bool
    reason: str
