"""What a dev server says reaches the event stream: in order, all of it, or with a note."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.registry.base import NewSession
from gateway.registry.redis_store import RedisRegistry
from gateway.reports import MAX_ENTRY_LINES, MAX_PENDING_LINES, StreamReports
from gateway.session import Recipe, SessionId
from tests.contract.servers import Server, Store

ID = SessionId("reports-1")


@pytest.fixture
async def reports(registry: RedisRegistry) -> AsyncIterator[StreamReports]:
    """Reports of the first generation of a session."""
    new = NewSession(ID, "digest", Recipe(), {}, "/", 60, 0)
    session = (await registry.register(new, owner="a/1")).session
    reports = StreamReports(
        registry, ID, session.generation, on_exit=lambda *_: None, on_vanish=lambda _: None
    )
    yield reports
    await reports.close(seconds=5)


async def said(registry: RedisRegistry) -> list[str]:
    """Lines and phases in the stream."""
    found: list[str] = []
    for event in await registry.recent_events(ID, count=1000):
        if event.type == "log":
            assert len(event.data["lines"]) <= MAX_ENTRY_LINES + 1
            found += event.data["lines"]
        elif event.type == "event":
            found.append(f"[{event.data['phase']}]")
    return found


async def test_lines_and_phases_keep_their_order(
    registry: RedisRegistry, reports: StreamReports
) -> None:
    reports.phase("preparing")
    first = [f"first {n}" for n in range(450)]
    reports.log(first[:1])
    reports.log(first[1:])
    reports.phase("starting")
    reports.log(["last"])
    await reports.flush(seconds=5)
    assert await said(registry) == ["[preparing]", *first, "[starting]", "last"]


async def test_an_outage_of_the_registry_loses_no_line(
    store: Store, registry: RedisRegistry, reports: StreamReports
) -> None:
    assert isinstance(store, Server)
    with store.stalled():
        reports.log(["before"])
        await reports.flush(seconds=3)
        reports.log(["during"])
    await reports.flush(seconds=10)
    lines = await said(registry)
    # The reply to an append may be lost after it took effect: then the line comes twice.
    assert list(dict.fromkeys(lines)) == ["before", "during"]


async def test_what_is_too_much_is_dropped_with_a_note_and_phases_stay(
    registry: RedisRegistry, reports: StreamReports
) -> None:
    reports.phase("starting")
    for n in range(MAX_PENDING_LINES + 1):
        reports.log([f"line {n}"])
    await reports.flush(seconds=5)
    phase, note, *lines = await said(registry)
    assert phase == "[starting]"
    assert note == f"... {MAX_ENTRY_LINES} lines dropped ..."
    assert lines == [f"line {n}" for n in range(MAX_ENTRY_LINES, MAX_PENDING_LINES + 1)]


async def test_a_fenced_generation_says_nothing_more_and_ends_at_once(
    registry: RedisRegistry, reports: StreamReports
) -> None:
    session = await registry.session(ID)
    assert session is not None
    await registry.claim(ID, owner="b/1", generation=session.generation)
    reports.log(["too late"])
    await reports.flush(seconds=5)
    reports.log(["much too late"])
    reports.phase("starting")
    async with asyncio.timeout(1):
        await reports.close(seconds=5)
    assert await said(registry) == []
