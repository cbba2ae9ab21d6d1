"""One-use tickets for who cannot send an Authorization field: a browser's EventSource.

An address gets into histories and logs, so an API token may not be in one. A ticket may: it opens
one stream of one session, once, within half a minute, at any replica.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Final

from aiohttp import web

from gateway.api.lookup import Lookup
from gateway.api.operation import MANAGERS, Answer, Call, operation
from gateway.api.query import Query
from gateway.api.views import TicketView, timestamp
from gateway.errors import SessionEnded, SessionNotFound
from gateway.registry.base import Registry
from gateway.session import SessionId

TICKET_SECONDS: Final = 30
_PREFIX: Final = "ticket-"


class Tickets:
    """Issues tickets, and takes them in. The registry keeps no ticket, only its digest."""

    def __init__(self, registry: Registry, lookup: Lookup) -> None:
        self._registry = registry
        self._lookup = lookup

    @operation(
        "createTicket",
        "POST",
        "/api/v1/sessions/{id}/ticket",
        tag="access",
        scopes=MANAGERS,
        answers={201: Answer("A ticket.", TicketView)},
        problems=(SessionNotFound, SessionEnded),
    )
    async def issue(self, call: Call[Query, None]) -> web.Response:
        """Make a ticket that opens the event stream once, as `?token=`, within 30 s."""
        session = await self._lookup.known(call.session_id)
        ticket = _PREFIX + secrets.token_urlsafe(32)
        expires_ms = int((time.time() + TICKET_SECONDS) * 1000)
        await self._registry.remember(_name(ticket), session.id, seconds=TICKET_SECONDS)
        url = f"{self._lookup.urls(call.request).events(session.id)}?token={ticket}"
        return call.secret(TicketView(ticket=ticket, expires_at=timestamp(expires_ms), url=url))

    async def redeem(self, ticket: str, session_id: SessionId) -> bool:
        """Whether this is a ticket for this session; it is none any more. Raises
        RegistryUnavailable.
        """
        return await self._registry.recall(_name(ticket)) == session_id


def is_ticket(text: str) -> bool:
    """Whether ``text`` has the form of a ticket."""
    return text.startswith(_PREFIX)


def _name(ticket: str) -> str:
    return f"ticket:{hashlib.sha256(ticket.encode()).hexdigest()}"
