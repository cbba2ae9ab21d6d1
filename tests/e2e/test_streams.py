"""A session's events as server-sent events: from any replica, resumable, and cheap to leave."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from gateway.client import ApiError, Client, Event
from tests.e2e.calls import SESSIONS, expect_problem, fresh_id
from tests.e2e.conftest import Pair
from tests.e2e.listening import listen
from tests.e2e.replicas import Api

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ENVIRON: Final = {"GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8"}


def events_url(api: Api, session_id: str) -> str:
    return f"{api.url}{SESSIONS}/{session_id}/events"


async def counting(pair: Pair, lines: int) -> dict[str, Any]:
    """A session whose program says ``lines`` lines and ends with status 0."""
    source = f"for (let n = 0; n < {lines}; n++) console.log('line ' + n)"
    return await pair.a.create(
        {"files": [{"path": "x.js", "content": source}], "command": "node x.js"}
    )


@pytest.mark.node
async def test_states_and_log_come_in_order_until_the_end(shared_pair: Pair) -> None:
    session = await counting(shared_pair, 300)
    async with listen(events_url(shared_pair.b, session["id"])) as stream:
        assert stream.response.content_type == "text/event-stream"
        assert stream.response.headers["Cache-Control"] == "no-store"
        events = await stream.until("end")
        assert await stream.next() is None, "the response ends after the end"
    states = [event.data["state"] for event in events if event.type == "state"]
    assert states == ["registered", "starting", "failed"]
    lines = [line for event in events if event.type == "log" for line in event.data["lines"]]
    assert lines == [f"line {n}" for n in range(300)]
    assert events[-1].data["state"] == "failed"
    assert "exited with status 0" in events[-1].data["reason"]
    order = [tuple(map(int, event.id.split("-"))) for event in events]
    assert order == sorted(set(order))


@pytest.mark.node
async def test_last_event_id_resumes_on_the_other_replica_without_gap_or_repeat(
    shared_pair: Pair,
) -> None:
    session = await counting(shared_pair, 50)
    async with listen(events_url(shared_pair.a, session["id"])) as stream:
        whole = await stream.until("end")
    for seen in range(1, len(whole)):
        url = events_url(shared_pair.b, session["id"])
        async with listen(url, after=whole[seen - 1].id) as stream:
            assert await stream.until("end") == whole[seen:]


async def test_a_stream_that_resumes_after_the_end_is_told_so_and_ended(
    shared_pair: Pair, shared_echo: str
) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    path = f"{SESSIONS}/{session['id']}"
    await shared_pair.a.ask("POST", f"{path}/stop")
    url = events_url(shared_pair.b, session["id"])
    async with listen(url) as stream:
        end = (await stream.until("end"))[-1]
    async with listen(url, after=end.id) as stream:
        again = await stream.next()
        assert again == Event("", "end", end.data)
        assert await stream.next() is None
    # Deleted: nothing is left to be told.
    await shared_pair.a.ask("DELETE", path)
    async with shared_pair.a._http.get(url) as response:
        assert response.status == 410


async def test_a_stream_of_a_session_begun_anew_goes_on_beyond_the_first_end(
    shared_pair: Pair, shared_echo: str
) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    path = f"{SESSIONS}/{session['id']}"
    await shared_pair.a.ask("POST", f"{path}/stop")
    await shared_pair.a.create({"id": session["id"], "target": shared_echo})
    async with Client(shared_pair.b.url) as client:
        events = client.events(session["id"])
        first = [await anext(events) for _ in range(4)]
        assert [event.type for event in first] == ["state", "state", "end", "state"]
        await shared_pair.a.ask("POST", f"{path}/stop")
        assert [event.type async for event in events] == ["state", "end"]


async def test_a_stream_opened_before_the_create_waits_for_it(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id = fresh_id()

    async def first() -> Event | None:
        async with listen(events_url(shared_pair.b, session_id)) as stream:
            return await stream.next()

    early = asyncio.create_task(first())
    await asyncio.sleep(0.1)  # the figure: the create comes 100 ms later
    assert not early.done()
    await shared_pair.a.create({"id": session_id, "target": shared_echo})
    event = await early
    assert event is not None
    assert event.data["state"] == "ready"


async def test_a_stream_of_what_never_comes_ends_in_not_found_after_ten_seconds(
    shared_pair: Pair,
) -> None:
    answer = await shared_pair.a.ask("GET", f"{SESSIONS}/{fresh_id()}/events")
    assert "waited 10.0 s" in expect_problem(answer, 404, "session_not_found")
    async with Client(shared_pair.a.url) as client:
        with pytest.raises(ApiError, match="is no session id"):
            await anext(client.events("Never"))


async def test_a_foreign_last_event_id_is_refused(shared_pair: Pair, shared_echo: str) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    answer = await shared_pair.a.ask(
        "GET", f"{SESSIONS}/{session['id']}/events", headers={"Last-Event-ID": "$"}
    )
    assert "leave it out" in expect_problem(answer, 400, "bad_request")


async def test_many_listeners_hear_the_same_and_may_leave(
    shared_pair: Pair, shared_echo: str
) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    heard: list[list[Event]] = []
    listening = asyncio.Semaphore(0)

    async def follow(api: Api) -> None:
        async with listen(events_url(api, session["id"])) as stream:
            first = await stream.next()
            assert first is not None
            listening.release()
            heard.append([first, *await stream.until("end")])

    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(follow(shared_pair.b if number % 2 else shared_pair.a))
        for _ in range(20):  # these open the stream and go away at once
            async with listen(events_url(shared_pair.a, session["id"])):
                pass
        for _ in range(100):
            await listening.acquire()
        await shared_pair.b.ask("POST", f"{SESSIONS}/{session['id']}/stop")
    assert len(heard) == 100
    assert all(events == heard[0] for events in heard)
    # shared_pair looks for tracebacks when all is over.
