"""Signed links to private previews, and tokens with which one session can be read."""

from __future__ import annotations

import math
import time

from aiohttp import web

from gateway.api.gate import session_token
from gateway.api.lookup import Lookup, check_is_live
from gateway.api.operation import MANAGERS, Answer, Call, operation
from gateway.api.query import Query
from gateway.api.schemas import CreateLink
from gateway.api.views import LinkView, TokenView, timestamp
from gateway.errors import SessionEnded, SessionNotFound
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

    @operation(
        "createLink",
        "POST",
        "/api/v1/sessions/{id}/links",
        tag="access",
        scopes=MANAGERS,
        answers={201: Answer("A link.", LinkView)},
        problems=(SessionNotFound, SessionEnded),
    )
    async def create(self, call: Call[Query, CreateLink]) -> web.Response:
        """Make a link that opens a private preview in any browser.

        Access by it ends at `expiresAt`; see [access.md](access.md#private-previews).
        """
        session, signed, expires = await self._signed(call, "link")
        url = self._lookup.urls(call.request).link(session.id, signed)
        return call.secret(LinkView(url=url, expires_at=timestamp(expires * 1000)))

    @operation(
        "revokeLinks",
        "DELETE",
        "/api/v1/sessions/{id}/links",
        tag="access",
        scopes=MANAGERS,
        answers={204: Answer("They are void.")},
        problems=(SessionNotFound, SessionEnded),
    )
    async def revoke(self, call: Call[Query, None]) -> web.Response:
        """Void all links of a session, their cookies and its tokens, at once, everywhere."""
        session = await self._lookup.known(call.session_id)
        await self._registry.patch(session.id, revoke=True)
        return call.done()

    @operation(
        "createToken",
        "POST",
        "/api/v1/sessions/{id}/tokens",
        tag="access",
        scopes=MANAGERS,
        answers={201: Answer("A token.", TokenView)},
        problems=(SessionNotFound, SessionEnded),
    )
    async def create_token(self, call: Call[Query, CreateLink]) -> web.Response:
        """Make a token that reads this session (state, log, events) and changes nothing."""
        session, signed, expires = await self._signed(call, "token")
        token = session_token(session, signed)
        return call.secret(TokenView(token=token, expires_at=timestamp(expires * 1000)))

    async def _signed(
        self, call: Call[Query, CreateLink], purpose: Purpose
    ) -> tuple[Session, str, int]:
        session = await self._lookup.known(call.session_id)
        check_is_live(session)
        expires = math.ceil(time.time()) + call.body.ttl_seconds
        return session, self._signer.sign(purpose, session.id, session.access, expires), expires
