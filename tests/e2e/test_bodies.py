"""Fault 34: bodies of any size and depth are refused in bounded memory, before they are parsed."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any, Final

import psutil
import pytest

from tests.e2e.calls import SESSIONS, expect_problem
from tests.e2e.conftest import Pair
from tests.e2e.fleet import until
from tests.e2e.replicas import Api

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ENVIRON: Final = {
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_MAX_API_BODY_BYTES": "1000000",
    "GATEWAY_STATUS_WAIT_SECONDS": "0.1",
    "GATEWAY_EVENT_WAIT_SECONDS": "0.1",
}
MIB: Final = 2**20
ID: Final = "some-id-1"
#: Every call that takes a body: method, path, and a body that is fine but for what a test adds.
CALLS: Final[list[tuple[str, str, dict[str, Any]]]] = [
    ("POST", SESSIONS, {"files": []}),
    ("PATCH", f"{SESSIONS}/{ID}", {"metadata": {}}),
    ("PATCH", f"{SESSIONS}/{ID}/files", {"delete": ["a"]}),
    ("PUT", f"{SESSIONS}/{ID}/files", {"files": [{"path": "a", "content": ""}]}),
    ("POST", f"{SESSIONS}/{ID}/events", {"type": "a"}),
    ("POST", "/kontext/preview", {"files": []}),
    ("POST", "/api/v1/session/event", {"session_id": ID, "event": {"type": "a"}}),
    ("POST", f"/api/v1/session/{ID}/experiment", {"experiment_id": "a"}),
    ("POST", "/session/create", {}),
    ("POST", f"/session/{ID}/interactions", {"prompt": "", "response": ""}),
    ("POST", "/sessions/start", {}),
    ("POST", "/sessions/stop", {"session_id": ID}),
    ("POST", "/api/v1/interview/start", {}),
]
WRONG: Final[list[Any]] = [7.5, True, {"a": 1}, [[]]]
NAMES: Final = [f"{method} {path}" for method, path, _ in CALLS]


@pytest.mark.parametrize(("method", "path", "body"), CALLS, ids=NAMES)
async def test_fault_34_a_hundred_megabytes_are_refused_in_bounded_memory(
    shared_pair: Pair, method: str, path: str, body: dict[str, Any]
) -> None:
    process = psutil.Process(shared_pair.a.replica.pid)
    before = process.memory_info().rss
    size = 100 * MIB
    reader, writer = await connect(shared_pair.a)
    writer.write(head(method, path, size))
    start = json.dumps(body)[:-1].encode() + b', "more": "'
    writer.write(start)
    writer.write(b"x" * 2 * MIB)  # enough to be too much
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    writer.close()
    assert process.memory_info().rss - before < 16 * MIB


def head(method: str, path: str, size: int) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    ).encode()


async def connect(api: Api) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = api.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize(("method", "path", "body"), CALLS, ids=NAMES)
async def test_fault_34_deep_json_is_refused(
    shared_pair: Pair, method: str, path: str, body: dict[str, Any]
) -> None:
    headers = {"Content-Type": "application/json"}
    deep = b"[" * 50_000 + b"]" * 50_000
    inside = json.dumps(body)[:-1].encode() + b', "deep": ' + deep + b"}"
    for data in (deep, inside.replace(b"{, ", b"{")):
        answer = await shared_pair.a.ask(method, path, data=data, headers=headers)
        assert len(expect_problem(answer, 400, "bad_request")) < 1000


@pytest.mark.parametrize(("method", "path", "body"), CALLS, ids=NAMES)
@pytest.mark.parametrize("text", ["null", "7", '"x"', "[]", "", "{", "{}x", "NaN", "\ud800"])
async def test_fault_34_what_is_no_object_is_refused(
    shared_pair: Pair, method: str, path: str, body: dict[str, Any], text: str
) -> None:
    answer = await shared_pair.a.ask(
        method,
        path,
        data=text.encode("utf-8", "surrogatepass"),
        headers={"Content-Type": "application/json"},
    )
    expect_problem(answer, 400, "bad_request")


@pytest.mark.parametrize(("method", "path", "body"), CALLS, ids=NAMES)
async def test_fault_34_every_field_of_a_wrong_type_is_refused(
    shared_pair: Pair, method: str, path: str, body: dict[str, Any]
) -> None:
    for name in body:
        for wrong in WRONG:
            answer = await shared_pair.a.ask(method, path, json={**body, name: wrong})
            if name == "metadata" and isinstance(wrong, dict):
                continue
            expect_problem(answer, 400, answer.body["code"])


async def test_numbers_beyond_reason_are_refused_or_kept_as_they_are(
    shared_pair: Pair, shared_echo: str
) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    path = f"{SESSIONS}/{session['id']}"
    headers = {"Content-Type": "application/json"}
    for number, status in (("9" * 300, 200), ("9" * 5000, 400), ("NaN", 400), ("1e999", 400)):
        data = '{"metadata": {"n": ' + number + "}}"
        answer = await shared_pair.a.ask("PATCH", path, data=data, headers=headers)
        assert answer.status == status, (number[:10], answer.body)
    shown = await shared_pair.b.ask("GET", path)
    assert shown.body["metadata"] == {"n": int("9" * 300)}


async def test_many_large_bodies_at_once_are_refused_not_piled_up(
    shared_pair: Pair, shared_echo: str
) -> None:
    """Four bodies of the largest size have room; who sends a fifth is told to come back."""
    async with AsyncExitStack() as stack:
        readers = []
        for _ in range(5):
            reader, writer = await connect(shared_pair.a)
            stack.callback(writer.close)
            readers.append(reader)
            writer.write(head("POST", SESSIONS, 990_000) + b"x" * 950_000)
        answers = [asyncio.create_task(reader.readuntil(b"\r\n\r\n")) for reader in readers]
        refused, waiting = await asyncio.wait(
            answers, timeout=30, return_when=asyncio.FIRST_COMPLETED
        )
        refusal = refused.pop().result()
        assert refusal.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 2\r\n" in refusal
        # Small calls go on, and the others' bodies are still taken.
        assert (await shared_pair.a.ask("POST", "/session/create", json={})).status == 200
        assert not refused
        assert not any(answer.done() for answer in waiting)
        for answer in waiting:
            answer.cancel()

    async def has_room() -> bool:
        body = {"id": "NO", "files": [{"path": "a", "content": "x" * 900_000}]}
        answers = [shared_pair.a.ask("POST", SESSIONS, json=body) for _ in range(4)]
        return {answer.status for answer in await asyncio.gather(*answers)} == {400}

    await until(has_room, seconds=10)  # the replica notices that the others have gone
