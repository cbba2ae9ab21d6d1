"""What owners hold, whose lease has run out, and how a session passes to an heir."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import Fenced, SessionNotFound
from gateway.registry.base import Change, Replica
from gateway.registry.keys import OWNERS, owner_key
from gateway.registry.leases import suspected
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Endpoint, Hmr, Recipe, Session, SessionId, State
from tests.contract.conftest import ENDPOINT, ID, Opener, Watcher, new_session
from tests.contract.servers import Store

A, B = Replica("a", "1"), Replica("b", "1")
NEXT = Endpoint("127.0.0.3", 4100)


async def held(registry: RedisRegistry, owner: str) -> list[str]:
    page = await registry.held_by(owner)
    return sorted(session.id for session in page.sessions)


async def made_ready(registry: RedisRegistry, session_id: str = ID, owner: str = "a/1") -> Session:
    registered = await registry.register(new_session(session_id), owner=owner)
    generation = registered.session.generation
    session = registered.session
    for state in (State.STARTING, State.READY):
        session = await registry.move(
            session.id,
            state,
            owner=owner,
            generation=generation,
            change=Change(endpoint=ENDPOINT if state is State.READY else None),
        )
    return session


async def test_an_owner_holds_what_it_registered_and_claimed_until_it_is_at_rest(
    registry: RedisRegistry,
) -> None:
    first = await made_ready(registry, "session-one")
    await made_ready(registry, "session-two")
    assert await held(registry, "a/1") == ["session-one", "session-two"]
    await registry.claim(first.id, owner="b/1", generation=first.generation)
    assert await held(registry, "a/1") == ["session-two"]
    assert await held(registry, "b/1") == ["session-one"]
    stopping = (await registry.request_stop(SessionId("session-two"), reason="enough")).session
    assert await held(registry, "a/1") == ["session-two"], "it is for the owner to finish"
    await registry.move(stopping.id, State.STOPPED, owner="a/1", generation=stopping.generation)
    assert await held(registry, "a/1") == []


async def test_a_session_with_a_target_is_held_by_nobody(registry: RedisRegistry) -> None:
    new = new_session(endpoint=ENDPOINT, files={}, recipe=Recipe(target="127.0.0.1:5173"))
    await registry.register(new, owner="a/1")
    assert await held(registry, "a/1") == []


async def test_what_an_owner_holds_comes_in_pages(registry: RedisRegistry) -> None:
    for number in range(5):
        await registry.register(new_session(f"session-{number}"), owner="a/1")
    cursor, found = "", []
    while True:
        page = await registry.held_by("a/1", limit=2, cursor=cursor)
        found += [session.id for session in page.sessions]
        cursor = page.cursor
        if not cursor:
            break
    assert sorted(found) == [f"session-{number}" for number in range(5)]
    assert len(found) == 5


async def test_an_entry_is_dropped_once_it_is_old_and_its_session_is_elsewhere(
    registry: RedisRegistry, store: Store
) -> None:
    session = await made_ready(registry)
    await registry.claim(session.id, owner="b/1", generation=session.generation)
    key = owner_key("a/1")
    assert await held(registry, "a/1") == []
    assert await store.ask("ZCARD", key) == 1, "a write may still be under way"
    await store.ask("ZADD", key, 1000, session.id)
    assert await held(registry, "a/1") == []
    assert await store.ask("ZCARD", key) == 0


@pytest.mark.usefixtures("pulse")
async def test_an_owner_has_lapsed_when_its_lease_has_run_out_and_it_holds_something(
    store: Store, connect: Opener
) -> None:
    registry = await connect(store.url, lease_seconds=1.0)
    await registry.heartbeat(A)
    await registry.heartbeat(B)
    await made_ready(registry)
    lapsed = await registry.lapsed()
    assert lapsed.owners == []
    assert 0 < lapsed.next_seconds <= 1.0
    async with asyncio.timeout(5):
        while not lapsed.owners:
            # The registry's clock, not an event of ours.
            await asyncio.sleep(lapsed.next_seconds + 0.02)
            lapsed = await registry.lapsed()
    assert lapsed.owners == ["a/1"]
    await registry.heartbeat(A)
    assert (await registry.lapsed()).owners == []


@pytest.mark.usefixtures("pulse")
async def test_an_owner_that_resigned_or_began_anew_has_lapsed_at_once(
    registry: RedisRegistry,
) -> None:
    await registry.heartbeat(A)
    await made_ready(registry, "of-a-replica")
    await registry.heartbeat(B)
    await made_ready(registry, "of-b-replica", owner="b/1")
    await registry.resign(A)
    assert (await registry.lapsed()).owners == ["a/1"]
    await registry.heartbeat(Replica("b", "2"))
    assert sorted((await registry.lapsed()).owners) == ["a/1", "b/1"]


@pytest.mark.usefixtures("pulse")
async def test_an_owner_of_whom_nothing_is_left_is_forgotten(
    registry: RedisRegistry, store: Store
) -> None:
    await registry.heartbeat(A)
    await registry.resign(A)
    await store.ask("ZADD", OWNERS, 1000, A.owner)
    assert (await registry.lapsed()).owners == []
    assert await store.ask("ZCARD", OWNERS) == 0


@pytest.mark.usefixtures("pulse")
async def test_what_the_indices_lost_is_entered_again(
    registry: RedisRegistry, store: Store
) -> None:
    session = await made_ready(registry, owner="lost/1")
    await store.ask("DEL", OWNERS, owner_key("lost/1"))
    assert (await registry.lapsed()).owners == []
    await registry.enlist(session)
    assert (await registry.lapsed()).owners == ["lost/1"]
    assert await held(registry, "lost/1") == [ID]


async def test_an_offer_leaves_the_session_as_it_is_and_tells_the_heir(
    registry: RedisRegistry, other: RedisRegistry
) -> None:
    session = await made_ready(registry)
    watcher = Watcher()
    other.subscribe(watcher.subscriber)
    offered = await registry.offer(ID, owner="a/1", generation=session.generation, heir="b/1")
    assert (offered.state, offered.endpoint, offered.owner, offered.generation) == (
        State.READY,
        ENDPOINT,
        "a/1",
        session.generation,
    )
    assert offered.heir_generation > session.generation
    await watcher.until(lambda: any(route.heir for route in watcher.seen))
    told = watcher.seen[-1]
    assert (told.heir, told.endpoint) == ("b/1", ENDPOINT)


async def test_an_heir_succeeds_in_one_step_from_ready_to_ready(
    registry: RedisRegistry, other: RedisRegistry
) -> None:
    session = await made_ready(registry)
    offered = await registry.offer(ID, owner="a/1", generation=session.generation, heir="b/1")
    generation = offered.heir_generation
    await other.append(ID, "log", {"lines": ["starting"]}, generation=generation)
    change = Change(endpoint=NEXT, hmr=Hmr("", "vite-hmr"))
    after = await other.succeed(ID, heir="b/1", generation=generation, change=change)
    assert (after.state, after.owner, after.generation, after.endpoint, after.heir) == (
        State.READY,
        "b/1",
        generation,
        NEXT,
        "",
    )
    assert await held(registry, "b/1") == [ID]
    assert await held(registry, "a/1") == []
    with pytest.raises(Fenced):
        await registry.move(ID, State.SLEEPING, owner="a/1", generation=session.generation)
    with pytest.raises(Fenced):
        await registry.append(ID, "log", {"lines": ["late"]}, generation=session.generation)


async def test_only_the_last_heir_may_succeed(registry: RedisRegistry) -> None:
    session = await made_ready(registry)
    first = await registry.offer(ID, owner="a/1", generation=session.generation, heir="b/1")
    second = await registry.offer(ID, owner="a/1", generation=session.generation, heir="c/1")
    assert second.heir_generation > first.heir_generation
    for heir, generation in (
        ("b/1", first.heir_generation),
        ("b/1", second.heir_generation),
        ("c/1", first.heir_generation),
    ):
        with pytest.raises(Fenced):
            await registry.succeed(ID, heir=heir, generation=generation)
    await registry.succeed(ID, heir="c/1", generation=second.heir_generation)


@pytest.mark.parametrize("event", ["slept", "stopped", "claimed"])
async def test_an_offer_ends_with_the_state_in_which_it_was_made(
    registry: RedisRegistry, event: str
) -> None:
    session = await made_ready(registry)
    offered = await registry.offer(ID, owner="a/1", generation=session.generation, heir="b/1")
    if event == "slept":
        await registry.move(ID, State.SLEEPING, owner="a/1", generation=session.generation)
    elif event == "stopped":
        await registry.request_stop(ID, reason="enough")
    else:
        await registry.claim(ID, owner="c/1", generation=session.generation)
    now = await registry.session(ID)
    assert now is not None
    assert now.heir == ""
    with pytest.raises(Fenced):
        await registry.succeed(ID, heir="b/1", generation=offered.heir_generation)


async def test_only_the_owner_offers_unless_the_session_sleeps(registry: RedisRegistry) -> None:
    session = await made_ready(registry)
    with pytest.raises(Fenced):
        await registry.offer(ID, owner="c/1", generation=session.generation, heir="b/1")
    await registry.move(ID, State.SLEEPING, owner="a/1", generation=session.generation)
    offered = await registry.offer(ID, owner="c/1", generation=session.generation, heir="b/1")
    assert (offered.state, offered.heir) == (State.SLEEPING, "b/1")
    with pytest.raises(SessionNotFound):
        await registry.offer(SessionId("never-created"), owner="a/1", generation=1, heir="b/1")


def test_a_former_incarnation_is_suspected_however_long_its_lease_would_last() -> None:
    ends = {"a/1": 5000.0, "a/2": 6000.0, "b/1": 900.0, "c/1": 4000.0}
    assert suspected(ends, now_ms=1000, lease_ms=15000) == (["a/1", "b/1"], 3000.0)
    assert suspected({}, now_ms=1000, lease_ms=15000) == ([], 15000.0)
