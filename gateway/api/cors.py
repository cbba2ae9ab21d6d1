"""CORS for the API."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.api.problems import Handler


def cors_middleware(origins: Iterable[str]) -> Middleware:
    """Let pages of ``origins`` call the API (Fetch standard, CORS protocol)."""
    allowed = frozenset(origins)

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin", "")
        if origin not in allowed:
            return _varied(await handler(request)) if allowed else await handler(request)
        fields = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "ETag, Location, Retry-After, X-Preview-Replica",
            "Vary": "Origin",
        }
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            fields["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
            fields["Access-Control-Allow-Headers"] = (
                "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
            )
            fields["Access-Control-Max-Age"] = "600"
            return web.Response(status=204, headers=fields)
        request["cors"] = fields
        response = await handler(request)
        if not response.prepared:
            response.headers.update(fields)
        return response

    return answer


def _varied(response: web.StreamResponse) -> web.StreamResponse:
    """Marked for caches: for another origin the answer would be another one."""
    if not response.prepared:
        response.headers["Vary"] = "Origin"
    return response
