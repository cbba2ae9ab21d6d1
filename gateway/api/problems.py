"""Errors as ``application/problem+json`` (RFC 9457) with a stable ``code``."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from gateway.errors import (
    BadRequest,
    GatewayError,
    LimitReached,
    RevisionConflict,
    SessionEnded,
    SessionNotFound,
)

log: Final = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
#: What a problem document has besides its own members, for callers of an older shape.
OlderShape = Callable[[web.Request, Mapping[str, Any]], dict[str, Any]]

#: By route, the shape in which the callers of older calls look for an error.
OLDER_SHAPES: Final = web.AppKey("older_shapes", dict[str, OlderShape])
#: The session that a call is about, where its address does not say so.
SESSION_ID: Final = "session_id"


def route_of(request: web.Request) -> str:
    """The pattern of the route that a request has found; "" for none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""


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
        body["waitedSeconds"] = round(exc.waited, 3)
    elif isinstance(exc, SessionEnded):
        body |= {"sessionId": exc.session_id, "state": exc.state, "reason": exc.reason}
    elif isinstance(exc, RevisionConflict):
        body["currentRevision"] = exc.current
    elif isinstance(exc, LimitReached):
        body["limit"] = exc.kind
    headers = {} if exc.retry_after is None else {"Retry-After": str(exc.retry_after)}
    if exc.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(body, headers, request)


def _response(
    body: dict[str, Any], headers: Mapping[str, str], request: web.Request
) -> web.Response:
    shape = request.app.get(OLDER_SHAPES, {}).get(route_of(request))
    if shape is not None:
        body = {**shape(request, body), **body}
    return web.Response(
        status=body["status"],
        body=json.dumps(body).encode(),
        content_type="application/problem+json",
        headers=headers,
    )


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document; an unexpected one is logged and says nothing.

    What is logged names the route, not the address: that may hold anything.
    """
    try:
        return await handler(request)
    except GatewayError as exc:
        if exc.status >= 500:
            log.warning("%s %s: %s", request.method, route_of(request), exc)
        return problem(exc, request)
    except web.HTTPException as exc:
        return _from_http(exc, request)
    except ConnectionResetError:
        log.debug("%s %s: the client has gone", request.method, route_of(request))
        return problem(BadRequest("the body is incomplete"), request)
    except Exception:
        log.exception("%s %s failed", request.method, route_of(request))
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
