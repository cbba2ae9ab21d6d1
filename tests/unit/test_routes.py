"""The route table: one read for many, pushes in any order, waits that end, nothing left behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from gateway.errors import RegistryUnavailable, SessionNotFound
from gateway.proxy.routes import RouteTable, TooManyUnknown
from gateway.registry.base import Registry
from gateway.session import Endpoint, SessionId, State
from tests.protocol.harness import ID, FakeRegistry, eventually, session

HERE = Endpoint("127.0.0.1", 1)
THERE = Endpoint("127.0.0.1", 2)


class FakePool:
    def __init__(self, *, unused: bool = True) -> None:
        self.retired = 0
        self.was_cut = False
        self.is_unused = unused

    def retire(self) -> None:
        self.retired += 1

    def cut(self) -> None:
        self.was_cut = True


class Clock:
    """The loop's clock, which can be put on."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._time = asyncio.get_running_loop().time

    def __call__(self) -> float:
        return self._time() + self.offset


def new_table(registry: FakeRegistry, **changes: Any) -> RouteTable:
    """A route table with a ``Clock``."""
    defaults: dict[str, Any] = {"wait_seconds": 0.1, "max_age_seconds": 10.0, "clock": Clock()}
    return RouteTable(cast("Registry", registry), **{**defaults, **changes})


def clock(table: RouteTable) -> Clock:
    """The clock of a ``new_table``."""
    return cast("Clock", table._clock)


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
async def table(registry: FakeRegistry) -> AsyncIterator[RouteTable]:
    """A table; afterwards nobody waits, nothing runs, and no error went unseen."""
    unseen: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    table = new_table(registry)
    table.open()
    yield table
    await table.close()
    assert not table._waiters
    assert not table._reads
    gc.collect()
    await asyncio.sleep(0)
    assert not unseen
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_route_that_was_read_is_at_hand(table: RouteTable, registry: FakeRegistry) -> None:
    assert table.get(ID, clock(table)()) is None
    registry.put(session(endpoint=HERE), push=False)
    entry = await table.resolve(ID)
    assert entry.route.endpoint == HERE
    assert table.get(ID, clock(table)()) is entry
    assert len(table) == 1
    assert table.linked


async def test_it_is_at_hand_for_a_limited_time(table: RouteTable, registry: FakeRegistry) -> None:
    registry.put(session(), push=False)
    entry = await table.resolve(ID)
    clock(table).offset = 10.1
    assert table.get(ID, clock(table)()) is None
    assert await table.resolve(ID) is entry  # confirmed
    assert table.get(ID, clock(table)()) is entry
    assert registry.reads == 2


async def test_a_push_confirms_a_route(table: RouteTable, registry: FakeRegistry) -> None:
    registry.put(session(), push=False)
    entry = await table.resolve(ID)
    clock(table).offset = 10.1
    registry.push(session())
    assert table.get(ID, clock(table)()) is entry


async def test_an_older_push_confirms_nothing(table: RouteTable, registry: FakeRegistry) -> None:
    registry.put(session(version=2), push=False)
    entry = await table.resolve(ID)
    clock(table).offset = 10.1
    registry.push(session())
    assert table.get(ID, clock(table)()) is None
    assert entry.route.version == 2


async def test_many_readers_share_one_read(table: RouteTable, registry: FakeRegistry) -> None:
    registry.put(session(), push=False)
    entries = await asyncio.gather(*(table.resolve(ID) for _ in range(10)))
    assert registry.reads == table.stats.reads == 1
    assert len({id(entry) for entry in entries}) == 1


