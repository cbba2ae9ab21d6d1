"""Bodies of calls: read within limits, then parsed into what validates them.

Nothing is parsed before it is known to be small enough, and all bodies that a replica holds at a
time share a budget: many large ones at once are refused, not piled up in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import BaseModel, ValidationError

from gateway.api.problems import Handler
from gateway.errors import BadRequest, GatewayError, PayloadTooLarge
from gateway.settings import PREFIX

ModelT = TypeVar("ModelT", bound=BaseModel)

#: Of a call without files: metadata or an event, with every character escaped.
SMALL_BODY_BYTES: Final = 256 * 1024
#: How many bodies of the largest size may be under way.
_BODIES_AT_ONCE: Final = 4
_ARCHIVE_TYPES: Final = frozenset({"application/gzip", "application/x-gzip"})


class UnsupportedMediaType(BadRequest):
    """The content of a call is not declared as what the call takes."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


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


async def parse_body(
    request: web.Request, model: type[ModelT], *, with_files: bool = False
) -> ModelT:
    """The request's JSON body as a model. Raises BadRequest that names each wrong field."""
    if request.content_type != "application/json":
        # Also keeps foreign pages out: a form or a text/plain POST needs no CORS preflight.
        raise UnsupportedMediaType(
            "send the body as JSON, with Content-Type: application/json"
            + (", or files as tar.gz, with Content-Type: application/gzip" if with_files else "")
        )
    return validated(model, await _read(request, with_files=with_files))


def validated(model: type[ModelT], text: bytes | str) -> ModelT:
    """JSON as a model. Raises BadRequest that names each wrong field."""
    try:
        return model.model_validate_json(text)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_input=False)[:10]
        raise BadRequest("; ".join(map(_complaint, errors))) from exc


def is_archive(request: web.Request) -> bool:
    """Whether the body is declared as a tar.gz."""
    return request.content_type in _ARCHIVE_TYPES


async def read_archive(request: web.Request) -> bytes:
    """The body of a call that sends files as tar.gz."""
    return await _read(request, with_files=True)


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


def _complaint(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "body"
    if error["type"] == "extra_forbidden":
        return f"{place[:200]}: there is no such field; leave it out"
    return f"{place[:200]}: {error['msg'][:300]}"
