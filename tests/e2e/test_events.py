"""Events that clients post, and calls that come before their session or after its end."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import aiohttp
import pytest

from tests.e2e.calls import SESSIONS, expect_problem, fresh_id
from tests.e2e.conftest import Pair

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ENVIRON: Final = {
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_STATUS_WAIT_SECONDS": "1",
    "GATEWAY_EVENT_WAIT_SECONDS": "2",
    "GATEWAY_STREAM_WAIT_SECONDS": "3",
    "GATEWAY_LATE_EVENT_SECONDS": "2",
    "GATEWAY_MAX_EVENT_BYTES": "2000",
}


async def posted(pair: Pair, session_id: str, address: str = "") -> list[dict[str, Any]]:
    """What an ended session's stream holds of ``event`` entries."""
    url = pair.b.url + (address or f"{SESSIONS}/{session_id}/events")
    async with asyncio.timeout(20), aiohttp.ClientSession() as http, http.get(url) as response:
        assert response.status == 200
        text = await response.text()
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in _blocks(text)]
    return [json.loads(block["data"]) for block in blocks if block["event"] == "event"]


def _blocks(text: str) -> list[str]:
    return [block for block in text.split("\n\n") if block and not block.startswith(":")]


async def test_a_posted_event_comes_out_of_the_stream_of_the_other_replica(
    shared_pair: Pair, shared_echo: str
) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    path = f"{SESSIONS}/{session['id']}/events"
    bodies: list[dict[str, Any]] = [
        {"type": "clicked"},
        {"type": "ai.delta", "data": {"x": ["ä", None]}, "t": 1732181000.5},
        {"type": "a-b_c:d", "data": "text", "t": "2026-11-21T10:00:00Z"},
    ]
    for body in bodies:
        answer = await shared_pair.b.ask("POST", path, json=body)
        assert answer.status == 201
        assert answer.body.keys() == {"id", "sessionId", "late"}
        assert answer.body["late"] is False
    await shared_pair.b.ask("POST", f"{SESSIONS}/{session['id']}/stop")
    seen = await posted(shared_pair, session["id"])
    assert seen == [{"data": None, **body, "source": "client"} for body in bodies]


async def test_who_looks_at_a_preview_does_not_see_what_clients_have_posted(
    shared_pair: Pair, shared_echo: str
) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    path = f"{SESSIONS}/{session['id']}"
    await shared_pair.a.ask("PATCH", path, json={"metadata": {"a": 1}})
    await shared_pair.a.ask("POST", f"{path}/events", json={"type": "x", "data": "a secret"})
    await shared_pair.a.ask("POST", f"{path}/stop")
    assert len(await posted(shared_pair, session["id"])) == 2
    own = await posted(shared_pair, session["id"], f"/preview/{session['id']}/.preview/events")
    assert own == [{"type": "patch"}]


async def test_late_events_are_kept_and_marked_then_refused(
    shared_pair: Pair, shared_echo: str
) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    path = f"{SESSIONS}/{session['id']}"
    await shared_pair.a.ask("POST", f"{path}/stop")
    late = await shared_pair.b.ask("POST", f"{path}/events", json={"type": "bye"})
    assert (late.status, late.body["late"]) == (201, True)
    (event,) = await posted(shared_pair, session["id"])
    assert event == {"type": "bye", "data": None, "source": "client", "late": True}
    await asyncio.sleep(2.1)  # GATEWAY_LATE_EVENT_SECONDS
    refused = await shared_pair.b.ask("POST", f"{path}/events", json={"type": "bye"})
    expect_problem(refused, 410, "session_ended")
    assert (refused.body["state"], refused.body["reason"]) == ("stopped", "stopped by request")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"type": ""}, 400),
        ({"type": "a b"}, 400),
        ({"type": "a\nb"}, 400),
        ({"type": "a\n"}, 400),
        ({"type": "x" * 65}, 400),
        ({"type": 7}, 400),
        ({"type": "a", "t": {}}, 400),
        ({"type": "a", "source": "gateway"}, 400),
        ({"type": "a", "data": float("nan")}, 400),
        ({"type": "a", "data": "x" * 2000}, 413),
        ([], 400),
    ],
)
async def test_fault_34_an_event_that_makes_no_sense_is_refused(
    shared_pair: Pair, shared_echo: str, body: Any, status: int
) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    answer = await shared_pair.a.ask("POST", f"{SESSIONS}/{session['id']}/events", json=body)
    expect_problem(answer, status, "bad_request" if status == 400 else "payload_too_large")


