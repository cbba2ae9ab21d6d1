"""Bodies of calls: read within limits, then parsed into what validates them.

Nothing is parsed before it is known to be small enough, and all bodies that a replica holds at a
time share a budget: many large ones at once are refused, not piled up in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import BaseModel, ValidationError

from gateway.api.complaints import complaints
from gateway.api.problems import Handler, UnsupportedMediaType
from gateway.errors import BadRequest, GatewayError, PayloadTooLarge
from gateway.settings import PREFIX

ModelT = TypeVar("ModelT", bound=BaseModel)

#: Of a call without files: metadata or an event, with every character escaped.
SMALL_BODY_BYTES: Final = 256 * 1024
#: How many bodies of the largest size may be under way.
_BODIES_AT_ONCE: Final = 4
_PLAIN: Final = "identity"
JSON_TYPE: Final = "application/json"
ARCHIVE_TYPE: Final = "application/gzip"
_ARCHIVE_TYPES: Final = frozenset({ARCHIVE_TYPE, "application/x-gzip"})


class Overloaded(GatewayError):
    """Others' bodies take all the memory that is there for them."""

    status = 503
    code = "overloaded"
    title = "Too many uploads at once"
    retry_after = 2


class BodyBudget:
    """How many bytes of bodies a replica holds."""

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self._left = _BODIES_AT_ONCE * max_body_bytes

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give back what a call took, once it is answered."""
        request[_BUDGET] = self
        request[_TAKEN] = 0
        try:
            return await handler(request)
        finally:
            self._left += request[_TAKEN]

    def take(self, request: web.Request, size: int) -> None:
        """Hold ``size`` bytes more until the call is answered; raises Overloaded."""
        if size > self._left:
            raise Overloaded("too many large bodies are under way here: try again")
        self._left -= size
        request[_TAKEN] += size


_BUDGET: Final = web.RequestKey("budget", BodyBudget)
_TAKEN: Final = web.RequestKey("taken", int)


def body_middleware(max_body_bytes: int) -> Middleware:
    """Let calls read bodies."""
    return BodyBudget(max_body_bytes).middleware


@dataclass(frozen=True, slots=True)
class Archive:
    """Files as tar.gz: what some calls take instead of JSON."""

    data: bytes


async def read_body(
    request: web.Request, model: type[ModelT], *, with_files: bool, or_archive: bool
) -> ModelT | Archive:
    """The request's body. Raises BadRequest that names each wrong field.

    ``with_files``: it may be large. ``or_archive``: it may be a tar.gz.
    """
    if request.headers.get("Content-Encoding", _PLAIN).lower() != _PLAIN:
        # What it unfolds to is not known before it is unfolded.
        raise UnsupportedMediaType("send the body without Content-Encoding", Accept_Encoding=_PLAIN)
    if or_archive and request.content_type in _ARCHIVE_TYPES:
        return Archive(await _read(request, with_files=True))
    if request.content_type != JSON_TYPE:
        # Also keeps foreign pages out: a form or a text/plain POST needs no CORS preflight.
        raise UnsupportedMediaType(
            f"send the body as JSON, with Content-Type: {JSON_TYPE}"
            + (f", or files as tar.gz, with Content-Type: {ARCHIVE_TYPE}" if or_archive else ""),
            Accept=f"{JSON_TYPE}, {ARCHIVE_TYPE}" if or_archive else JSON_TYPE,
        )
    return validated(model, await _read(request, with_files=with_files))


def validated(model: type[ModelT], text: bytes | str) -> ModelT:
    """JSON as a model. Raises BadRequest that names each wrong field."""
    try:
        return model.model_validate_json(text)
    except ValidationError as exc:
        raise BadRequest(complaints(exc, "field")) from exc


async def _read(request: web.Request, *, with_files: bool) -> bytes:
    """The body, within the limit of its kind. Raises PayloadTooLarge, Overloaded."""
    budget = request[_BUDGET]
    limit = budget.max_body_bytes if with_files else min(budget.max_body_bytes, SMALL_BODY_BYTES)
    if (request.content_length or 0) > limit:
        raise _too_large(limit, with_files=with_files)
    body = bytearray()
    async for part in request.content.iter_any():
        budget.take(request, len(part))
        body += part
        if len(body) > limit:
            raise _too_large(limit, with_files=with_files)
    return bytes(body)


def _too_large(limit: int, *, with_files: bool) -> PayloadTooLarge:
    if with_files:
        return PayloadTooLarge(
            f"the body is larger than the {limit} bytes that {PREFIX}MAX_API_BODY_BYTES allows: "
            "send fewer or smaller files"
        )
    return PayloadTooLarge(f"the body is larger than the {limit} bytes that this call takes")
