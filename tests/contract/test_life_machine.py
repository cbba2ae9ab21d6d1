"""Life cycles against a model: what replicas, clients and networks do to sessions, in any order.

Three replicas, each with its life cycle, its route table and a network of its own, on one real
Valkey. They are killed, cut off and shut down; answers of the registry are lost, requests to it
arrive late and in another order, and it stands still, dies, or forgets everything. Dev servers are
not real here: nothing but who runs what is looked at. Whatever has happened, in the end

- no session is lost, and what was ended stays so;
- all replicas route a session to one dev server, which is the only one that runs;
- nothing runs of what has ended, and no generation was ever started twice.

``LIFE_MACHINE_EXAMPLES=200`` looks further than the few runs of every day.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, ClassVar, Final, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.exceptions import RedisError

from gateway.errors import GatewayError, RegistryUnavailable, SessionNotFound
from gateway.holding import Holding
from gateway.lifecycle import Lifecycle
from gateway.proxy.routes import RouteTable
from gateway.registry import scripts
from gateway.registry.base import Replica
from gateway.registry.redis_store import RedisRegistry
from gateway.session import ENDED, Endpoint, Route, Session, SessionId, State
from gateway.settings import Settings
from gateway.spawner.base import DevServer, Job, Reports
from tests.contract.conftest import Relay, Server, new_session
from tests.contract.lives import ScriptedSpawner
from tests.contract.servers import find_server

T = TypeVar("T")

IDS: Final = (SessionId("session-one"), SessionId("session-two"), SessionId("session-three"))
NAMES: Final = ("a", "b", "c")
LEASE_SECONDS: Final = 1.0
#: Until everything is as it should be again: a lease, every survivor's turn, and a busy machine.
SETTLE_SECONDS: Final = 20.0
_EXAMPLES: Final = os.environ.get("LIFE_MACHINE_EXAMPLES")
#: Which replica a task belongs to: it dies with it.
_WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="")

session_ids = st.sampled_from(IDS)
names = st.sampled_from(NAMES)


class World:
    """What runs, wherever: the dev servers of all replicas, by the ports they listen on."""

    def __init__(self) -> None:
        self.ports = itertools.count(4000)
        self.at: dict[int, tuple[Spawner, SessionId, int]] = {}
        self.started: Counter[tuple[SessionId, int]] = Counter()
        self.spawners: list[Spawner] = []

    def answer(self, endpoint: Endpoint | None) -> tuple[SessionId, int] | None:
        """Which session and generation answers at an address."""
        if endpoint is None or endpoint.port not in self.at:
            return None
        spawner, session_id, generation = self.at[endpoint.port]
        runs = spawner.running.get(session_id) == generation
        return (session_id, generation) if runs else None

    def runs(self, session_id: SessionId) -> list[int]:
        """The generations of a session that run somewhere."""
        found = (spawner.running.get(session_id) for spawner in self.spawners)
        return [generation for generation in found if generation is not None]


class Spawner(ScriptedSpawner):
    """Says to the world what it has started, and dies with its replica."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        world.spawners.append(self)

    async def start(self, job: Job, reports: Reports) -> DevServer:
        server = await super().start(job, reports)
        self.world.started[job.session_id, job.generation] += 1
        endpoint = Endpoint("127.0.0.1", next(self.world.ports))
        self.world.at[endpoint.port] = (self, job.session_id, job.generation)
        return DevServer(endpoint, server.hmr)


class Member:
    """One replica: life cycle and route table over a network of its own."""

    def __init__(self, world: World, server: Server, name: str, incarnation: int) -> None:
        self.name = name
        self.who = f"{name}/{incarnation}"
        self.relay = Relay(server, f"relay-{name}-{incarnation}")
        values = {"lease_seconds": LEASE_SECONDS, "registry_timeout_seconds": 0.5}
        limits = Settings.model_validate(values)
        self.registry = RedisRegistry(limits, url=self.relay.url)
        self.table = RouteTable(
            self.registry, wait_seconds=0.1, max_age_seconds=2, clock=time.monotonic
        )
        self.spawner = Spawner(world)
        replica = Replica(name, str(incarnation))
        self.life = Lifecycle(limits, self.registry, self.spawner, replica)
        self.stack = contextlib.AsyncExitStack()

    async def open(self) -> None:
        await self.registry.open()
        self.table.open()
        await self.life.open()

    async def close(self) -> None:
        """In order, as after SIGTERM."""
        self.life.leave()
        await self.life.close()
        await self.table.close()
        await self.registry.close()


