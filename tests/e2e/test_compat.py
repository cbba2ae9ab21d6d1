"""The calls of older shapes: each test is named for the failure that its call used to show.

``POST /kontext/preview`` and the HMR socket have a file of their own (test_kontext).
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from tests.e2e.calls import SESSIONS, expect_problem, fresh_id, stored
from tests.e2e.conftest import Pair, run_pair, run_store

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ENVIRON: Final = {
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_STATUS_WAIT_SECONDS": "5",
    "GATEWAY_EVENT_WAIT_SECONDS": "2",
    "GATEWAY_LATE_EVENT_SECONDS": "1",
    "GATEWAY_LEASE_SECONDS": "2",
}
#: A project that is a while in starting.
BUSY: Final = {"package.json": '{"devDependencies": {"vite": "5"}}', "index.html": "<p>"}
#: How long after the call its session comes: what used to be a 404.
LATER: Final = 0.3


async def later(pair: Pair, session_id: str, target: str) -> None:
    """Create the session on replica A, a moment later."""
    await asyncio.sleep(LATER)
    await pair.a.create({"id": session_id, "target": target})


async def entries(pair: Pair, session_id: str, kind: str) -> list[dict[str, Any]]:
    """Data of what clients have posted under ``kind``, of a session that is stopped for it."""
    await pair.a.ask("POST", f"{SESSIONS}/{session_id}/stop")
    found = []
    async for event, data in stream(pair.b.url + f"{SESSIONS}/{session_id}/events"):
        if event == "event" and data["type"] == kind:
            found.append(data)
    return found


async def stream(url: str) -> AsyncIterator[tuple[str, Any]]:
    """(event, data) of a stream, until its end."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as http, http.get(url) as response:
        assert response.status == 200, await response.text()
        fields: dict[str, str] = {}
        async for raw in response.content:
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            if value:
                fields[name] = value
            elif "event" in fields:
                yield fields.pop("event"), json.loads(fields.pop("data"))


# -- POST /kontext/preview -------------------------------------------------------------------------


async def test_a_preview_that_is_not_found_says_so_in_the_old_shape(shared_pair: Pair) -> None:
    session_id = fresh_id()
    answer = await shared_pair.b.ask("GET", f"/preview/{session_id}/")
    expect_problem(answer, 404, "session_not_found")
    assert answer.body["success"] is False
    assert answer.body["error"] == "Preview session not found"
    assert (answer.body["sessionId"], answer.body["retries"]) == (session_id, 0)


# -- POST /api/v1/session/event, POST /api/v1/session/{id}/experiment ------------------------------


