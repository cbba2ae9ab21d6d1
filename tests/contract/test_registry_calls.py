"""What the calls of the API leave in the registry: clients' events, reserved ids, memories."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import pytest

from gateway.errors import (
    Fenced,
    RegistryUnavailable,
    SessionConflict,
    SessionEnded,
    SessionNotFound,
)
from gateway.registry import scripts
from gateway.registry.base import Stop
from gateway.registry.keys import events_key, memory_key, session_key
from gateway.registry.redis_store import RedisRegistry
from gateway.session import State
from gateway.settings import load_settings
from tests.contract.conftest import ENDPOINT, ID, Opener, Relay, Server, new_session
from tests.contract.servers import Store

#: What the promises are kept on.
STORES: Final = ("valkey", "cluster", "acl")
SERVERS: Final = ("valkey",)
A, B = "a/1", "b/1"
RESERVED: Final[dict[str, Any]] = {"digest": "nothing", "files": {}, "reserved": True}


# -- what clients tell -------------------------------------------------------------------------


async def test_what_a_client_tells_is_an_event_of_the_session(registry: RedisRegistry) -> None:
    await registry.register(new_session(endpoint=ENDPOINT), owner=A)
    noted = await registry.note(ID, {"type": "clicked", "data": {"x": ["ä", []]}}, late_seconds=5)
    assert not noted.late
    (event,) = await registry.recent_events(ID, count=1)
    assert (event.id, event.type) == (noted.id, "event")
    assert event.data == {"type": "clicked", "data": {"x": ["ä", []]}}


async def test_what_comes_soon_after_the_end_is_kept_and_marked_late(
    registry: RedisRegistry, store: Store
) -> None:
    await registry.register(new_session(endpoint=ENDPOINT), owner=A)
    await registry.request_stop(ID, reason="enough")
    noted = await registry.note(ID, {"type": "last"}, late_seconds=60)
    assert noted.late
    (event,) = await registry.recent_events(ID, count=1)
    assert event.data == {"type": "last", "late": True}

    ended_at = int(await store.ask("HGET", session_key(ID), "ended_at"))
    await store.ask("HSET", session_key(ID), "ended_at", str(ended_at - 61_000))
    with pytest.raises(SessionEnded, match="stopped \\(enough\\)") as caught:
        await registry.note(ID, {"type": "too late"}, late_seconds=60)
    assert (caught.value.state, caught.value.reason) == ("stopped", "enough")
    assert await registry.recent_events(ID, count=1) == [event]


async def test_a_session_past_its_time_has_ended_then_whether_noticed_or_not(
    registry: RedisRegistry, store: Store
) -> None:
    made = await registry.register(new_session(endpoint=ENDPOINT), owner=A)
    expired_at = made.session.created_at_ms - 1000
    await store.ask("HSET", session_key(ID), "expires_at", str(expired_at))
    assert (await registry.note(ID, {}, late_seconds=3600)).late
    with pytest.raises(SessionEnded, match="expired"):
        await registry.note(ID, {}, late_seconds=0)


async def test_nothing_is_noted_for_a_session_that_does_not_exist(
    registry: RedisRegistry, store: Store
) -> None:
    with pytest.raises(SessionNotFound):
        await registry.note(ID, {"type": "x"}, late_seconds=60)
    assert await store.ask("EXISTS", events_key(ID)) == 0


async def test_notes_live_as_long_as_their_session(registry: RedisRegistry, store: Store) -> None:
    await registry.register(new_session(endpoint=ENDPOINT), owner=A)
    await store.ask("DEL", events_key(ID))
    await registry.note(ID, {}, late_seconds=60)
    left = await store.ask("PTTL", session_key(ID)) - await store.ask("PTTL", events_key(ID))
    assert abs(left) < 1000


# -- stops -------------------------------------------------------------------------------------


async def test_of_concurrent_stops_one_finds_the_session_alive(
    registry: RedisRegistry, other: RedisRegistry
) -> None:
    await registry.register(new_session(endpoint=ENDPOINT), owner=A)
    stops = await asyncio.gather(
        *((registry, other)[n % 2].request_stop(ID, reason=f"{n}") for n in range(20))
    )
    assert sum(not stop.already for stop in stops) == 1
    assert len({(stop.session.state, stop.session.reason) for stop in stops}) == 1


async def test_a_stop_with_a_lost_reply_still_says_that_it_was_the_first(
    server: Server, connect: Opener
) -> None:
    async with Relay(server).running() as relay:
        registry = await connect(relay.url)
        await registry.register(new_session(endpoint=ENDPOINT), owner=A)
        relay.lose_answer_to(scripts.REQUEST_STOP.sha.encode())
        stop = await registry.request_stop(ID, reason="x")
        assert relay.lost == 1
        assert stop == Stop(stop.session, already=False)
        assert (await registry.request_stop(ID, reason="x")).already
        await registry.close()


# -- metadata ----------------------------------------------------------------------------------


async def test_concurrent_changes_of_metadata_are_all_kept(
    registry: RedisRegistry, other: RedisRegistry
) -> None:
    await registry.register(new_session(endpoint=ENDPOINT), owner=A)

    async def add(number: int) -> None:
        def with_number(text: str) -> str:
            return json.dumps({**json.loads(text), str(number): number})

        await (registry, other)[number % 2].patch(ID, metadata=with_number)

    await asyncio.gather(*(add(number) for number in range(20)))
    session = await registry.session(ID)
    assert session is not None
    assert json.loads(session.metadata) == {str(number): number for number in range(20)}


async def test_metadata_of_what_does_not_exist_or_has_ended_is_not_changed(
    registry: RedisRegistry,
) -> None:
    with pytest.raises(SessionNotFound):
        await registry.patch(ID, metadata=lambda text: text)
    await registry.register(new_session(endpoint=ENDPOINT), owner=A)
    await registry.request_stop(ID, reason="x")
    with pytest.raises(SessionEnded):
        await registry.patch(ID, metadata=lambda text: text)


async def test_who_always_loses_is_told(other: RedisRegistry, store: Store) -> None:
    await other.register(new_session(endpoint=ENDPOINT), owner=A)
    count = 0

    class Slow(RedisRegistry):
        """Each of its changes comes after another one."""

        async def _change(self, *arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            await other.patch(ID, metadata=lambda _: json.dumps({"n": count}))
            return await super()._change(*arguments, **named)

    slow = Slow(load_settings(), url=store.url)
    with pytest.raises(RegistryUnavailable, match="too many"):
        await slow.patch(ID, metadata=lambda _: "{}")
    await slow.close()


# -- reserved ids ------------------------------------------------------------------------------


async def test_a_reserved_id_is_a_session_that_nobody_starts(
    registry: RedisRegistry, other: RedisRegistry
) -> None:
    made = await registry.register(new_session(**RESERVED), owner=A)
    again = await other.register(new_session(**RESERVED), owner=B)
    assert (made.created, again.created) == (True, False)
    assert (made.session.state, made.session.reserved) == (State.REGISTERED, True)
    assert (await registry.held_by(A)).sessions == []
    with pytest.raises(Fenced):
        await other.claim(ID, owner=B, generation=made.session.generation)
    stop = await other.request_stop(ID, reason="enough")
    assert (stop.session.state, stop.already) == (State.STOPPED, False)


async def test_a_reserved_id_becomes_a_session_with_content_and_keeps_what_was_told(
    registry: RedisRegistry, other: RedisRegistry
) -> None:
    reserved = await registry.register(new_session(**RESERVED), owner=A)
    noted = await registry.note(ID, {"type": "early"}, late_seconds=60)
    await registry.patch(ID, metadata=lambda _: '{"experiment":7}')
    made = await other.register(new_session(), owner=B)
    assert made.created
    assert made.session.generation > reserved.session.generation
    assert (made.session.owner, made.session.reserved) == (B, False)
    assert made.session.metadata == '{"experiment":7}'
    assert await registry.files(ID) == {"index.html": b"<h1>Hi</h1>"}
    assert noted.id in [event.id for event in await registry.recent_events(ID, count=10)]
    assert [session.id for session in (await registry.held_by(B)).sessions] == [ID]


async def test_new_metadata_replaces_that_of_a_reserved_id(registry: RedisRegistry) -> None:
    await registry.register(new_session(**RESERVED, metadata='{"a":1}'), owner=A)
    made = await registry.register(new_session(metadata='{"b":2}'), owner=A)
    assert made.session.metadata == '{"b":2}'


async def test_an_id_with_content_is_not_reserved_again(registry: RedisRegistry) -> None:
    await registry.register(new_session(), owner=A)
    with pytest.raises(SessionConflict):
        await registry.register(new_session(**RESERVED), owner=A)


async def test_a_session_begun_anew_has_nothing_of_an_ended_reservation(
    registry: RedisRegistry,
) -> None:
    await registry.register(new_session(**RESERVED, metadata='{"a":1}'), owner=A)
    await registry.request_stop(ID, reason="x")
    made = await registry.register(new_session(), owner=A)
    assert (made.session.metadata, made.session.reserved) == ("{}", False)


# -- memories ----------------------------------------------------------------------------------


async def test_of_concurrent_memories_the_first_is_kept(
    registry: RedisRegistry, other: RedisRegistry
) -> None:
    kept = await asyncio.gather(
        *((registry, other)[n % 2].remember("name", f"v{n}", seconds=60) for n in range(20))
    )
    assert len(set(kept)) == 1
    assert await other.remember("another", "ä", seconds=60) == "ä"
    assert await other.remember("another", "b", seconds=60) == "ä"


async def test_a_memory_lives_as_long_as_it_was_asked_to(
    registry: RedisRegistry, store: Store
) -> None:
    await registry.remember("name", "value", seconds=60)
    assert 59_000 < await store.ask("PTTL", memory_key("name")) <= 60_000