@pytest.mark.parametrize(
    ("method", "path", "body", "seconds"),
    [
        ("GET", "", None, 1),
        ("GET", "?wait=ready", None, 1),
        ("GET", "?wait=ended", None, 1),
        ("PATCH", "", {"ttlSeconds": 5}, 1),
        ("PATCH", "/files", {"delete": ["a"]}, 1),
        ("PUT", "/files", {"files": [{"path": "a", "content": ""}]}, 1),
        ("GET", "/files", None, 1),
        ("GET", "/logs", None, 1),
        ("POST", "/events", {"type": "a"}, 2),
        ("GET", "/events", None, 3),
    ],
)
async def test_each_call_waits_for_its_session_then_says_for_how_long(
    shared_pair: Pair, method: str, path: str, body: Any, seconds: float
) -> None:
    session_id = fresh_id()
    loop = asyncio.get_running_loop()
    started = loop.time()
    answer = await shared_pair.b.ask(method, f"{SESSIONS}/{session_id}{path}", json=body)
    assert seconds - 0.1 <= loop.time() - started < seconds + 8
    assert f"waited {seconds}" in expect_problem(answer, 404, "session_not_found")
    assert seconds - 0.1 <= answer.body["waitedSeconds"] < seconds + 8
    assert answer.body["sessionId"] == session_id


async def test_who_waits_for_the_end_gets_it_at_once_from_any_replica(
    shared_pair: Pair, shared_echo: str
) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    path = f"{SESSIONS}/{session['id']}"
    waiting = asyncio.create_task(shared_pair.b.ask("GET", f"{path}?wait=ended&timeout=60"))
    early = await shared_pair.b.ask("GET", f"{path}?wait=ended&timeout=0.2")
    assert early.body["state"] == "ready"
    assert not waiting.done()
    await shared_pair.a.ask("POST", f"{path}/stop")
    async with asyncio.timeout(5):
        assert (await waiting).body["state"] == "stopped"


async def test_the_list_knows_owners_visibility_and_metadata(
    shared_pair: Pair, shared_echo: str
) -> None:
    mark = fresh_id()
    made = [
        await api.create({"target": shared_echo, "metadata": {"mark": mark, "n": number}})
        for number, api in enumerate((shared_pair.a, shared_pair.b, shared_pair.b))
    ]

    async def listed(query: str) -> set[str]:
        found: set[str] = set()
        cursor = ""
        while True:
            answer = await shared_pair.a.ask(
                "GET", f"{SESSIONS}?metadata.mark={mark}&cursor={cursor}{query}"
            )
            assert answer.status == 200, answer.body
            found |= {session["id"] for session in answer.body["sessions"]}
            cursor = answer.body["cursor"]
            if not cursor:
                return found

    ids = [session["id"] for session in made]
    assert await listed("") == set(ids)
    assert await listed("&metadata.n=1") == {ids[1]}
    assert await listed(f"&owner={made[1]['owner']}") == set(ids[1:])
    assert await listed("&visibility=public") == set(ids)
    assert await listed("&visibility=private") == set()
    assert await listed("&metadata.other=1") == set()
    answer = await shared_pair.a.ask("GET", f"{SESSIONS}?visibility=secret")
    expect_problem(answer, 400, "bad_request")


# -- idempotency keys ------------------------------------------------------------------------------


