"""Errors as ``application/problem+json`` (RFC 9457) with a stable ``code``."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
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

log: Final = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=BaseModel)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def problem(exc: GatewayError) -> web.Response:
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
    return web.Response(
        status=exc.status,
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
        return problem(exc)
    except web.HTTPRequestEntityTooLarge:
        limit = request.client_max_size
        return problem(PayloadTooLarge(f"the body is larger than {limit} bytes"))
    except web.HTTPException as exc:
        return _from_http(exc)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return problem(GatewayError("the gateway failed; its log says why"))


def _from_http(exc: web.HTTPException) -> web.StreamResponse:
    if exc.status < 400:
        raise exc
    body = {
        "title": exc.reason,
        "status": exc.status,
        "code": (exc.reason or "error").lower().replace(" ", "_"),
        "detail": "no such address: see the API reference" if exc.status == 404 else exc.reason,
    }
    allow = exc.headers.get("Allow")
    return web.Response(
        status=exc.status,
        body=json.dumps(body).encode(),
        content_type="application/problem+json",
        headers={"Allow": allow} if allow else {},
    )


async def parse_body(request: web.Request, model: type[ModelT]) -> ModelT:
    """The request's JSON body as a model. Raises BadRequest that names each wrong field."""
    if request.content_type != "application/json":
        # Also keeps foreign pages out: a form or a text/plain POST needs no CORS preflight.
        raise BadRequest("send the body as Content-Type: application/json")
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as exc:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in error['loc']) or 'body'}: {error['msg']}"
            for error in exc.errors(include_url=False, include_input=False)[:10]
        )
        raise BadRequest(wrong) from exc
