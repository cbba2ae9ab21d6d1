"""Tokens of different scopes, tickets and limits, on two replicas."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.calls import SESSIONS, expect_problem, fresh_id
from tests.e2e.conftest import Pair
from tests.e2e.fleet import until
from tests.e2e.replicas import Answer, Api

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ADMIN, BUILDER, OTHER = (secrets.token_hex(24) for _ in range(3))
LIMITED: Final = [secrets.token_hex(24) for _ in range(4)]
FOLDER: Final = tempfile.TemporaryDirectory(prefix="pgw-tokens-")
FILE: Final = Path(FOLDER.name) / "tokens"
FILE.write_text(
    "".join(f"create:limited-{number}:{token}\n" for number, token in enumerate(LIMITED))
)
ENVIRON: Final = {
    "GATEWAY_API_TOKENS": f"{ADMIN},create:builder:{BUILDER},create:other:{OTHER}",
    "GATEWAY_API_TOKENS_FILE": str(FILE),
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_REGISTRATION_WAIT_SECONDS": "0.2",
    "GATEWAY_STATUS_WAIT_SECONDS": "0.3",
    "GATEWAY_EVENT_WAIT_SECONDS": "0.3",
    "GATEWAY_STREAM_WAIT_SECONDS": "0.3",
    "GATEWAY_MAX_SESSIONS_PER_TOKEN": "30",
    "GATEWAY_MAX_CREATES_PER_MINUTE": "60",
    "GATEWAY_MAX_FILES_PER_TOKEN": "5",
    "GATEWAY_MAX_BYTES_PER_TOKEN": "1000",
    "GATEWAY_LOG_LEVEL": "debug",
}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def create(api: Api, token: str, target: str, **more: Any) -> str:
    """A session of whoever has this token."""
    body = {"id": fresh_id(), "target": target, **more}
    answer = await api.ask("POST", SESSIONS, json=body, headers=bearer(token))
    assert answer.status == 201, answer.body
    return str(body["id"])


async def post(api: Api, path: str, token: str, **body: Any) -> Answer:
    return await api.ask("POST", path, json=body, headers=bearer(token))


# -- scopes ----------------------------------------------------------------------------------------

#: Calls to one session, and their bodies.
CALLS: Final = [
    ("GET", "", None),
    ("PATCH", "", {"visibility": "private"}),
    ("GET", "/logs", None),
    ("GET", "/events", None),
    ("POST", "/events", {"type": "click"}),
    ("POST", "/stop", None),
    ("POST", "/links", {}),
    ("DELETE", "/links", None),
    ("POST", "/tokens", {}),
    ("POST", "/ticket", None),
    ("GET", "/files", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
async def test_fault_35_a_session_of_somebody_else_is_answered_as_one_that_does_not_exist(
    shared_pair: Pair, shared_echo: str, method: str, path: str, body: Any
) -> None:
    theirs, unknown = await create(shared_pair.a, OTHER, shared_echo), fresh_id()
    told, waited = [], []
    for session_id in (theirs, unknown):
        began = time.monotonic()
        answer = await shared_pair.b.ask(
            method, f"{SESSIONS}/{session_id}{path}", json=body, headers=bearer(BUILDER)
        )
        waited.append(time.monotonic() - began)
        expect_problem(answer, 404, "session_not_found")
        answer.body.pop("waitedSeconds")
        text = repr(answer.body).replace(session_id, "ID")
        told.append((text, sorted(answer.headers)))
    assert told[0] == told[1]
    assert min(waited) > 0.29, "both wait for a registration"
    seen = await shared_pair.a.ask("GET", f"{SESSIONS}/{theirs}", headers=bearer(OTHER))
    assert (seen.body["state"], seen.body["visibility"]) == ("ready", "public")


async def test_deleting_what_is_somebody_elses_is_a_success_that_does_nothing(
    shared_pair: Pair, shared_echo: str
) -> None:
    theirs = await create(shared_pair.a, OTHER, shared_echo)
    for session_id in (theirs, fresh_id()):
        path = f"{SESSIONS}/{session_id}"
        answer = await shared_pair.b.ask("DELETE", path, headers=bearer(BUILDER))
        assert answer.status == 204
    seen = await shared_pair.a.ask("GET", f"{SESSIONS}/{theirs}", headers=bearer(OTHER))
    assert seen.body["state"] == "ready"


async def test_who_may_create_manages_what_is_its_own_and_nothing_else(
    shared_pair: Pair, shared_echo: str
) -> None:
    mine = await create(shared_pair.a, BUILDER, shared_echo, visibility="private")
    theirs = await create(shared_pair.a, OTHER, shared_echo, visibility="private")
    listed = await shared_pair.b.ask("GET", f"{SESSIONS}?limit=1000", headers=bearer(BUILDER))
    ids = {session["id"] for session in listed.body["sessions"]}
    assert mine in ids
    assert theirs not in ids
    for session_id, status in ((mine, 200), (theirs, 404)):
        path = f"/preview/{session_id}/"
        assert (await shared_pair.b.ask("GET", path, headers=bearer(BUILDER))).status == status
        assert (await shared_pair.b.ask("GET", path, headers=bearer(ADMIN))).status == 200
    for path in ("/api/v1/replicas", "/api/v1/interview/some-id-1/status"):
        answer = await shared_pair.a.ask("GET", path, headers=bearer(BUILDER))
        expect_problem(answer, 403, "forbidden")
    stopped = await post(shared_pair.b, f"{SESSIONS}/{mine}/stop", BUILDER)
    assert (stopped.status, stopped.body["state"]) == (200, "stopped")


async def test_an_id_of_somebody_else_cannot_be_created_again(
    shared_pair: Pair, shared_echo: str
) -> None:
    theirs = await create(shared_pair.a, OTHER, shared_echo)
    body = {"id": theirs, "target": shared_echo}
    same = await post(shared_pair.b, SESSIONS, BUILDER, **body)
    expect_problem(same, 409, "session_conflict")
    await post(shared_pair.a, f"{SESSIONS}/{theirs}/stop", OTHER)
    ended = await post(shared_pair.b, SESSIONS, BUILDER, **body)
    expect_problem(ended, 409, "session_conflict")
    again = await post(shared_pair.b, SESSIONS, OTHER, **body)
    assert again.status == 201


async def test_a_session_token_reads_one_session_until_it_is_revoked(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id, other = [await create(shared_pair.a, ADMIN, shared_echo) for _ in range(2)]
    path = f"{SESSIONS}/{session_id}"
    issued = await post(shared_pair.a, f"{path}/tokens", ADMIN, ttlSeconds=60)
    assert issued.status == 201
    headers = bearer(issued.body["token"])
    for read in (path, f"{path}/logs"):
        assert (await shared_pair.b.ask("GET", read, headers=headers)).status == 200
    for method, call in (
        ("PATCH", path),
        ("DELETE", path),
        ("POST", f"{path}/stop"),
        ("POST", f"{path}/events"),
        ("POST", f"{path}/links"),
        ("GET", f"{path}/files"),
        ("GET", SESSIONS),
    ):
        answer = await shared_pair.b.ask(method, call, json={}, headers=headers)
        expect_problem(answer, 403, "forbidden")
    foreign = await shared_pair.b.ask("GET", f"{SESSIONS}/{other}", headers=headers)
    expect_problem(foreign, 404, "session_not_found")
    changed = bearer(issued.body["token"].replace(session_id, other))
    answer = await shared_pair.b.ask("GET", f"{SESSIONS}/{other}", headers=changed)
    expect_problem(answer, 401, "unauthorized")
    await shared_pair.a.ask("DELETE", f"{path}/links", headers=bearer(ADMIN))
    expect_problem(await shared_pair.b.ask("GET", path, headers=headers), 401, "unauthorized")


async def test_fault_35_an_expired_session_token_is_refused(
    shared_pair: Pair, shared_echo: str
) -> None:
    path = f"{SESSIONS}/{await create(shared_pair.a, ADMIN, shared_echo)}"
    issued = await post(shared_pair.a, f"{path}/tokens", ADMIN, ttlSeconds=1)

    async def is_refused() -> bool:
        answer = await shared_pair.b.ask("GET", path, headers=bearer(issued.body["token"]))
        return answer.status == 401

    await until(is_refused, seconds=5)


async def test_a_token_is_replaced_without_a_restart(shared_pair: Pair) -> None:
    old, new = secrets.token_hex(24), secrets.token_hex(24)
    before = FILE.read_text()

    async def opens(token: str) -> bool:
        asked = [
            await api.ask("GET", SESSIONS, headers=bearer(token))
            for api in (shared_pair.a, shared_pair.b)
        ]
        return all(answer.status == 200 for answer in asked)

    async def only_new() -> bool:
        return await opens(new) and not await opens(old)

    FILE.write_text(f"{before}admin:rotated:{old}\n")
    await until(lambda: opens(old), seconds=5)
    FILE.write_text(f"{before}admin:rotated:{old}\nadmin:rotated:{new}\n")
    await until(lambda: opens(new), seconds=5)
    assert await opens(old)
    FILE.write_text(f"{before}admin:rotated:{new}\n")
    await until(only_new, seconds=5)


# -- tickets ---------------------------------------------------------------------------------------


async def read_stream(api: Api, url: str) -> int:
    """The status of an event stream, which is left at once."""
    async with aiohttp.ClientSession() as http, http.get(f"{api.url}{url}") as stream:
        return stream.status


async def test_a_ticket_opens_one_stream_once_at_any_replica(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id, other = [await create(shared_pair.a, BUILDER, shared_echo) for _ in range(2)]
    path = f"{SESSIONS}/{session_id}"
    issued = await post(shared_pair.a, f"{path}/ticket", BUILDER)
    assert issued.status == 201
    ticket = issued.body["ticket"]
    assert issued.body["url"] == f"{shared_pair.a.url}{path}/events?token={ticket}"
    tries = await asyncio.gather(
        *(
            read_stream(api, f"{path}/events?token={ticket}")
            for api in (shared_pair.a, shared_pair.b) * 5
        )
    )
    assert sorted(tries) == [200] + [401] * 9
    wasted = (await post(shared_pair.a, f"{path}/ticket", BUILDER)).body["ticket"]
    foreign = await shared_pair.b.ask("GET", f"{SESSIONS}/{other}/events?token={wasted}")
    expect_problem(foreign, 401, "unauthorized")
    elsewhere = (await post(shared_pair.a, f"{path}/ticket", BUILDER)).body["ticket"]
    for call in (path, f"{path}/logs", SESSIONS):
        answer = await shared_pair.b.ask("GET", f"{call}?token={elsewhere}")
        expect_problem(answer, 401, "unauthorized")


async def test_an_api_token_in_an_address_is_refused_with_the_reason(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id = await create(shared_pair.a, ADMIN, shared_echo)
    answer = await shared_pair.b.ask("GET", f"{SESSIONS}/{session_id}/events?token={ADMIN}")
    assert "never an API token" in expect_problem(answer, 401, "unauthorized")


# -- limits ----------------------------------------------------------------------------------------


async def test_creates_in_a_minute_are_limited_over_all_replicas(
    shared_pair: Pair, shared_echo: str
) -> None:
    body = {"id": fresh_id(), "target": shared_echo}
    both = (shared_pair.a, shared_pair.b)
    answers = [await post(api, SESSIONS, LIMITED[0], **body) for api in both * 30]
    assert [answer.status for answer in answers] == [201, *[200] * 59]
    # One more place comes free each second: so many at once that, however slowly, some get none.
    more = await asyncio.gather(*(post(api, SESSIONS, LIMITED[0], **body) for api in both * 20))
    refused = next(answer for answer in more if answer.status == 429)
    expect_problem(refused, 429, "limit_reached")
    assert refused.body["limit"] == "creates"
    assert 1 <= int(refused.headers["Retry-After"]) <= 2


async def test_sessions_are_limited_and_ended_ones_do_not_count(
    shared_pair: Pair, shared_echo: str
) -> None:
    made = [await create(shared_pair.a, LIMITED[1], shared_echo) for _ in range(30)]
    refused = await post(shared_pair.b, SESSIONS, LIMITED[1], target=shared_echo)
    expect_problem(refused, 429, "limit_reached")
    assert refused.body["limit"] == "sessions"
    assert int(refused.headers["Retry-After"]) > 0
    same = await post(shared_pair.b, SESSIONS, LIMITED[1], id=made[0], target=shared_echo)
    assert same.status == 200
    await post(shared_pair.b, f"{SESSIONS}/{made[0]}/stop", LIMITED[1])

    async def is_free() -> bool:
        answer = await post(shared_pair.b, SESSIONS, LIMITED[1], target=shared_echo)
        return answer.status == 201

    await until(is_free, seconds=5)


@pytest.mark.parametrize(
    ("kind", "token", "content", "count"), [("files", 2, "x", 4), ("bytes", 3, "x" * 600, 1)]
)
async def test_files_and_their_bytes_are_limited_with_edits(
    shared_pair: Pair, kind: str, token: int, content: str, count: int
) -> None:
    command = "sleep 60"
    files = [{"path": f"{number}.txt", "content": content} for number in range(count)]
    body = {"id": fresh_id(), "files": files, "command": command}
    first = await post(shared_pair.a, SESSIONS, LIMITED[token], **body)
    assert first.status == 201, first.body
    more = {**body, "id": fresh_id(), "files": [*files[:1], {"path": "b", "content": content}]}
    refused = await post(shared_pair.b, SESSIONS, LIMITED[token], **more)
    edit = {"write": [{"path": f"more-{number}", "content": content} for number in range(2)]}
    path = f"{SESSIONS}/{body['id']}"
    edited = await shared_pair.b.ask(
        "PATCH", f"{path}/files", json=edit, headers=bearer(LIMITED[token])
    )
    for answer in (refused, edited):
        expect_problem(answer, 429, "limit_reached")
        assert answer.body["limit"] == kind
    await shared_pair.a.ask("DELETE", path, headers=bearer(LIMITED[token]))


# -- the log ---------------------------------------------------------------------------------------


async def test_no_token_and_no_ticket_is_ever_logged(shared_pair: Pair, shared_echo: str) -> None:
    session_id = await create(shared_pair.a, ADMIN, shared_echo)
    path = f"{SESSIONS}/{session_id}"
    secret = [
        (await post(shared_pair.a, f"{path}/ticket", ADMIN)).body["ticket"],
        (await post(shared_pair.a, f"{path}/tokens", ADMIN)).body["token"],
    ]
    for value in secret:
        await shared_pair.b.ask("GET", f"{path}/logs?token={value}")
        await shared_pair.b.ask("GET", path, headers=bearer(value))
    assert await read_stream(shared_pair.b, f"{path}/events?token={secret[0]}") == 200
    lines = "\n".join(shared_pair.a.replica.lines + shared_pair.b.replica.lines)
    for value in (*secret, ADMIN, BUILDER, OTHER, *LIMITED):
        assert value not in lines


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def folder() -> AsyncIterator[None]:
    """The file of tokens lives as long as the tests."""
    yield
    FOLDER.cleanup()
