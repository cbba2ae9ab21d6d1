"""Replicas that are lost, stand still, are cut off or leave: who runs what afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import pytest

from gateway.errors import RegistryUnavailable, SpawnFailed
from gateway.session import Session, SessionId, State
from tests.contract.conftest import ID, Opener, Relay, Server, new_session
from tests.contract.lives import Replicated, Start, lives

#: Where scripts run makes no difference to who calls them: test_registry.py has both servers.
SERVERS: Final = ("valkey",)


@pytest.fixture
async def start(
    server: Server, connect: Opener, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Starts replicas' life cycles and closes them after the test."""
    # Nobody has requests under way here that a dev server with a successor would have to finish.
    monkeypatch.setattr("gateway.lifecycle._LINGER_SECONDS", 0.5)
    async with lives(server, connect) as start:
        yield start


async def ready_on(replica: Replicated, *session_ids: str) -> list[Session]:
    """Sessions that this replica has made and runs."""
    for session_id in session_ids:
        await replica.life.create(new_session(session_id))
    return [await replica.state(State.READY, SessionId(name)) for name in session_ids]


async def elsewhere(replica: Replicated, before: Session) -> Session:
    """The session once a newer generation of it is ready."""
    return await replica.life.wait(
        before.id,
        lambda now: now.state is State.READY and now.generation > before.generation,
        seconds=15,
    )


