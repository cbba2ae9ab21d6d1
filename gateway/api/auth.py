"""Bearer tokens and CORS for the API."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.api.problems import Handler
from gateway.errors import Unauthorized

#: Asked for without a token: health, and what the data plane (which has checked access) asks.
_OPEN: Final = ("/livez", "/readyz", "/-/")


def token_middleware(tokens: frozenset[str]) -> Middleware:
    """Ask for one of ``tokens`` as ``Authorization: Bearer``; with no tokens, for nothing.

    Digests are compared, so that the time taken says nothing about a token.
    """
    digests = frozenset(_digest(token) for token in tokens)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if digests and not request.path.startswith(_OPEN):
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or _digest(token.strip()) not in digests:
                raise Unauthorized("send one of GATEWAY_API_TOKENS as Authorization: Bearer ...")
        return await handler(request)

    return check


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
            "Access-Control-Expose-Headers": "Location, Retry-After, X-Preview-Replica",
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


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
