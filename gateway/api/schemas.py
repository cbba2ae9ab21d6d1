"""The JSON of the API: pydantic models that validate what comes in and shape what goes out."""

from __future__ import annotations

import base64
import binascii
import json
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

from gateway.errors import BadFiles, BadRequest
from gateway.session import ENDED, Recipe, Session

_MAX_METADATA_BYTES: Final = 16 * 1024
#: Also the name of a server-sent event, for some callers: no spaces, no line ends.
EVENT_TYPE: Final = r"^[A-Za-z0-9_.:-]{1,64}$"


class _Model(BaseModel):
    # Strict: "60" is no number, true is no 1. What the document of the API says is what counts.
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True
    )


class SourceFile(_Model):
    """A file of a project. ``content`` is text, or base64 of any bytes."""

    path: str
    content: str
    encoding: Literal["utf-8", "base64"] = "utf-8"

    def decoded(self) -> bytes:
        """The content as bytes; raises BadFiles."""
        if self.encoding == "utf-8":
            try:
                return self.content.encode()
            except UnicodeEncodeError as exc:
                raise BadFiles(f"{self.path}: content holds a lone surrogate") from exc
        try:
            return base64.b64decode(self.content, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise BadFiles(f"{self.path}: content is no base64 ({exc})") from exc

    @classmethod
    def of(cls, path: str, content: bytes) -> Self:
        """A file as JSON: as text where it is some, else in base64."""
        try:
            return cls(path=path, content=content.decode())
        except UnicodeDecodeError:
            return cls(path=path, content=base64.b64encode(content).decode(), encoding="base64")


def _contents(files: Iterable[SourceFile]) -> dict[str, bytes]:
    """Contents by path; raises BadFiles on one that comes twice or cannot be decoded."""
    contents: dict[str, bytes] = {}
    for file in files:
        if file.path in contents:
            raise BadFiles(f"{file.path!r} is posted twice")
        contents[file.path] = file.decoded()
    return contents


def _split_command(value: object) -> object:
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as exc:
            raise ValueError(f"cannot be split into arguments: {exc}") from exc
    return tuple(value) if isinstance(value, list) else value


class CreateSession(_Model):
    """What a session is made of. Either ``files`` (with a package.json) or ``target``."""

    id: str | None = None
    files: list[SourceFile] = []
    package_json: dict[str, JsonValue] | None = None
    framework: str = Field(default="", max_length=40)
    command: Annotated[tuple[str, ...], BeforeValidator(_split_command)] = ()
    env: dict[str, str] = {}
    target: str = Field(default="", max_length=300)
    visibility: Literal["public", "private"] = "public"
    ttl_seconds: int | None = Field(default=None, ge=1, le=30 * 86400)
    idle_seconds: int | None = Field(default=None, ge=0, le=30 * 86400)
    metadata: dict[str, JsonValue] = {}

    def contents(self) -> dict[str, bytes]:
        """All files by path; raises BadFiles on one that comes twice or cannot be decoded."""
        contents = _contents(self.files)
        if self.package_json is not None:
            if "package.json" in contents:
                raise BadFiles("package.json comes in `files` and as `packageJson`: send one")
            try:
                text = json.dumps(self.package_json, indent=2, allow_nan=False)
            except ValueError as exc:
                raise BadFiles("packageJson holds a number that JSON does not have") from exc
            contents["package.json"] = text.encode()
        return contents

    def recipe(self, target: str) -> Recipe:
        """The part that the session's digest covers."""
        return Recipe(
            framework=self.framework,
            command=self.command,
            env=tuple(sorted(self.env.items())),
            target=target,
        )


class PutFiles(_Model):
    """All files of a session, instead of those it has."""

    files: list[SourceFile]
    base_revision: int | None = Field(default=None, ge=1, le=2**53)

    def contents(self) -> dict[str, bytes]:
        """The files by path; raises BadFiles."""
        return _contents(self.files)


class PatchFiles(_Model):
    """A hot edit. With ``base_revision`` it is refused unless that is the current one."""

    write: list[SourceFile] = []
    delete: list[str] = []
    base_revision: int | None = Field(default=None, ge=1, le=2**53)

    def contents(self) -> dict[str, bytes]:
        """The files to write, by path; raises BadFiles."""
        contents = _contents(self.write)
        for path in self.delete:
            if path in contents:
                raise BadFiles(f"{path!r} is named twice: write it or delete it")
        return contents


class PostEvent(_Model):
    """An event that a client posts. ``t`` is when it was, by the client's clock, in any form."""

    type: str = Field(pattern=EVENT_TYPE)
    data: JsonValue = None
    t: float | str | None = Field(default=None, union_mode="left_to_right")


class PatchSession(_Model):
    """What can be changed besides files. What is left out stays."""

    metadata: dict[str, JsonValue] | None = None
    visibility: Literal["public", "private"] | None = None
    ttl_seconds: int | None = Field(default=None, ge=1, le=30 * 86400)


class CreateLink(_Model):
    """How long a link, or a token that reads one session, is good for."""

    ttl_seconds: int = Field(default=86400, ge=1, le=30 * 86400)


class SessionView(_Model):
    """A session as the API shows it. Times are RFC 3339, UTC."""

    id: str
    state: str
    generation: int
    revision: int
    preview_url: str
    ws_url: str
    events_url: str
    owner: str
    created_at: str
    expires_at: str
    visibility: Literal["public", "private"]
    framework: str
    target: str
    idle_seconds: int
    metadata: dict[str, JsonValue]
    reason: str
    ended_at: str | None = None


class StopView(_Model):
    """What a stop answers, whoever asks and however often.

    ``state`` is "stopped" for every session that has ended, and "stopping" if its dev server is
    still on its way out; ``ended_as`` tells stopped, failed and expired apart.
    """

    id: str
    state: Literal["stopped", "stopping"]
    ended_as: str
    already_stopped: bool
    reason: str
    stopped_at: str | None

    @classmethod
    def of(cls, session: Session, *, already: bool) -> Self:
        """The answer for a session that was asked to stop."""
        ended = session.state in ENDED
        return cls(
            id=session.id,
            state="stopped" if ended else "stopping",
            ended_as=session.state if ended else "",
            already_stopped=already,
            reason=session.reason,
            stopped_at=timestamp(session.ended_at_ms) if session.ended_at_ms else None,
        )


def merged(target: dict[str, JsonValue], patch: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """``target`` after a JSON merge patch (RFC 7396): objects are merged, null removes a member."""
    result = dict(target)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            present = result.get(name)
            result[name] = merged(present if isinstance(present, dict) else {}, value)
        else:
            result[name] = value
    return result


def encode_metadata(metadata: dict[str, JsonValue]) -> str:
    """Metadata as it is stored; raises BadRequest if it is too large, or no JSON (NaN)."""
    try:
        text = json.dumps(metadata, separators=(",", ":"), allow_nan=False)
    except ValueError as exc:
        raise BadRequest("metadata holds a number that JSON does not have") from exc
    if len(text) > _MAX_METADATA_BYTES:
        raise BadRequest(f"metadata is larger than {_MAX_METADATA_BYTES} bytes: store it elsewhere")
    return text


def view(session: Session, urls: Urls) -> dict[str, Any]:
    """A session as JSON."""
    shown = SessionView(
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
    return shown.model_dump(by_alias=True)


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