async def freeze(replica: Replicated) -> None:
    """The replica does nothing any more: its tasks are gone, its lease runs out."""
    tasks = tuple(replica.life._tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert replica.life._unsubscribe is not None
    replica.life._unsubscribe()


# -- take-over -------------------------------------------------------------------------------------


async def test_survivors_share_what_a_lost_replica_held(start: Start) -> None:
    a, b, c = await start("a"), await start("b"), await start("c")
    names = [f"session-{number:02}" for number in range(24)]
    before = await ready_on(a, *names)
    await freeze(a)
    after = [await elsewhere(b, session) for session in before]
    owners = Counter(session.replica for session in after)
    assert set(owners) == {"b", "c"}
    assert min(owners.values()) >= 6, "each survivor takes its part"
    started = [job.session_id for job in (*b.spawner.started, *c.spawner.started)]
    assert sorted(started) == names, "none is started twice"


async def test_a_claim_whose_answer_is_lost_is_found_and_started_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await start("a"), await start("b")
    (before,) = await ready_on(a, ID)
    claim = b.registry.claim

    async def unheard(session_id: SessionId, *, owner: str, generation: int) -> Session:
        await claim(session_id, owner=owner, generation=generation)
        raise RegistryUnavailable("both answers are lost")

    monkeypatch.setattr(b.registry, "claim", unheard)
    await b.life.take_over(before)
    after = await elsewhere(b, before)
    assert [job.generation for job in b.spawner.started] == [after.generation]


async def test_a_claim_that_did_not_happen_starts_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await start("a"), await start("b")
    (before,) = await ready_on(a, ID)

    async def refused(*_: object, **__: object) -> Session:
        raise RegistryUnavailable("nothing has arrived")

    monkeypatch.setattr(b.registry, "claim", refused)
    with pytest.raises(RegistryUnavailable):
        await b.life.take_over(before)
    assert b.spawner.started == []


async def test_what_the_first_in_the_order_does_not_take_is_taken_by_the_next(
    start: Start,
) -> None:
    a, b, c = await start("a"), await start("b"), await start("c")
    before = await ready_on(a, *(f"session-{number}" for number in range(8)))
    await freeze(a)
    # It holds its lease, and does nothing else.
    c.life._tasks.clear()
    for task in asyncio.all_tasks():
        if task.get_name() == "watch for lost replicas" and _is_of(task, c):
            task.cancel()
    after = [await elsewhere(b, session) for session in before]
    assert {session.replica for session in after} == {"b"}


def _is_of(task: asyncio.Task[object], replica: Replicated) -> bool:
    coroutine = task.get_coro()
    frame = getattr(coroutine, "cr_frame", None)
    return frame is not None and frame.f_locals.get("self") is replica.life._takeover


async def test_starts_that_nobody_waits_for_go_in_turn(start: Start) -> None:
    a, b = await start("a"), await start("b")
    names = [f"session-{number:02}" for number in range(40)]
    before = await ready_on(a, *names)
    b.spawner.go.clear()
    await freeze(a)
    await b.spawner.until(lambda: len(b.spawner.started) >= 2)
    states = [await b.state(State.STARTING, session.id) for session in before]
    assert {session.replica for session in states} == {"b"}, "all are claimed at once"
    assert len(b.spawner.started) < len(names)
    b.spawner.go.set()
    for session in before:
        await elsewhere(b, session)


async def test_a_request_for_a_session_of_a_lost_replica_does_not_wait_for_its_turn(
    start: Start,
) -> None:
    a, b = await start("a"), await start("b")
    (before,) = await ready_on(a, ID)
    await freeze(a)
    async with asyncio.timeout(10):
        while not await b.life.wake(ID, generation=before.generation):
            pass
    assert (await elsewhere(b, before)).replica == "b"


async def test_a_dev_server_that_refuses_is_not_taken_from_an_owner_that_lives(
    start: Start,
) -> None:
    a, b = await start("a"), await start("b")
    (before,) = await ready_on(a, ID)
    assert not await b.life.wake(ID, generation=before.generation)
    assert not await a.life.wake(ID, generation=before.generation)
    assert b.spawner.started == []


async def test_a_session_that_others_put_to_sleep_is_dropped_by_an_owner_that_comes_back(
    start: Start,
) -> None:
    a, b = await start("a"), await start("b")
    (session,) = await ready_on(a, ID)
    await b.registry.move(ID, State.SLEEPING, owner="a/1", generation=session.generation)
    await a.spawner.until(lambda: not a.spawner.running)
    assert a.life.owned == 0


# -- stalls and outages ----------------------------------------------------------------------------


async def test_an_owner_that_stood_still_asks_before_it_goes_on(start: Start) -> None:
    a, b = await start("a"), await start("b")
    lost, kept = await ready_on(a, "was-claimed", "was-left-1")
    # What is claimed meanwhile is pushed to nobody.
    assert a.life._unsubscribe is not None
    a.life._unsubscribe()
    await b.registry.claim(lost.id, owner="b/1", generation=lost.generation)
    assert a.spawner.running == {lost.id: lost.generation, kept.id: kept.generation}
    a.life._stood_still(20.0)
    await a.spawner.until(lambda: lost.id not in a.spawner.running)
    assert a.spawner.running == {kept.id: kept.generation}


async def test_an_owner_that_cannot_reach_the_registry_goes_on_within_its_budget(
    start: Start, server: Server
) -> None:
    a = await start("a", registry_timeout_seconds=0.2, lease_seconds=1.0, outage_seconds=60)
    (session,) = await ready_on(a, ID)
    with server.stalled():
        await asyncio.sleep(2)  # two leases: time itself is what is tested
        assert a.spawner.running == {ID: session.generation}
    after = await a.state(State.READY)
    assert after.generation == session.generation
    assert a.spawner.running == {ID: session.generation}


async def test_an_owner_stops_its_dev_servers_once_the_budget_is_used_up_and_starts_them_anew(
    start: Start, server: Server
) -> None:
    a = await start("a", registry_timeout_seconds=0.2, lease_seconds=1.0, outage_seconds=1.5)
    (session,) = await ready_on(a, ID)
    with server.stalled():
        await a.spawner.until(lambda: not a.spawner.running)
    after = await elsewhere(a, session)
    assert a.spawner.running == {ID: after.generation}


async def test_an_owner_whose_lease_ran_out_while_it_alone_was_cut_off_asks_what_it_still_has(
    start: Start, server: Server
) -> None:
    async with Relay(server).running() as network:
        a = await start("a", url=network.url, registry_timeout_seconds=0.3)
        b = await start("b")
        (before,) = await ready_on(a, ID)
        network.is_cut = True
        after = await elsewhere(b, before)
        assert a.spawner.running == {ID: before.generation}, "nobody could tell it"
        # What was pushed meanwhile is lost; its next heartbeat arrives.
        network.is_cut = False
        async with asyncio.timeout(2):
            await a.spawner.until(lambda: not a.spawner.running)
        assert b.spawner.running == {ID: after.generation}
        await a.life.close()
        await a.registry.close()


# -- hand-over -------------------------------------------------------------------------------------


async def test_a_replica_that_leaves_hands_over_without_a_moment_between(start: Start) -> None:
    a, b = await start("a"), await start("b")
    (before,) = await ready_on(a, ID)
    b.spawner.go.clear()
    a.life.leave()
    await b.spawner.until(lambda: bool(b.spawner.started))
    during = await b.state(State.READY)
    assert (during.endpoint, during.generation) == (before.endpoint, before.generation)
    assert a.spawner.running == {ID: before.generation}
    b.spawner.go.set()
    after = await elsewhere(b, before)
    assert after.replica == "b"
    assert a.spawner.running == {ID: before.generation}, "requests under way may finish"
    await a.life.close()
    assert a.spawner.running == {}
    assert b.spawner.running == {ID: after.generation}
    events = await b.registry.recent_events(ID, count=100)
    states = [event.data["state"] for event in events if event.type == "state"]
    assert states == ["registered", "starting", "ready", "ready"]


async def test_what_is_edited_during_a_hand_over_reaches_the_heir(start: Start) -> None:
    a, b = await start("a"), await start("b")
    (before,) = await ready_on(a, ID)
    b.spawner.go.clear()
    a.life.leave()
    await b.spawner.until(lambda: bool(b.spawner.started))
    await a.life.edit(ID, write={"late.js": b"2"}, delete=[], base_revision=None)
    b.spawner.go.set()
    await elsewhere(b, before)
    await b.spawner.until(lambda: bool(b.spawner.written))
    assert b.spawner.written == [({"late.js": b"2"}, [])]


async def test_what_is_starting_is_claimed_by_the_heir(start: Start) -> None:
    a, b = await start("a"), await start("b")
    a.spawner.go.clear()
    await a.life.create(new_session())
    await a.state(State.STARTING)
    a.life.leave()
    assert (await b.state(State.READY)).replica == "b"
    await a.life.close()


async def test_what_has_no_traffic_is_put_to_sleep_when_its_replica_leaves(
    start: Start, server: Server
) -> None:
    a, b = await start("a"), await start("b")
    await ready_on(a, ID)
    await server.ask("HSET", f"preview:{{{ID}}}:session", "active_at", 1000)
    a.life.leave()
    await a.life.close()
    await b.state(State.SLEEPING)
    assert b.spawner.started == []


async def test_an_heir_that_fails_leaves_the_session_to_its_owner_and_the_next_heir_is_asked(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.handover._OFFER_SECONDS", 0.5)
    a, b, c = await start("a"), await start("b"), await start("c")
    (before,) = await ready_on(a, "quick-fox-2")
    first, second = (b, c) if _first_heir("quick-fox-2", "b/1", "c/1") == "b/1" else (c, b)
    first.spawner.failure = SpawnFailed("no room")
    a.life.leave()
    await first.spawner.until(lambda: bool(first.spawner.started))
    after = await elsewhere(second, before)
    assert after.owner == second.life.replica.owner
    await a.life.close()
    assert (await second.state(State.READY, before.id)).generation == after.generation


def _first_heir(name: str, *owners: str) -> str:
    from gateway.takeover import order

    places = order(name, owners)
    return min(places, key=places.__getitem__)


async def test_a_stop_during_a_hand_over_ends_both_dev_servers(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await ready_on(a, ID)
    b.spawner.go.clear()
    a.life.leave()
    await b.spawner.until(lambda: bool(b.spawner.started))
    session, _ = await b.life.stop(ID, reason="enough")
    assert session.state is State.STOPPED
    b.spawner.go.set()
    await b.spawner.until(lambda: b.life.owned == 0)
    await a.life.close()
    assert a.spawner.running == {}
    assert b.spawner.running == {}


async def test_what_comes_to_a_replica_that_leaves_starts_elsewhere(start: Start) -> None:
    # On a busy machine a lease of a second may run out, and nobody else is left then.
    a, b = await start("a", lease_seconds=5.0), await start("b", lease_seconds=5.0)
    (sleeper,) = await ready_on(b, "sleeper-1")
    await b.life.put_to_sleep(sleeper.id, reason="a test")
    a.life.leave()
    await a.life.create(new_session("late-comer"))
    assert await a.life.wake(sleeper.id, generation=sleeper.generation)
    for name in ("late-comer", "sleeper-1"):
        assert (await b.state(State.READY, SessionId(name))).replica == "b"
    assert a.spawner.started == []


async def test_the_last_replica_puts_its_sessions_to_sleep(start: Start) -> None:
    a = await start("a")
    await ready_on(a, ID)
    a.life.leave()
    await a.life.close()
    session = await a.registry.session(ID)
    assert session is not None
    assert session.state is State.SLEEPING
