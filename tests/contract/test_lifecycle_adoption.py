"""Dev servers that outlast their replica: others look after them, and nobody starts them again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.errors import Fenced, SessionNotFound, SpawnFailed
from gateway.registry.base import Change
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Session, SessionId, State
from gateway.spawner.base import Running
from tests.contract.conftest import ENDPOINT, ID, Opener, Server, new_session
from tests.contract.lives import Replicated, Start, lives


@pytest.fixture
async def start(server: Server, connect: Opener) -> AsyncIterator[Start]:
    """Starts replicas' life cycles and closes them after the test."""
    async with lives(server, connect) as start:
        yield start


# -- the registry ------------------------------------------------------------------------------


async def made_ready(registry: RedisRegistry) -> Session:
    made = await registry.register(new_session(), owner="a/1")
    for state in (State.STARTING, State.READY):
        session = await registry.move(
            ID,
            state,
            owner="a/1",
            generation=made.session.generation,
            change=Change(endpoint=ENDPOINT),
        )
    return session


async def test_an_adopted_session_has_another_owner_and_is_otherwise_as_it_was(
    registry: RedisRegistry, other: RedisRegistry
) -> None:
    before = await made_ready(registry)
    after = await other.adopt(ID, owner="b/1", generation=before.generation, former="a/1")
    assert (after.owner, after.state) == ("b/1", State.READY)
    assert (after.generation, after.endpoint) == (before.generation, before.endpoint)
    assert after.route.newer_than(before.route), "who knew the former owner learns of the new one"
    assert [session.id for session in (await other.held_by("b/1")).sessions] == [ID]
    assert (await other.held_by("a/1")).sessions == []
    with pytest.raises(Fenced):
        await registry.move(ID, State.SLEEPING, owner="a/1", generation=before.generation)


async def test_what_went_on_elsewhere_is_not_adopted(
    registry: RedisRegistry, other: RedisRegistry
) -> None:
    session = await made_ready(registry)
    for owner, generation in (("c/1", session.generation), ("a/1", session.generation - 1)):
        with pytest.raises(Fenced):
            await other.adopt(ID, owner="b/1", generation=generation, former=owner)
    await registry.request_stop(ID, reason="enough")
    with pytest.raises(Fenced):
        await other.adopt(ID, owner="b/1", generation=session.generation, former="a/1")
    with pytest.raises(SessionNotFound):
        await other.adopt(SessionId("never-made"), owner="b/1", generation=1, former="a/1")


# -- the life cycle ----------------------------------------------------------------------------


async def owned_by(replica: Replicated, owner: str, session_id: SessionId = ID) -> Session:
    """The session, once it is this owner's."""
    session = await replica.life.wait(
        session_id, lambda session: session.replica == owner, seconds=10
    )
    assert session.replica == owner
    return session


async def lost(replica: Replicated) -> None:
    """Let a replica end as if it were killed: without a word."""
    assert replica.life._unsubscribe is not None
    replica.life._unsubscribe()
    for task in tuple(replica.life._tasks):
        task.cancel()
    await asyncio.gather(*replica.life._tasks, return_exceptions=True)


async def test_a_lost_replicas_dev_server_is_adopted_and_goes_on_as_it_is(start: Start) -> None:
    a, b = await start("a", outlasting=True), await start("b", outlasting=True)
    await a.life.create(new_session())
    before = await a.state(State.READY)
    await lost(a)
    after = await owned_by(b, "b")
    await b.spawner.until(lambda: bool(b.spawner.adopted))
    assert (after.generation, after.endpoint) == (before.generation, before.endpoint)
    assert b.spawner.adopted == [Running(ID, before.generation)]
    assert (b.spawner.started, a.spawner.stopped) == ([], [])


async def test_an_adopted_session_is_edited_stopped_and_put_to_sleep_like_any_other(
    start: Start,
) -> None:
    a, b = await start("a", outlasting=True), await start("b", outlasting=True)
    await a.life.create(new_session())
    before = await a.state(State.READY)
    await lost(a)
    await owned_by(b, "b")
    await b.life.edit(ID, write={"new.js": b"1"}, delete=[], base_revision=None)
    await b.spawner.until(lambda: any("new.js" in write for write, _ in b.spawner.written))
    await b.life.stop(ID, reason="enough")
    await b.state(State.STOPPED)
    await b.spawner.until(lambda: b.spawner.stopped == [(ID, before.generation)])


