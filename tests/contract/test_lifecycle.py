"""The life of sessions between a real registry and a spawner that does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final
from unittest.mock import ANY

import pytest

from gateway.errors import RegistryUnavailable, SessionConflict, SessionNotFound, SpawnFailed
from gateway.registry.keys import session_key
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Endpoint, Recipe, SessionId, State
from tests.contract.conftest import ENDPOINT, ID, Opener, Server, new_session
from tests.contract.lives import FAST, Replicated, Start, lives

#: Where scripts run makes no difference to who calls them: test_registry.py has both servers.
SERVERS: Final = ("valkey",)


@pytest.fixture
async def start(server: Server, connect: Opener) -> AsyncIterator[Start]:
    """Starts replicas' life cycles and closes them after the test."""
    async with lives(server, connect) as start:
        yield start


async def test_a_created_session_becomes_ready_with_its_endpoint_and_files(start: Start) -> None:
    a = await start("a")
    registered = await a.life.create(new_session())
    assert registered.created
    assert registered.session.state is State.REGISTERED
    session = await a.state(State.READY)
    assert session.endpoint == Endpoint("127.0.0.1", 4001)
    assert session.hmr.protocol == "vite-hmr"
    assert a.spawner.started[0].files == {"index.html": b"<h1>Hi</h1>"}


async def test_what_the_spawner_tells_is_in_the_stream_before_the_session_is_ready(
    start: Start,
) -> None:
    a = await start("a")
    await a.life.create(new_session())
    await a.state(State.READY)
    events = await a.registry.recent_events(ID, count=100)
    kinds = [
        event.data.get("state") or event.data.get("phase") or event.data.get("lines")
        for event in events
    ]
    assert kinds == ["registered", "starting", "starting", ["one", "two"], "ready"]


async def test_the_same_create_again_starts_nothing_more(start: Start) -> None:
    a, b = await start("a"), await start("b")
    results = await asyncio.gather(
        *(replica.life.create(new_session()) for replica in (a, b) for _ in range(5))
    )
    assert sum(result.created for result in results) == 1
    assert len({result.session.generation for result in results}) == 1
    await a.state(State.READY)
    assert len(a.spawner.started) + len(b.spawner.started) == 1
    with pytest.raises(SessionConflict):
        await b.life.create(new_session(digest="another"))


async def test_a_failed_start_is_a_failed_session_with_reason_and_log(start: Start) -> None:
    a = await start("a")
    a.spawner.failure = SpawnFailed("it cannot be", log_tail="last line")
    await a.life.create(new_session())
    session = await a.state(State.FAILED)
    assert (session.reason, session.log_tail) == ("it cannot be", "last line")
    assert session.endpoint is None
    assert a.life.owned == 0


async def test_a_dev_server_that_exits_fails_its_session(start: Start) -> None:
    a = await start("a")
    await a.life.create(new_session())
    await a.state(State.READY)
    a.spawner.reports[ID].exited("it exited with status 7", "the end")
    session = await a.state(State.FAILED)
    assert session.reason == "it exited with status 7"


async def test_what_is_being_marked_as_failed_is_not_started_again_by_a_sweep(start: Start) -> None:
    a = await start("a", lease_seconds=30)
    await a.life.create(new_session())
    await a.state(State.READY)
    a.spawner.may_stop.clear()
    a.spawner.reports[ID].exited("it was killed", "")
    await a.spawner.until(lambda: bool(a.spawner.stopped))
    await a.life._sweeper.sweep()
    a.spawner.may_stop.set()
    assert (await a.state(State.FAILED)).reason == "it was killed"
    assert len(a.spawner.started) == 1
    assert not a.life.holds(ID)


