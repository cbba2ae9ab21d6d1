"""One structured line for each call: who was asked what, what came of it, how long it took.

No line holds an address, a header field or a body as it came: any of them may hold a secret. What
is logged is the route's pattern, the session's id if it is one, and figures.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.api.problems import SESSION_ID, Handler, route_of
from gateway.session import is_session_id
from gateway.telemetry import FIELDS

log: Final = logging.getLogger(__name__)

#: Asked every few seconds by machines, and of interest to nobody while they succeed.
_QUIET: Final = frozenset({"/livez", "/readyz"})


def call_log_middleware(replica: str) -> Middleware:
    """Log each call that ``replica`` answers, once it is answered or given up."""

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        status = 0  # of a call whose client has gone
        try:
            response = await handler(request)
            status = response.status
        finally:
            _write(replica, request, status, time.perf_counter() - started)
        return response

    return note


def _write(replica: str, request: web.Request, status: int, seconds: float) -> None:
    route = route_of(request)
    level = logging.DEBUG if route in _QUIET and status == 200 else logging.INFO
    if not log.isEnabledFor(level):
        return
    session_id = request.match_info.get("id") or request.get(SESSION_ID) or ""
    fields: dict[str, Any] = {
        "replica": replica,
        "method": request.method,
        "route": route,
        "session": session_id if is_session_id(str(session_id)) else "",
        "status": status,
        "duration_ms": round(seconds * 1000, 3),
    }
    log.log(
        level,
        "%s %s %d",
        request.method,
        route.replace("{id}", fields["session"] or "{id}") or "(no route)",
        status,
        extra={FIELDS: fields},
    )
