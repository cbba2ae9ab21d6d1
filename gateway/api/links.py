"""Signed links to private previews, and tokens with which one session can be read."""

from __future__ import annotations

import math
import time

from aiohttp import web

from gateway.api.bodies import parse_body
from gateway.api.gate import session_token
from gateway.api.lookup import Lookup, check_is_live, session_id_of
from gateway.api.schemas import CreateLink, timestamp
from gateway.registry.base import Registry
from gateway.session import Session
from gateway.signing import Purpose, Signer


class LinksApi:
    """What lets people and programs without an API token of their own see one session.

    Nothing is stored: a signature covers the session, its ``access`` number and the end of the
    access. To revoke is to give the session another number.
    """

    def __init__(self, registry: Registry, *, lookup: Lookup, signer: Signer) -> None:
        self._registry = registry
        self._lookup = lookup
        self._signer = signer

    def routes(self) -> list[web.RouteDef]:
        """The routes of these calls."""
        one = "/api/v1/sessions/{id}"
        return [
            web.post(one + "/links", self.create),
            web.delete(one + "/links", self.revoke),
            web.post(one + "/tokens", self.create_token),
        ]

    async def create(self, request: web.Request) -> web.Response:
        """A link that opens the preview in any browser; access by it ends at ``expiresAt``."""
        session, signed, expires = await self._signed(request, "link")
        url = self._lookup.urls(request).link(session.id, signed)
        return _secret({"url": url, "expiresAt": timestamp(expires * 1000)})

    async def create_token(self, request: web.Request) -> web.Response:
        """A token that reads this session (state, log, events) and changes nothing."""
        session, signed, expires = await self._signed(request, "token")
        return _secret(
            {"token": session_token(session, signed), "expiresAt": timestamp(expires * 1000)}
        )

    async def revoke(self, request: web.Request) -> web.Response:
        """End every access that was given by links and session tokens, at once, everywhere."""
        session = await self._lookup.known(session_id_of(request))
        await self._registry.patch(session.id, revoke=True)
        return web.Response(status=204)

    async def _signed(self, request: web.Request, purpose: Purpose) -> tuple[Session, str, int]:
        session_id = session_id_of(request)
        body = await parse_body(request, CreateLink)
        session = await self._lookup.known(session_id)
        check_is_live(session)
        expires = math.ceil(time.time()) + body.ttl_seconds
        return session, self._signer.sign(purpose, session_id, session.access, expires), expires


def _secret(body: dict[str, str]) -> web.Response:
    return web.json_response(body, status=201, headers={"Cache-Control": "no-store"})