async def test_an_edit_through_another_replica_reaches_the_owners_workspace(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    await a.state(State.READY)
    edited = await b.life.edit(ID, write={"new.js": b"1"}, delete=["index.html"], base_revision=1)
    assert edited.revision == 2
    await a.spawner.until(lambda: bool(a.spawner.written))
    assert a.spawner.written == [({"new.js": b"1"}, ["index.html"])]
    assert b.spawner.written == []


async def test_an_edit_during_the_start_is_applied_when_it_is_ready(start: Start) -> None:
    a = await start("a")
    a.spawner.go.clear()
    await a.life.create(new_session())
    await a.spawner.until(lambda: bool(a.spawner.started))
    await a.life.edit(ID, write={"late.js": b"2"}, delete=[], base_revision=None)
    a.spawner.go.set()
    await a.spawner.until(lambda: bool(a.spawner.written))
    assert a.spawner.written == [({"late.js": b"2"}, [])]


async def test_a_stop_through_another_replica_stops_the_dev_server_first(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    await a.state(State.READY)
    session, already = await b.life.stop(ID, reason="enough")
    assert (session.state, session.reason, already) == (State.STOPPED, "enough", False)
    assert a.spawner.running == {}
    session, already = await a.life.stop(ID, reason="again")
    assert (session.state, session.reason, already) == (State.STOPPED, "enough", True)


async def test_a_stop_during_the_start_cancels_it(start: Start) -> None:
    a, b = await start("a"), await start("b")
    a.spawner.go.clear()
    await a.life.create(new_session())
    await a.spawner.until(lambda: bool(a.spawner.started))
    session, _ = await b.life.stop(ID, reason="changed my mind")
    assert session.state is State.STOPPED
    assert a.life.owned == 0


@pytest.mark.parametrize("digest", ["digest-1", "digest-2"], ids=["same content", "other"])
async def test_a_create_that_meets_a_stop_under_way_begins_anew_after_it(
    start: Start, digest: str
) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    first = await a.state(State.READY)
    a.spawner.may_stop.clear()
    stopping = asyncio.create_task(b.life.stop(ID, reason="enough"))
    await b.state(State.STOPPING)
    creating = asyncio.create_task(b.life.create(new_session(digest=digest)))
    await asyncio.sleep(0.05)
    assert not creating.done()
    a.spawner.may_stop.set()
    again = await creating
    assert (await stopping)[0].state is State.STOPPED
    assert again.created
    assert again.session.generation > first.generation
    await b.state(State.READY)


async def test_stopping_what_never_existed_is_not_found(start: Start) -> None:
    a = await start("a")
    with pytest.raises(SessionNotFound):
        await a.life.stop(SessionId("never-created"), reason="x")


async def test_a_replica_that_closes_leaves_its_sessions_asleep_for_others_to_wake(
    start: Start,
) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    first = await a.state(State.READY)
    await a.life.close()
    assert a.spawner.running == {}
    asleep = await b.state(State.SLEEPING)
    assert asleep.endpoint is None
    assert await b.life.wake(ID, generation=first.generation)
    awake = await b.state(State.READY)
    assert awake.replica == "b"
    assert awake.generation > first.generation
    assert b.spawner.started[0].files == {"index.html": b"<h1>Hi</h1>"}


async def test_concurrent_wakes_on_two_replicas_start_one_dev_server(start: Start) -> None:
    a, b, c = await start("a"), await start("b"), await start("c")
    await a.life.create(new_session())
    first = await a.state(State.READY)
    await a.life.close()
    wakes = [
        replica.life.wake(ID, generation=first.generation) for replica in (b, c) for _ in range(5)
    ]
    assert all(await asyncio.gather(*wakes))
    await b.state(State.READY)
    assert len(b.spawner.started) + len(c.spawner.started) == 1


async def test_a_session_that_is_well_is_not_woken(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    session = await a.state(State.READY)
    assert not await b.life.wake(ID, generation=session.generation)
    assert b.spawner.started == []


async def test_an_owner_that_lost_its_session_stops_its_dev_server(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    session = await a.state(State.READY)
    await b.registry.claim(ID, owner="b/1", generation=session.generation)
    await a.spawner.until(lambda: not a.spawner.running)
    assert a.life.owned == 0


async def test_what_a_lost_replica_left_starts_if_somebody_may_wait_for_it_and_else_sleeps(
    start: Start, server: Server, connect: Opener
) -> None:
    lost = await connect(server.url, **FAST)
    await lost.register(new_session("was-starting"), owner="lost/1")
    for session_id in ("in-use-1", "unused-1"):
        ready = await lost.register(new_session(session_id), owner="lost/1")
        generation = ready.session.generation
        for state in (State.STARTING, State.READY):
            await lost.move(ready.session.id, state, owner="lost/1", generation=generation)
    # A traffic of long ago, by the registry's clock.
    await server.ask("HSET", session_key(SessionId("unused-1")), "active_at", 1000)
    await lost.register(
        new_session(
            "with-target", endpoint=ENDPOINT, files={}, recipe=Recipe(target="127.0.0.1:5173")
        ),
        owner="lost/1",
    )
    a = await start("a")
    asleep = await a.state(State.SLEEPING, SessionId("unused-1"))
    assert asleep.reason == "its replica was lost"
    for session_id in ("was-starting", "in-use-1", "with-target"):
        await a.state(State.READY, SessionId(session_id))
    assert {job.session_id for job in a.spawner.started} == {"was-starting", "in-use-1"}


async def test_a_session_expires_and_its_dev_server_stops(start: Start) -> None:
    a = await start("a")
    await a.life.create(new_session(ttl_seconds=1))
    await a.state(State.READY)
    session = await a.state(State.EXPIRED)
    assert "end of its time" in session.reason
    assert a.spawner.running == {}


async def test_a_start_outlives_a_registry_that_is_away_for_a_while(
    start: Start, server: Server
) -> None:
    a = await start("a", registry_timeout_seconds=0.3, lease_seconds=30)
    a.spawner.go.clear()
    await a.life.create(new_session())
    await a.spawner.until(lambda: bool(a.spawner.started))
    with server.stalled():
        a.spawner.go.set()
        with pytest.raises(RegistryUnavailable):
            await a.life.create(new_session("other-session"))
    session = await a.state(State.READY)
    assert a.spawner.running == {ID: session.generation}


async def test_a_session_without_traffic_goes_to_sleep_and_one_with_traffic_does_not(
    start: Start,
) -> None:
    a = await start("a")
    await a.life.create(new_session(idle_seconds=1))
    await a.life.create(new_session("always-on-1", idle_seconds=0))
    session = await a.state(State.READY)
    await traffic(a, ID, seconds=2.5)
    assert a.spawner.running == {ID: session.generation, "always-on-1": ANY}
    asleep = await a.state(State.SLEEPING)
    assert asleep.reason == "no traffic for 1 s"
    await a.spawner.until(lambda: ID not in a.spawner.running)
    assert await a.life.wake(ID, generation=session.generation)
    await a.state(State.READY)
    await a.state(State.READY, SessionId("always-on-1"))


async def traffic(replica: Replicated, session_id: SessionId, *, seconds: float) -> None:
    """Traffic every 0.2 s, as a data plane reports it."""
    for _ in range(int(seconds / 0.2)):
        await replica.life.touch([session_id])
        await asyncio.sleep(0.2)


def lose_once(monkeypatch: pytest.MonkeyPatch, registry: RedisRegistry, call: str) -> list[str]:
    """Makes the next use of a call of this registry fail as in an outage; what was lost."""
    lost: list[str] = []
    real = getattr(registry, call)

    async def flaky(*args: Any, **kwargs: Any) -> Any:
        if not lost:
            lost.append(call)
            raise RegistryUnavailable("away for a moment")
        return await real(*args, **kwargs)

    monkeypatch.setattr(registry, call, flaky)
    return lost


async def test_a_start_survives_a_moment_without_the_registry(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await start("a")
    lost = lose_once(monkeypatch, a.registry, "files")
    await a.life.create(new_session())
    await a.state(State.READY)
    assert lost


async def test_an_edit_survives_a_moment_without_the_registry(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    await a.state(State.READY)
    lost = lose_once(monkeypatch, a.registry, "files")
    await b.life.edit(ID, write={"new.js": b"1"}, delete=[], base_revision=None)
    await a.spawner.until(lambda: bool(a.spawner.written))
    assert lost


async def test_a_stop_survives_a_moment_without_the_registry(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    await a.state(State.READY)
    lost = lose_once(monkeypatch, a.registry, "session")
    session, _ = await b.life.stop(ID, reason="enough")
    assert session.state is State.STOPPED
    assert lost


async def test_waiting_for_a_session_ends_when_another_replica_registers_it(start: Start) -> None:
    a, b = await start("a"), await start("b")
    waiting = asyncio.create_task(b.life.wait(ID, lambda _: True, seconds=10))
    await asyncio.sleep(0)
    await a.life.create(new_session())
    assert (await waiting).id == ID
    with pytest.raises(SessionNotFound, match="waited"):
        await b.life.wait(SessionId("never-created"), lambda _: True, seconds=0.05)
