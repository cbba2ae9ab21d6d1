"""Before a replica leaves it gives what it holds to others: make before break.

Each session with recent traffic is offered to an heir. The heir starts a dev server of its own and
succeeds in one step; until then requests go where they went. What finds no heir in time is put to
sleep when the replica closes, and the next request wakes it elsewhere. Where dev servers outlast
their owner, an heir adopts what runs, all of it, and what finds none goes on without an owner until
another replica notices.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final, Protocol

from gateway.errors import Fenced, GatewayError, SessionNotFound
from gateway.holding import Holding
from gateway.registry.base import Registry, Replica
from gateway.session import OWNED, Session, SessionId
from gateway.settings import Settings
from gateway.takeover import is_wanted, order, spawning

log: Final = logging.getLogger(__name__)

#: Offers open at a time, for each heir.
_OFFERS_PER_HEIR: Final = 4
#: An heir that has not succeeded by then is given up.
_OFFER_SECONDS: Final = 8.0


class Waiter(Protocol):
    """What is asked of the life cycle."""

    async def wait(
        self, session_id: SessionId, until: Callable[[Session], bool], *, seconds: float
    ) -> Session:
        """The session as soon as ``until`` holds, or as it is after ``seconds``."""


class Handover:
    """Finds heirs, for the replica that leaves."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        replica: Replica,
        waiter: Waiter,
        *,
        outlasting: bool,
    ) -> None:
        """``outlasting``: see ``Spawner``."""
        self._outlasting = outlasting
        self._budget_seconds = settings.handover_seconds
        self._registry = registry
        self._replica = replica
        self._waiter = waiter

    async def run(self, holdings: Collection[Holding]) -> None:
        """Offer each of these to the others; returns when all that is possible is done."""
        try:
            async with asyncio.timeout(self._budget_seconds):
                heirs = await self._heirs()
                if not heirs:
                    log.info("no other replica can take over: sessions are put to sleep")
                    return
                slots = asyncio.Semaphore(_OFFERS_PER_HEIR * len(heirs))
                passed = await asyncio.gather(
                    *(self._pass_on(holding, heirs, slots) for holding in holdings)
                )
            log.info("%d of %d sessions were handed over", sum(passed), len(holdings))
        except TimeoutError:
            log.warning("not all sessions were handed over in %g s", self._budget_seconds)
        except GatewayError as exc:
            log.warning("sessions are put to sleep instead of handed over: %s", exc)

    async def offer(self, session: Session) -> bool:
        """Offer one session to the first heir in its order; False if there is none.

        Raises Fenced, RegistryUnavailable.
        """
        heirs = await self._heirs()
        for heir in sorted(heirs, key=order(session.id, heirs).__getitem__)[:1]:
            await self._registry.offer(
                session.id, owner=self._replica.owner, generation=session.generation, heir=heir
            )
            return True
        return False

    async def _heirs(self) -> list[str]:
        owners = spawning(await self._registry.replicas())
        return [owner for owner in owners if owner != self._replica.owner]

    async def _pass_on(
        self, holding: Holding, heirs: Collection[str], slots: asyncio.Semaphore
    ) -> bool:
        """Offer a session to one heir after the other; whether one has it."""
        async with slots:
            for heir in sorted(heirs, key=order(holding.id, heirs).__getitem__):
                session = await self._registry.session(holding.id)
                if session is None or not self._is_worth_it(session, holding):
                    return False
                try:
                    holding.offered = not self._outlasting
                    await self._registry.offer(
                        holding.id,
                        owner=self._replica.owner,
                        generation=holding.generation,
                        heir=heir,
                    )
                    session = await self._waiter.wait(
                        holding.id, self._is_over(heir), seconds=_OFFER_SECONDS
                    )
                except (Fenced, SessionNotFound) as exc:
                    log.info("session %s moved on meanwhile: %s", holding.id, exc)
                    return False
                if session.owner != self._replica.owner:
                    log.info("session %s was handed over to %s", holding.id, session.owner)
                    return True
        return False

    def _is_over(self, heir: str) -> Callable[[Session], bool]:
        """Whether an offer was taken, or has ended with a move of the session."""
        return lambda now: now.owner != self._replica.owner or now.heir != heir

    def _is_worth_it(self, session: Session, holding: Holding) -> bool:
        is_ours = session.owner == self._replica.owner and session.generation == holding.generation
        if not is_ours or session.state not in OWNED:
            return False
        return self._outlasting or is_wanted(session)
