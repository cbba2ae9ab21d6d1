"""Errors as ``application/problem+json`` (RFC 9457) with a stable ``code``."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from gateway.errors import (
    BadRequest,
    GatewayError,
    PayloadTooLarge,
    RevisionConflict,
    SessionNotFound,
)
from gateway.settings import PREFIX

log: Final = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=BaseModel)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


#: Calls of the older shape: their errors also have the members that its callers look for.
_OLDER_SHAPE: Final = "/kontext/"


class UnsupportedMediaType(BadRequest):
    """The content of a call is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


def problem(exc: GatewayError, request: web.Request) -> web.Response:
    """The response for an error."""
    body: dict[str, Any] = {
        "title": exc.title,
        "status": exc.status,
        "code": exc.code,
        "detail": str(exc),
    }
    if isinstance(exc, SessionNotFound):
        body["sessionId"] = exc.session_id
    if isinstance(exc, RevisionConflict):
        body["currentRevision"] = exc.current
    headers = {} if exc.retry_after is None else {"Retry-After": str(exc.retry_after)}
    if exc.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(body, headers, request)


def _response(
    body: dict[str, Any], headers: Mapping[str, str], request: web.Request
) -> web.Response:
    if request.path.startswith(_OLDER_SHAPE):
        older = {"success": False, "error": body["detail"], "sessionId": request.get("session_id")}
        body = {**older, **body}
    return web.Response(
        status=body["status"],
        body=json.dumps(body).encode(),
        content_type="application/problem+json",
        headers=headers,
    )


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document; an unexpected one is logged and says nothing."""
    try:
        return await handler(request)
    except GatewayError as exc:
        if exc.status >= 500:
            log.warning("%s %s: %s", request.method, request.path, exc)
        return problem(exc, request)
    except web.HTTPRequestEntityTooLarge:
        return problem(
            PayloadTooLarge(
                f"the body is larger than the {request.client_max_size} bytes that "
                f"{PREFIX}MAX_API_BODY_BYTES allows: send fewer or smaller files"
            ),
            request,
        )
    except web.HTTPException as exc:
        return _from_http(exc, request)
    except ConnectionResetError:
        log.debug("%s %s: the client has gone", request.method, request.path)
        return problem(BadRequest("the body is incomplete"), request)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return problem(GatewayError("the gateway failed; its log says why"), request)


def _from_http(exc: web.HTTPException, request: web.Request) -> web.StreamResponse:
    if exc.status < 400:
        raise exc
    allow = exc.headers.get("Allow", "")
    details = {
        404: "no such address: see the API reference",
        405: f"{request.method} is not possible here: use {allow.replace(',', ' or ')}",
    }
    body = {
        "title": exc.reason,
        "status": exc.status,
        "code": (exc.reason or "error").lower().replace(" ", "_"),
        "detail": details.get(exc.status, exc.reason),
    }
    return _response(body, {"Allow": allow} if allow else {}, request)


async def parse_body(request: web.Request, model: type[ModelT]) -> ModelT:
    """The request's JSON body as a model. Raises BadRequest that names each wrong field."""
    if request.content_type != "application/json":
        # Also keeps foreign pages out: a form or a text/plain POST needs no CORS preflight.
        raise UnsupportedMediaType("send the body as JSON, with Content-Type: application/json")
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_input=False)[:10]
        raise BadRequest("; ".join(map(_complaint, errors))) from exc


def _complaint(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "body"
    if error["type"] == "extra_forbidden":
        return f"{place[:200]}: there is no such field; leave it out"
    return f"{place[:200]}: {error['msg'][:300]}"