async def test_an_event_logged_before_its_session_exists_is_no_404(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id = fresh_id()
    event = {"t": 1732181000000, "type": "page_view", "data": {"x": 1}}
    answer, _ = await asyncio.gather(
        shared_pair.b.ask(
            "POST", "/api/v1/session/event", json={"session_id": session_id, "event": event}
        ),
        later(shared_pair, session_id, shared_echo),
    )
    assert answer.status == 200, answer.body
    assert answer.body["success"] is True
    assert (answer.body["session_id"], answer.body["late"]) == (session_id, False)
    (kept,) = await entries(shared_pair, session_id, "page_view")
    assert kept == {**event, "source": "client"}


async def test_an_experiment_id_set_before_its_session_exists_is_no_404(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id = fresh_id()
    answer, _ = await asyncio.gather(
        shared_pair.b.ask(
            "POST", f"/api/v1/session/{session_id}/experiment", json={"experiment_id": "blue"}
        ),
        later(shared_pair, session_id, shared_echo),
    )
    assert answer.status == 200, answer.body
    assert answer.body == {"success": True, "session_id": session_id, "experiment_id": "blue"}
    shown = await shared_pair.a.ask("GET", f"{SESSIONS}/{session_id}")
    assert shown.body["metadata"] == {"experiment_id": "blue"}


@pytest.mark.parametrize("call", ["event", "experiment", "interaction"])
async def test_a_session_that_never_comes_is_a_404_with_nothing_written(
    shared_pair: Pair, call: str
) -> None:
    session_id = fresh_id()
    path, body = {
        "event": ("/api/v1/session/event", {"session_id": session_id, "event": {"type": "x"}}),
        "experiment": (f"/api/v1/session/{session_id}/experiment", {"experiment_id": 7}),
        "interaction": (
            f"/session/{session_id}/interactions",
            {"prompt": "p", "response": "r"},
        ),
    }[call]
    answer = await shared_pair.b.ask("POST", path, json=body)
    assert "waited 2" in expect_problem(answer, 404, "session_not_found")
    assert (answer.body["error"], answer.body["session_id"]) == ("session_not_found", session_id)
    assert await stored(shared_pair, session_id) == []


# -- POST /session/create, POST /session/{id}/interactions -----------------------------------------


async def test_a_create_with_an_id_that_exists_already_is_accepted(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id = fresh_id()
    for api in (shared_pair.a, shared_pair.b, shared_pair.a):
        answer = await api.ask(
            "POST", "/session/create", json={"session_id": session_id, "user_id": "u1"}
        )
        assert (answer.status, answer.body) == (200, {"session_id": session_id})
    assert (await shared_pair.b.ask("GET", f"{SESSIONS}/{session_id}")).body[
        "state"
    ] == "registered"
    # Also of one that shows something.
    full = await shared_pair.a.create({"target": shared_echo})
    answer = await shared_pair.b.ask("POST", "/session/create", json={"session_id": full["id"]})
    assert (answer.status, answer.body) == (200, {"session_id": full["id"]})
    assert (await shared_pair.b.ask("GET", f"/preview/{full['id']}/")).status == 200
    made = await shared_pair.a.ask("POST", "/session/create", json={})
    assert re.fullmatch("[0-9a-f]{32}", made.body["session_id"])


async def test_a_row_that_refers_to_a_session_is_written_for_a_stored_session_only(
    shared_pair: Pair,
) -> None:
    session_id = fresh_id()
    interaction = {"prompt": "Make it blue", "response": "It is ä blue."}
    early, created = await asyncio.gather(
        shared_pair.b.ask("POST", f"/session/{session_id}/interactions", json=interaction),
        shared_pair.a.ask("POST", "/session/create", json={"session_id": session_id}),
    )
    assert (early.status, created.status) == (200, 200), early.body
    assert early.body["session_id"] == session_id
    (kept,) = await entries(shared_pair, session_id, "interaction")
    assert kept["data"] == interaction


async def test_what_was_told_of_an_id_is_kept_when_its_files_come(shared_pair: Pair) -> None:
    """The three calls in the order that used to fail: rows first, then the preview."""
    created = await shared_pair.a.ask("POST", "/session/create", json={"user_id": 7})
    session_id = created.body["session_id"]
    row = {"prompt": "p", "response": "r"}
    await shared_pair.b.ask("POST", f"/session/{session_id}/interactions", json=row)
    started = await shared_pair.b.ask(
        "POST",
        SESSIONS,
        json={"id": session_id, "command": ["sleep", "60"]},
    )
    assert started.status == 201, started.body
    assert started.body["metadata"] == {"user_id": 7}
    assert [kept["data"] for kept in await entries(shared_pair, session_id, "interaction")] == [row]


async def test_a_request_for_a_preview_without_content_yet_waits_for_it(
    shared_pair: Pair, shared_echo: str
) -> None:
    created = await shared_pair.a.ask("POST", "/session/create", json={})
    session_id = created.body["session_id"]
    early = asyncio.create_task(shared_pair.b.ask("GET", f"/preview/{session_id}/x"))
    await asyncio.sleep(LATER)
    assert not early.done()
    await shared_pair.a.create({"id": session_id, "target": shared_echo})
    assert (await early).status == 200


async def test_a_session_without_content_yet_has_no_files_to_edit(shared_pair: Pair) -> None:
    created = await shared_pair.a.ask("POST", "/session/create", json={})
    path = f"{SESSIONS}/{created.body['session_id']}/files"
    for method, body in (("GET", None), ("PATCH", {"delete": ["a"]})):
        answer = await shared_pair.b.ask(method, path, json=body)
        assert "create it" in expect_problem(answer, 400, "bad_request")


async def test_reserved_ids_outlive_the_sweeps_and_can_be_stopped(shared_pair: Pair) -> None:
    created = await shared_pair.a.ask("POST", "/session/create", json={})
    path = f"{SESSIONS}/{created.body['session_id']}"
    await asyncio.sleep(5)  # two sweeps
    assert (await shared_pair.b.ask("GET", path)).body["state"] == "registered"
    assert (await shared_pair.b.ask("POST", f"{path}/stop")).body["alreadyStopped"] is False
    assert (await shared_pair.a.ask("GET", path)).body["state"] == "stopped"
    assert (await shared_pair.a.ask("DELETE", path)).status == 204


# -- POST /sessions/start, POST /sessions/stop -----------------------------------------------------


async def test_a_stop_of_a_session_that_was_just_cleaned_up_is_no_404(shared_pair: Pair) -> None:
    started = await shared_pair.a.ask("POST", "/sessions/start", json={"anything": {"at": "all"}})
    assert (started.status, started.body["status"]) == (200, "session_started")
    session_id = started.body["data"]["session_id"]
    stop = {"session_id": session_id}
    first = await shared_pair.b.ask("POST", "/sessions/stop", json=stop)
    assert (first.status, first.body["status"]) == (200, "session_stopped")
    assert first.body["data"] == {
        "session_id": session_id,
        "stopped_via": "request",
        "was_orphaned": False,
    }
    for api in (shared_pair.a, shared_pair.b):
        again = await api.ask("POST", "/sessions/stop", json=stop)
        assert (again.status, again.body["status"]) == (200, "session_stopped")
        data = again.body["data"]
        assert (data["stopped_via"], data["was_orphaned"]) == ("already_stopped", False)
        assert data["note"] == "it was stopped: stopped by request"


async def test_a_stop_of_an_id_that_never_existed_is_a_404(shared_pair: Pair) -> None:
    session_id = fresh_id()
    answer = await shared_pair.a.ask("POST", "/sessions/stop", json={"session_id": session_id})
    expect_problem(answer, 404, "session_not_found")
    assert (answer.body["error"], answer.body["session_id"]) == ("session_not_found", session_id)


@pytest.mark.node
async def test_a_start_with_files_starts_them_and_a_stop_ends_them(shared_pair: Pair) -> None:
    started = await shared_pair.a.ask(
        "POST", "/sessions/start", json={"files": {"package.json": "{}"}}
    )
    expect_problem(started, 400, "unsupported_project")
    package = {"devDependencies": {"vite": "5"}, "name": "x"}
    started = await shared_pair.a.ask(
        "POST", "/sessions/start", json={"files": {"index.html": "<p>"}, "packageJson": package}
    )
    session_id = started.body["data"]["session_id"]
    assert (await shared_pair.b.ask("GET", f"{SESSIONS}/{session_id}")).body["state"] in {
        "registered",
        "starting",
        "ready",
    }
    stopped = await shared_pair.b.ask("POST", "/sessions/stop", json={"session_id": session_id})
    assert stopped.body["data"]["stopped_via"] == "request"


async def test_a_stop_of_a_session_whose_replica_has_died_is_no_404_and_no_wait_for_ever(
    data_dir: Path,
) -> None:
    async with (
        run_store() as store,
        aiohttp.ClientSession() as http,
        run_pair(store, data_dir, http, ENVIRON) as pair,
    ):
        started = await pair.a.ask("POST", "/sessions/start", json={"files": BUSY})
        assert started.status == 200, started.body
        session_id = started.body["data"]["session_id"]
        pair.a.replica.kill(signal.SIGKILL)
        stopped = await pair.b.ask("POST", "/sessions/stop", json={"session_id": session_id})
        assert (stopped.status, stopped.body["status"]) == (200, "session_stopped")
        assert stopped.body["data"] == {
            "session_id": session_id,
            "stopped_via": "request",
            "was_orphaned": True,
        }


# -- interviews ------------------------------------------------------------------------------------


async def test_a_stream_opened_a_millisecond_early_is_no_404(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id = fresh_id()
    creating = asyncio.create_task(later(shared_pair, session_id, shared_echo))
    seen: list[tuple[str, Any]] = []
    posts = [
        ("ai_response", {"text": "Hello ä"}),
        ("transcription", "words"),
        ("status", {"phase": "asking"}),
        ("error", {"message": "no microphone"}),
        ("complete", None),
    ]
    async for event in stream(f"{shared_pair.b.url}/api/v1/interview/{session_id}/stream"):
        if not seen:
            await creating
            for kind, data in posts:
                path = f"{SESSIONS}/{session_id}/events"
                await shared_pair.a.ask("POST", path, json={"type": kind, "data": data})
            await shared_pair.a.ask("POST", f"{SESSIONS}/{session_id}/stop")
        seen.append(event)
    assert seen == [
        ("status", {"status": "ready"}),
        *posts,
        ("status", {"status": "stopped"}),
        ("complete", {"status": "stopped", "reason": "stopped by request"}),
    ]


async def test_a_status_asked_for_before_the_session_exists_is_no_404(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id = fresh_id()
    answer, _ = await asyncio.gather(
        shared_pair.b.ask("GET", f"/api/v1/interview/{session_id}/status"),
        later(shared_pair, session_id, shared_echo),
    )
    assert answer.status == 200
    assert answer.body == {
        "session_id": session_id,
        "task_id": session_id,
        "status": "ready",
        "ended": False,
        "reason": "",
    }


async def test_an_interview_that_has_started_is_there_on_every_replica(shared_pair: Pair) -> None:
    started = await shared_pair.a.ask("POST", "/api/v1/interview/start", json={"topic": "x"})
    assert started.status == 200
    assert started.body.keys() == {"session_id", "task_id"}
    for name in ("session_id", "task_id"):
        path = f"/api/v1/interview/{started.body[name]}/status"
        answer = await shared_pair.b.ask("GET", path)
        assert (answer.status, answer.body["status"]) == (200, "registered")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/session/event", {"session_id": "NO", "event": {"type": "x"}}),
        ("/api/v1/session/event", {"session_id": "some-id-1", "event": {"type": "a b"}}),
        ("/api/v1/session/event", {"session_id": "some-id-1"}),
        ("/api/v1/session/some-id-1/experiment", {}),
        ("/session/create", {"session_id": "../x"}),
        ("/session/some-id-1/interactions", {"prompt": 7, "response": ""}),
        ("/sessions/start", {"files": 7}),
        ("/sessions/stop", {}),
        ("/api/v1/interview/start", []),
    ],
)
async def test_fault_34_wrong_types_are_refused_in_both_shapes(
    shared_pair: Pair, path: str, body: Any
) -> None:
    answer = await shared_pair.a.ask("POST", path, json=body)
    expect_problem(answer, 400, answer.body["code"])
    assert answer.body["error"] == answer.body["code"]
