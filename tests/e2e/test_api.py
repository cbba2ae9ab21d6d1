"""Reading, changing and ending sessions through the API of two replicas."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, Final

import pytest

from tests.e2e.calls import APP, SESSIONS, dev_servers, expect_problem, fresh_id, stored
from tests.e2e.conftest import Pair
from tests.e2e.replicas import Answer, Api

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ENVIRON: Final = {
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_MAX_FILES": "20",
    "GATEWAY_MAX_FILE_BYTES": "100000",
    "GATEWAY_MAX_SESSION_BYTES": "300000",
}


# -- read ------------------------------------------------------------------------------------------


async def test_a_get_that_comes_before_its_create_is_answered(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id = fresh_id()
    early = asyncio.create_task(shared_pair.b.ask("GET", f"{SESSIONS}/{session_id}"))
    await asyncio.sleep(0.1)  # the figure: the create comes 100 ms later
    assert not early.done()
    await shared_pair.a.create({"id": session_id, "target": shared_echo})
    answer = await early
    assert (answer.status, answer.body["id"]) == (200, session_id)


async def test_what_never_existed_is_not_found_and_says_how_long_was_waited(
    shared_pair: Pair,
) -> None:
    session_id = fresh_id()
    loop = asyncio.get_running_loop()
    started = loop.time()
    answer = await shared_pair.a.ask("GET", f"{SESSIONS}/{session_id}")
    assert "waited 5.0 s" in expect_problem(answer, 404, "session_not_found")
    assert answer.body["sessionId"] == session_id
    assert 4.5 < loop.time() - started < 15
    # Stopping what never existed is known at once.
    answer = await shared_pair.a.ask("POST", f"{SESSIONS}/{session_id}/stop")
    expect_problem(answer, 404, "session_not_found")
    assert (await shared_pair.a.ask("DELETE", f"{SESSIONS}/{session_id}")).status == 204


@pytest.mark.parametrize("query", ["wait=soon", "wait=ready&timeout=x", "wait=ready&timeout=-1"])
async def test_a_wait_that_makes_no_sense_is_refused(shared_pair: Pair, query: str) -> None:
    answer = await shared_pair.a.ask("GET", f"{SESSIONS}/{fresh_id()}?{query}")
    expect_problem(answer, 400, "bad_request")


async def test_the_list_has_filter_limit_and_cursor(shared_pair: Pair, shared_echo: str) -> None:
    prefix = f"list-{secrets.token_hex(3)}"
    ids = [f"{prefix}-{number:03}" for number in range(120)]
    for start in range(0, 120, 20):
        await asyncio.gather(
            *(
                shared_pair.a.create({"id": name, "target": shared_echo})
                for name in ids[start : start + 20]
            )
        )
    for name in ids[::2]:
        await shared_pair.b.ask("POST", f"{SESSIONS}/{name}/stop")

    async def everything(query: str, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = await shared_pair.b.ask(
                "GET", f"{SESSIONS}?limit={limit}&cursor={cursor}{query}"
            )
            assert page.status == 200
            assert len(page.body["sessions"]) <= limit
            found += page.body["sessions"]
            cursor = page.body["cursor"]
            if not cursor:
                return [session for session in found if session["id"].startswith(prefix)]

    found = await everything("", 7)
    assert sorted(session["id"] for session in found) == ids
    # Those of one batch were created at once, in any order.
    batches = [int(session["id"][-3:]) // 20 for session in found]
    assert batches == sorted(batches, reverse=True)
    stopped = await everything("&state=stopped", 50)
    assert sorted(session["id"] for session in stopped) == ids[::2]
    assert {session["state"] for session in stopped} == {"stopped"}

    for query in ("state=tired", "limit=0", "limit=x", "limit=1.5", "cursor=elsewhere"):
        expect_problem(await shared_pair.a.ask("GET", f"{SESSIONS}?{query}"), 400, "bad_request")


# -- change ----------------------------------------------------------------------------------------


async def test_metadata_and_ttl_can_be_changed(shared_pair: Pair, shared_echo: str) -> None:
    session = await shared_pair.a.create({"target": shared_echo, "metadata": {"a": 1}})
    path = f"{SESSIONS}/{session['id']}"
    answer = await shared_pair.b.ask(
        "PATCH", path, json={"metadata": {"experiment": 7}, "ttlSeconds": 60}
    )
    assert answer.status == 200
    again = await shared_pair.a.ask("GET", path)
    assert again.body["metadata"] == {"a": 1, "experiment": 7}
    assert again.body["expiresAt"] == answer.body["expiresAt"] < session["expiresAt"]
    assert again.body["generation"] == session["generation"]
    for body, code in (({"id": "other-id"}, "bad_request"), ({"visibility": "no"}, "bad_request")):
        expect_problem(await shared_pair.a.ask("PATCH", path, json=body), 400, code)
    await shared_pair.a.ask("POST", f"{path}/stop")
    answer = await shared_pair.b.ask("PATCH", path, json={"ttlSeconds": 60})
    expect_problem(answer, 410, "session_ended")


@pytest.mark.node
async def test_edits_have_revisions_and_are_checked_like_a_create(shared_pair: Pair) -> None:
    source = "setInterval(() => {}, 1000)"
    session = await shared_pair.a.create(
        {"files": [{"path": "x.js", "content": source}], "command": "node x.js"}
    )
    assert session["revision"] == 1
    path = f"{SESSIONS}/{session['id']}/files"

    async def edit(api: Api, **body: Any) -> Answer:
        return await api.ask("PATCH", path, json=body)

    first = await edit(shared_pair.b, write=[{"path": "a", "content": "1"}], baseRevision=1)
    assert (first.status, first.body["revision"]) == (200, 2)
    late = await edit(shared_pair.a, write=[{"path": "a", "content": "2"}], baseRevision=1)
    assert "revision 2" in expect_problem(late, 409, "revision_conflict")
    assert late.body["currentRevision"] == 2
    folder = await edit(shared_pair.a, delete=["a"], write=[{"path": "a/b", "content": ""}])
    assert (folder.status, folder.body["revision"]) == (200, 3), folder.body
    for body, words in (
        ({"write": [{"path": "../x", "content": ""}]}, "'..'"),
        ({"delete": ["/etc/passwd"]}, "absolute"),
        ({"write": [{"path": "a", "content": ""}]}, "also a folder"),
        ({"write": [{"path": f"n{n}", "content": ""} for n in range(19)]}, "GATEWAY_MAX_FILES"),
        ({"write": [{"path": "q", "content": ""}], "delete": ["q"]}, "twice"),
    ):
        assert words in expect_problem(await edit(shared_pair.b, **body), 400, "bad_files")
    assert "nothing" in expect_problem(await edit(shared_pair.b), 400, "bad_request")

    await shared_pair.b.ask("POST", f"{SESSIONS}/{session['id']}/stop")
    ended = await edit(shared_pair.a, write=[{"path": "a", "content": "2"}])
    assert "stopped" in expect_problem(ended, 410, "session_ended")


async def test_a_target_session_has_no_files(shared_pair: Pair, shared_echo: str) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    answer = await shared_pair.a.ask(
        "PATCH", f"{SESSIONS}/{session['id']}/files", json={"delete": ["a"]}
    )
    assert "target" in expect_problem(answer, 400, "bad_request")


# -- end -------------------------------------------------------------------------------------------


async def test_a_stop_can_be_repeated_on_any_replica(shared_pair: Pair, shared_echo: str) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    path = f"{SESSIONS}/{session['id']}/stop"
    first = await shared_pair.b.ask("POST", path)
    assert first.status == 200
    assert (first.body["state"], first.body["alreadyStopped"]) == ("stopped", False)
    assert first.body["reason"]
    for api in (shared_pair.a, shared_pair.b):
        again = await api.ask("POST", path)
        assert again.status == 200
        assert again.body == {**first.body, "alreadyStopped": True}
        gone = await api.ask("GET", f"/preview/{session['id']}/")
        assert gone.status == 410
        shown = await api.ask("GET", f"{SESSIONS}/{session['id']}?wait=ready")
        assert (shown.status, shown.body["state"]) == (200, "stopped")
        assert shown.body["endedAt"] == first.body["stoppedAt"]


@pytest.mark.node
async def test_a_session_that_is_still_starting_can_be_stopped_elsewhere(
    shared_pair: Pair,
) -> None:
    session = await shared_pair.a.create({"files": APP})
    stopped = await shared_pair.b.ask("POST", f"{SESSIONS}/{session['id']}/stop")
    assert (stopped.status, stopped.body["state"]) == (200, "stopped")
    assert await asyncio.to_thread(dev_servers, session["id"]) == []


async def test_a_delete_can_be_repeated_and_forgets_all_but_the_end(shared_pair: Pair) -> None:
    files = [{"path": "x.js", "content": "setInterval(() => {}, 1000)"}]
    session = await shared_pair.a.create({"files": files, "command": "node x.js"})
    path = f"{SESSIONS}/{session['id']}"
    assert f"preview:{{{session['id']}}}:files".encode() in await stored(shared_pair, session["id"])
    for api in (shared_pair.b, shared_pair.a):
        answer = await api.ask("DELETE", path)
        assert (answer.status, answer.body) == (204, "")
    assert len(await stored(shared_pair, session["id"])) == 2  # tombstone, index
    reads: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("GET", "?wait=ended", None),
        ("GET", "/files", None),
        ("GET", "/logs", None),
        ("GET", "/events", None),
        ("PATCH", "", {"ttlSeconds": 60}),
        ("POST", "/ticket", None),
        ("POST", "/events", {"type": "late"}),
    ]
    for method, call, body in reads:
        gone = await shared_pair.b.ask(method, path + call, json=body)
        assert "deleted by request" in expect_problem(gone, 410, "session_ended"), call
        assert (gone.body["state"], gone.body["reason"]) == ("stopped", "deleted by request")
    stopped = await shared_pair.b.ask("POST", f"{path}/stop")
    assert (stopped.status, stopped.body["alreadyStopped"]) == (200, True)
    listed = await shared_pair.b.ask("GET", f"{SESSIONS}?state=stopped&limit=1000")
    assert session["id"] not in [found["id"] for found in listed.body["sessions"]]
    anew = await shared_pair.b.ask(
        "POST", SESSIONS, json={**session_of(files), "id": session["id"]}
    )
    assert anew.status == 201
    assert (await shared_pair.a.ask("GET", path)).status == 200


def session_of(files: list[dict[str, str]]) -> dict[str, Any]:
    """A create call whose dev server serves nothing."""
    return {"files": files, "command": "node x.js"}


async def test_the_id_of_a_stopped_session_can_be_used_anew(
    shared_pair: Pair, shared_echo: str
) -> None:
    body = {"id": fresh_id(), "target": "127.0.0.1:9"}
    first = await shared_pair.a.create(body)
    await shared_pair.a.ask("POST", f"{SESSIONS}/{body['id']}/stop")
    second = await shared_pair.b.ask("POST", SESSIONS, json={**body, "target": shared_echo})
    assert second.status == 201
    assert second.body["generation"] > first["generation"]
    assert (second.body["state"], second.body["endedAt"], second.body["reason"]) == (
        "ready",
        None,
        "",
    )
    for api in (shared_pair.a, shared_pair.b):
        assert (await api.ask("GET", f"/preview/{body['id']}/x")).status == 200


@pytest.mark.node
async def test_logs_have_a_tail(shared_pair: Pair) -> None:
    source = "for (let n = 0; n < 600; n++) console.log('line ' + n)"
    session = await shared_pair.a.create(
        {"files": [{"path": "x.js", "content": source}], "command": "node x.js"}
    )
    await shared_pair.a.ask("GET", f"{SESSIONS}/{session['id']}?wait=ready&timeout=30")
    path = f"{SESSIONS}/{session['id']}/logs"
    for query, first in (("", 100), ("?tail=2", 598), ("?tail=1000", 0)):
        answer = await shared_pair.b.ask("GET", path + query)
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.body.splitlines() == [f"line {n}" for n in range(first, 600)]
    expect_problem(await shared_pair.b.ask("GET", f"{path}?tail=0"), 400, "bad_request")


async def test_replicas_are_listed(shared_pair: Pair) -> None:
    answer = await shared_pair.a.ask("GET", "/api/v1/replicas")
    assert {replica["url"] for replica in answer.body["replicas"]} == {
        shared_pair.a.url,
        shared_pair.b.url,
    }
