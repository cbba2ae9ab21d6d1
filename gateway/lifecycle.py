"""The life of sessions: the only place where registry and spawner meet.

Order is everything here: a session is registered, read back and acknowledged before anything is
spawned; every move is a compare-and-set on (owner, generation, state), and whoever loses one has
lost the session and stops its dev server. What other replicas do is learnt from pushed changes.

What one dev server goes through is in ``holding``; what a replica does from time to time in
``heartbeat``, ``sweep`` and ``takeover``; how it leaves in ``handover``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Final

from gateway.errors import (
    Fenced,
    GatewayError,
    RegistryUnavailable,
    SessionConflict,
    SessionNotFound,
)
from gateway.handover import Handover
from gateway.heartbeat import Heartbeat
from gateway.holding import Holding, answered, generation_of
from gateway.registry.base import Change, NewSession, Registered, Registry, Replica, Subscriber
from gateway.session import ENDED, OWNED, PENDING, Route, Session, SessionId, State
from gateway.settings import Settings
from gateway.spawner.base import Spawner
from gateway.stopping import Stopping
from gateway.strays import Strays
from gateway.sweep import Sweeper
from gateway.takeover import Takeover
from gateway.watchers import Watchers

log: Final = logging.getLogger(__name__)

#: Dev servers that nobody waits for and that may start at a time, for each processor.
_STARTS_PER_CPU: Final = 2
#: How long requests under way may take after their dev server has a successor.
_LINGER_SECONDS: Final = 3.0


class Lifecycle:
    """Creates, wakes, edits, stops and sweeps sessions for one replica."""

    def __init__(
        self, settings: Settings, registry: Registry, spawner: Spawner | None, replica: Replica
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._spawner = spawner
        self.replica = replica
        self._heartbeat = Heartbeat(
            settings,
            registry,
            replica,
            stood_still=self._stood_still,
            cut_off=self._cut_off,
            recovered=self._recheck_all,
        )
        self._sweeper = Sweeper(settings, registry, replica, self)
        self._takeover = Takeover(settings, registry, replica, self)
        self._watchers = Watchers(registry)
        self._stopping = Stopping(settings, registry, self._watchers, self._takeover)
        #: Whether what runs here goes on without this replica.
        self._outlasting = spawner is not None and spawner.outlasting
        self._handover = Handover(
            settings, registry, replica, self._watchers, outlasting=self._outlasting
        )
        self._strays = Strays(registry, replica)
        self._held: dict[SessionId, Holding] = {}
        #: Their dev servers are gone, and the registry does not know it yet.
        self._failing: set[Holding] = set()
        self._slots = asyncio.Semaphore(_STARTS_PER_CPU * (os.cpu_count() or 1))
        self._creating: set[SessionId] = set()
        self._wakes: dict[SessionId, asyncio.Task[bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Dev servers on their way out: nothing cuts that short.
        self._drops: set[asyncio.Task[None]] = set()
        self._unsubscribe: Callable[[], None] | None = None
        self._departure: asyncio.Task[None] | None = None
        self._closing = False

    async def open(self) -> None:
        """Take the lease, settle what a former life left behind, begin to listen."""
        await self._heartbeat.renew()
        if self._spawner is not None:
            await self._spawner.open()
        self._unsubscribe = self._registry.subscribe(
            Subscriber(changed=self._changed, synced=self._synced, lost=lambda: None)
        )
        if self._spawner is not None:
            await self._heartbeat.announce(spawns=True)
        # Before the first request: an address of a dead dev server may be in use again.
        await self._takeover.look()
        await self._sweeper.sweep()
        self._spawn_task(self._heartbeat.beat(), "heartbeat")
        self._spawn_task(self._takeover.watch(), "watch for lost replicas")
        self._spawn_task(self._sweeper.sweep_often(), "session sweep")
        if self._spawner is not None:
            self._spawn_task(self._tidy(self._spawner), "removal of leftovers")

    async def _tidy(self, spawner: Spawner) -> None:
        """Remove what died with other replicas of this machine, once it is taken over."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds)
            seconds = 2 * self._settings.lease_seconds
            try:
                await spawner.tidy(grace_seconds=seconds)
                await self._strays.stop(spawner, seen_seconds=seconds)
            except (OSError, RegistryUnavailable) as exc:
                log.warning("leftovers of other replicas are not removed: %s", exc)

    def leave(self) -> None:
        """Begin to hand over to other replicas what runs here; ``close`` waits for it."""
        if self._departure is None:
            self._departure = asyncio.create_task(self._depart(), name="hand-over")

    async def _depart(self) -> None:
        try:
            await self._heartbeat.announce(spawns=False)
        except RegistryUnavailable as exc:
            log.warning("the others are not told that this replica leaves: %s", exc)
            return
        await self._handover.run([held for held in self._held.values() if not held.is_heir])

    async def close(self) -> None:
        """Put all that is not handed over to sleep, stop its dev servers, give the lease back.

        Dev servers that outlast the replica go on: others adopt them.
        """
        if self._closing:
            return
        try:
            if self._departure is not None:
                await asyncio.wait({self._departure})
        finally:
            self._closing = True
            await self._close()

    async def _close(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
        tasks = [*self._tasks, *self._wakes.values()]
        if self._departure is not None:
            tasks.append(self._departure)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        reason = "its replica was shut down"
        await asyncio.gather(
            *(self._leave_behind(held, reason) for held in tuple(self._held.values())),
            *self._drops,
            return_exceptions=True,
        )
        if self._spawner is not None:
            await self._spawner.close()
        try:
            await self._registry.resign(self.replica)
        except RegistryUnavailable as exc:
            log.warning("the lease runs out by itself: %s", exc)

    # -- create ----------------------------------------------------------------------------------

    async def create(self, new: NewSession) -> Registered:
        """Register a session and begin to start its dev server.

        Returns when the registration is verified. Raises SessionConflict, RegistryUnavailable.
        """
        self._creating.add(new.id)
        try:
            registered = await self._register(new)
            session = registered.session
            if registered.created:
                log.info("session %s is registered (%d files)", new.id, len(new.files))
            # Also when a former call registered it and then failed to be acknowledged.
            to_start = (
                session.state is State.REGISTERED
                and session.owner == self.replica.owner
                and not session.reserved
            )
            if to_start and not await self._passed_on(session):
                self._begin(session)
        finally:
            self._creating.discard(new.id)
        if not registered.created and session.state is State.SLEEPING:
            await self.wake(session.id, generation=session.generation)
        return registered

    async def _register(self, new: NewSession) -> Registered:
        """Register; an id whose session is just stopping is begun anew once that has stopped."""
        for _ in range(2):
            try:
                registered = await self._registry.register(new, owner=self.replica.owner)
            except SessionConflict:
                session = await self._registry.session(new.id)
                if session is None or session.state is not State.STOPPING:
                    raise
            else:
                session = registered.session
                if session.state is not State.STOPPING:
                    return registered
            await self._stopping.until_ended(session)
        raise SessionConflict(new.id)

    def _begin(self, session: Session, *, in_turn: bool = False, adopted: bool = False) -> None:
        """Start the dev server of a session that this replica owns or inherits, unless it is
        under way; look after the one that runs if it is ``adopted``.
        """
        if self._closing or self._spawner is None:
            return
        current = self._held.get(session.id)
        if current is not None:
            if current.generation >= generation_of(session, self.replica.owner):
                return
            self._let_go(current)
        holding = Holding(
            session,
            owner=self.replica.owner,
            registry=self._registry,
            spawner=self._spawner,
            holder=self,
            slots=self._slots if in_turn else None,
            adopted=adopted,
        )
        self._held[session.id] = holding
        holding.begin()

    # -- ends ------------------------------------------------------------------------------------

    def failed(self, holding: Holding, reason: str, log_tail: str) -> None:
        """Implements ``holding.Holder``."""
        if holding.is_heir:
            # Its owner still runs it, and finds another heir, or none.
            self._let_go(holding)
        else:
            self._spawn_task(self._fail(holding, reason, log_tail), f"fail {holding.id}")

    def vanished(self, holding: Holding, reason: str) -> None:
        """Implements ``holding.Holder``."""
        log.warning("the dev server of session %s is gone: %s", holding.id, reason)
        self._spawn_task(self._put_to_sleep(holding, reason), f"put to sleep {holding.id}")

    def lost(self, holding: Holding) -> None:
        """Implements ``holding.Holder``."""
        if self._outlasting:
            self._spawn_task(self._settle_lost(holding), f"settle {holding.id}")
        else:
            self._let_go(holding)

    async def _settle_lost(self, holding: Holding) -> None:
        """Stop what runs, unless just its owner is another one now."""
        session = await answered(holding.id, lambda: self._registry.session(holding.id))
        goes_on = (
            session is not None
            and session.state is State.READY
            and session.generation == holding.generation
        )
        self._let_go(holding, release=goes_on)

    async def _fail(self, holding: Holding, reason: str, log_tail: str) -> None:
        """The dev server is gone or never came: say so, and clean up."""
        change = Change(reason=reason, log_tail=log_tail, clear_endpoint=True)
        self._failing.add(holding)
        try:
            await self._drop(holding)
            await holding.move(State.FAILED, change)
        except (Fenced, SessionNotFound) as exc:
            log.info("session %s is not marked as failed: %s", holding.id, exc)
        finally:
            self._failing.discard(holding)

    async def _drop(self, holding: Holding, *, release: bool = False) -> None:
        """Stop or ``release`` what runs here of a session; says nothing to the registry."""
        if self._held.get(holding.id) is holding:
            del self._held[holding.id]
        await holding.drop(release=release)

    def _let_go(
        self, holding: Holding, *, linger_seconds: float = 0.0, release: bool = False
    ) -> None:
        """The session is another's now, or nobody's: stop, or ``release``, what runs of it."""
        if self._held.get(holding.id) is holding:
            del self._held[holding.id]

        async def drop() -> None:
            try:
                await asyncio.sleep(linger_seconds)
            finally:
                await holding.drop(release=release)

        task = asyncio.create_task(drop(), name=f"let go {holding.id}")
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)
        task.add_done_callback(_log_failure)

    async def put_to_sleep(self, session_id: SessionId, *, reason: str) -> None:
        """Stop the dev server of a session that runs here; the next request wakes it."""
        holding = self._held.get(session_id)
        if holding is not None:
            log.info("session %s goes to sleep: %s", session_id, reason)
            await self._put_to_sleep(holding, reason)

    async def touch(self, session_ids: Collection[SessionId]) -> None:
        """Note traffic of these sessions, for the replicas that own them."""
        await self._registry.touch(session_ids)

    async def _leave_behind(self, holding: Holding, reason: str) -> None:
        if self._outlasting:
            await self._drop(holding, release=True)
        else:
            await self._put_to_sleep(holding, reason)

    async def _put_to_sleep(self, holding: Holding, reason: str) -> None:
        """First no replica routes here any more, then the dev server stops."""
        try:
            await self._registry.move(
                holding.id,
                State.SLEEPING,
                owner=self.replica.owner,
                generation=holding.generation,
                change=Change(clear_endpoint=True, reason=reason),
            )
        except GatewayError as exc:
            log.warning("session %s is left as it is: %s", holding.id, exc)
        await self._drop(holding)

    async def stop(self, session_id: SessionId, *, reason: str) -> tuple[Session, bool]:
        """See ``Stopping.stop``."""
        return await self._stopping.stop(session_id, reason=reason)

    async def _finish_stop(self, holding: Holding) -> None:
        await self._drop(holding)
        session = await answered(holding.id, lambda: self._registry.session(holding.id))
        to = (session.stop_to if session is not None else None) or State.STOPPED
        try:
            await holding.move(to, Change(clear_endpoint=True))
        except (Fenced, SessionNotFound) as exc:
            log.info("session %s is not marked as %s: %s", holding.id, to, exc)

    # -- wake and take over ----------------------------------------------------------------------

    async def wake(self, session_id: SessionId, *, generation: int) -> bool:
        """Implements ``proxy.routes.Waker``. Concurrent calls for one session share one try."""
        wake = self._wakes.get(session_id)
        if wake is None:
            wake = asyncio.create_task(
                self._wake(session_id, generation), name=f"wake {session_id}"
            )
            self._wakes[session_id] = wake
            wake.add_done_callback(lambda _: self._wakes.pop(session_id, None))
        return await asyncio.shield(wake)

    async def _wake(self, session_id: SessionId, generation: int) -> bool:
        if (seconds := await self._registry.recovering_seconds()) > 0:
            # What looks asleep, or lost, may run under a generation that the registry has lost.
            await asyncio.sleep(seconds)
        session = await self._registry.session(session_id)
        if session is None:
            raise SessionNotFound(session_id)
        if session.state in ENDED or session.state is State.STOPPING:
            return True  # the caller's route is old: reading it again tells how it ended
        if session.generation > generation and session.state is not State.SLEEPING:
            return True
        if session.expires_in_ms <= 0:
            reason = "it reached the end of its time"
            await self._registry.request_stop(session.id, reason=reason, to=State.EXPIRED)
            return True
        if session.recipe.target or not self.spawns:
            return False
        if session.state in OWNED:
            lost = await self._takeover.is_lost(session.owner)
            if not lost:
                return lost is None or session.state in PENDING
        if await self._passed_on(session):
            return True
        return await self._claim(session)

    async def _claim(self, session: Session) -> bool:
        """True if the session starts, here or (somebody was faster) elsewhere."""
        try:
            await self.take_over(session)
        except Fenced:
            log.info("session %s is taken over by another replica", session.id)
        return True

    async def take_over(self, session: Session, *, in_turn: bool = False) -> None:
        """Claim a session and start it. Raises Fenced if somebody else did."""
        try:
            claimed = await self._registry.claim(
                session.id, owner=self.replica.owner, generation=session.generation
            )
        except RegistryUnavailable:
            claimed = await self._claimed_after_all(session)
        log.info("session %s is taken over from %s", session.id, session.owner or "nobody")
        self._begin(claimed, in_turn=in_turn)

    async def _claimed_after_all(self, session: Session) -> Session:
        """What a claim has made whose answer was lost; raises RegistryUnavailable if nothing."""
        found = await self._registry.session(session.id)
        if (
            found is None
            or found.owner != self.replica.owner
            or found.generation <= session.generation
            or found.state is not State.STARTING
        ):
            raise RegistryUnavailable(f"session {session.id} could not be claimed: try again")
        return found

    async def adopt(self, session: Session) -> bool:
        """Look after the dev server of a READY session that outlives its owner; False if none does.

        Raises Fenced if somebody else does.
        """
        if not self._outlasting or session.state is not State.READY:
            return False
        if session.owner != self.replica.owner:
            session = await self._registry.adopt(
                session.id,
                owner=self.replica.owner,
                generation=session.generation,
                former=session.owner,
            )
        self._begin(session, adopted=True)
        return True

    async def stop_remains(self, session: Session) -> None:
        """Stop the dev server of a session whose owner is lost, where that outlives it."""
        if self._outlasting and self._spawner is not None:
            await self._spawner.stop(session.id, generation=session.generation)

    async def _passed_on(self, session: Session) -> bool:
        """Whether another replica was asked to start a session, because this one leaves."""
        if self._departure is None:
            return False
        try:
            return await self._handover.offer(session)
        except Fenced:
            return True  # it starts elsewhere already

    async def _inherit(self, session_id: SessionId) -> None:
        """Start what was offered to this replica."""
        try:
            session = await self._registry.session(session_id)
            if session is None or session.heir != self.replica.owner:
                return
            if await self.adopt(session):
                return
            if session.state is State.READY:
                self._begin(session)
            else:
                await self._claim(session)
        except GatewayError as exc:
            log.warning("session %s is not inherited: %s", session_id, exc)

    # -- wait ------------------------------------------------------------------------------------

    async def wait(
        self, session_id: SessionId, until: Callable[[Session], bool], *, seconds: float
    ) -> Session:
        """See ``Watchers.wait``."""
        return await self._watchers.wait(session_id, until, seconds=seconds)

    # -- changes ---------------------------------------------------------------------------------

    def _changed(self, route: Route) -> None:
        """A session has changed somewhere."""
        self._watchers.told(route.id)
        is_heir = route.heir == self.replica.owner
        if is_heir and self.spawns:
            self._spawn_task(self._inherit(route.id), f"inherit {route.id}")
        holding = self._held.get(route.id)
        if holding is None:
            return
        if route.generation < holding.generation:
            if holding.is_heir and not is_heir:
                self._let_go(holding)  # the offer has ended
        elif route.generation > holding.generation:
            followed = holding.offered and route.state is State.READY
            self._let_go(holding, linger_seconds=_LINGER_SECONDS if followed else 0.0)
        elif route.state is State.STOPPING:
            self._held.pop(holding.id)
            self._spawn_task(self._finish_stop(holding), f"stop {holding.id}")
        elif route.state in ENDED or route.state is State.SLEEPING:
            self._let_go(holding)
        elif self._outlasting and route.owner != self.replica.id:
            self._let_go(holding, release=True)
        elif holding.ready:
            holding.edited.set()

    def _synced(self) -> None:
        """Changes may have been missed: look at every session that somebody here waits for."""
        self._watchers.told_all()
        self._recheck_all()

    def _stood_still(self, _: float) -> None:
        """Others may have claimed what runs here."""
        self._recheck_all()

    def _recheck_all(self) -> None:
        for session_id in self._held:
            self._spawn_task(self._recheck(session_id), f"recheck {session_id}")

    async def _recheck(self, session_id: SessionId) -> None:
        session = await answered(session_id, lambda: self._registry.session(session_id))
        holding = self._held.get(session_id)
        if holding is not None and holding.is_ahead_of(session):
            try:
                await holding.restore()
            except Fenced:
                # Another generation was restored first, or somebody asked for the end meanwhile.
                session = await answered(session_id, lambda: self._registry.session(session_id))
        if session is not None:
            self._changed(session.route)

    def _cut_off(self, seconds: float) -> None:
        """The outage is longer than what was agreed to: others may run what runs here."""
        done = "left to others" if self._outlasting else "stopped"
        log.error("no registry for %.0f s: %d dev servers are %s", seconds, len(self._held), done)
        for holding in tuple(self._held.values()):
            self._let_go(holding, release=self._outlasting)

    def _spawn_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)

    # -- what the API asks -----------------------------------------------------------------------

    async def edit(
        self,
        session_id: SessionId,
        *,
        write: Mapping[str, bytes],
        delete: Sequence[str],
        base_revision: int | None,
    ) -> Session:
        """Change files; the owner, wherever it is, puts them into its workspace."""
        return await self._registry.edit_files(
            session_id, write=write, delete=delete, base_revision=base_revision
        )

    def holds(self, session_id: SessionId) -> bool:
        """Whether this replica runs it, or is about to register it or to say that it failed."""
        if session_id in self._held or session_id in self._creating:
            return True
        return any(holding.id == session_id for holding in self._failing)

    @property
    def spawns(self) -> bool:
        """Whether this replica can start dev servers now."""
        return self._spawner is not None and not self._closing

    @property
    def owned(self) -> int:
        """Sessions whose dev servers this replica runs."""
        return len(self._held)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (exc := task.exception()) is not None:
        log.error("task %s failed", task.get_name(), exc_info=exc)
