"""Errors as ``application/problem+json`` (RFC 9457) with a stable ``code``."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from gateway.api.views import View
from gateway.errors import (
    BadRequest,
    GatewayError,
    LimitReached,
    RevisionConflict,
    SessionEnded,
    SessionNotFound,
)
from gateway.session import State

log: Final = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PROBLEM_TYPE: Final = "application/problem+json"


class Problem(View):
    """What went wrong (RFC 9457)."""

    title: str
    status: int
    code: str = Field(description="Stable: what a program looks at.")
    detail: str = Field(description="Says what to do.")


class NotFoundProblem(Problem):
    """No session of this id was ever registered."""

    session_id: str
    waited_seconds: float = Field(description="How long its registration was waited for.")


class EndedProblem(Problem):
    """The session has ended, or its files are deleted."""

    session_id: str
    state: State
    reason: str


class RevisionProblem(Problem):
    """The files have changed since `baseRevision`."""

    current_revision: int


class LimitProblem(Problem):
    """The caller has as much as it may."""

    limit: Literal["creates", "sessions", "files", "bytes"]


class UnsupportedMediaType(BadRequest):
    """The content of a call is not declared as what the call takes.

    ``fields`` say what it takes (RFC 9110 15.5.16).
    """

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"

    def __init__(self, detail: str, **fields: str) -> None:
        super().__init__(detail)
        self.fields = {name.replace("_", "-"): value for name, value in fields.items()}


@dataclass(frozen=True, slots=True)
class OlderShape:
    """What a problem document has besides its own members, for callers of an older shape."""

    model: type[BaseModel]
    members: Callable[[web.Request, Mapping[str, Any]], dict[str, Any]]


#: By route, the shape in which the callers of older calls look for an error.
OLDER_SHAPES: Final = web.AppKey("older_shapes", dict[str, OlderShape])
#: The session that a call is about, where its address does not say so.
SESSION_ID: Final = "session_id"


def route_of(request: web.Request) -> str:
    """The pattern of the route that a request has found; "" for none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""


#: The errors whose documents say more than the usual.
_MODELS: Final[dict[type[GatewayError], type[Problem]]] = {
    SessionNotFound: NotFoundProblem,
    SessionEnded: EndedProblem,
    RevisionConflict: RevisionProblem,
    LimitReached: LimitProblem,
}


def problem_model(error: type[GatewayError]) -> type[Problem]:
    """The model of an error's document."""
    return _MODELS.get(error, Problem)


def problem(exc: GatewayError, request: web.Request) -> web.Response:
    """The response for an error."""
    document = problem_model(type(exc)).model_validate(
        {
            "title": exc.title,
            "status": exc.status,
            "code": exc.code,
            "detail": str(exc),
            **_members(exc),
        }
    )
    headers = {} if exc.retry_after is None else {"Retry-After": str(exc.retry_after)}
    if exc.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(exc, UnsupportedMediaType):
        headers |= exc.fields
    return _response(document.model_dump(by_alias=True), headers, request)


def _members(exc: GatewayError) -> dict[str, Any]:
    """What the document of this error says besides the usual."""
    match exc:
        case SessionNotFound():
            return {"session_id": exc.session_id, "waited_seconds": round(exc.waited, 3)}
        case SessionEnded():
            return {"session_id": exc.session_id, "state": exc.state, "reason": exc.reason}
        case RevisionConflict():
            return {"current_revision": exc.current}
        case LimitReached():
            return {"limit": exc.kind}
    return {}


def _response(
    body: dict[str, Any], headers: Mapping[str, str], request: web.Request
) -> web.Response:
    shape = request.app.get(OLDER_SHAPES, {}).get(route_of(request))
    if shape is not None:
        body = {**shape.members(request, body), **body}
    return web.Response(
        status=body["status"],
        body=json.dumps(body).encode(),
        content_type=PROBLEM_TYPE,
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
    methods = exc.headers.get("Allow", "").split(",")
    allow = ", ".join(methods)
    details = {
        404: "no such address: see the API reference",
        405: f"{request.method} is not possible here: use "
        f"{', '.join(methods[:-1])} or {methods[-1]}",
    }
    body = {
        "title": exc.reason,
        "status": exc.status,
        "code": (exc.reason or "error").lower().replace(" ", "_"),
        "detail": details.get(exc.status, exc.reason),
    }
    return _response(body, {"Allow": allow} if allow else {}, request)
