"""The bodies that the API takes: pydantic models that validate them."""

from __future__ import annotations

import base64
import binascii
import json
import shlex
from collections.abc import Iterable
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema
from pydantic.alias_generators import to_camel

from gateway.errors import BadFiles, BadRequest
from gateway.session import SESSION_ID_PATTERN, Recipe

_MAX_METADATA_BYTES: Final = 16 * 1024
#: Also the name of a server-sent event, for some callers: no spaces, no line ends.
EVENT_TYPE: Final = r"^[A-Za-z0-9_.:-]{1,64}$"
LARGEST_REVISION: Final = 2**53


class _Model(BaseModel):
    # Built when first used, which makes the start of a replica faster.
    # Strict: "60" is no number, true is no 1. What the document of the API says is what counts.
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        defer_build=True,
        extra="forbid",
        frozen=True,
        strict=True,
    )


class SourceFile(_Model):
    """A file of a project. `content` is text, or base64 of any bytes."""

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


_SECONDS: Final = 30 * 86400

#: What `parse_session_id` checks, so that its refusal has a code of its own.
SessionIdText = Annotated[
    str,
    WithJsonSchema(
        {"type": "string", "pattern": SESSION_ID_PATTERN, "minLength": 8, "maxLength": 40}
    ),
]
_COMMAND: Final = {
    "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}],
    "default": [],
}


class CreateSession(_Model):
    """What a session is made of: `files` with a package.json, or a `command`, or a `target`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "hello-preview",
                    "files": [{"path": "index.html", "content": "<h1>Hello</h1>"}],
                    "packageJson": {"devDependencies": {"vite": "^7.0.0"}},
                }
            ]
        }
    )

    id: SessionIdText | None = Field(
        default=None,
        description="8 to 40 of `a-z`, `0-9`, `-`, beginning and ending with a letter or digit; "
        "made up if left out.",
    )
    files: list[SourceFile] = Field(default=[], description="The files of the project.")
    package_json: dict[str, JsonValue] | None = Field(
        default=None, description="The package.json as an object, if it is not among `files`."
    )
    framework: str = Field(
        default="", max_length=40, description="`vite`; found from package.json if left out."
    )
    command: Annotated[
        tuple[str, ...], BeforeValidator(_split_command), WithJsonSchema(_COMMAND)
    ] = Field(
        default=(),
        description="Argument list (or one string) with `{host}`, `{port}`, `{base}`, instead of "
        "a framework.",
    )
    env: dict[str, str] = Field(default={}, description="Variables for the dev server.")
    target: str = Field(
        default="",
        max_length=300,
        description="`host:port` of a server that runs already, inside "
        "`GATEWAY_TARGET_ALLOWLIST`; nothing is spawned.",
    )
    visibility: Literal["public", "private"] = Field(
        default="public",
        description="`private`: shown only to requests with an API token, and to who has followed "
        "a link.",
    )
    ttl_seconds: int | None = Field(
        default=None, ge=1, le=_SECONDS, description="Instead of the gateway's setting."
    )
    idle_seconds: int | None = Field(
        default=None, ge=0, le=_SECONDS, description="Instead of the gateway's setting."
    )
    metadata: dict[str, JsonValue] = Field(default={}, description="Any object up to 16 KiB.")

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


_BASE_REVISION: Final = "Refused with 409 unless this is the current revision."


class PutFiles(_Model):
    """All files of a session, instead of those it has."""

    files: list[SourceFile] = Field(min_length=1)
    base_revision: int | None = Field(
        default=None, ge=1, le=LARGEST_REVISION, description=_BASE_REVISION
    )

    def contents(self) -> dict[str, bytes]:
        """The files by path; raises BadFiles."""
        return _contents(self.files)


class PatchFiles(_Model):
    """A hot edit: at least one file to write or to delete."""

    write: list[SourceFile] = Field(default=[], description="Files that are made or replaced.")
    delete: list[str] = Field(default=[], description="Paths.")
    base_revision: int | None = Field(
        default=None, ge=1, le=LARGEST_REVISION, description=_BASE_REVISION
    )

    def contents(self) -> dict[str, bytes]:
        """The files to write, by path; raises BadFiles."""
        contents = _contents(self.write)
        for path in self.delete:
            if path in contents:
                raise BadFiles(f"{path!r} is named twice: write it or delete it")
        return contents


class PostEvent(_Model):
    """An event that a client posts."""

    type: str = Field(
        pattern=EVENT_TYPE,
        description="Up to 64 of `A-Z a-z 0-9 _ . : -`.",
        examples=["click"],
    )
    data: JsonValue = Field(default=None, description="Any JSON up to `GATEWAY_MAX_EVENT_BYTES`.")
    t: float | str | None = Field(
        default=None,
        union_mode="left_to_right",
        description="The caller's own time, a number or a text.",
    )


class PatchSession(_Model):
    """What can be changed besides files. What is left out stays."""

    metadata: dict[str, JsonValue] | None = Field(
        default=None,
        description="Merged into what is there (RFC 7396): objects are merged, `null` removes a "
        "member.",
    )
    visibility: Literal["public", "private"] | None = None
    ttl_seconds: int | None = Field(default=None, ge=1, le=_SECONDS, description="Counts from now.")


class CreateLink(_Model):
    """How long a link, or a token that reads one session, is good for."""

    ttl_seconds: int = Field(default=86400, ge=1, le=_SECONDS)


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
