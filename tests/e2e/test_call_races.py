"""Calls that race: 1,000 rounds each on real replicas, no 404, no 5xx, one outcome."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any, Final

import aiohttp
import pytest

from tests.e2e.calls import SESSIONS, fresh_id, rounds
from tests.e2e.conftest import Pair

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

ENVIRON: Final = {
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    # Sweeps, which expire sessions, come once per lease.
    "GATEWAY_LEASE_SECONDS": "1",
    # The rounds are to show that nothing is lost, however slow the machine is at the moment.
    "GATEWAY_STATUS_WAIT_SECONDS": "30",
    "GATEWAY_EVENT_WAIT_SECONDS": "30",
    "GATEWAY_STREAM_WAIT_SECONDS": "30",
}
ROUNDS: Final = 1000
WIDTH: Final = 16


async def test_an_event_posted_before_its_create_is_kept(
    shared_pair: Pair, shared_echo: str
) -> None:
    async def once(number: int) -> tuple[int, bool, int]:
        session_id = fresh_id()
        path = f"{SESSIONS}/{session_id}"
        early = asyncio.create_task(
            shared_pair.b.ask("POST", f"{path}/events", json={"type": "early", "data": number})
        )
        await asyncio.sleep(random.choice((0, 0, 0.01)))  # noqa: S311 - before, or just as
        await shared_pair.a.create({"id": session_id, "target": shared_echo})
        answer = await early
        return answer.status, answer.body["late"], len(answer.body["id"]) > 0

    assert await rounds(ROUNDS, WIDTH, once) == {(201, False, True): ROUNDS}


async def test_a_stream_opened_before_its_create_tells_everything(
    shared_pair: Pair, shared_echo: str
) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def listen(path: str) -> tuple[int, tuple[str, ...]]:
            async with http.get(f"{shared_pair.b.url}{path}/events") as response:
                text = await response.text()
            told = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
            return response.status, tuple(data.get("state", "") for data in told)

        async def once(_: int) -> tuple[int, tuple[str, ...]]:
            session_id = fresh_id()
            path = f"{SESSIONS}/{session_id}"
            early = asyncio.create_task(listen(path))
            await asyncio.sleep(random.choice((0, 0, 0.01)))  # noqa: S311 - before, or just as
            await shared_pair.a.create({"id": session_id, "target": shared_echo})
            await shared_pair.a.ask("POST", f"{path}/stop")
            return await early

        told = (200, ("ready", "stopped", "stopped"))
        assert await rounds(ROUNDS, WIDTH, once) == {told: ROUNDS}


async def test_of_two_stops_on_two_replicas_one_stops_and_both_say_the_same(
    shared_pair: Pair, shared_echo: str
) -> None:
    async def once(_: int) -> tuple[Any, ...]:
        session = await shared_pair.a.create({"target": shared_echo})
        path = f"{SESSIONS}/{session['id']}/stop"
        answers = await asyncio.gather(
            shared_pair.a.ask("POST", path), shared_pair.b.ask("POST", path)
        )
        already = sorted(answer.body.pop("alreadyStopped") for answer in answers)
        same = answers[0].body == answers[1].body
        return *(answer.status for answer in answers), *already, same, answers[0].body["state"]

    expected = (200, 200, False, True, True, "stopped")
    assert await rounds(ROUNDS, WIDTH, once) == {expected: ROUNDS}


async def test_a_stop_that_races_with_the_expiry_has_one_outcome(
    shared_pair: Pair, shared_echo: str
) -> None:
    outcomes: Counter[str] = Counter()

    async def once(_: int) -> tuple[Any, ...]:
        session = await shared_pair.a.create({"target": shared_echo, "ttlSeconds": 1})
        path = f"{SESSIONS}/{session['id']}/stop"
        # Its time is over after a second; a sweep notices that within the next ones.
        await asyncio.sleep(random.uniform(0.9, 3.5))  # noqa: S311
        first = await shared_pair.b.ask("POST", path)
        outcomes[first.body["endedAs"]] += 1
        again = await asyncio.gather(
            shared_pair.a.ask("POST", path), shared_pair.b.ask("POST", path)
        )
        told = {
            (answer.body["endedAs"], answer.body["reason"], answer.body["stoppedAt"])
            for answer in (first, *again)
        }
        was_first = first.body["endedAs"] == "stopped"
        return (
            *(answer.status for answer in (first, *again)),
            first.body["alreadyStopped"] is not was_first,
            *(answer.body["alreadyStopped"] for answer in again),
            {answer.body["state"] for answer in (first, *again)} == {"stopped"},
            len(told),
        )

    expected = (200, 200, 200, True, True, True, True, 1)
    assert await rounds(ROUNDS, 100, once) == {expected: ROUNDS}
    assert outcomes["stopped"] > 10, outcomes
    assert outcomes["expired"] > 10, outcomes


@pytest.mark.parametrize("by", ["id", "key"])
async def test_of_two_creates_on_two_replicas_one_makes_the_session(
    shared_pair: Pair, shared_echo: str, by: str
) -> None:
    async def once(_: int) -> tuple[Any, ...]:
        name = fresh_id()
        body = {"target": shared_echo, **({"id": name} if by == "id" else {})}
        headers = {"Idempotency-Key": name} if by == "key" else {}
        answers = await asyncio.gather(
            *(
                api.ask("POST", SESSIONS, json=body, headers=headers)
                for api in (shared_pair.a, shared_pair.b)
            )
        )
        sessions = {(answer.body["id"], answer.body["generation"]) for answer in answers}
        return *sorted(answer.status for answer in answers), len(sessions)

    assert await rounds(ROUNDS, WIDTH, once) == {(200, 201, 1): ROUNDS}


async def test_a_stop_that_races_with_a_start_has_one_outcome(shared_pair: Pair) -> None:
    """Of sessions with a dev server, which is in the middle of its start: fewer, they are dear."""

    async def once(number: int) -> tuple[Any, ...]:
        session = await shared_pair.a.create({"command": ["sleep", "600"]})
        path = f"{SESSIONS}/{session['id']}"
        await asyncio.sleep(number % 10 / 100)
        answers = await asyncio.gather(
            shared_pair.a.ask("POST", f"{path}/stop"), shared_pair.b.ask("POST", f"{path}/stop")
        )
        already = sorted(answer.body.pop("alreadyStopped") for answer in answers)
        shown = await shared_pair.b.ask("GET", path)
        return (
            *(answer.status for answer in answers),
            *already,
            answers[0].body == answers[1].body,
            shown.body["state"],
            shown.body["endedAt"] == answers[0].body["stoppedAt"],
        )

    assert await rounds(40, 4, once) == {(200, 200, False, True, True, "stopped", True): 40}
