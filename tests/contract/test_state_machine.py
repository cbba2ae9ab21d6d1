"""The registry against a model: what several replicas do to a few sessions, in any order.

Hypothesis makes up the steps and shortens what fails to the fewest that do; these are printed. By
default the steps are the same in every run; ``STATE_MACHINE_EXAMPLES=2000`` looks for new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.exceptions import RedisError

from gateway.errors import (
    Fenced,
    GatewayError,
    RegistryUnavailable,
    RevisionConflict,
    SessionConflict,
    SessionEnded,
    SessionNotFound,
)
from gateway.registry import scripts
from gateway.registry.base import Change, Replica, Subscriber
from gateway.registry.keys import session_keys
from gateway.registry.redis_store import RedisRegistry
from gateway.registry.scripts import Script
from gateway.session import ENDED, MOVES, OFFERED, Route, Session, SessionId, State
from gateway.settings import Settings
from tests.contract.conftest import ENDPOINT, Relay, Server, new_session
from tests.contract.servers import find_server

T = TypeVar("T")

IDS: Final = (SessionId("session-one"), SessionId("session-two"))
NAMES: Final = ("a", "b", "c")
CLAIMABLE: Final = frozenset(s for s, to in MOVES.items() if State.STARTING in to)
_EXAMPLES: Final = os.environ.get("STATE_MACHINE_EXAMPLES")

session_ids = st.sampled_from(IDS)
names = st.sampled_from(NAMES)
#: How many answers in a row are lost, after the server has done what it was asked.
losses = st.sampled_from((0, 0, 0, 1, 2))
#: Which sighting of a session a caller goes by: the present one, or one from long ago.
ages = st.sampled_from((0, 0, 0, 1, 2, 3))


#: Mostly what keeps a session alive, else there is little to lose.
moves = st.sampled_from(
    [*[State.STARTING, State.READY, State.SLEEPING] * 3, State.STOPPING, *sorted(ENDED)]
)


@dataclass
class Record:
    """What the registry should know of one session."""

    state: State
    owner: str
    generation: int
    digest: str
    revision: int = 1
    reason: str = ""
    #: Its life was set to nothing: it is past its time, whoever has noticed.
    over: bool = False
    heir: str = ""
    heir_generation: int = 0

    @property
    def live(self) -> bool:
        """Whether it can be edited, and takes its id."""
        return self.state not in ENDED and not self.over


@dataclass
class Past:
    """What was ever seen of one id: outlives the record."""

    generations: set[int] = field(default_factory=set)
    newest: tuple[int, int] = (0, 0)
    #: (owner, generation), the latest last.
    sightings: list[tuple[str, int]] = field(default_factory=list)
    #: Type, and the state or mark in it, of every entry of the event stream.
    events: list[tuple[str, str]] = field(default_factory=list)


class Routes:
    """A replica's cache: takes what is pushed, and reads again only when it is told to."""

    def __init__(self) -> None:
        self.known: dict[SessionId, Route] = {}
        self.pushes: Counter[tuple[SessionId, int, int]] = Counter()
        self.must_read = False
        self.news = asyncio.Event()
        self.subscriber = Subscriber(self._changed, self._synced, lambda: None)

    def take(self, route: Route) -> None:
        """Keep the newer one."""
        if route.id not in self.known or route.newer_than(self.known[route.id]):
            self.known[route.id] = route

    def _changed(self, route: Route) -> None:
        self.pushes[route.id, route.generation, route.version] += 1
        self.take(route)
        self.news.set()

    def _synced(self) -> None:
        self.must_read = True
        self.news.set()