class LifeMachine(RuleBasedStateMachine):
    """Clients of three replicas, and what goes wrong."""

    server: ClassVar[Server]
    settle_seconds: ClassVar[float] = SETTLE_SECONDS

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.tasks: dict[str, set[asyncio.Task[Any]]] = {}
        self.runner.get_loop().set_task_factory(self._new_task)  # type: ignore[arg-type]
        self.world = World()
        self.incarnations: Counter[str] = Counter()
        self.members: dict[str, Member] = {}
        #: Relays of the dead: they are part of the network, which nobody closes before the end.
        self.graves: list[Member] = []
        #: Sessions that clients were told of: True while nobody has asked for their end.
        self.told: dict[SessionId, bool] = {}

    # -- tasks die with their replica --------------------------------------------------------------

    def _new_task(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, T],
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task = asyncio.Task(work, loop=loop, context=context)
        who = _WHO.get() if context is None else context.run(_WHO.get)
        mine = self.tasks.setdefault(who, set())
        mine.add(task)
        task.add_done_callback(mine.discard)
        return task

    def run(self, work: Awaitable[T], *, seconds: float = 30.0) -> T:
        """The result of ``work``; everything else goes on meanwhile."""

        async def limited() -> T:
            async with asyncio.timeout(seconds):
                return await work

        return self.runner.run(limited())

    async def within(self, member: Member, work: Coroutine[Any, Any, T]) -> T:
        """Do something as a part of one replica."""
        context = contextvars.copy_context()
        context.run(_WHO.set, member.who)
        return await asyncio.get_running_loop().create_task(work, context=context)

    # -- replicas ----------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.run(self.server.ask("FLUSHALL"))
        for name in NAMES:
            self.start(name)
        for session_id, name in zip(IDS, NAMES, strict=True):
            self.create(session_id=session_id, name=name)

    def start(self, name: str) -> None:
        self.incarnations[name] += 1
        member = Member(self.world, self.server, name, self.incarnations[name])
        self.members[name] = member
        self.run(member.stack.enter_async_context(member.relay.running()))
        self.run(self.served(member.open, member))  # as whoever starts replicas does

    @property
    def reachable(self) -> list[Member]:
        """Those who can do what clients ask for."""
        return [member for member in self.members.values() if not member.relay.is_cut]

    def at(self, name: str) -> Member:
        """This replica, or, as a client would, another one if it cannot be used."""
        members = self.reachable
        return next((member for member in members if member.name == name), members[0])

    async def served(self, call: Callable[[], Coroutine[Any, Any, T]], member: Member) -> T:
        """What a client gets who asks again while it is told 503."""
        while True:
            try:
                return await self.within(member, call())
            except RegistryUnavailable:
                await asyncio.sleep(0.05)

    # -- what clients do ---------------------------------------------------------------------------

    @rule(session_id=session_ids, name=names)
    def create(self, session_id: SessionId, name: str) -> None:
        member = self.at(name)
        self.run(self.served(lambda: member.life.create(new_session(session_id)), member))
        self.told[session_id] = True

    @rule(session_id=session_ids, name=names)
    def stop(self, session_id: SessionId, name: str) -> None:
        member = self.at(name)
        stop = self.served(lambda: member.life.stop(session_id, reason="a test"), member)
        if session_id in self.told:
            self.run(stop)
            self.told[session_id] = False
        else:
            with pytest.raises(SessionNotFound):
                self.run(stop)

    @rule(session_id=session_ids, name=names)
    def visit(self, session_id: SessionId, name: str) -> None:
        member = self.at(name)
        if self.told.get(session_id):
            found, _ = self.run(self.visited(member, session_id))
            assert found == session_id

    async def visited(self, member: Member, session_id: SessionId) -> tuple[SessionId, int]:
        """Who answers a request at one replica, which waits and wakes as the data plane does."""
        while True:
            try:
                entry = await self.within(member, member.table.resolve(session_id))
                route = entry.route
                if entry.is_ready and (answer := self.world.answer(route.endpoint)):
                    return answer
                await self.within(member, self._wake(member, session_id, route.generation))
            except GatewayError:
                pass  # 503: it is asked for again
            await asyncio.sleep(0.05)

    async def _wake(self, member: Member, session_id: SessionId, generation: int) -> None:
        await member.life.wake(session_id, generation=generation)

    @rule(session_id=session_ids)
    def fall_asleep(self, session_id: SessionId) -> None:
        for member in self.reachable:
            sleep = member.life.put_to_sleep(session_id, reason="a test")
            self.run(self.within(member, sleep))

    # -- what happens to replicas ------------------------------------------------------------------

    @precondition(lambda self: len(self.reachable) > 1)
    @rule(name=names)
    def kill(self, name: str) -> None:
        """A machine is lost, with all that runs on it; another one comes up under its name."""
        self.run(self._kill(self.members[name]))
        self.start(name)

    async def _kill(self, member: Member) -> None:
        member.relay.is_cut = True
        member.spawner.running.clear()
        while tasks := self.tasks.get(member.who):
            for task in tuple(tasks):
                task.cancel()
            await asyncio.wait(tuple(tasks), timeout=0.1)
        member.spawner.running.clear()
        await member.registry.close()  # its kernel closes what it had open
        self.graves.append(member)

    @precondition(lambda self: len(self.reachable) == len(NAMES))
    @rule(name=names)
    def leave(self, name: str) -> None:
        """A rolling restart comes by."""
        member = self.members[name]
        self.run(self.within(member, member.close()))
        self.graves.append(member)
        self.start(name)

    @precondition(lambda self: len(self.reachable) == len(NAMES))
    @rule(name=names, seconds=st.sampled_from((0.5, 2.0)))
    def cut_off(self, name: str, seconds: float) -> None:
        """One replica alone loses the registry; it goes on with what it has."""
        self.members[name].relay.is_cut = True
        self.run(asyncio.sleep(seconds))

    @rule()
    def heal(self) -> None:
        for member in self.members.values():
            member.relay.is_cut = False

    # -- what happens to calls ---------------------------------------------------------------------

    @rule(name=names, times=st.sampled_from((1, 2, 3)))
    def lose_answers(self, name: str, times: int) -> None:
        """The next scripts are run, and nobody is told."""
        self.members[name].relay.lose_answer_to(b"EVALSHA", times=times)

    @rule(name=names, script=st.sampled_from(("CLAIM", "MOVE", "RENEW", "REGISTER", "SUCCEED")))
    def delay(self, name: str, script: str) -> None:
        """The next call of this kind stays under way until another rule lets it go on."""
        self.members[name].relay.withhold(getattr(scripts, script).sha.encode())

    @rule()
    def arrive(self) -> None:
        """What was under way arrives now, whatever has happened since."""
        for member in (*self.members.values(), *self.graves):
            member.relay.release()

    # -- what happens to the registry --------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.3, 0.8)))
    def stand_still(self, seconds: float) -> None:
        self.server.signal(signal.SIGSTOP)
        try:
            self.run(asyncio.sleep(seconds))
        finally:
            self.server.signal(signal.SIGCONT)

    @rule()
    def restart_server(self) -> None:
        """Killed, and back with all that it has answered."""
        self.server.kill()
        self.server.restart()

        async def back() -> None:
            while True:
                with contextlib.suppress(RedisError):
                    await self.server.ask("PING")
                    return
                await asyncio.sleep(0.01)  # it listens while it loads

        self.run(back())

    @rule()
    def forget_everything(self) -> None:
        """What runs is restored by its owners, if they live; nobody knows of what did not run."""
        self.settle()
        self.run(self.server.ask("FLUSHALL"))
        self.told = {session_id: True for session_id, alive in self.told.items() if alive}
        self.settle()

    # -- what must hold in the end -----------------------------------------------------------------

    def settle(self) -> None:
        """Nothing goes wrong any more: soon everything is as clients were told."""
        self.heal()
        self.arrive()
        for member in self.members.values():
            member.relay.lose_answer_to(b"", times=0)
        for session_id, alive in self.told.items():
            if alive:
                for member in self.members.values():
                    found, _ = self.run(
                        self.visited(member, session_id), seconds=self.settle_seconds
                    )
                    assert found == session_id
        problems = self.run(self._problems_that_stay())
        assert not problems, problems
        twice = {start: times for start, times in self.world.started.items() if times > 1}
        assert not twice, "a generation was started twice"

    async def _problems_that_stay(self) -> list[str]:
        deadline = time.monotonic() + self.settle_seconds
        while True:
            problems = await self._problems()
            if not problems or time.monotonic() > deadline:
                return problems
            await asyncio.sleep(0.1)  # nobody tells that nothing more will happen

    async def _problems(self) -> list[str]:
        found = []
        for session_id in IDS:
            session = await self.known(session_id)
            runs = self.world.runs(session_id)
            alive = self.told.get(session_id)
            state = session.state if session else None
            if alive:
                answers = {await self._routed(member, session_id) for member in self.reachable}
                expected = [session.generation] if session else []
                if state is not State.READY or runs != expected:
                    found.append(f"{session_id} is {state}, and {runs} run, not {expected}")
                elif answers != {(session_id, expected[0])}:
                    found.append(f"{session_id} is routed to {answers}, not to {expected}")
            elif runs or (state not in ENDED if alive is False else state is not None):
                found.append(f"{session_id} is {state}, and {runs} run; it should have ended")
        return found

    async def known(self, session_id: SessionId) -> Session | None:
        """What the registry knows, however long it takes to say so."""
        member = self.reachable[0]
        return await self.served(lambda: member.registry.session(session_id), member)

    async def _routed(self, member: Member, session_id: SessionId) -> tuple[SessionId, int] | None:
        try:
            entry = await self.within(member, member.table.resolve(session_id))
        except GatewayError:
            return None
        return self.world.answer(entry.route.endpoint)

    def teardown(self) -> None:
        """The end of every example is looked at."""
        try:
            if self.members:
                self.settle()
        finally:
            self.run(self._close())
            self.runner.close()

    async def _close(self) -> None:
        for member in self.members.values():
            await self._kill(member)
        for member in self.graves:
            await member.stack.aclose()


