"""What the gateway itself answers: pages for people, RFC 9457 problems for programs. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import Forbidden, GatewayError, SessionNotFound
from gateway.proxy import pages
from gateway.proxy.fields import ORIGIN
from gateway.proxy.messages import RequestHead, wants_page
from gateway.session import Route, State

#: Pages are self-contained; they may be shown in a frame, as previews are.
_PAGE_FIELDS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
)
#: The WebSocket that is spoken here.
_WEBSOCKET_FIELDS: Final = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response but for what the connection adds. ``retry_after`` is in seconds."""

    status: int
    body: bytes
    content_type: str
    fields: tuple[tuple[str, str], ...] = ()
    retry_after: int | None = None


def page(status: int, document: bytes, *, retry_after: int | None = None) -> Answer:
    """A page for a person."""
    return Answer(status, document, "text/html; charset=utf-8", _PAGE_FIELDS, retry_after)


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    retry_after: int | None = None,
    **extra: Any,
) -> Answer:
    """A problem for a program; ``code`` is stable, ``detail`` says what to do."""
    members = {"title": title, "status": status, "code": code, "detail": detail, **extra}
    body = json.dumps(members).encode()
    return Answer(status, body, "application/problem+json", (), retry_after)


def refused(status: int, message: str) -> Answer:
    """For bytes that are no request; 426 says what would be one (RFC 6455 4.4)."""
    if status == 426:
        answer = problem(status, "upgrade_required", "Upgrade required", message)
        return Answer(status, answer.body, answer.content_type, _WEBSOCKET_FIELDS)
    return problem(status, "malformed_request", "Malformed request", message)


def redirect(location: str) -> Answer:
    """The same request belongs there (RFC 9110 15.4.9)."""
    return Answer(308, b"", "text/plain", (("Location", location),))


def link_opened(base: bytes, cookie: str | None) -> Answer:
    """On to the preview, without what is secret in the address."""
    location = base.decode("latin-1")
    fields: tuple[tuple[str, str], ...] = (
        ("Location", location),
        ("Referrer-Policy", "no-referrer"),
    )
    if cookie is not None:
        fields = (*fields, ("Set-Cookie", cookie))
    return Answer(303, b"", "text/plain", fields)


def error(exc: GatewayError, head: RequestHead, *, of_preview: bool) -> Answer:
    """The answer to a request that failed with ``exc``."""
    if of_preview and wants_page(head):
        return page(exc.status, _error_page(exc), retry_after=exc.retry_after)
    extra: dict[str, Any] = {}
    if isinstance(exc, SessionNotFound):
        # The shape that callers of older gateways look for.
        extra = {
            "success": False,
            "error": "Preview session not found",
            "sessionId": exc.session_id,
            "retries": 0,  # waiting is done here, without any
        }
    return problem(exc.status, exc.code, exc.title, str(exc), retry_after=exc.retry_after, **extra)


def _error_page(exc: GatewayError) -> bytes:
    if isinstance(exc, SessionNotFound):
        return pages.not_found(exc.session_id, exc.waited)
    if exc.retry_after is not None:
        return pages.unavailable(str(exc), exc.retry_after)
    return pages.bad_gateway(str(exc))


def starting_page(route: Route, *, events_url: str) -> Answer:
    """Progress and log, for a navigation to a preview that is not ready."""
    return page(503, pages.starting(route, events_url=events_url), retry_after=1)


def still_starting(route: Route) -> Answer:
    """For a request that was held until the limit."""
    detail = f"the dev server of {route.id} is not ready yet; try again"
    return problem(503, "preview_starting", "Preview is starting", detail, retry_after=1)


def ended(route: Route, head: RequestHead) -> Answer:
    """For a preview that has stopped, failed or expired."""
    if wants_page(head):
        failed = route.state is State.FAILED
        return page(410, pages.failed(route) if failed else pages.gone(route))
    return problem(
        410,
        "session_ended",
        "Session ended",
        f"session {route.id} is {route.state}: {route.reason or 'no reason given'}",
        state=str(route.state),
        reason=route.reason,
        sessionId=route.id,
    )


def foreign_origin(head: RequestHead) -> Forbidden:
    """The error for a request from a page of another site."""
    origin = (head.special[ORIGIN] or b"").decode("latin-1")
    return Forbidden(
        f"origin {origin} may not do this: open the preview under its own address, or add the "
        "origin to GATEWAY_CORS_ORIGINS"
    )
