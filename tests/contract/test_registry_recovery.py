"""What a registry that was away, or has lost its data, says; and how it gets all back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

import pytest

from gateway.errors import Fenced, SessionNotFound
from gateway.registry import scripts
from gateway.registry.base import Change, Replica
from gateway.registry.keys import PULSE, owner_key, replica_key, session_key
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Hmr, Session, SessionId, State
from tests.contract.conftest import ENDPOINT, ID, Opener, Relay, Server, new_session
from tests.contract.servers import Store

STORES: Final = ("valkey", "cluster")
SERVERS: Final = ("valkey",)
A, B = Replica("a", "1"), Replica("b", "1")
FILES: Final = {"index.html": b"<h1>Hi</h1>"}
#: Leases of a second: nobody counts as lost for 0.33 + 0.3 s after a silence of half a second.
FAST: Final = {"lease_seconds": 1.0, "registry_timeout_seconds": 0.3}


async def made_ready(registry: RedisRegistry, session_id: str = ID) -> Session:
    made = await registry.register(new_session(session_id, metadata='{"k": 1}'), owner=A.owner)
    generation = made.session.generation
    change = Change(endpoint=ENDPOINT, hmr=Hmr("/hmr", "vite-hmr"))
    for state in (State.STARTING, State.READY):
        session = await registry.move(
            SessionId(session_id), state, owner=A.owner, generation=generation, change=change
        )
    return session


# -- who is lost -------------------------------------------------------------------------------


async def lost_for_good(registry: RedisRegistry, owner: str, *, beating: Replica) -> None:
    """Return once the owner counts as lost; somebody else beats meanwhile."""
    async with asyncio.timeout(5):
        while await registry.is_alive(owner):
            await registry.heartbeat(beating)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["silence", "no pulse", "a clock gone back"])
async def test_after_a_silence_of_all_nobody_is_lost_before_all_could_renew(
    store: Store, connect: Opener, how: str
) -> None:
    registry = await connect(store.url, **FAST)
    session = await made_ready(registry)
    epoch = await registry.heartbeat(A)
    assert await registry.heartbeat(B) == epoch
    await lost_for_good(registry, "c/1", beating=B)
    # The registry was away for so long that the lease of A ran out. A lives.
    await store.ask("DEL", replica_key("a"))
    if how == "no pulse":
        await store.ask("DEL", PULSE)
    else:
        await store.ask("HSET", PULSE, "at", 1 if how == "silence" else 9_000_000_000_000)
    assert await registry.is_alive(A.owner)
    renewed = await registry.heartbeat(B)
    assert renewed > epoch
    assert 0 < await registry.lease_left(A.owner) <= 0.65
    lapsed = await registry.lapsed()
    assert A.owner not in lapsed.owners
    assert 0 < lapsed.next_seconds <= 0.65
    assert await registry.heartbeat(B) == renewed
    await lost_for_good(registry, A.owner, beating=B)
    assert await registry.session(session.id)


async def test_an_owner_that_was_replaced_or_gave_up_is_lost_even_then(
    store: Store, connect: Opener
) -> None:
    registry = await connect(store.url, **FAST)
    await registry.heartbeat(A)
    await registry.heartbeat(B)
    await registry.resign(A)
    await registry.heartbeat(replace(B, incarnation="2"))
    assert not await registry.is_alive(A.owner)
    assert not await registry.is_alive(B.owner)
    assert await registry.is_alive("c/1"), "the registry has just begun"


async def test_a_registry_that_was_emptied_has_another_epoch(store: Store, connect: Opener) -> None:
    registry = await connect(store.url, **FAST)
    epoch = await registry.heartbeat(A)
    await store.ask("FLUSHALL")
    assert await registry.heartbeat(A) > epoch


# -- getting back what was lost ----------------------------------------------------------------


def in_essence(session: Session) -> Session:
    """What a restored session has in common with the lost one."""
    return replace(session, version=0, expires_in_ms=0, idle_ms=0)


async def test_a_lost_session_is_restored_as_it_was(
    registry: RedisRegistry, other: RedisRegistry, store: Store
) -> None:
    lost = await registry.edit_files((await made_ready(registry)).id, write={"b": b"2"})
    await store.ask("FLUSHALL")
    assert await other.session(ID) is None
    await registry.restore(lost, {**FILES, "b": b"2"})
    found = await other.session(ID)
    assert found is not None
    assert in_essence(found) == in_essence(lost)
    assert found.route.newer_than(lost.route), "caches take it"
    assert await other.files(ID) == {**FILES, "b": b"2"}
    assert [session.id for session in (await other.sessions()).sessions] == [ID]
    assert [session.id for session in (await other.held_by(A.owner)).sessions] == [ID]
    assert [event.data["state"] for event in await other.recent_events(ID, count=9)] == ["ready"]
    assert 0 < await store.ask("PTTL", session_key(ID)) <= 3_600_000 + 86_400_000
    assert (await other.claim(ID, owner="b/1", generation=lost.generation)).generation > (
        lost.generation
    )


async def test_a_session_that_fell_behind_is_restored(
    registry: RedisRegistry, store: Store
) -> None:
    session = await made_ready(registry)
    # A failover has lost the last moves; or even the claim that made this generation.
    await store.ask("HSET", session_key(ID), "state", "starting", "host", "", "port", "")
    assert (await registry.restore(session, FILES)).endpoint == ENDPOINT
    await store.ask("HSET", session_key(ID), "generation", "1", "owner", "z/1")
    restored = await registry.restore(session, FILES)
    assert (restored.owner, restored.generation) == (A.owner, session.generation)


@pytest.mark.parametrize("how", ["claimed", "stopping", "asleep", "well"])
async def test_what_went_on_is_not_restored(
    registry: RedisRegistry, other: RedisRegistry, how: str
) -> None:
    session = await made_ready(registry)
    if how == "claimed":
        await other.claim(ID, owner="b/1", generation=session.generation)
    elif how == "stopping":
        await other.request_stop(ID, reason="enough")
    elif how == "asleep":
        await registry.move(ID, State.SLEEPING, owner=A.owner, generation=session.generation)
    before = await other.session(ID)
    with pytest.raises(Fenced):
        await registry.restore(session, {})
    after = await other.session(ID)
    assert before is not None
    assert after is not None
    assert after.version == before.version
    assert await other.files(ID) == FILES


async def test_a_restoration_with_a_lost_reply_happens_once(
    server: Server, connect: Opener
) -> None:
    async with Relay(server).running() as relay:
        registry = await connect(relay.url)
        session = await made_ready(registry)
        await server.ask("FLUSHALL")
        relay.lose_answer_to(scripts.RESTORE.sha.encode())
        restored = await registry.restore(session, FILES)
        assert relay.lost == 1
        assert restored.state is State.READY
        await registry.close()
    assert await server.ask("ZCARD", owner_key(A.owner)) == 1


async def test_nothing_else_brings_a_lost_session_back(
    registry: RedisRegistry, store: Store
) -> None:
    session = await made_ready(registry)
    await store.ask("FLUSHALL")
    with pytest.raises(SessionNotFound):
        await registry.move(ID, State.READY, owner=A.owner, generation=session.generation)
    with pytest.raises(SessionNotFound):
        await registry.append(ID, "log", {})
    await registry.touch([ID])
    assert await registry.session(ID) is None