class RegistryMachine(RuleBasedStateMachine):
    """Three replicas, two sessions, one server whose answers get lost."""

    server: ClassVar[Server]
    limit_seconds: ClassVar[float] = 5.0
    #: Of those that take a second or two, in one example.
    most_slow_steps: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.records: dict[SessionId, Record] = {}
        #: What a call that has not arrived yet will do when it does.
        self.late: Callable[[], None] | None = None
        self.past = {session_id: Past() for session_id in IDS}
        self.incarnations = dict.fromkeys(NAMES, 1)
        self.slow_steps = 0
        self.marks = 0
        self.stack = contextlib.AsyncExitStack()
        self.registries: dict[str, RedisRegistry] = {}
        self.routes: dict[str, Routes] = {}
        self.run(self._open())

    def run(self, work: Awaitable[T]) -> T:
        """The result of ``work``, within its limit."""

        async def limited() -> T:
            async with asyncio.timeout(self.limit_seconds):
                return await work

        return self.runner.run(limited())

    async def _open(self) -> None:
        await self.server.ask("FLUSHALL")
        self.relay = await self.stack.enter_async_context(Relay(self.server).running())
        values = {"registry_timeout_seconds": 2.0, "lease_seconds": 1.0}
        limits = Settings.model_validate(values)
        for name in NAMES:
            registry = self.registries[name] = RedisRegistry(limits, url=self.relay.url)
            self.stack.push_async_callback(registry.close)
            await registry.open()
            self.routes[name] = Routes()
            registry.subscribe(self.routes[name].subscriber)
            await registry.heartbeat(self.replica(name))

    def teardown(self) -> None:
        """Close everything, in the order in which it depends on each other."""
        self.relay.release()
        self.run(self.stack.aclose())
        self.runner.close()

    # -- the model -----------------------------------------------------------------------------

    def replica(self, name: str) -> Replica:
        return Replica(name, str(self.incarnations[name]))

    def owner(self, name: str) -> str:
        return self.replica(name).owner

    def sighting(self, session_id: SessionId, age: int) -> tuple[str, int]:
        seen = self.past[session_id].sightings or [("nobody/1", 1)]
        return seen[max(0, len(seen) - 1 - age)]

    def fits(self, session_id: SessionId, sighting: tuple[str, int]) -> bool:
        record = self.records.get(session_id)
        return record is not None and sighting == (record.owner, record.generation)

    def enter(self, session_id: SessionId, state: State) -> None:
        """The record moves, which ends an offer and is told."""
        record = self.records[session_id]
        record.state, record.heir, record.heir_generation = state, "", 0
        self.past[session_id].events.append(("state", state))
        if state in ENDED:
            self.past[session_id].events.append(("end", state))

    def new_generation(self, session_id: SessionId, owner: str) -> None:
        """The record has got another generation: which one must never have been there before."""
        stored = self.run(self.registries["a"].session(session_id))
        assert stored is not None
        past = self.past[session_id]
        assert stored.generation not in past.generations, "a generation was handed out twice"
        assert stored.generation > max(past.generations, default=0), "generations must grow"
        past.generations.add(stored.generation)
        past.sightings.append((owner, stored.generation))
        self.records[session_id].owner = owner
        self.records[session_id].generation = stored.generation

    def ask(
        self,
        script: Script,
        lost: int,
        call: Callable[[], Awaitable[T]],
        *,
        refusal: type[GatewayError] | None,
        repeatable: bool = True,
    ) -> T | None:
        """Call, and hold the outcome to what is expected; None if it is refused or not known.

        What is expected has happened in any case: an answer is lost after the server has done it.
        """
        self.relay.lose_answer_to(script.sha.encode(), times=lost)
        too_much = lost > (1 if repeatable else 0)
        result: T | GatewayError
        try:
            result = self.run(call())
        except GatewayError as exc:
            result = exc
        finally:
            self.relay.lose_answer_to(b"", times=0)
        if too_much:
            assert isinstance(result, RegistryUnavailable), f"{script.name} without an answer"
            return None
        if refusal is not None:
            assert isinstance(result, refusal), f"{script.name}: {result!r}"
            return None
        assert not isinstance(result, GatewayError), f"{script.name}: {result!r}"
        return result

    # -- what replicas do ----------------------------------------------------------------------

    @rule(session_id=session_ids, name=names, digest=st.sampled_from("xxxy"), lost=losses)
    def register(self, session_id: SessionId, name: str, digest: str, lost: int) -> None:
        record, owner = self.records.get(session_id), self.owner(name)
        is_there = record is not None and record.live
        conflict = is_there and record is not None and record.digest != digest
        made = self.ask(
            scripts.REGISTER,
            lost,
            lambda: self.registries[name].register(
                new_session(session_id, digest=digest), owner=owner
            ),
            refusal=SessionConflict if conflict else None,
        )
        assert made is None or made.created is not is_there
        if not is_there:
            self._registered(session_id, owner, digest)

    def _registered(self, session_id: SessionId, owner: str, digest: str) -> None:
        self.records[session_id] = Record(State.REGISTERED, owner, 0, digest)
        self.new_generation(session_id, owner)
        self.enter(session_id, State.REGISTERED)

    @rule(
        session_id=session_ids,
        name=names,
        age=ages,
        to=moves,
        lost=losses,
    )
    def move(self, session_id: SessionId, name: str, age: int, to: State, lost: int) -> None:
        owner, generation = sighting = self.sighting(session_id, age)
        record = self.records.get(session_id)
        allowed = self.fits(session_id, sighting) and record and to in MOVES[record.state]
        change = Change(endpoint=ENDPOINT if to is State.READY else None)
        self.ask(
            scripts.MOVE,
            lost,
            lambda: self.registries[name].move(
                session_id, to, owner=owner, generation=generation, change=change
            ),
            refusal=None if allowed else Fenced if record else SessionNotFound,
        )
        if allowed:
            self.enter(session_id, to)

    @rule(session_id=session_ids, name=names, age=ages, lost=losses)
    def claim(self, session_id: SessionId, name: str, age: int, lost: int) -> None:
        _, generation = self.sighting(session_id, age)
        record, owner = self.records.get(session_id), self.owner(name)
        allowed = record and record.generation == generation and record.state in CLAIMABLE
        self.ask(
            scripts.CLAIM,
            lost,
            lambda: self.registries[name].claim(session_id, owner=owner, generation=generation),
            refusal=None if allowed else Fenced if record else SessionNotFound,
        )
        if allowed:
            self._claimed(session_id, owner)

    # -- calls that arrive when nobody waits for them any more ----------------------------------

    def give_up(
        self, script: Script, call: Callable[[], Awaitable[object]], arrived: Callable[[], None]
    ) -> None:
        """Call, and give up before the server has heard of it: ``arrived`` is for when it has."""

        async def ask() -> None:
            self.relay.withhold(script.sha.encode())
            task = asyncio.ensure_future(call())
            await self.relay.withheld.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self.run(ask())
        self.late = arrived

    @precondition(lambda self: self.late is None)
    @rule(session_id=session_ids, name=names, age=ages)
    def claim_late(self, session_id: SessionId, name: str, age: int) -> None:
        _, generation = self.sighting(session_id, age)
        owner = self.owner(name)

        def arrived() -> None:
            record = self.records.get(session_id)
            if record and record.generation == generation and record.state in CLAIMABLE:
                self._claimed(session_id, owner)

        claim = self.registries[name].claim
        self.give_up(
            scripts.CLAIM, lambda: claim(session_id, owner=owner, generation=generation), arrived
        )

    @precondition(lambda self: self.late is None)
    @rule(session_id=session_ids, name=names, age=ages, to=moves)
    def move_late(self, session_id: SessionId, name: str, age: int, to: State) -> None:
        owner, generation = sighting = self.sighting(session_id, age)

        def arrived() -> None:
            if self.fits(session_id, sighting) and to in MOVES[self.records[session_id].state]:
                self.enter(session_id, to)

        move = self.registries[name].move
        self.give_up(
            scripts.MOVE,
            lambda: move(session_id, to, owner=owner, generation=generation),
            arrived,
        )

    @precondition(lambda self: self.late is None)
    @rule(session_id=session_ids, name=names)
    def succeed_late(self, session_id: SessionId, name: str) -> None:
        record, heir = self.records.get(session_id), self.owner(name)
        generation = record.heir_generation if record else 1

        def arrived() -> None:
            now = self.records.get(session_id)
            offered = now and (now.heir, now.heir_generation) == (heir, generation)
            if offered and now and now.state is State.READY:
                self._succeeded(session_id, heir, generation)

        succeed = self.registries[name].succeed
        self.give_up(
            scripts.SUCCEED, lambda: succeed(session_id, heir=heir, generation=generation), arrived
        )

    @precondition(lambda self: self.late is None)
    @rule(session_id=session_ids, name=names, digest=st.sampled_from("xy"))
    def register_late(self, session_id: SessionId, name: str, digest: str) -> None:
        owner = self.owner(name)

        def arrived() -> None:
            record = self.records.get(session_id)
            if record is None or not record.live:
                self._registered(session_id, owner, digest)

        new = new_session(session_id, digest=digest)
        register = self.registries[name].register
        self.give_up(scripts.REGISTER, lambda: register(new, owner=owner), arrived)

    @precondition(lambda self: self.late is None)
    @rule(session_id=session_ids, name=names)
    def stop_late(self, session_id: SessionId, name: str) -> None:
        self.marks += 1
        reason = f"late reason {self.marks}"

        def arrived() -> None:
            record = self.records.get(session_id)
            if record and record.state is not State.STOPPING and record.state not in ENDED:
                self._stop_asked(session_id, State.STOPPED, reason)

        stop = self.registries[name].request_stop
        self.give_up(scripts.REQUEST_STOP, lambda: stop(session_id, reason=reason), arrived)

    @precondition(lambda self: self.late is not None)
    @rule()
    def arrive(self) -> None:
        """What was given up long ago reaches the server."""

        async def deliver() -> None:
            self.relay.release()
            await self.relay.delivered.wait()

        self.run(deliver())
        arrived, self.late = self.late, None
        assert arrived is not None
        arrived()

    def _claimed(self, session_id: SessionId, owner: str) -> None:
        self.new_generation(session_id, owner)
        self.records[session_id].reason = ""
        self.enter(session_id, State.STARTING)

    @rule(
        session_id=session_ids,
        pauses=st.tuples(*[st.sampled_from((0.0, 0.001, 0.003))] * 3),
        lost=st.sampled_from((0, 1)),
    )
    def race(self, session_id: SessionId, pauses: tuple[float, ...], lost: int) -> None:
        """All claim at once, by the same sighting; their calls arrive in any order."""
        record = self.records.get(session_id)
        if record is None:
            return

        async def late(name: str, pause: float) -> Session | Fenced:
            await asyncio.sleep(pause)
            try:
                return await self.registries[name].claim(
                    session_id, owner=self.owner(name), generation=record.generation
                )
            except Fenced as exc:
                return exc

        async def all_at_once() -> list[Session | Fenced]:
            return list(await asyncio.gather(*map(late, NAMES, pauses)))

        self.relay.lose_answer_to(scripts.CLAIM.sha.encode(), times=lost)
        won = [answer for answer in self.run(all_at_once()) if isinstance(answer, Session)]
        self.relay.lose_answer_to(b"", times=0)
        assert len(won) <= 1, "two owners"
        assert bool(won) is (record.state in CLAIMABLE)
        if won:
            self._claimed(session_id, won[0].owner)

    @rule(session_id=session_ids, name=names, age=ages, lost=losses)
    def offer(self, session_id: SessionId, name: str, age: int, lost: int) -> None:
        owner, generation = sighting = self.sighting(session_id, age)
        record, heir = self.records.get(session_id), self.owner(name)
        is_owner = self.fits(session_id, sighting)
        sleeps = record and record.state is State.SLEEPING and record.generation == sighting[1]
        allowed = record and (is_owner or sleeps) and record.state in OFFERED
        self.ask(
            scripts.OFFER,
            lost,
            lambda: self.registries[name].offer(
                session_id, owner=owner, generation=generation, heir=heir
            ),
            refusal=None if allowed else Fenced if record else SessionNotFound,
        )
        if allowed and record:
            stored = self.run(self.registries[name].session(session_id))
            assert stored is not None
            past = self.past[session_id]
            assert stored.heir_generation > max(past.generations), "one that was used"
            past.generations.add(stored.heir_generation)
            record.heir, record.heir_generation = heir, stored.heir_generation

    @rule(session_id=session_ids, name=names, stale=st.booleans(), lost=losses)
    def succeed(self, session_id: SessionId, name: str, stale: bool, lost: int) -> None:
        record, heir = self.records.get(session_id), self.owner(name)
        _, generation = self.sighting(session_id, 0)
        if record and not stale:
            generation = record.heir_generation
        offered = record and (record.heir, record.heir_generation) == (heir, generation)
        allowed = offered and record and record.state is State.READY
        self.ask(
            scripts.SUCCEED,
            lost,
            lambda: self.registries[name].succeed(
                session_id, heir=heir, generation=generation, change=Change(endpoint=ENDPOINT)
            ),
            refusal=None if allowed else Fenced if record else SessionNotFound,
        )
        if allowed:
            self._succeeded(session_id, heir, generation)

    def _succeeded(self, session_id: SessionId, heir: str, generation: int) -> None:
        record = self.records[session_id]
        record.owner, record.generation = heir, generation
        self.past[session_id].sightings.append((heir, generation))
        self.enter(session_id, State.READY)

    # -- what clients do -----------------------------------------------------------------------

    @rule(session_id=session_ids, name=names, to=st.sampled_from(sorted(ENDED)), lost=losses)
    def stop(self, session_id: SessionId, name: str, to: State, lost: int) -> None:
        record = self.records.get(session_id)
        done = record is not None and (record.state is State.STOPPING or record.state in ENDED)
        self.marks += 1
        reason = f"reason {self.marks}"
        stop = self.ask(
            scripts.REQUEST_STOP,
            lost,
            lambda: self.registries[name].request_stop(session_id, reason=reason, to=to),
            refusal=None if record else SessionNotFound,
        )
        assert stop is None or stop.already is done
        if record and not done:
            self._stop_asked(session_id, to, reason)

    def _stop_asked(self, session_id: SessionId, to: State, reason: str) -> None:
        record = self.records[session_id]
        record.reason = reason
        self.enter(session_id, to if record.state is State.SLEEPING else State.STOPPING)

    @rule(session_id=session_ids, name=names, behind=st.sampled_from((0, 1)), lost=losses)
    def edit(self, session_id: SessionId, name: str, behind: int, lost: int) -> None:
        record = self.records.get(session_id)
        refusal: type[GatewayError] | None = None
        if record is None:
            refusal = SessionNotFound
        elif not record.live:
            refusal = SessionEnded
        elif behind:
            refusal = RevisionConflict
        base = record.revision - behind if record else 1
        text = str(base).encode()
        self.ask(
            scripts.EDIT_FILES,
            lost,
            lambda: self.registries[name].edit_files(
                session_id, write={"a.txt": text}, base_revision=base
            ),
            refusal=refusal,
        )
        if record and refusal is None:
            record.revision += 1
            self.past[session_id].events.append(("event", "files"))
            assert self.run(self.registries[name].files(session_id))["a.txt"] == text

    @rule(session_id=session_ids, name=names, lost=losses)
    def expire(self, session_id: SessionId, name: str, lost: int) -> None:
        """Its life ends now, although nobody has ended it."""
        record = self.records.get(session_id)
        refusal = None if record and record.live else SessionEnded if record else SessionNotFound
        self.ask(
            scripts.PATCH,
            lost,
            lambda: self.registries[name].patch(session_id, ttl_seconds=0),
            refusal=refusal,
        )
        if record and refusal is None:
            record.over = True
            self.past[session_id].events.append(("event", "patch"))

    @rule(session_id=session_ids, name=names, age=st.sampled_from((None, 0, 1)), lost=losses)
    def append(self, session_id: SessionId, name: str, age: int | None, lost: int) -> None:
        record = self.records.get(session_id)
        generation = None if age is None else self.sighting(session_id, age)[1]
        current = record and generation in (None, record.generation, record.heir_generation)
        self.marks += 1
        mark = f"mark {self.marks}"
        self.ask(
            scripts.APPEND,
            lost,
            lambda: self.registries[name].append(
                session_id, "event", {"type": mark}, generation=generation
            ),
            refusal=None if current else Fenced if record else SessionNotFound,
            repeatable=False,
        )
        if current:
            self.past[session_id].events.append(("event", mark))

    @rule(name=names, lost=losses)
    def touch(self, name: str, lost: int) -> None:
        self.ask(scripts.TOUCH, lost, lambda: self.registries[name].touch(IDS), refusal=None)

    @rule(session_id=session_ids, name=names, lost=losses)
    def forget(self, session_id: SessionId, name: str, lost: int) -> None:
        record = self.records.get(session_id)
        may = record is None or record.state in ENDED
        self.ask(
            scripts.FORGET,
            lost,
            lambda: self.registries[name].forget(session_id),
            refusal=None if may else Fenced,
        )
        if may:
            self.past[session_id].events.clear()
            assert self.run(self.registries[name].files(session_id)) == {}

    # -- what happens to them ------------------------------------------------------------------

    @rule(session_id=session_ids)
    def lose_record(self, session_id: SessionId) -> None:
        """The tombstone's time is over, or a failover has lost the record."""
        self.run(self.server.ask("DEL", *session_keys(session_id)))
        self.records.pop(session_id, None)
        self.past[session_id].events.clear()

    @precondition(lambda self: self.slow_steps < self.most_slow_steps)
    @rule()
    def restart_server(self) -> None:
        """Killed, and back with what it had on disk: nothing that was answered is gone."""
        self.slow_steps += 1
        self.late = None  # what has not arrived is lost with its connection
        self.server.kill()
        self.server.restart()

        async def back() -> None:
            while True:
                with contextlib.suppress(RedisError):
                    await self.server.ask("PING")
                    break
                await asyncio.sleep(0.01)  # it listens while it loads
            for script in scripts.ALL:
                await self.server.ask("SCRIPT", "LOAD", script.source)
            for registry in self.registries.values():
                await registry.ping()

        self.run(back())

    @precondition(lambda self: self.slow_steps < self.most_slow_steps)
    @rule(victim=names)
    def die(self, victim: str) -> None:
        """A replica falls silent; when its lease is over a survivor takes what it can."""
        self.slow_steps += 1
        dead = self.owner(victim)
        survivors = [name for name in NAMES if name != victim]
        self.run(self._await_end_of_lease(dead, survivors))
        taker = survivors[0]
        registry = self.registries[taker]
        lapsed = self.run(registry.lapsed()).owners
        held = [i for i, r in self.records.items() if r.owner == dead and r.state in CLAIMABLE]
        assert dead in lapsed or not held, "nobody would look after what it held"
        for session_id in held:
            generation = self.records[session_id].generation
            self.run(registry.claim(session_id, owner=self.owner(taker), generation=generation))
            self._claimed(session_id, self.owner(taker))
        self.incarnations[victim] += 1
        self.run(self.registries[victim].heartbeat(self.replica(victim)))
        assert not self.run(registry.is_alive(dead)), "its successor is another owner"

    async def _await_end_of_lease(self, dead: str, survivors: list[str]) -> None:
        while True:
            for name in survivors:
                await self.registries[name].heartbeat(self.replica(name))
            if not await self.registries[survivors[0]].is_alive(dead):
                return
            await asyncio.sleep(0.1)  # the server's clock, not an event of ours

    # -- what must hold after every step -------------------------------------------------------

    @invariant()
    def the_registry_is_as_the_model(self) -> None:
        self.records_are_as_in_the_model()  # first: it notes the versions that are to be heard of
        self.events_are_in_order_and_without_gaps()
        self.every_replica_hears_of_every_change()

    def records_are_as_in_the_model(self) -> None:
        for session_id in IDS:
            stored = self.run(self.registries["b"].session(session_id))
            record = self.records.get(session_id)
            if record is None:
                assert stored is None
                continue
            assert stored is not None, "a session was lost"
            assert (stored.state, stored.owner, stored.generation) == (
                record.state,
                record.owner,
                record.generation,
            )
            assert (stored.revision, stored.digest) == (record.revision, record.digest)
            assert (stored.heir, stored.heir_generation) == (record.heir, record.heir_generation)
            assert stored.reason == record.reason
            assert bool(stored.ended_at_ms) is (record.state in ENDED)
            past, newest = self.past[session_id], (stored.generation, stored.version)
            assert newest >= past.newest, "a cache would keep what is older"
            past.newest = newest

    def events_are_in_order_and_without_gaps(self) -> None:
        for session_id in IDS:
            found = self.run(self.registries["c"].recent_events(session_id, count=1000))
            said = [(e.type, e.data["type" if e.type == "event" else "state"]) for e in found]
            assert said == self.past[session_id].events
            order = [tuple(map(int, event.id.split("-"))) for event in found]
            assert order == sorted(set(order))

    def every_replica_hears_of_every_change(self) -> None:
        for name, routes in self.routes.items():
            self.run(self._settled(self.registries[name], routes))
            assert max(routes.pushes.values(), default=1) == 1, "a change was told twice"

    async def _settled(self, registry: RedisRegistry, routes: Routes) -> None:
        """Return when the cache is as the model: by pushes alone, unless it is told to read."""
        while True:
            routes.news.clear()
            if routes.must_read:
                routes.must_read = False
                for session_id in IDS:
                    if session := await registry.session(session_id):
                        routes.take(session.route)
            known = {i: routes.known.get(i) for i in self.records}
            if all(r and self._is_current(r) for r in known.values()):
                return
            await routes.news.wait()

    def _is_current(self, route: Route) -> bool:
        return (route.generation, route.version) == self.past[route.id].newest