async def test_a_replica_that_leaves_passes_on_what_runs_without_a_second_start(
    start: Start,
) -> None:
    a, b = await start("a", outlasting=True), await start("b", outlasting=True)
    for name in ("session-1", "session-2"):
        await a.life.create(new_session(name))
        await a.state(State.READY, SessionId(name))
    a.life.leave()
    await a.life.close()
    for name in ("session-1", "session-2"):
        await owned_by(b, "b", SessionId(name))
        assert (await b.state(State.READY, SessionId(name))).replica == "b"
    assert b.spawner.started == []
    assert sorted(id_ for id_, _ in a.spawner.released) == ["session-1", "session-2"]
    assert a.spawner.stopped == []


async def test_the_last_replica_that_leaves_lets_dev_servers_go_on(start: Start) -> None:
    a = await start("a", outlasting=True)
    await a.life.create(new_session())
    before = await a.state(State.READY)
    a.life.leave()
    await a.life.close()
    assert (a.spawner.stopped, [id_ for id_, _ in a.spawner.released]) == ([], [ID])
    b = await start("b", outlasting=True)
    after = await owned_by(b, "b")
    assert (after.state, after.generation) == (State.READY, before.generation)


async def test_an_owner_that_finds_its_session_adopted_lets_go_and_stops_nothing(
    start: Start,
) -> None:
    a, b = await start("a", outlasting=True), await start("b", outlasting=True)
    await a.life.create(new_session())
    before = await a.state(State.READY)
    await b.life.adopt(before)
    await a.spawner.until(lambda: a.spawner.released == [(ID, before.generation)])
    assert a.spawner.stopped == []
    assert b.life.holds(ID)
    assert not a.life.holds(ID)


async def test_a_dev_server_that_is_gone_when_it_is_adopted_is_started_by_the_next_request(
    start: Start,
) -> None:
    a, b = await start("a", outlasting=True), await start("b", outlasting=True)
    await a.life.create(new_session())
    before = await a.state(State.READY)
    b.spawner.failure = SpawnFailed("its pod is gone")
    await lost(a)
    asleep = await b.state(State.SLEEPING)
    assert asleep.reason == "its pod is gone"
    b.spawner.failure = None
    await b.life.wake(ID, generation=before.generation)
    assert (await b.state(State.READY)).generation > before.generation


async def test_a_dev_server_that_vanishes_is_started_by_the_next_request(start: Start) -> None:
    a = await start("a", outlasting=True)
    await a.life.create(new_session())
    before = await a.state(State.READY)
    a.spawner.reports[ID].vanished("its node is gone")
    assert (await a.state(State.SLEEPING)).reason == "its node is gone"
    await a.spawner.until(lambda: a.spawner.stopped == [(ID, before.generation)])


async def test_what_is_starting_when_its_replica_is_lost_is_started_anew(start: Start) -> None:
    a, b = await start("a", outlasting=True), await start("b", outlasting=True)
    a.spawner.go.clear()
    registered = await a.life.create(new_session())
    await a.spawner.until(lambda: bool(a.spawner.started))
    await lost(a)
    assert (await b.state(State.READY)).generation > registered.session.generation
    assert b.spawner.adopted == []


async def test_a_stop_whose_owner_is_lost_stops_what_outlives_it(start: Start) -> None:
    a, b = await start("a", outlasting=True), await start("b", outlasting=True)
    await a.life.create(new_session())
    before = await a.state(State.READY)
    await lost(a)
    await a.registry.resign(a.life.replica)
    await b.life.stop(ID, reason="enough")
    await b.state(State.STOPPED)
    assert (ID, before.generation) in b.spawner.stopped


# -- what nobody wants -------------------------------------------------------------------------


async def test_what_no_session_wants_is_stopped_and_what_one_wants_is_not(start: Start) -> None:
    a = await start("a", outlasting=True)
    await a.life.create(new_session())
    wanted = await a.state(State.READY)
    nobodys = [Running(SessionId("never-registered"), 1), Running(ID, wanted.generation - 1)]
    a.spawner.strays = [Running(ID, wanted.generation), *nobodys]
    await a.spawner.until(lambda: len(a.spawner.stopped) >= 2)
    assert set(a.spawner.stopped) == {(one.session_id, one.generation) for one in nobodys}


async def test_nothing_is_stopped_while_owners_may_restore_what_the_registry_has_lost(
    start: Start, server: Server
) -> None:
    a = await start("a", outlasting=True, lease_seconds=2.0)
    await a.life.create(new_session())
    before = await a.state(State.READY)
    a.spawner.strays = [Running(ID, before.generation)]
    await server.ask("FLUSHALL")
    await a.life._strays.stop(a.spawner, seen_seconds=0)
    assert a.spawner.stopped == []
    async with asyncio.timeout(10):
        while await a.registry.session(ID) is None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)
    await a.life._strays.stop(a.spawner, seen_seconds=0)
    assert a.spawner.stopped == []
