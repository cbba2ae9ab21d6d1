"""Owners and a registry that was away, or has lost its data: nothing is started twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest

from gateway.registry.keys import PULSE, owner_key, session_key
from gateway.session import SessionId, State
from tests.contract.conftest import ID, Opener, Server, new_session
from tests.contract.lives import Replicated, Start, lives

#: Where scripts run makes no difference to who calls them: test_registry.py has both servers.
SERVERS: Final = ("valkey",)


@pytest.fixture
async def start(server: Server, connect: Opener) -> AsyncIterator[Start]:
    """Starts replicas' life cycles and closes them after the test."""
    async with lives(server, connect) as start:
        yield start


async def restored(replica: Replicated, session_id: SessionId = ID) -> None:
    """Return once the registry knows the session again."""
    async with asyncio.timeout(10):
        # The wait of the life cycle would be told by a push; here the registry alone is looked at.
        while (found := await replica.registry.session(session_id)) is None or (  # noqa: ASYNC110
            found.state is not State.READY
        ):
            await asyncio.sleep(0.05)


async def test_owners_register_again_what_an_emptied_registry_has_lost(
    start: Start, server: Server
) -> None:
    a, b = await start("a"), await start("b")
    for replica, name in ((a, "session-of-a"), (b, "session-of-b")):
        await replica.life.create(new_session(name, metadata='{"k": 1}'))
    before = [await a.state(State.READY, SessionId(f"session-of-{name}")) for name in "ab"]
    await a.life.edit(before[0].id, write={"new.js": b"1"}, delete=[], base_revision=None)
    await a.spawner.until(lambda: bool(a.spawner.written))
    await server.ask("FLUSHALL")
    for session in before:
        await restored(b, session.id)
    after = [await b.registry.session(session.id) for session in before]
    for old, new in zip(before, after, strict=True):
        assert new is not None
        assert (new.generation, new.owner, new.endpoint) == (
            old.generation,
            old.owner,
            old.endpoint,
        )
        assert (new.metadata, new.expires_at_ms) == (old.metadata, old.expires_at_ms)
    assert set(await b.registry.files(before[0].id)) == {"index.html", "new.js"}
    held = await b.registry.held_by(before[0].owner)
    assert [session.id for session in held.sessions] == [before[0].id]
    await asyncio.sleep(2)  # a lease, and a round of every task that looks for the lost
    assert [len(replica.spawner.started) for replica in (a, b)] == [1, 1]
    assert a.spawner.stopped == b.spawner.stopped == []


async def test_what_became_private_is_restored_private_and_what_was_revoked_stays_so(
    start: Start, server: Server
) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session(creator="builder"))
    await a.state(State.READY)
    revoked = await b.registry.patch(ID, public=False, revoke=True)
    # The owner takes notice of all changes in their order.
    await b.life.edit(ID, write={"new.js": b"1"}, delete=[], base_revision=None)
    await a.spawner.until(lambda: bool(a.spawner.written))
    await server.ask("FLUSHALL")
    await restored(b)
    after = await b.registry.session(ID)
    assert after is not None
    assert (after.public, after.access, after.creator) == (False, revoked.access, "builder")


async def test_an_owner_puts_right_a_record_that_fell_behind(start: Start, server: Server) -> None:
    a = await start("a")
    await a.life.create(new_session())
    before = await a.state(State.READY)
    # As after a failover that lost the last write.
    await server.ask("HSET", session_key(ID), "state", "starting", "host", "", "port", "")
    await server.ask("CLIENT", "KILL", "TYPE", "pubsub")
    await restored(a)
    after = await a.state(State.READY)
    assert (after.generation, after.endpoint) == (before.generation, before.endpoint)


async def test_a_session_that_is_lost_while_it_starts_is_registered_again(
    start: Start, server: Server
) -> None:
    a = await start("a")
    a.spawner.go.clear()
    await a.life.create(new_session())
    await a.spawner.until(lambda: bool(a.spawner.started))
    await server.ask("FLUSHALL")
    a.spawner.go.set()
    await restored(a)
    assert len(a.spawner.started) == 1


