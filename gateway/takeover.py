"""What lost replicas held is taken over by those that are left, each its part.

Who takes what needs no talk: rendezvous hashing gives every session an order of the survivors, the
same on each of them. The first takes it at once; if it is still there after a while, the second;
then anybody. Two that try the same are told apart by the registry: one claim wins.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterable
from typing import Final, Protocol

from gateway.errors import Fenced, RegistryUnavailable, SessionNotFound
from gateway.heartbeat import BEATS
from gateway.registry.base import Change, Registry, Replica
from gateway.session import PENDING, Session, State
from gateway.settings import Settings

log: Final = logging.getLogger(__name__)

#: With traffic in the last minute somebody is likely to look at it: it starts at once. What is
#: looked at later starts with the first request.
RECENT_MS: Final = 60_000
#: How long each survivor in the order of a session has before the next one's turn.
_TURN_SECONDS: Final = 2.0
#: Turns after which a session is anybody's.
_TURNS: Final = 2
_PAGE: Final = 200
#: The clocks of registry and replica tick apart by little within a lease.
_SLACK_SECONDS: Final = 0.05


class Taker(Protocol):
    """What is asked of the life cycle."""

    @property
    def spawns(self) -> bool:
        """Whether this replica can start dev servers now."""

    async def take_over(self, session: Session, *, in_turn: bool = False) -> None:
        """Claim a session and start it, ``in_turn`` with others that nobody may be waiting for.

        Raises Fenced if somebody else did.
        """

    async def stop_remains(self, session: Session) -> None:
        """Stop the dev server of a session whose owner is lost, where that outlives it."""

    async def adopt(self, session: Session) -> bool:
        """Look after the dev server of a READY session that outlives its owner; False if none does.

        Raises Fenced if somebody else does.
        """


class Takeover:
    """Looks for owners that lost their lease and takes its part of what they held."""

    def __init__(
        self, settings: Settings, registry: Registry, replica: Replica, taker: Taker
    ) -> None:
        self._beat_seconds = settings.lease_seconds / BEATS
        #: With less left of its lease than this a replica has missed a heartbeat.
        self._fresh_seconds = settings.lease_seconds - 1.2 * self._beat_seconds
        self._registry = registry
        self._replica = replica
        self._taker = taker
        #: When each lost owner was found.
        self._found: dict[str, float] = {}

    async def watch(self) -> None:
        """Look as soon as a lease may have run out, until cancelled."""
        pause = self._beat_seconds
        while True:
            await asyncio.sleep(pause)
            try:
                pause = await self.look()
            except RegistryUnavailable as exc:
                log.warning("lost replicas are looked for later: %s", exc)
                pause = self._beat_seconds

    async def look(self) -> float:
        """Take what is this replica's to take now; seconds until the next look is worth it."""
        lapsed = await self._registry.lapsed()
        now = time.monotonic()
        lost = [owner for owner in lapsed.owners if owner != self._replica.owner]
        self._found = {owner: self._found.get(owner, now) for owner in lost}
        pause = min(self._beat_seconds, lapsed.next_seconds + _SLACK_SECONDS)
        if not lost or not self._taker.spawns:
            return pause
        survivors = spawning(await self._registry.replicas())
        for owner, found in self._found.items():
            if await self._take_from(owner, survivors, seconds=now - found):
                pause = min(pause, _TURN_SECONDS / 2)
        return pause

    async def _take_from(self, owner: str, survivors: Iterable[str], *, seconds: float) -> bool:
        """Take this replica's part; whether something is left to others."""
        left = False
        cursor = ""
        while True:
            page = await self._registry.held_by(owner, limit=_PAGE, cursor=cursor)
            for session in sorted(page.sessions, key=lambda session: session.idle_ms):
                turn = order(session.id, survivors).get(self._replica.owner, _TURNS)
                if seconds < min(turn, _TURNS) * _TURN_SECONDS:
                    left = True
                else:
                    await self._settle(session)
            cursor = page.cursor
            if not cursor:
                return left

    async def _settle(self, session: Session) -> None:
        try:
            if session.state is State.STOPPING:
                await self.finish(session)
            elif await self._taker.adopt(session):
                pass
            elif is_wanted(session):
                await self._taker.take_over(session, in_turn=True)
            else:
                await self._let_sleep(session)
        except Fenced as exc:
            log.info("session %s moved on meanwhile: %s", session.id, exc)
        except SessionNotFound:
            log.info("session %s was forgotten meanwhile", session.id)

    async def _let_sleep(self, session: Session) -> None:
        await self._registry.move(
            session.id,
            State.SLEEPING,
            owner=session.owner,
            generation=session.generation,
            change=Change(clear_endpoint=True, reason="its replica was lost"),
        )

    async def is_lost(self, owner: str) -> bool | None:
        """Whether an owner whose dev server does not answer has lost its lease; None: not yet sure.

        Waits for the heartbeat that is due next, and then a part of what is left of the lease.
        """
        if owner == self._replica.owner:
            return False
        left = await self._registry.lease_left(owner)
        if left > self._fresh_seconds:
            await asyncio.sleep(left - self._fresh_seconds)
            left = await self._registry.lease_left(owner)
            if left > self._fresh_seconds:
                return False
        if left > 0:
            await asyncio.sleep(min(left + _SLACK_SECONDS, self._beat_seconds))
            left = await self._registry.lease_left(owner)
        if left > self._fresh_seconds:
            return False
        return None if left > 0 else True

    async def finish(self, session: Session) -> None:
        """Move on a STOPPING session, which is its owner's to do, unless that is alive."""
        if await self._registry.is_alive(session.owner):
            return
        await self._taker.stop_remains(session)
        await self._registry.move(
            session.id,
            session.stop_to or State.STOPPED,
            owner=session.owner,
            generation=session.generation,
            change=Change(clear_endpoint=True),
        )


def is_wanted(session: Session) -> bool:
    """Whether somebody may be waiting for its dev server, or look at it soon."""
    return session.state in PENDING or session.idle_ms < RECENT_MS


def spawning(replicas: Iterable[Replica]) -> list[str]:
    """The owners that can start dev servers."""
    return [replica.owner for replica in replicas if "spawns" in replica.info]


def order(name: str, owners: Iterable[str]) -> dict[str, int]:
    """The place of each owner in the order that belongs to ``name`` (rendezvous hashing)."""

    def weight(owner: str) -> bytes:
        return hashlib.blake2b(f"{name}|{owner}".encode(), digest_size=8).digest()

    return {owner: place for place, owner in enumerate(sorted(owners, key=weight))}
