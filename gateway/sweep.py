"""What a replica looks after from time to time: its own sessions, and a part of the list of all.

Once per lease it reads what it holds itself, and one page of all sessions. The page is the slow
round that finds what nothing else does: sessions past their time that nobody holds, and what an
interrupted write or a failover has left out of an index. So the cost of a sweep does not grow with
the sessions of others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final, Protocol

from gateway.errors import Fenced, RegistryUnavailable, SessionNotFound
from gateway.registry.base import Change, Registry, Replica
from gateway.session import ENDED, HELD, Session, SessionId, State
from gateway.settings import Settings
from gateway.takeover import is_wanted

log: Final = logging.getLogger(__name__)

_PAGE: Final = 200


class Keeper(Protocol):
    """What the sweep asks of the life cycle."""

    @property
    def spawns(self) -> bool:
        """Whether this replica can start dev servers now."""

    def holds(self, session_id: SessionId) -> bool:
        """Whether this replica runs it, or is about to register it or to say that it failed."""

    async def put_to_sleep(self, session_id: SessionId, *, reason: str) -> None:
        """Stop the dev server of a session that runs here; the next request wakes it."""

    async def take_over(self, session: Session, *, in_turn: bool = False) -> None:
        """Claim a session and start it. Raises Fenced if somebody else did."""

    async def adopt(self, session: Session) -> bool:
        """Look after the dev server of a READY session that outlives its owner; False if none does.

        Raises Fenced if somebody else does.
        """


class Sweeper:
    """Expires sessions, lets idle ones sleep, mends what is out of order. Owns no task itself."""

    def __init__(
        self, settings: Settings, registry: Registry, replica: Replica, keeper: Keeper
    ) -> None:
        self._lease_seconds = settings.lease_seconds
        self._registry = registry
        self._replica = replica
        self._keeper = keeper
        #: Where the slow round has come to.
        self._cursor = ""

    async def sweep_often(self) -> None:
        """Sweep about once per lease until cancelled; replicas drift apart."""
        while True:
            await asyncio.sleep(self._lease_seconds * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                await self.sweep()
            except RegistryUnavailable as exc:
                log.warning("sweep failed: %s", exc)

    async def sweep(self) -> None:
        """Look after what this replica holds, and after the next page of all sessions."""
        cursor = ""
        while True:
            page = await self._registry.held_by(self._replica.owner, limit=_PAGE, cursor=cursor)
            await self._settle_all(page.sessions)
            cursor = page.cursor
            if not cursor:
                break
        page = await self._registry.sessions(limit=_PAGE, cursor=self._cursor)
        self._cursor = page.cursor
        await self._settle_all(page.sessions)

    async def _settle_all(self, sessions: list[Session]) -> None:
        alive = {self._replica.owner: True}
        for session in sessions:
            try:
                await self._settle(session, alive)
            except Fenced as exc:
                log.info("session %s moved on meanwhile: %s", session.id, exc)
            except SessionNotFound:
                log.info("session %s was forgotten meanwhile", session.id)

    async def _settle(self, session: Session, alive: dict[str, bool]) -> None:
        if session.state in ENDED:
            return
        if session.expires_in_ms <= 0 and session.state is not State.STOPPING:
            reason = "it reached the end of its time"
            await self._registry.request_stop(session.id, reason=reason, to=State.EXPIRED)
        elif session.recipe.target or session.reserved or session.state not in HELD:
            return
        elif session.owner == self._replica.owner:
            await self._settle_own(session)
        else:
            if session.owner not in alive:
                alive[session.owner] = await self._registry.is_alive(session.owner)
            if not alive[session.owner]:
                await self._registry.enlist(session)

    async def _settle_own(self, session: Session) -> None:
        if session.state is State.STOPPING:
            return
        if not self._keeper.holds(session.id):
            if self._keeper.spawns:
                await self._take_in(session)
        elif _is_idle(session):
            reason = f"no traffic for {session.idle_seconds} s"
            await self._keeper.put_to_sleep(session.id, reason=reason)

    async def _take_in(self, session: Session) -> None:
        """This replica owns it and does not run it: a reply was lost, or an outage was too long.

        Or the registry has lost what came after: then its newest owner is about to restore it.
        """
        if await self._registry.recovering_seconds() > 0:
            return
        if await self._keeper.adopt(session):
            return
        if is_wanted(session):
            await self._keeper.take_over(session, in_turn=True)
            return
        await self._registry.move(
            session.id,
            State.SLEEPING,
            owner=session.owner,
            generation=session.generation,
            change=Change(clear_endpoint=True, reason="its dev server was lost"),
        )


def _is_idle(session: Session) -> bool:
    limit_ms = session.idle_seconds * 1000
    return session.state is State.READY and 0 < limit_ms < session.idle_ms