async def test_one_reader_that_goes_does_not_end_the_read(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session(), push=False)
    registry.gate = asyncio.Event()
    first, second = [asyncio.create_task(table.resolve(ID)) for _ in range(2)]
    await eventually(lambda: registry.reads == 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    registry.gate.set()
    assert (await second).route.id == ID
    assert registry.reads == 1


@pytest.mark.parametrize("down", [False, True])
async def test_all_readers_may_go(table: RouteTable, registry: FakeRegistry, down: bool) -> None:
    registry.gate = asyncio.Event()
    readers = [asyncio.create_task(table.resolve(ID)) for _ in range(3)]
    await eventually(lambda: registry.reads == 1)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    registry.down = down
    registry.gate.set()
    await eventually(lambda: not table._reads)


async def test_an_id_that_never_comes_is_not_found_after_the_wait(
    table: RouteTable, registry: FakeRegistry
) -> None:
    with pytest.raises(SessionNotFound, match=r"waited 0.1 s"):
        await table.resolve(ID)
    assert registry.reads == 2
    assert table.stats.not_found == 1
    assert len(table) == 0


async def test_a_denied_id_is_not_found_in_the_same_words(table: RouteTable) -> None:
    with pytest.raises(SessionNotFound) as unknown:
        await table.resolve(ID)
    with pytest.raises(SessionNotFound) as denied:
        await table.deny(ID)
    assert str(denied.value) == str(unknown.value)


async def test_a_push_ends_the_wait(table: RouteTable, registry: FakeRegistry) -> None:
    waiting = asyncio.create_task(table.resolve(ID))
    await eventually(lambda: registry.reads == 1)
    registry.put(session(endpoint=HERE))
    assert (await waiting).route.endpoint == HERE
    assert registry.reads == 1


async def test_of_two_pushes_the_newer_one_counts(
    table: RouteTable, registry: FakeRegistry
) -> None:
    waiting = asyncio.create_task(table.resolve(ID))
    await eventually(lambda: registry.reads == 1)
    registry.push(session(version=1, state=State.STARTING))
    registry.push(session(version=3, endpoint=THERE))
    registry.push(session(version=2, endpoint=HERE))
    assert (await waiting).route.endpoint == THERE


async def test_a_read_that_is_older_than_a_push_changes_nothing(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session(endpoint=HERE), push=False)
    registry.gate = asyncio.Event()
    waiting = asyncio.create_task(table.resolve(ID))
    await eventually(lambda: registry.reads == 1)
    registry.push(session(version=2, endpoint=THERE))
    registry.gate.set()
    assert (await waiting).route.endpoint == THERE


async def test_the_registry_being_away_is_not_not_found(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.down = True
    with pytest.raises(RegistryUnavailable):
        await table.resolve(ID)


async def test_a_known_route_outlives_the_registry(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session(), push=False)
    entry = await table.resolve(ID)
    registry.down = True
    clock(table).offset = 10.1
    assert await table.resolve(ID) is entry
    assert table.stats.stale == 1
    assert table.get(ID, clock(table)()) is entry  # for a moment nobody else waits for it
    clock(table).offset = 11.2
    assert table.get(ID, clock(table)()) is None


# -- waiting for a session to settle -------------------------------------------------------------


async def pending(table: RouteTable, registry: FakeRegistry) -> Any:
    registry.put(session(State.REGISTERED), push=False)
    return await table.resolve(ID)


async def test_what_is_settled_is_not_waited_for(table: RouteTable, registry: FakeRegistry) -> None:
    registry.put(session(), push=False)
    entry = await table.resolve(ID)
    assert await table.settled(ID, entry, seconds=10) is entry


async def test_the_wait_goes_on_through_all_that_is_pending(
    table: RouteTable, registry: FakeRegistry
) -> None:
    entry = await pending(table, registry)
    waiting = asyncio.create_task(table.settled(ID, entry, seconds=10))
    for version, state in enumerate((State.STARTING, State.SLEEPING, State.STARTING), 2):
        registry.put(session(state, version=version))
        await asyncio.sleep(0.01)
        assert not waiting.done()
    registry.put(session(version=9, endpoint=HERE))
    assert (await waiting).route.state is State.READY
    assert registry.reads == 1


async def test_the_wait_has_an_end(table: RouteTable, registry: FakeRegistry) -> None:
    entry = await pending(table, registry)
    assert (await table.settled(ID, entry, seconds=0.05)).route.state is State.REGISTERED


async def test_a_push_that_was_lost_is_made_up_for(registry: FakeRegistry) -> None:
    table = new_table(registry, max_age_seconds=0.05)
    table.open()
    entry = await pending(table, registry)
    waiting = asyncio.create_task(table.settled(ID, entry, seconds=10))
    await asyncio.sleep(0.01)
    registry.put(session(version=2), push=False)
    assert (await waiting).route.state is State.READY
    await table.close()


async def test_a_wait_may_be_cancelled(table: RouteTable, registry: FakeRegistry) -> None:
    entry = await pending(table, registry)
    one, other = [asyncio.create_task(table.settled(ID, entry, seconds=10)) for _ in range(2)]
    await asyncio.sleep(0.01)
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    registry.put(session(version=2))
    assert (await other).route.state is State.READY


# -- the push link -------------------------------------------------------------------------------


async def test_a_link_that_was_down_makes_every_route_doubtful(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session(), push=False)
    await table.resolve(ID)
    registry.resync()
    assert table.get(ID, clock(table)()) is None
    assert table.linked


async def test_waiters_are_asked_for_when_the_link_is_up_again(
    table: RouteTable, registry: FakeRegistry
) -> None:
    entry = await pending(table, registry)
    waiting = asyncio.create_task(table.settled(ID, entry, seconds=10))
    await asyncio.sleep(0.01)
    registry.put(session(version=2), push=False)
    registry.resync()
    assert (await waiting).route.state is State.READY


@pytest.mark.parametrize("down", [False, True])
async def test_asking_again_in_vain_changes_nothing(
    table: RouteTable, registry: FakeRegistry, down: bool
) -> None:
    waiting = asyncio.create_task(table.resolve(ID))
    await eventually(lambda: registry.reads == 1)
    registry.down = down
    registry.resync()
    await eventually(lambda: registry.reads == 2)
    registry.down = False
    with pytest.raises(SessionNotFound):
        await waiting


async def test_a_closed_table_hears_nothing(registry: FakeRegistry) -> None:
    table = new_table(registry)
    table.open()
    registry.put(session(), push=False)
    pool = FakePool()
    (await table.resolve(ID)).pool = pool
    registry.gate = asyncio.Event()
    reading = asyncio.create_task(table.resolve(SessionId("other-session")))
    await eventually(lambda: registry.reads == 2)
    await table.close()
    await table.close()
    assert isinstance((await asyncio.gather(reading, return_exceptions=True))[0], BaseException)
    registry.push(session(version=2))
    assert len(table) == 0
    assert pool.retired == 1


# -- pools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "retired"),
    [
        ({"version": 2, "endpoint": HERE}, 0),
        ({"version": 2, "endpoint": THERE}, 1),
        ({"generation": 2, "endpoint": HERE}, 1),
        ({"version": 2, "endpoint": None, "state": State.SLEEPING}, 1),
        ({"version": 1, "endpoint": THERE}, 0),
    ],
)
async def test_a_pool_ends_with_its_generation_or_address(
    table: RouteTable, registry: FakeRegistry, change: dict[str, Any], retired: int
) -> None:
    registry.put(session(endpoint=HERE), push=False)
    entry = await table.resolve(ID)
    entry.pool = pool = FakePool()
    registry.push(session(**change))
    assert pool.retired == retired
    assert (entry.pool is None) == bool(retired)


async def test_the_route_unused_for_longest_goes_first(registry: FakeRegistry) -> None:
    table = new_table(registry, max_routes=3)
    table.open()
    names = [SessionId(f"session-{number}") for number in range(6)]
    for name in names:
        registry.put(session(session_id=name), push=False)
    pools = [FakePool(unused=number != 1) for number in range(6)]
    for name, pool in zip(names[:4], pools, strict=False):
        (await table.resolve(name)).pool = pool
    assert [pool.retired for pool in pools[:4]] == [1, 0, 0, 0]
    assert table.get(names[2], clock(table)()) is not None
    await table.resolve(names[4])  # 1 has connections, 2 was used
    assert table.get(names[1], clock(table)()) is not None
    assert table.get(names[2], clock(table)()) is not None
    assert table.get(names[3], clock(table)()) is None
    assert len(table) == 3
    await table.close()


async def test_with_all_routes_in_use_one_more_is_kept(registry: FakeRegistry) -> None:
    table = new_table(registry, max_routes=1)
    table.open()
    for number in range(3):
        name = SessionId(f"session-{number}")
        registry.put(session(session_id=name), push=False)
        (await table.resolve(name)).pool = FakePool(unused=False)
    assert len(table) == 3
    await table.close()


# -- stalls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["a request", "the sweep"])
async def test_after_a_stall_no_route_is_used_before_it_was_read_anew(
    registry: FakeRegistry, first: str
) -> None:
    table = new_table(registry, stall_seconds=5.0)
    table.open()
    registry.put(session(endpoint=HERE), push=False)
    entry = await table.resolve(ID)
    idle = SessionId("other-session")
    registry.put(session(session_id=idle), push=False)
    await table.resolve(idle)
    entry.pool = pool = FakePool()
    registry.put(session(generation=2, endpoint=THERE), push=False)
    clock(table).offset = 5.1
    if first == "the sweep":
        table.alive(clock(table)())
    assert table.get(ID, clock(table)()) is None
    assert pool.was_cut, "what is under way may be an old dev server's"
    assert table.stats.stalls == 1
    assert (await table.resolve(ID)).route.endpoint == THERE
    assert table.get(ID, clock(table)()) is not None
    await table.close()


async def test_after_a_stall_a_route_is_not_served_stale(registry: FakeRegistry) -> None:
    table = new_table(registry, stall_seconds=5.0)
    table.open()
    registry.put(session(endpoint=HERE), push=False)
    await table.resolve(ID)
    registry.down = True
    clock(table).offset = 5.1
    assert table.get(ID, clock(table)()) is None
    with pytest.raises(RegistryUnavailable):
        await table.resolve(ID)
    await table.close()


async def test_a_loop_that_says_it_runs_keeps_its_routes(registry: FakeRegistry) -> None:
    table = new_table(registry, stall_seconds=5.0)
    table.open()
    registry.put(session(endpoint=HERE), push=False)
    await table.resolve(ID)
    for _ in range(2):
        clock(table).offset += 4.0
        table.alive(clock(table)())
    assert table.get(ID, clock(table)()) is not None
    assert table.stats.stalls == 0
    await table.close()


async def test_an_answer_that_waited_through_a_stall_is_asked_for_again(
    registry: FakeRegistry,
) -> None:
    table = new_table(registry, stall_seconds=5.0)
    table.open()
    registry.put(session(endpoint=HERE), push=False)
    real = registry.session

    async def slow(session_id: SessionId) -> Any:
        answer = await real(session_id)
        if registry.reads == 1:
            clock(table).offset = 5.1
            registry.put(session(generation=2, endpoint=THERE), push=False)
        return answer

    registry.session = slow  # type: ignore[method-assign]
    assert (await table.resolve(ID)).route.endpoint == THERE
    await table.close()


async def test_a_read_that_succeeds_after_the_wait_counts(registry: FakeRegistry) -> None:
    """The push was lost: only the registry itself can say "not found"."""
    table = new_table(registry, wait_seconds=0.05)
    table.open()
    waiting = asyncio.create_task(table.resolve(ID))
    await eventually(lambda: registry.reads == 1)
    registry.put(session(endpoint=HERE), push=False)
    assert (await waiting).route.endpoint == HERE
    await table.close()


async def test_ids_that_nobody_asks_for_are_not_kept(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session())
    assert len(table) == 0


async def test_waiters_are_cancelled_when_the_table_closes(registry: FakeRegistry) -> None:
    table = new_table(registry, wait_seconds=60)
    table.open()
    waiting = asyncio.create_task(table.resolve(ID))
    await eventually(lambda: registry.reads == 1)
    await asyncio.sleep(0.01)
    await table.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# -- without the registry, or with one that has lost its data --------------------------------------


def lose_link(registry: FakeRegistry) -> None:
    for subscriber in registry._subscribers:
        subscriber.lost()


async def test_with_the_link_every_route_loses_its_confirmation(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session(endpoint=HERE), push=False)
    entry = await table.resolve(ID)
    lose_link(registry)
    assert not table.linked
    assert table.get(ID, clock(table)()) is None
    registry.put(session(endpoint=THERE, version=2), push=False)
    assert (await table.resolve(ID)).route.endpoint == THERE
    assert table.get(ID, clock(table)()) is entry
    clock(table).offset = 1.1
    assert table.get(ID, clock(table)()) is None, "without pushes it is read about once a second"


async def test_without_the_link_a_known_session_waits_only_briefly_for_the_registry(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session(endpoint=HERE), push=False)
    entry = await table.resolve(ID)
    lose_link(registry)
    registry.gate = asyncio.Event()
    registry.put(session(endpoint=THERE, version=2), push=False)
    started = clock(table)()
    assert await table.resolve(ID) is entry
    assert 0.25 < clock(table)() - started < 1
    assert entry.route.endpoint == HERE
    assert table.stats.stale == 1
    registry.gate.set()
    await eventually(lambda: entry.route.endpoint == THERE)


async def test_a_slow_answer_that_is_an_error_changes_nothing(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session(endpoint=HERE), push=False)
    entry = await table.resolve(ID)
    lose_link(registry)
    registry.gate = asyncio.Event()
    await table.resolve(ID)
    registry.down = True
    registry.gate.set()
    await eventually(lambda: not table._reads)
    assert entry.route.endpoint == HERE


async def test_a_route_outlives_its_record_for_a_while(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session(endpoint=HERE), push=False)
    entry = await table.resolve(ID)
    pool = FakePool()
    entry.pool = pool
    del registry.sessions[ID]
    clock(table).offset = 10.1
    assert await table.resolve(ID) is entry
    assert table.get(ID, clock(table)()) is entry
    assert table.stats.stale == 1
    clock(table).offset = 20.3
    with pytest.raises(SessionNotFound):
        await table.resolve(ID)
    assert pool.retired == 1
    assert len(table) == 0


async def test_a_record_that_comes_back_is_believed(
    table: RouteTable, registry: FakeRegistry
) -> None:
    registry.put(session(endpoint=HERE), push=False)
    entry = await table.resolve(ID)
    record = registry.sessions.pop(ID)
    clock(table).offset = 10.1
    await table.resolve(ID)
    registry.put(record)
    clock(table).offset = 25.0
    del registry.sessions[ID]
    assert await table.resolve(ID) is entry, "this is another loss"


@pytest.mark.parametrize("state", [State.STOPPING, State.STOPPED, State.EXPIRED])
async def test_a_session_that_ended_does_not_outlive_its_record(
    table: RouteTable, registry: FakeRegistry, state: State
) -> None:
    registry.put(session(state=state), push=False)
    await table.resolve(ID)
    del registry.sessions[ID]
    clock(table).offset = 10.1
    with pytest.raises(SessionNotFound):
        await table.resolve(ID)


# -- ids that are made up ------------------------------------------------------------------------


async def test_100_000_made_up_ids_cost_few_reads_and_no_memory(registry: FakeRegistry) -> None:
    rate, wait = 500.0, 0.05
    table = new_table(registry, lookups_per_second=rate, wait_seconds=wait)
    table.open()
    began, refused = clock(table)(), 0
    held: list[int] = []
    for batch in range(50):
        ids = [SessionId(f"made-up-{batch}-{number}") for number in range(2000)]
        answers = await asyncio.gather(*map(table.resolve, ids), return_exceptions=True)
        refused += sum(isinstance(answer, TooManyUnknown) for answer in answers)
        assert {type(answer) for answer in answers} <= {SessionNotFound, TooManyUnknown}
        if batch in (1, 49):
            gc.collect()
            held.append(len(gc.get_objects()))
    seconds = clock(table)() - began
    assert registry.reads <= rate * (1 + wait + seconds) + 2
    assert table.stats.refused == refused
    assert table.stats.not_found + refused == 100_000
    assert len(table) == 0
    assert not table._waiters
    assert not table._reads
    assert held[1] - held[0] < 1000
    await table.close()


async def test_made_up_ids_do_not_delay_known_sessions(registry: FakeRegistry) -> None:
    table = new_table(registry, lookups_per_second=1.0)
    table.open()
    registry.put(session(endpoint=HERE))
    await table.resolve(ID)
    for number in range(20):
        with pytest.raises((TooManyUnknown, SessionNotFound)):
            await table.resolve(SessionId(f"made-up-{number}"))
    clock(table).offset += 11
    assert table.get(ID, clock(table)()) is None
    assert (await table.resolve(ID)).route.endpoint == HERE
    await table.close()


async def test_who_asks_for_what_is_being_read_needs_no_turn(registry: FakeRegistry) -> None:
    table = new_table(registry, lookups_per_second=0.001)
    table.open()
    registry.put(session(endpoint=HERE))
    entries = await asyncio.gather(*(table.resolve(ID) for _ in range(20)))
    assert {entry.route.endpoint for entry in entries} == {HERE}
    await table.close()


async def test_a_registration_ends_the_wait_for_a_turn(registry: FakeRegistry) -> None:
    table = new_table(registry, lookups_per_second=5.0, wait_seconds=1.0)
    table.open()
    others = [
        asyncio.create_task(table.resolve(SessionId(f"made-up-{number}"))) for number in range(8)
    ]
    waiting = asyncio.create_task(table.resolve(ID))
    await eventually(lambda: table.stats.delayed >= 3)
    reads = registry.reads
    registry.put(session(endpoint=HERE))
    assert (await waiting).route.endpoint == HERE
    assert registry.reads == reads
    await table.close()
    await asyncio.gather(*others, return_exceptions=True)


async def test_when_the_link_is_up_again_made_up_ids_are_not_all_asked_for(
    registry: FakeRegistry,
) -> None:
    table = new_table(registry, lookups_per_second=10.0, wait_seconds=1.0)
    table.open()
    waiting = [
        asyncio.create_task(table.resolve(SessionId(f"made-up-{number}"))) for number in range(30)
    ]
    await eventually(lambda: registry.reads == 11)
    registry.resync()
    await asyncio.sleep(0)
    assert registry.reads + len(table._reads) <= 13
    await table.close()
    await asyncio.gather(*waiting, return_exceptions=True)