@pytest.fixture
def durable_server() -> Iterator[Server]:
    """A Valkey that has on disk whatever it has answered."""
    server = Server(find_server("valkey"), "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.close()


@pytest.mark.timeout(0 if _EXAMPLES else 240)
def test_whatever_happens_no_session_is_lost_or_run_twice(durable_server: Server) -> None:
    class Machine(LifeMachine):
        server = durable_server

    began = time.monotonic()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(_EXAMPLES or 6),
            stateful_step_count=10,
            deadline=None,
            derandomize=not _EXAMPLES,
            database=None,
            # Time is one of the players: what fails once may pass when it is made shorter.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    sys.stdout.write(f"{_EXAMPLES or 6} lives in {time.monotonic() - began:.0f} s\n")


def _lose_a_network(machine: LifeMachine) -> None:
    """Long enough for others to take over what A runs."""
    machine.cut_off(name="a", seconds=0.0)
    machine.run(_taken_over(machine, IDS[0]))


async def _taken_over(machine: LifeMachine, session_id: SessionId) -> None:
    while True:
        session = await machine.known(session_id)
        if session and session.state is State.READY and session.replica != "a":
            return
        await asyncio.sleep(0.05)  # another replica's doing


def _lose_the_data(machine: LifeMachine) -> None:
    machine.forget_everything()


def _never_lets_go(self: Lifecycle, route: Route) -> None:
    """What another generation means to one that runs here is ignored."""
    self._watchers.told(route.id)


def _restores_nothing(self: Holding, session: Session | None) -> bool:
    return False


@pytest.mark.parametrize(
    ("broken", "by", "steps"),
    [
        ("gateway.lifecycle.Lifecycle._changed", _never_lets_go, _lose_a_network),
        ("gateway.lifecycle.Lifecycle._recheck_all", lambda _: None, _lose_a_network),
        ("gateway.holding.Holding.is_ahead_of", _restores_nothing, _lose_the_data),
    ],
    ids=["an owner that never lets go", "an owner that never asks", "an owner that never restores"],
)
def test_the_model_notices_a_broken_life(
    durable_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    by: Callable[..., object],
    steps: Callable[[LifeMachine], None],
) -> None:
    class Machine(LifeMachine):
        server = durable_server
        settle_seconds = 4.0

    monkeypatch.setattr(broken, by)
    machine = Machine()
    machine.begin()
    with pytest.raises((AssertionError, TimeoutError)):
        _take(machine, steps)


def _take(machine: LifeMachine, steps: Callable[[LifeMachine], None]) -> None:
    try:
        steps(machine)
    finally:
        machine.teardown()
