"""One listener's view of an event stream: nothing lost by waiting, little kept for who is slow."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.errors import ListenerTooSlow, RegistryUnavailable
from gateway.registry.events import EventStream, Past
from gateway.session import SessionId

ID = SessionId("listened-to")


async def nothing(_: str) -> Past:
    return Past([], complete=True, ended=False)


def entry(number: int, text: str = "") -> bytes:
    """An entry as published."""
    return json.dumps([f"{number}-0", "log", json.dumps({"lines": [text]})]).encode()


async def taken(stream: EventStream, count: int) -> list[str]:
    async with asyncio.timeout(1):
        return [(await anext(stream)).id for _ in range(count)]


async def test_a_listener_behind_by_too_many_entries_is_dropped() -> None:
    stream = EventStream(ID, "0", nothing, longest_feed=3)
    for number in range(1, 4):
        stream.heard(entry(number))
    assert await taken(stream, 2) == ["1-0", "2-0"]
    for number in range(4, 7):
        stream.heard(entry(number))
    with pytest.raises(ListenerTooSlow, match="resume"):
        await taken(stream, 1)


async def test_a_listener_behind_by_too_many_bytes_is_dropped() -> None:
    stream = EventStream(ID, "0", nothing)
    for number in range(1, 4):  # each taken: however much comes in all
        stream.heard(entry(number, "x" * 600_000))
        assert await taken(stream, 1) == [f"{number}-0"]
    stream.heard(entry(4, "x" * 600_000))
    stream.heard(entry(5, "x" * 600_000))
    with pytest.raises(ListenerTooSlow, match="resume"):
        await taken(stream, 1)


async def test_what_was_heard_before_the_link_was_lost_is_given() -> None:
    stream = EventStream(ID, "0", nothing)
    stream.heard(entry(1))
    stream.lost(RegistryUnavailable("the link was lost"))
    assert await taken(stream, 1) == ["1-0"]
    with pytest.raises(RegistryUnavailable):
        await taken(stream, 1)


async def test_a_wait_that_is_cancelled_loses_no_entry() -> None:
    stream = EventStream(ID, "0", nothing)
    for number in range(1, 10):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(stream)
        stream.heard(entry(number))
        assert await taken(stream, 1) == [f"{number}-0"]


async def test_listeners_are_given_one_and_the_same_entry() -> None:
    streams = [EventStream(ID, "0", nothing) for _ in range(3)]
    payload = entry(1)
    for stream in streams:
        stream.heard(payload)
    first, *others = [await anext(stream) for stream in streams]
    assert all(event is first for event in others)
