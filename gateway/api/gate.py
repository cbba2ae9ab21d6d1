"""Who may make which call: API tokens by their scope, session tokens, tickets.

A session that is not the caller's is answered as one that does not exist: after the same wait, in
the same words.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiohttp import web

from gateway.api.dashboard import OPEN_ROUTES
from gateway.api.lookup import Lookup, session_id_of
from gateway.api.operation import OPEN_PATHS, operation_of
from gateway.api.problems import Handler, route_of
from gateway.api.tickets import Tickets, is_ticket
from gateway.errors import Forbidden, SessionNotFound, Unauthorized
from gateway.registry.base import Registry
from gateway.session import Session, SessionId, is_session_id
from gateway.settings import Settings
from gateway.signing import Signer
from gateway.tokens import ANYBODY, SESSION_TOKEN, Caller, Scope, Tokens

CALLER: Final = web.RequestKey("caller", Caller)
#: Asked for without a token: what the data plane (which has checked access) asks.
_INSIDE: Final = "/-/"
_ONE: Final = "/api/v1/sessions/{id}"
_HOW: Final = "send one of GATEWAY_API_TOKENS as Authorization: Bearer ..."
_NO_TICKET: Final = (
    "?token= takes an unused ticket from POST .../ticket, no older than 30 s, and never an API "
    "token: addresses get into logs"
)


class Gate:
    """Checks every call before anything else is done for it."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        lookup: Lookup,
        *,
        tokens: Tokens,
        tickets: Tickets,
        signer: Signer,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._lookup = lookup
        self._tokens = tokens
        self._tickets = tickets
        self._signer = signer

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Raises Unauthorized, Forbidden, SessionNotFound."""
        if not self._tokens.asked_for or _is_open(request):
            request[CALLER] = ANYBODY
            return await handler(request)
        caller = request[CALLER] = await self._caller(request)
        if caller.scope is Scope.ADMIN:
            return await handler(request)
        self._check_call(request, caller)
        if "id" in request.match_info and not await self._is_own(request, caller):
            if request.method == "DELETE" and route_of(request) == _ONE:
                return web.Response(status=204)  # as for what does not exist
            await self._deny(request)
        return await handler(request)

    # -- who it is -------------------------------------------------------------------------------

    async def _caller(self, request: web.Request) -> Caller:
        authorization = request.headers.get("Authorization")
        if authorization is None and "token" in request.query and _takes_ticket(request):
            return await self._ticket_holder(request)
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() == "bearer":
            caller = self._tokens.caller(token.encode("utf-8", "surrogateescape"))
            if caller is None:
                caller = await self._session_reader(token)
            if caller is not None:
                return caller
        raise Unauthorized(_HOW)

    async def _ticket_holder(self, request: web.Request) -> Caller:
        ticket, name = request.query["token"], request.match_info["id"]
        is_formed = is_ticket(ticket) and is_session_id(name)
        if not is_formed or not await self._tickets.redeem(ticket, SessionId(name)):
            raise Unauthorized(_NO_TICKET)
        return Caller(Scope.READ, session_id=name)

    async def _session_reader(self, token: str) -> Caller | None:
        """Who has a token for one session, which must be as it was when the token was issued."""
        match = SESSION_TOKEN.fullmatch(token)
        if match is None:
            return None
        session_id, access = SessionId(match[1]), int(match[2])
        # The signature first: who makes tokens up does not make the registry work.
        if self._signer.expiry("token", session_id, access, match[3]) <= time.time():
            return None
        session = await self._registry.session(session_id)
        is_current = session is not None and session.access == access
        return Caller(Scope.READ, session_id=session_id) if is_current else None

    # -- what it may -----------------------------------------------------------------------------

    def _check_call(self, request: web.Request, caller: Caller) -> None:
        """Raise Forbidden for a call that no session makes right."""
        declared = operation_of(request)
        if request.method != "OPTIONS" and (
            declared is None or caller.scope not in declared.scopes
        ):
            raise Forbidden(f"a token of the scope `{caller.scope}` is not enough for this call")

    async def _is_own(self, request: web.Request, caller: Caller) -> bool:
        session_id = session_id_of(request)
        if caller.scope is Scope.READ:
            return caller.session_id == session_id
        session: Session | None
        if request.method == "DELETE":
            session = await self._registry.session(session_id)
        else:
            session = await self._lookup.recorded(session_id, seconds=self._wait_seconds(request))
        return session is not None and caller.manages(session.creator)

    async def _deny(self, request: web.Request) -> None:
        """Raise SessionNotFound as late as for a session that does not exist."""
        started = time.monotonic()
        await asyncio.sleep(self._wait_seconds(request))
        raise SessionNotFound(session_id_of(request), waited=time.monotonic() - started)

    def _wait_seconds(self, request: web.Request) -> float:
        """How long this call would wait for a registration."""
        if route_of(request).endswith("/events"):
            if request.method == "POST":
                return self._settings.event_wait_seconds
            return self._settings.stream_wait_seconds
        return self._settings.status_wait_seconds


def _is_open(request: web.Request) -> bool:
    """Whether everything at this address may be asked for without a token."""
    return (
        request.path in request.app[OPEN_PATHS]
        or request.path.startswith(_INSIDE)
        or route_of(request) in OPEN_ROUTES
    )


def _takes_ticket(request: web.Request) -> bool:
    """Whether a ticket opens this; what only looks (HEAD) uses none up."""
    declared = operation_of(request)
    return declared is not None and declared.by_ticket and request.method == declared.method


def session_token(session: Session, signed: str) -> str:
    """A token that reads one session; ``signed`` is a signature for the purpose ``token``."""
    return f"{session.id}.{session.access}.{signed}"


def caller_of(request: web.Request) -> Caller:
    """Who makes a call that has passed the gate."""
    return request[CALLER]