async def test_fault_37_creates_with_one_key_make_one_session(
    shared_pair: Pair, shared_echo: str
) -> None:
    key = {"Idempotency-Key": fresh_id()}
    body = {"target": shared_echo, "metadata": {"a": 1, "b": 2}}
    answers = await asyncio.gather(
        *(
            api.ask("POST", SESSIONS, json=body, headers=key)
            for _ in range(10)
            for api in (shared_pair.a, shared_pair.b)
        )
    )
    assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
    assert len({(answer.body["id"], answer.body["generation"]) for answer in answers}) == 1
    # The order of members makes no other call of it.
    swapped = {"metadata": {"b": 2, "a": 1}, "target": shared_echo}
    again = await shared_pair.b.ask("POST", SESSIONS, json=swapped, headers=key)
    assert (again.status, again.body["id"]) == (200, answers[0].body["id"])


@pytest.mark.parametrize(
    "change",
    [{"metadata": {"x": 1}}, {"ttlSeconds": 60}, {"id": "another-id-1"}, {"target": "127.0.0.1:9"}],
)
async def test_fault_37_a_key_with_another_body_is_refused(
    shared_pair: Pair, shared_echo: str, change: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": fresh_id()}
    body = {"target": shared_echo}
    await shared_pair.a.ask("POST", SESSIONS, json=body, headers=key)
    other = await shared_pair.b.ask("POST", SESSIONS, json={**body, **change}, headers=key)
    assert "new one" in expect_problem(other, 422, "idempotency_key_reused")


@pytest.mark.parametrize("wait", ["", "?wait=ready"])
@pytest.mark.parametrize("end", [("POST", "/stop"), ("DELETE", "")], ids=["stopped", "deleted"])
async def test_a_key_gives_the_session_it_gave_before_even_if_that_has_ended(
    shared_pair: Pair, shared_echo: str, end: tuple[str, str], wait: str
) -> None:
    key = {"Idempotency-Key": fresh_id()}
    body = {"id": fresh_id(), "target": shared_echo}
    first = await shared_pair.a.ask("POST", SESSIONS, json=body, headers=key)
    assert first.status == 201
    await shared_pair.a.ask(end[0], f"{SESSIONS}/{body['id']}{end[1]}")
    again = await shared_pair.b.ask("POST", SESSIONS + wait, json=body, headers=key)
    assert (again.status, again.body["state"]) == (200, "stopped")
    # Without the key it is a new life of the same id.
    anew = await shared_pair.b.ask("POST", SESSIONS, json=body)
    assert (anew.status, anew.body["state"]) == (201, "ready")


async def test_a_key_does_not_get_around_a_conflict(shared_pair: Pair, shared_echo: str) -> None:
    taken = await shared_pair.a.create({"target": "127.0.0.1:9"})
    key = {"Idempotency-Key": fresh_id()}
    body = {"id": taken["id"], "target": shared_echo}
    for api in (shared_pair.a, shared_pair.b):
        answer = await api.ask("POST", SESSIONS, json=body, headers=key)
        expect_problem(answer, 409, "session_conflict")


@pytest.mark.parametrize("key", ["", "x" * 256, "ä"])
async def test_a_key_that_is_none_is_refused(shared_pair: Pair, key: str) -> None:
    answer = await shared_pair.a.ask(
        "POST", SESSIONS, json={"target": "127.0.0.1:9"}, headers={"Idempotency-Key": key}
    )
    assert "Idempotency-Key" in expect_problem(answer, 400, "bad_request")


# -- metadata --------------------------------------------------------------------------------------


async def test_metadata_is_merged_whoever_changes_it_at_the_same_time(
    shared_pair: Pair, shared_echo: str
) -> None:
    session = await shared_pair.a.create({"target": shared_echo, "metadata": {"a": {"x": 1}}})
    path = f"{SESSIONS}/{session['id']}"
    await asyncio.gather(
        *(
            api.ask("PATCH", path, json={"metadata": {"a": {f"{name}{n}": n}}})
            for n in range(10)
            for name, api in (("a", shared_pair.a), ("b", shared_pair.b))
        )
    )
    answer = await shared_pair.b.ask("PATCH", path, json={"metadata": {"a": {"x": None}, "c": []}})
    both = {f"{name}{n}": n for name in "ab" for n in range(10)}
    assert answer.body["metadata"] == {"a": both, "c": []}
    large = {"metadata": {"large": "x" * 16_300}}
    assert "metadata" in expect_problem(
        await shared_pair.a.ask("PATCH", path, json=large), 400, "bad_request"
    )