@pytest.fixture
def durable_server() -> Iterator[Server]:
    """A Valkey that has on disk whatever it has answered."""
    server = Server(find_server("valkey"), "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.close()


@pytest.mark.timeout(0 if _EXAMPLES else 120)
def test_whatever_replicas_do_and_lose_the_registry_is_as_its_model(
    durable_server: Server,
) -> None:
    class Machine(RegistryMachine):
        server = durable_server

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(_EXAMPLES or 20),
            stateful_step_count=30,
            deadline=None,
            derandomize=not _EXAMPLES,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _begin(machine: RegistryMachine, *states: State) -> None:
    """A session of A that has come so far."""
    machine.register(session_id=IDS[0], name="a", digest="x", lost=0)
    for state in states:
        machine.move(session_id=IDS[0], name="a", age=0, to=state, lost=0)
    machine.the_registry_is_as_the_model()


def _move_of_an_older_generation(machine: RegistryMachine) -> None:
    _begin(machine, State.STARTING)
    machine.claim(session_id=IDS[0], name="a", age=0, lost=0)
    machine.move(session_id=IDS[0], name="a", age=1, to=State.READY, lost=0)


def _claim_by_an_older_sighting(machine: RegistryMachine) -> None:
    _begin(machine, State.STARTING)
    machine.claim(session_id=IDS[0], name="b", age=0, lost=0)
    machine.claim(session_id=IDS[0], name="c", age=1, lost=0)


def _claim_after_an_offer(machine: RegistryMachine) -> None:
    _begin(machine, State.STARTING, State.READY)
    machine.offer(session_id=IDS[0], name="b", age=0, lost=0)
    machine.claim(session_id=IDS[0], name="c", age=0, lost=0)


def _registration_after_a_loss(machine: RegistryMachine) -> None:
    _begin(machine)
    machine.lose_record(session_id=IDS[0])
    _begin(machine)


def _move_whose_answer_is_lost(machine: RegistryMachine) -> None:
    _begin(machine)
    machine.move(session_id=IDS[0], name="a", age=0, to=State.STARTING, lost=1)


def _stop(machine: RegistryMachine) -> None:
    _begin(machine, State.STARTING)
    machine.stop(session_id=IDS[0], name="b", to=State.STOPPED, lost=0)


def _succession_that_comes_late(machine: RegistryMachine) -> None:
    _begin(machine, State.STARTING, State.READY)
    machine.offer(session_id=IDS[0], name="b", age=0, lost=0)
    machine.succeed_late(session_id=IDS[0], name="b")
    machine.offer(session_id=IDS[0], name="b", age=0, lost=0)
    machine.arrive()


def _stop_that_comes_late(machine: RegistryMachine) -> None:
    _begin(machine, State.STARTING)
    machine.stop_late(session_id=IDS[0], name="b")
    machine.stop(session_id=IDS[0], name="c", to=State.EXPIRED, lost=0)
    machine.arrive()


_COUNTER: Final = (
    b"math.max((tonumber(stored) or 0) + 1, clock_us())",
    b"(tonumber(stored) or 0) + 1",
)


@pytest.mark.parametrize(
    ("script", "right", "wrong", "steps"),
    [
        ("MOVE", b"or generation ~= ARGV[3]", b"", _move_of_an_older_generation),
        ("CLAIM", b"generation ~= ARGV[3]", b"false", _claim_by_an_older_sighting),
        ("CLAIM", *_COUNTER, _claim_after_an_offer),
        ("REGISTER", *_COUNTER, _registration_after_a_loss),
        ("MOVE", b"if op == ARGV[1] then", b"if false then", _move_whose_answer_is_lost),
        ("REQUEST_STOP", b"publish_route()\n  keep()", b"keep()", _stop),
        ("SUCCEED", b"or offered ~= ARGV[3]", b"", _succession_that_comes_late),
        ("REQUEST_STOP", b"state == 'stopping' or", b"", _stop_that_comes_late),
    ],
    ids=[
        "a move of an older generation",
        "a claim by an older sighting",
        "a plain counter at a claim",
        "a plain counter at a registration",
        "a repeated move that is no success",
        "a stop that nobody hears of",
        "a succession to an offer that was replaced",
        "a second stop",
    ],
)
def test_the_model_notices_a_broken_script(
    durable_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    right: bytes,
    wrong: bytes,
    steps: Callable[[RegistryMachine], None],
) -> None:
    """By the steps that bring it out, which the test above may take in any order."""

    class Machine(RegistryMachine):
        server = durable_server
        limit_seconds = 1.0

    whole: Script = getattr(scripts, script)
    assert right in whole.source
    source = whole.source.replace(right, wrong)
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
    _take(Machine(), steps)  # whole, it passes
    monkeypatch.setattr(scripts, script, Script(whole.name, source, sha))
    with pytest.raises((AssertionError, TimeoutError)):
        _take(Machine(), steps)


def _take(machine: RegistryMachine, steps: Callable[[RegistryMachine], None]) -> None:
    try:
        for script in (scripts.MOVE, scripts.SUCCEED, scripts.REQUEST_STOP):
            machine.run(machine.server.ask("SCRIPT", "LOAD", script.source))
        steps(machine)
        machine.the_registry_is_as_the_model()
    finally:
        machine.teardown()
