"""The route table: what this process knows about sessions, kept true by push.

A lookup is one dictionary access. A miss registers for the push first and reads the registry
then, so that no registration can slip in between; if there is no record it waits, without
polling, for the registration under way. A route is used no longer than ``max_age_seconds`` after
it was last confirmed; while the registry is unreachable the last known route is used instead and
counted as stale, and an unknown id is RegistryUnavailable, never "not found".
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from gateway.errors import GatewayError, RegistryUnavailable, SessionNotFound
from gateway.proxy.pace import Pace
from gateway.registry.base import Registry, Subscriber
from gateway.session import ENDED, PENDING, Route, SessionId, State

log: Final = logging.getLogger(__name__)

#: Routes kept at most; of those in no use now, the ones unused for longest go first.
MAX_ROUTES: Final = 100_000
#: While the registry is down, it is asked again about a known session after this time.
_STALE_SECONDS: Final = 1.0
#: While no changes are pushed, a request for a known session waits so long for the registry.
_PATIENCE_SECONDS: Final = 0.3
_GOING: Final = frozenset({State.STOPPING, *ENDED})


#: Ids of which nothing is known that are looked up in a second, if nothing else is set.
_LOOKUPS_PER_SECOND: Final = 1000.0


class TooManyUnknown(GatewayError):
    """More unknown ids are asked for than may be looked up in the registry."""

    status = 503
    code = "too_many_unknown"
    title = "Too many unknown sessions"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # Not in the class: compiled, it would have no such attribute, as the root declares it for
        # instances.
        self.retry_after = 1


class Waker(Protocol):
    """Keeps dev servers running and brings them back; implemented by the life cycle."""

    async def touch(self, session_ids: Collection[SessionId]) -> None:
        """Note that these sessions have traffic. Raises RegistryUnavailable."""

    async def wake(self, session_id: SessionId, *, generation: int) -> bool:
        """See to it that a dev server newer than ``generation`` is on its way.

        For a session that sleeps, or whose dev server cannot be reached. True if one is (or was
        already) starting, or if that is not sure yet: look again. False if the session is well as
        it is. Waits a part of a lease before it doubts an owner. Raises GatewayError.
        """


@dataclass(slots=True)
class RouteStats:
    """Counters, since start."""

    reads: int = 0
    stale: int = 0
    not_found: int = 0
    #: Ids that waited for their turn to be looked up, and those that got none.
    delayed: int = 0
    refused: int = 0
    stalls: int = 0


class Entry:
    """A cached route. ``pool`` belongs to whoever forwards to it; a replaced entry is retired.

    It takes in newer routes as they come: who waits keeps of the old one what is needed afterwards.
    """

    __slots__ = ("confirmed_at", "is_public", "is_ready", "pool", "route", "session_id", "used")

    def __init__(self, route: Route, confirmed_at: float) -> None:
        self.take(route, confirmed_at)
        self.pool: Retirable | None = None
        #: Since the eviction came by last.
        self.used = False

    def take(self, route: Route, confirmed_at: float) -> None:
        """Hold ``route`` from now on. Every request asks for what is made ready here."""
        self.route = route
        self.session_id: str = route.id
        self.confirmed_at = confirmed_at
        self.is_ready = route.state is State.READY and route.endpoint is not None
        self.is_public = route.public


class Retirable(Protocol):
    """Something that belongs to one generation of a session and ends with it."""

    def retire(self) -> None:
        """Take no new work and let go of what is idle. Called once."""

    def cut(self) -> None:
        """Retire, and end what is under way, too."""

    @property
    def is_unused(self) -> bool:
        """Whether nothing is under way in it."""


class RouteTable:
    """Routes by session id. Everything runs on one event loop; times are ``clock`` seconds.

    Whoever owns the loop says ``alive`` about once a second. If it has stood still for longer than
    ``stall_seconds`` (SIGSTOP, a paused machine), sessions may have got new dev servers that nobody
    could tell it of: whatever looks first, before any byte goes to an old one, forgets all routes.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        wait_seconds: float,
        max_age_seconds: float,
        clock: Callable[[], float],
        max_routes: int = MAX_ROUTES,
        lookups_per_second: float = _LOOKUPS_PER_SECOND,
        stall_seconds: float = math.inf,
    ) -> None:
        self._registry = registry
        self._wait_seconds = wait_seconds
        self._max_age = max_age_seconds
        self._max_routes = max_routes
        self._pace = Pace(lookups_per_second)
        self._stall_seconds = stall_seconds
        self._clock = clock
        #: Until then it is certain that the loop has not stood still for too long.
        self._alive_until = clock() + stall_seconds
        self._entries: dict[str, Entry] = {}
        self._waiters: dict[str, set[asyncio.Future[Route]]] = {}
        self._reads: dict[str, asyncio.Task[Route | None]] = {}
        #: Known sessions of which the registry has no record, and since when.
        self._missing: dict[str, float] = {}
        self._linked = False
        self._unsubscribe: Callable[[], None] | None = None
        #: Told of a route that fewer may see than before, or that may be one.
        self.narrowed: Callable[[Entry], None] = _ignore
        self.stats = RouteStats()

    def open(self) -> None:
        """Begin to listen to changes."""
        self._unsubscribe = self._registry.subscribe(
            Subscriber(changed=self.changed, synced=self._synced, lost=self._lost)
        )

    async def close(self) -> None:
        """Stop listening and end reads under way; waiters are cancelled."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        reads = list(self._reads.values())
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.cancel()
        for entry in self._entries.values():
            _retire(entry)
        self._entries.clear()

    # -- the hot path ----------------------------------------------------------------------------

    def get(self, session_id: str, now: float) -> Entry | None:
        """The entry, if it may be used without asking the registry."""
        if now > self._alive_until:
            self._stood_still(now)
        entry = self._entries.get(session_id)
        if entry is None or now - entry.confirmed_at > self._max_age:
            return None
        entry.used = True
        return entry

    def known(self, session_id: str) -> Entry | None:
        """The entry, however old, for who decides nothing by it but whether to go on."""
        return self._entries.get(session_id)

    def alive(self, now: float) -> None:
        """The loop runs."""
        if now > self._alive_until:
            self._stood_still(now)
        self._alive_until = now + self._stall_seconds

    def _stood_still(self, now: float) -> None:
        self.stats.stalls += 1
        still = now - self._alive_until + self._stall_seconds
        log.warning("the data plane stood still for %.1f s: every route is read anew", still)
        self._alive_until = now + self._stall_seconds
        entries = list(self._entries.values())
        self._entries.clear()
        for entry in entries:
            if entry.pool is not None:
                entry.pool.cut()
                entry.pool = None

    # -- waiting ---------------------------------------------------------------------------------

    async def resolve(self, session_id: SessionId) -> Entry:
        """The entry, read from the registry; waits for a registration under way.

        Raises SessionNotFound after the wait, RegistryUnavailable if the registry does not
        answer and no earlier answer is known, TooManyUnknown if it may not be asked so often.
        """
        with _Waiter(self._waiters, session_id) as waiter:
            await self._turn(session_id, waiter)
            if waiter.future.done():
                return self._keep(waiter.future.result())
            try:
                if not self._linked and session_id in self._entries:
                    await self._read_briefly(session_id)
                route = await self._read(session_id)
            except RegistryUnavailable:
                entry = self._entries.get(session_id)
                if entry is None:
                    raise
                return self._stale(entry)
            if route is None:
                lost = self._lost_by_registry(session_id)
                if lost is not None:
                    return lost
                route = await self._registration(session_id, waiter)
        return self._keep(route)

    async def _turn(self, session_id: SessionId, waiter: _Waiter) -> None:
        """Wait until the registry may be asked: who makes up ids must not keep it busy.

        What is known is read at any time, and so is what somebody else is reading just now.
        """
        if session_id in self._entries or session_id in self._reads:
            return
        delay = self._pace.turn(self._clock(), within=self._wait_seconds)
        if delay is None:
            self.stats.refused += 1
            raise TooManyUnknown(
                "more unknown sessions are asked for than are looked up; try again"
            )
        if delay:
            self.stats.delayed += 1
            await asyncio.wait((waiter.future,), timeout=delay)

    def _stale(self, entry: Entry) -> Entry:
        self.stats.stale += 1
        # Not every request waits for a registry that is down.
        entry.confirmed_at = self._clock() - self._max_age + _STALE_SECONDS
        return entry

    async def _read_briefly(self, session_id: SessionId) -> None:
        """Let a read begin; RegistryUnavailable if it takes long.

        While no changes are pushed the registry is likely to be away, and what is known is better
        than a long wait. The answer is taken in when it comes.
        """
        read = self._begin_read(session_id)
        await asyncio.wait((read,), timeout=_PATIENCE_SECONDS)
        if not read.done():
            read.add_done_callback(self._take)
            raise RegistryUnavailable("the registry is slow to answer")

    def _lost_by_registry(self, session_id: SessionId) -> Entry | None:
        """The entry of a session that runs, although the registry has no record of it.

        A record outlives its session by far, so this registry has lost its data. The owner
        registers the session again; until then, but not for long, the route is good.
        """
        entry = self._entries.get(session_id)
        if entry is None or entry.route.state in _GOING:
            return None
        now = self._clock()
        if now - self._missing.setdefault(session_id, now) <= self._max_age:
            return self._stale(entry)
        del self._missing[session_id], self._entries[session_id]
        _retire(entry)
        return None

    async def deny(self, session_id: SessionId) -> NoReturn:
        """Answer for a session that the caller may not see as for one that does not exist.

        Raises SessionNotFound after the same reads and the same wait, or RegistryUnavailable where
        an unknown id would get it, so that ids cannot be probed.
        """
        await self._read(session_id)
        await asyncio.sleep(self._wait_seconds)
        await self._read(session_id)
        self.stats.not_found += 1
        raise SessionNotFound(session_id, waited=self._wait_seconds)

    async def settled(self, session_id: SessionId, entry: Entry, *, seconds: float) -> Entry:
        """Wait until the session is no longer pending; the entry as it is after ``seconds``."""
        deadline = self._clock() + seconds
        with _Waiter(self._waiters, session_id) as waiter:
            entry = self._entries.get(session_id, entry)
            while entry.route.state in PENDING:
                remaining = deadline - self._clock()
                if remaining <= 0:
                    break
                # Pushes wake the wait; the bound is for one that was lost.
                await asyncio.wait((waiter.future,), timeout=min(remaining, self._max_age))
                if not waiter.future.done():
                    entry = await self.resolve(session_id)
                    continue
                waiter.renew()
                entry = self._entries.get(session_id, entry)
        return entry

    async def _registration(self, session_id: SessionId, waiter: _Waiter) -> Route:
        await asyncio.wait((waiter.future,), timeout=self._wait_seconds)
        if waiter.future.done():
            return waiter.future.result()
        # A push may have been lost: only the registry itself can say "not found".
        await self._turn(session_id, waiter)
        route = await self._read(session_id)
        if route is None:
            self.stats.not_found += 1
            raise SessionNotFound(session_id, waited=self._wait_seconds)
        return route

    async def _read(self, session_id: SessionId) -> Route | None:
        """Read the registry; concurrent readers of one id share one read."""
        return await asyncio.shield(self._begin_read(session_id))

    def _begin_read(self, session_id: SessionId) -> asyncio.Task[Route | None]:
        read = self._reads.get(session_id)
        if read is None:
            self.stats.reads += 1
            read = asyncio.create_task(self._read_now(session_id), name=f"route read {session_id}")
            self._reads[session_id] = read
            read.add_done_callback(lambda read: self._read_done(session_id, read))
        return read

    def _read_done(self, session_id: SessionId, read: asyncio.Task[Route | None]) -> None:
        """Also when all who waited for it are gone: an error is taken note of."""
        del self._reads[session_id]
        if not read.cancelled() and (exc := read.exception()) is not None:
            log.warning("route read of %s failed: %s", session_id, exc)

    async def _read_now(self, session_id: SessionId) -> Route | None:
        while True:
            began = self._clock()
            session = await self._registry.session(session_id)
            # An answer that waited while the loop stood still is as old as the question.
            if self._clock() - began <= self._stall_seconds:
                return session.route if session is not None else None

    # -- changes ---------------------------------------------------------------------------------

    def changed(self, route: Route) -> None:
        """Take in a route that was pushed. Ids that nobody asked for here are not kept."""
        waiters = self._waiters.get(route.id)
        # A read under way counts too: whoever joins it later would miss this push.
        if waiters is None and route.id not in self._entries and route.id not in self._reads:
            return
        self._keep(route)
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(route)

    def _keep(self, route: Route) -> Entry:
        """Store ``route`` unless a newer one is known; returns the entry that holds."""
        entry = self._entries.get(route.id)
        if self._missing:
            self._missing.pop(route.id, None)
        now = self._clock()
        if not self._linked:
            now -= max(self._max_age - _STALE_SECONDS, 0.0)
        if entry is None:
            if len(self._entries) >= self._max_routes:
                self._evict()
            entry = self._entries[route.id] = Entry(route, now)
            if not route.public:
                self.narrowed(entry)  # sockets may have outlived the entry before this one
        elif route.newer_than(entry.route):
            if (route.generation, route.endpoint) != (
                entry.route.generation,
                entry.route.endpoint,
            ):
                _retire(entry)
                entry.pool = None
            before = entry.route
            entry.take(route, now)
            if not route.public and (before.public or before.access != route.access):
                self.narrowed(entry)
        elif not entry.route.newer_than(route):
            entry.confirmed_at = now
        return entry

    def _evict(self) -> None:
        """Drop the oldest entry that was not used since the last time round ("second chance")."""
        for _ in range(2 * len(self._entries)):
            session_id = next(iter(self._entries))
            entry = self._entries.pop(session_id)
            if not entry.used and (entry.pool is None or entry.pool.is_unused):
                _retire(entry)
                return
            entry.used = False
            self._entries[session_id] = entry

    def _synced(self) -> None:
        """The push link is up again: what was missed meanwhile is read again on next use."""
        self._linked = True
        for entry in self._entries.values():
            entry.confirmed_at = float("-inf")
        for session_id, entry in self._entries.items():
            # Whoever has something open there may no longer be allowed to see it.
            if entry.pool is not None and not entry.pool.is_unused:
                self._begin_read(SessionId(session_id)).add_done_callback(self._take)
        now = self._clock()
        for session_id in self._waiters:
            # A registration may have been missed while the link was down. Who gets no turn now
            # reads at the end of the wait.
            if session_id in self._entries or self._pace.turn(now, within=0.0) is not None:
                self._begin_read(SessionId(session_id)).add_done_callback(self._take)

    def _take(self, read: asyncio.Task[Route | None]) -> None:
        if not read.cancelled() and read.exception() is None and (route := read.result()):
            self.changed(route)

    def _lost(self) -> None:
        """Changes may be missed from now on: nothing is good for long until the link is up."""
        self._linked = False
        for entry in self._entries.values():
            entry.confirmed_at = float("-inf")

    @property
    def linked(self) -> bool:
        """Whether changes are being pushed to this table."""
        return self._linked

    def __len__(self) -> int:
        return len(self._entries)


class _Waiter:
    """A future that the next push of one id completes; gone when the ``with`` block ends."""

    __slots__ = ("_session_id", "_waiters", "future")

    def __init__(
        self, waiters: dict[str, set[asyncio.Future[Route]]], session_id: SessionId
    ) -> None:
        self._waiters = waiters
        self._session_id = session_id

    def __enter__(self) -> _Waiter:
        self.future: asyncio.Future[Route] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(self._session_id, set()).add(self.future)
        return self

    def renew(self) -> None:
        """Wait for one more push."""
        waiters = self._waiters[self._session_id]
        waiters.discard(self.future)
        self.future = asyncio.get_running_loop().create_future()
        waiters.add(self.future)

    def __exit__(self, *_: object) -> None:
        waiters = self._waiters[self._session_id]
        waiters.discard(self.future)
        if not waiters:
            del self._waiters[self._session_id]


def _ignore(_: Entry) -> None:
    """Nobody has anything open."""


def _retire(entry: Entry) -> None:
    if entry.pool is not None:
        entry.pool.retire()
        entry.pool = None
