"""What a replica looks after from time to time: its lease, and sessions that lost their owner."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final, Protocol

from gateway.errors import Fenced, RegistryUnavailable, SessionNotFound
from gateway.registry.base import Change, Registry, Replica
from gateway.session import ENDED, PENDING, Session, SessionId, State
from gateway.settings import Settings

log: Final = logging.getLogger(__name__)

#: Heartbeats per lease: two may be lost before the lease is.
_BEATS: Final = 3


class Holder(Protocol):
    """What the sweep asks of the life cycle."""

    @property
    def spawns(self) -> bool:
        """Whether this replica can start dev servers now."""

    def holds(self, session_id: SessionId) -> bool:
        """Whether this replica runs the session, or is just registering it."""

    async def put_to_sleep(self, session_id: SessionId, *, reason: str) -> None:
        """Stop the dev server of a session that runs here; the next request wakes it."""

    async def take_over(self, session: Session) -> None:
        """Claim a session and start it. Raises Fenced if somebody else did."""


class Sweeper:
    """Renews the lease, expires sessions, settles what lost its owner. Owns no task itself."""

    def __init__(
        self, settings: Settings, registry: Registry, replica: Replica, holder: Holder
    ) -> None:
        self._lease_seconds = settings.lease_seconds
        self._registry = registry
        self._replica = replica
        self._holder = holder

    async def beat(self) -> None:
        """Renew the lease until cancelled."""
        while True:
            await asyncio.sleep(self._lease_seconds / _BEATS)
            try:
                await self._registry.heartbeat(self._replica)
            except RegistryUnavailable as exc:
                log.warning("heartbeat failed: %s", exc)

    async def sweep_often(self) -> None:
        """Sweep about once per lease until cancelled; replicas drift apart."""
        while True:
            await asyncio.sleep(self._lease_seconds * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                await self.sweep()
            except RegistryUnavailable as exc:
                log.warning("sweep failed: %s", exc)

    async def sweep(self) -> None:
        """Expire what is over its time; settle sessions whose owner is gone."""
        alive: dict[str, bool] = {}
        cursor = ""
        while True:
            page = await self._registry.sessions(limit=200, cursor=cursor)
            for session in page.sessions:
                try:
                    await self._settle(session, alive)
                except Fenced as exc:
                    log.info("session %s moved on meanwhile: %s", session.id, exc)
                except SessionNotFound:
                    log.info("session %s was forgotten meanwhile", session.id)
            cursor = page.cursor
            if not cursor:
                return

    async def _settle(self, session: Session, alive: dict[str, bool]) -> None:
        if session.state in ENDED:
            return
        if session.expires_in_ms <= 0 and session.state is not State.STOPPING:
            reason = "it reached the end of its time"
            await self._registry.request_stop(session.id, reason=reason, to=State.EXPIRED)
            return
        if session.recipe.target or session.state is State.SLEEPING:
            return
        if session.owner == self._replica.owner and _is_idle(session):
            reason = f"no traffic for {session.idle_seconds} s"
            await self._holder.put_to_sleep(session.id, reason=reason)
            return
        if not await self._lost_its_owner(session, alive):
            return
        if session.state is State.STOPPING:
            await self.finish_for_dead_owner(session)
        elif self._holder.spawns:
            await self._take_in(session)

    async def _lost_its_owner(self, session: Session, alive: dict[str, bool]) -> bool:
        if session.owner == self._replica.owner:
            # Registered here, but the reply was lost or never acknowledged: nobody started it.
            return session.state is not State.STOPPING and not self._holder.holds(session.id)
        if session.owner not in alive:
            alive[session.owner] = await self._registry.is_alive(session.owner)
        return not alive[session.owner]

    async def _take_in(self, session: Session) -> None:
        """Somebody may be waiting for what was starting; what was ready starts when asked for."""
        if session.state in PENDING:
            await self._holder.take_over(session)
            return
        claimed = await self._registry.claim(
            session.id, owner=self._replica.owner, generation=session.generation
        )
        await self._registry.move(
            session.id,
            State.SLEEPING,
            owner=self._replica.owner,
            generation=claimed.generation,
            change=Change(clear_endpoint=True, reason="its replica was lost"),
        )

    async def finish_for_dead_owner(self, session: Session) -> None:
        """STOPPING is its owner's to finish, but for an owner that is no more."""
        if await self._registry.is_alive(session.owner):
            return
        try:
            await self._registry.move(
                session.id,
                session.stop_to or State.STOPPED,
                owner=session.owner,
                generation=session.generation,
                change=Change(clear_endpoint=True),
            )
        except Fenced:
            log.info("session %s was ended by another replica", session.id)


def _is_idle(session: Session) -> bool:
    limit_ms = session.idle_seconds * 1000
    return session.state is State.READY and 0 < limit_ms < session.idle_ms