async def test_of_two_that_held_a_lost_session_the_newer_keeps_it(
    start: Start, server: Server
) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    old = await a.state(State.READY)
    record = await server.ask("DUMP", session_key(ID))
    # While A hears nothing, B claims. Then the registry falls back to what it knew before.
    assert a.life._unsubscribe is not None
    a.life._unsubscribe()
    await b.life.take_over(old)
    new = await b.state(State.READY)
    assert new.generation > old.generation
    await server.ask("RESTORE", session_key(ID), 0, record, "REPLACE")
    await server.ask("DEL", owner_key(new.owner))
    await a.life._recheck(ID)
    assert a.spawner.stopped == [], "as far as the registry knows A is right"
    await b.life._recheck(ID)
    await a.life._recheck(ID)
    await a.spawner.until(lambda: a.spawner.stopped == [(ID, old.generation)])
    found = await a.registry.session(ID)
    assert found is not None
    assert (found.generation, found.owner) == (new.generation, new.owner)
    assert b.spawner.stopped == []


@pytest.mark.parametrize("state", [State.READY, State.SLEEPING])
async def test_by_a_record_that_fell_behind_nobody_claims_before_its_owner_could_restore_it(
    start: Start, server: Server, state: State
) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    old = await a.state(State.READY)
    if state is State.SLEEPING:
        await a.life.put_to_sleep(ID, reason="for the test")
    record = await server.ask("DUMP", session_key(ID))
    # B takes it over, and a failover loses that, and the pulse of all who beat meanwhile.
    await b.life.take_over(await a.state(state))
    new = await b.state(State.READY)
    await a.spawner.until(lambda: a.spawner.stopped == [(ID, old.generation)])
    for task in tuple(b.life._tasks):
        if task.get_name() == "heartbeat":
            task.cancel()
    await server.ask("RESTORE", session_key(ID), 0, record, "REPLACE")
    await server.ask("DEL", PULSE)
    waking = asyncio.create_task(a.life.wake(ID, generation=old.generation))
    await a.life._sweeper.sweep()
    await b.life._heartbeat.renew()
    await restored(b)
    assert await waking
    found = await a.registry.session(ID)
    assert found is not None
    assert (found.generation, found.owner) == (new.generation, new.owner)
    assert (len(a.spawner.started), b.spawner.stopped) == (1, [])


async def test_leases_that_ran_out_during_an_outage_cost_nobody_a_session(
    start: Start, server: Server
) -> None:
    replicas = [await start(name) for name in "abc"]
    for replica in replicas:
        name = f"session-of-{replica.life.replica.id}"
        await replica.life.create(new_session(name))
        await replica.state(State.READY, SessionId(name))
    with server.stalled():
        await asyncio.sleep(2)  # two leases
    await asyncio.sleep(3)  # longer than all take to look, and to renew
    assert [len(replica.spawner.started) for replica in replicas] == [1, 1, 1]
    assert [replica.spawner.stopped for replica in replicas] == [[], [], []]


async def test_who_is_back_first_after_an_outage_waits_for_the_others(
    start: Start, server: Server
) -> None:
    a, b = await start("a"), await start("b")
    await a.life.create(new_session())
    before = await a.state(State.READY)
    for replica in (a, b):
        for task in tuple(replica.life._tasks):
            if task.get_name() in {"heartbeat", "watch for lost replicas"}:
                task.cancel()
    with server.stalled():
        await asyncio.sleep(1.2)  # longer than a lease
    await b.life._heartbeat.renew()
    await b.life._takeover.look()
    await b.life.wake(ID, generation=before.generation)
    assert b.spawner.started == []
    await a.life._heartbeat.renew()
    await b.life._takeover.look()
    found = await b.registry.session(ID)
    assert found is not None
    assert (found.owner, found.generation) == (before.owner, before.generation)
    assert b.spawner.started == []
