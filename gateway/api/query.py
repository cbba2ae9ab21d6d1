"""Parameters in the query of a call: models that validate them, and what they mean. Pure.

A parameter that there is not, or that comes twice, is refused: a misspelt filter that is passed
over in silence would list everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_origin

from multidict import MultiMapping
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

from gateway.api.complaints import complaints
from gateway.api.schemas import LARGEST_REVISION
from gateway.errors import BadRequest
from gateway.session import Session, State

QueryT = TypeVar("QueryT", bound="Query")

MAX_WAIT_SECONDS: Final = 300
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WHOLE: Final = re.compile(r"-?[0-9]+")


def _number(value: object) -> object:
    """A number as text; what else Python takes for one ("1_0", " 1", "inf") is none."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise ValueError(f"{value[:40]!r} is no number")
    return value


def _whole(value: object) -> object:
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        raise ValueError(f"{value[:40]!r} is no whole number")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]
#: An empty one is as good as none.
Wait = Literal["", "ready", "ended"]


class Query(BaseModel):
    """The parameters of a call; none, unless a subclass has some."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        defer_build=True,
        extra="forbid",
        frozen=True,
    )


class AnyQuery(Query):
    """Parameters that nobody looks at."""

    model_config = ConfigDict(extra="ignore")


class GetQuery(Query):
    """What to wait for."""

    wait: Wait = Field(
        default="",
        description="`ready`: answer as soon as the preview is ready or has ended (wakes one that "
        "sleeps); `ended`: as soon as it has ended.",
    )
    timeout: Number = Field(
        default=10,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="Seconds after which to answer with the session as it is then.",
    )


class CreateQuery(GetQuery):
    """What to wait for, and what goes with an archive."""

    timeout: Number = Field(
        default=30,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="Seconds after which to answer with the session as it is then.",
    )
    session: str = Field(
        default="",
        description="Beside a tar.gz as body: the other fields as JSON.",
        json_schema_extra={"contentMediaType": "application/json"},
    )


class ListQuery(Query):
    """Which sessions, and how many."""

    state: Literal[
        "",
        "registered",
        "starting",
        "ready",
        "sleeping",
        "stopping",
        "stopped",
        "failed",
        "expired",
    ] = ""
    visibility: Literal["", "public", "private"] = ""
    owner: str = Field(default="", description="A replica's id.")
    metadata: Annotated[
        dict[str, str],
        WithJsonSchema(
            {
                "type": "object",
                "patternProperties": {r"^metadata\.": {"type": "string"}},
                "additionalProperties": False,
            }
        ),
    ] = Field(
        default={},
        description="Written `metadata.<name>=<value>`, any number of times: a member with that "
        "text, or written so in JSON.",
    )
    limit: Whole = Field(default=100, ge=1, le=1000)
    cursor: str = Field(default="", description="That of the page before.")


class LogsQuery(Query):
    """How much of the log."""

    tail: Whole = Field(default=500, ge=1, le=100_000, description="Lines from its end.")


class FilesQuery(Query):
    """In which form."""

    format: Literal["", "json", "tar.gz"] = ""


class EditQuery(Query):
    """What goes with an edit as tar.gz; it counts beside JSON, too."""

    base_revision: Whole | None = Field(
        default=None,
        ge=1,
        le=LARGEST_REVISION,
        description="As `baseRevision` in JSON: for a tar.gz as body.",
    )


class PatchFilesQuery(EditQuery):
    """What goes with an edit as tar.gz; it counts beside JSON, too."""

    delete: list[str] = Field(
        default=[],
        description="As `delete` in JSON, any number of times: for a tar.gz as body.",
    )


class StreamQuery(Query):
    """How who cannot send an Authorization field opens a stream."""

    token: str | None = Field(
        default=None,
        description="A ticket, where no `Authorization` can be sent; never an API token.",
    )


class OlderStreamQuery(StreamQuery):
    """The same, for callers who send more."""

    model_config = ConfigDict(extra="ignore")


def parse(model: type[QueryT], query: MultiMapping[str]) -> QueryT:
    """The parameters as a model. Raises BadRequest that names each wrong one."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    kinds = {name: get_origin(field.annotation) for name, field in fields.items()}
    is_open = model.model_config.get("extra") == "ignore"
    values: dict[str, Any] = {}
    for name in dict.fromkeys(query):
        given = query.getall(name)
        group, _, member = name.partition(".")
        if kinds.get(name) is list:
            values[name] = given
        elif len(given) > 1 and not is_open:
            raise BadRequest(f"{name[:200]}: comes {len(given)} times; send it once")
        elif kinds.get(group) is dict and name != group:
            values.setdefault(group, {})[member] = given[0]
        elif kinds.get(name) is dict:
            raise BadRequest(f"{name}: name the member, as {name}.<name>")
        else:
            values[name] = given[0]
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        raise BadRequest(complaints(exc, "parameter")) from exc


def session_filter(query: ListQuery) -> Callable[[Session], bool] | None:
    """Which sessions a list is to hold; None for all."""
    state, visibility, owner, members = (
        query.state,
        query.visibility,
        query.owner,
        query.metadata,
    )
    if not (state or visibility or owner or members):
        return None

    def wanted(session: Session) -> bool:
        return (
            (not state or session.state is State(state))
            and (not visibility or session.public == (visibility == "public"))
            and (not owner or session.replica == owner)
            and (not members or _has_members(session, members))
        )

    return wanted


def _has_members(session: Session, members: Mapping[str, str]) -> bool:
    metadata = json.loads(session.metadata)
    return all(
        name in metadata and text in (metadata[name], json.dumps(metadata[name]))
        for name, text in members.items()
    )
