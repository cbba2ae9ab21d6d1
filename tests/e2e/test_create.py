"""The create call from outside: two replicas, one registry, a server of the test as target."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from typing import Any, Final

import aiohttp
import psutil
import pytest

from tests.e2e.calls import (
    APP,
    SESSIONS,
    dev_servers,
    expect_problem,
    fresh_id,
    stored,
    without_urls,
)
from tests.e2e.conftest import Pair
from tests.e2e.replicas import Api

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ENVIRON: Final = {
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_MAX_FILES": "20",
    "GATEWAY_MAX_FILE_BYTES": "100000",
    "GATEWAY_MAX_SESSION_BYTES": "300000",
    "GATEWAY_MAX_API_BODY_BYTES": "1000000",
}


async def test_a_created_session_shows_every_documented_field(
    shared_pair: Pair, shared_echo: str
) -> None:
    session_id = fresh_id()
    body = {"id": session_id, "target": shared_echo, "metadata": {"a": [1]}, "ttlSeconds": 60}
    answer = await shared_pair.a.ask("POST", SESSIONS, json=body)
    assert answer.status == 201
    assert answer.headers["Location"] == f"{SESSIONS}/{session_id}"
    base = f"{shared_pair.a.url}/preview/{session_id}/"
    shown = answer.body
    assert shown.keys() == {
        *("id", "state", "generation", "revision", "previewUrl", "wsUrl", "eventsUrl", "owner"),
        *("createdAt", "expiresAt", "visibility", "framework", "target", "idleSeconds"),
        *("metadata", "reason", "endedAt"),
    }
    assert shown["id"] == session_id
    assert shown["state"] == "ready"
    assert shown["previewUrl"] == base
    assert shown["wsUrl"] == f"ws{base.removeprefix('http')}hmr"
    assert shown["eventsUrl"] == f"{shared_pair.a.url}{SESSIONS}/{session_id}/events"
    assert shown["metadata"] == {"a": [1]}
    assert shown["target"] == shared_echo
    assert (shown["visibility"], shown["endedAt"]) == ("public", None)
    assert shown["createdAt"] < shown["expiresAt"]
    location = await shared_pair.b.ask("GET", answer.headers["Location"])
    assert without_urls(location.body) == without_urls(shown)


async def test_a_generated_id_has_128_random_bits(shared_pair: Pair, shared_echo: str) -> None:
    first, second = [await shared_pair.a.create({"target": shared_echo}) for _ in range(2)]
    assert len(bytes.fromhex(first["id"])) == 16
    assert first["id"] != second["id"]


@pytest.mark.parametrize("replay", ["a", "b"])
async def test_a_replayed_create_returns_the_same_session(
    shared_pair: Pair, shared_echo: str, replay: str
) -> None:
    body = {"id": fresh_id(), "target": shared_echo}
    again: Api = getattr(shared_pair, replay)
    first = await shared_pair.a.ask("POST", SESSIONS, json=body)
    second = await again.ask("POST", SESSIONS, json=body)
    assert (first.status, second.status) == (201, 200)
    assert second.body["generation"] == first.body["generation"]
    other = await again.ask("POST", SESSIONS, json={**body, "target": "127.0.0.1:9"})
    assert "use another id" in expect_problem(other, 409, "session_conflict")


@pytest.mark.node
async def test_ten_creates_at_once_make_one_session_and_one_dev_server(shared_pair: Pair) -> None:
    session_id = fresh_id()
    body = {"id": session_id, "files": APP}
    url = f"{SESSIONS}?wait=ready&timeout=90"
    answers = await asyncio.gather(
        *(
            api.ask("POST", url, json=body, seconds=100)
            for _ in range(5)
            for api in (shared_pair.a, shared_pair.b)
        )
    )
    assert Counter(answer.status for answer in answers) == {201: 1, 200: 9}
    sessions = [without_urls(answer.body) for answer in answers]
    assert sessions[0]["state"] == "ready"
    assert all(session == sessions[0] for session in sessions)
    running = await asyncio.to_thread(dev_servers, session_id)
    assert len(running) == 1

    other = await shared_pair.b.ask("POST", SESSIONS, json={**body, "files": APP[1:]})
    expect_problem(other, 409, "session_conflict")
    stopped = await shared_pair.b.ask("POST", f"{SESSIONS}/{body['id']}/stop")
    assert stopped.body["alreadyStopped"] is False
    assert await asyncio.to_thread(dev_servers, session_id) == []


@pytest.mark.node
async def test_a_create_that_waits_tells_why_a_project_failed(shared_pair: Pair) -> None:
    files = [{"path": "x.js", "content": "console.log('on no account'); process.exit(3)"}]
    answer = await shared_pair.a.ask(
        "POST",
        f"{SESSIONS}?wait=ready&timeout=60",
        json={"files": files, "command": "node x.js"},
    )
    assert answer.status == 201
    assert answer.body["state"] == "failed"
    assert "3" in answer.body["reason"]
    logs = await shared_pair.b.ask("GET", f"{SESSIONS}/{answer.body['id']}/logs?tail=1")
    assert logs.body == "on no account\n"
    stopped = await shared_pair.b.ask("POST", f"{SESSIONS}/{answer.body['id']}/stop")
    assert (stopped.status, stopped.body["state"]) == (200, "stopped")
    assert (stopped.body["endedAs"], stopped.body["reason"]) == ("failed", answer.body["reason"])
    assert stopped.body["alreadyStopped"] is True
    gone = await shared_pair.b.ask("GET", f"/preview/{answer.body['id']}/")
    assert gone.status == 410
    deleted = await shared_pair.b.ask("DELETE", f"{SESSIONS}/{answer.body['id']}")
    assert deleted.status == 204


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


PACKAGE: Final = {"path": "package.json", "content": '{"devDependencies": {"vite": "5"}}'}


def with_file(**file: Any) -> dict[str, Any]:
    return {"files": [PACKAGE, {"path": "a.js", "content": "", **file}]}


#: What is posted, the status and the code of the answer, and words of its sentence.
REFUSED: Final[dict[str, tuple[Any, int, str, str]]] = {
    "short id": ({"id": "short", "files": [PACKAGE]}, 400, "bad_session_id", "8 to 40"),
    "capital id": ({"id": "Has-Capitals", "files": [PACKAGE]}, 400, "bad_session_id", "a-z"),
    "long id": ({"id": "x" * 41, "files": [PACKAGE]}, 400, "bad_session_id", "8 to 40"),
    "path id": ({"id": "../../etc/x", "files": [PACKAGE]}, 400, "bad_session_id", "a-z"),
    "line end id": ({"id": "some-id-1\n", "files": [PACKAGE]}, 400, "bad_session_id", "a-z"),
    "parent path": (with_file(path="../x"), 400, "bad_files", "'..'"),
    "absolute path": (with_file(path="/etc/x"), 400, "bad_files", "absolute"),
    "double slash": (with_file(path="a//b"), 400, "bad_files", "empty"),
    "node_modules": (with_file(path="node_modules/x"), 400, "bad_files", "leave it out"),
    ".git": (with_file(path=".git/config"), 400, "bad_files", "leave it out"),
    "no path": (with_file(path=""), 400, "bad_files", "empty"),
    "NUL path": (with_file(path="a\0b"), 400, "bad_files", "control character"),
    "file below a file": (
        {"files": [PACKAGE, *({"path": path, "content": ""} for path in ("a", "a/b"))]},
        400,
        "bad_files",
        "also a folder",
    ),
    "posted twice": ({"files": [PACKAGE, PACKAGE]}, 400, "bad_files", "twice"),
    "package.json twice": (
        {"files": [PACKAGE], "packageJson": {}},
        400,
        "bad_files",
        "send one",
    ),
    "too many files": (
        {"files": [{"path": f"f{n}", "content": ""} for n in range(21)]},
        400,
        "bad_files",
        "GATEWAY_MAX_FILES",
    ),
    "too large a file": (with_file(content="x" * 100_001), 400, "bad_files", "MAX_FILE_BYTES"),
    "too much together": (
        {"files": [{"path": f"f{n}", "content": "x" * 90_000} for n in range(4)]},
        400,
        "bad_files",
        "MAX_SESSION_BYTES",
    ),
    "no base64": (with_file(content="*", encoding="base64"), 400, "bad_files", "no base64"),
    "other encoding": (with_file(encoding="latin-1"), 400, "bad_request", "encoding"),
    "unknown field": ({"files": [PACKAGE], "flies": []}, 400, "bad_request", "flies"),
    "unknown field of a file": (with_file(mode=7), 400, "bad_request", "files.1.mode"),
    "wrong type": ({"files": "all"}, 400, "bad_request", "files"),
    "wrong content type": (with_file(content=7), 400, "bad_request", "files.1.content"),
    "number as id": ({"id": 12345678, "files": [PACKAGE]}, 400, "bad_request", "id"),
    "ttl of nothing": ({"files": [PACKAGE], "ttlSeconds": 0}, 400, "bad_request", "ttlSeconds"),
    "no object": ([1], 400, "bad_request", "body"),
    "no files": ({}, 400, "bad_request", "`files`"),
    "no package.json": ({"files": [PACKAGE | {"path": "a"}]}, 400, "unsupported_project", "vite"),
    "unknown framework": (
        {"files": [PACKAGE], "framework": "cobol"},
        400,
        "unsupported_project",
        "supported are",
    ),
    "no vite": ({"packageJson": {"name": "x"}}, 400, "unsupported_project", "`command`"),
    "broken package.json": (
        {"files": [PACKAGE | {"content": '{"name": }'}]},
        400,
        "unsupported_project",
        "line 1, column 10",
    ),
    "bad variable": (
        {"files": [PACKAGE], "env": {"A=B": "c"}},
        400,
        "unsupported_project",
        "environment variable",
    ),
    "open quote": ({"command": "node 'x"}, 400, "bad_request", "command"),
    "private without tokens": (
        {"files": [PACKAGE], "visibility": "private"},
        400,
        "bad_request",
        "GATEWAY_API_TOKENS",
    ),
    "large metadata": (
        {"files": [PACKAGE], "metadata": {"x": "y" * 20_000}},
        400,
        "bad_request",
        "metadata",
    ),
    "target and files": ({"files": [PACKAGE], "target": "x:1"}, 400, "bad_request", "leave"),
}


@pytest.mark.parametrize(("body", "status", "code", "words"), REFUSED.values(), ids=REFUSED)
async def test_a_bad_create_is_refused_and_leaves_nothing_behind(
    shared_pair: Pair, body: Any, status: int, code: str, words: str
) -> None:
    session_id = fresh_id()
    if isinstance(body, dict):
        body = {"id": session_id, **body}
    answer = await shared_pair.a.ask("POST", SESSIONS, json=body)
    assert words in expect_problem(answer, status, code)
    assert await stored(shared_pair, session_id) == []


async def test_a_trace_in_the_registry_would_be_found(shared_pair: Pair, shared_echo: str) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    assert len(await stored(shared_pair, session["id"])) == 3  # record, events, index


@pytest.mark.parametrize(
    ("data", "content_type", "status", "code"),
    [
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"id=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"", "application/json", 400, "bad_request"),
        (b'{"id": ', "application/json", 400, "bad_request"),
        (b'{"id": "\xff"}', "application/json", 400, "bad_request"),
        (deep(10_000).encode(), "application/json", 400, "bad_request"),
        (b'{"packageJson": {"x": %s}}' % deep(10_000).encode(), "application/json", 400, None),
        (b'{"metadata": {"x": %s}}' % deep(10_000).encode(), "application/json", 400, None),
        (
            json.dumps({"files": [PACKAGE | {"content": '{"x": ' + deep(10_000) + "}"}]}).encode(),
            "application/json",
            400,
            "unsupported_project",
        ),
    ],
)
async def test_what_is_no_proper_json_is_refused(
    shared_pair: Pair, data: bytes, content_type: str, status: int, code: str | None
) -> None:
    answer = await shared_pair.a.ask(
        "POST", SESSIONS, data=data, headers={"Content-Type": content_type}
    )
    assert len(expect_problem(answer, status, code or "bad_request")) < 1000


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_an_over_large_body_is_refused_in_bounded_memory(
    shared_pair: Pair, declared: bool
) -> None:
    process = psutil.Process(shared_pair.a.replica.pid)
    before = process.memory_info().rss
    size, part = 256 << 20, b"x" * 65536
    framing = f"Content-Length: {size}" if declared else "Transfer-Encoding: chunked"
    reader, writer = await connect(shared_pair.a)
    writer.write(
        f"POST {SESSIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{framing}\r\n\r\n".encode()
    )
    # Enough to be too much, and no more than is read after an answer: then it is not lost.
    for _ in range(3 * 2**20 // len(part)):
        writer.write(part if declared else b"10000\r\n%s\r\n" % part)
        await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in head
    writer.close()
    assert process.memory_info().rss - before < 32 << 20
    assert (await shared_pair.a.ask("GET", "/livez")).status == 200


async def connect(api: Api) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = api.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def test_a_body_just_over_the_limit_is_refused_with_the_limit_to_raise(
    shared_pair: Pair,
) -> None:
    answer = await shared_pair.a.ask("POST", SESSIONS, json={"id": "x" * 1_000_000})
    assert "GATEWAY_MAX_API_BODY_BYTES" in expect_problem(answer, 413, "payload_too_large")


async def test_an_upload_that_is_broken_off_is_no_error_of_the_gateway(shared_pair: Pair) -> None:
    reader, writer = await connect(shared_pair.a)
    writer.write(
        b"POST /api/v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        b'Content-Type: application/json\r\n\r\n{"files"'
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert await reader.read() == b""
    assert (await shared_pair.a.ask("GET", "/livez")).status == 200
    # shared_pair looks into the log when all is over.


async def test_an_unknown_address_or_method_is_a_problem(shared_pair: Pair) -> None:
    expect_problem(await shared_pair.a.ask("GET", "/api/v1/nonsense"), 404, "not_found")
    answer = await shared_pair.a.ask("PUT", SESSIONS)
    assert "GET, HEAD, OPTIONS or POST" in expect_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS, POST"
    asked = await shared_pair.a.ask("OPTIONS", SESSIONS)
    assert (asked.status, asked.headers["Allow"]) == (204, answer.headers["Allow"])


async def test_head_answers_as_get_without_content(shared_pair: Pair, shared_echo: str) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    path = f"{SESSIONS}/{session['id']}"
    async with aiohttp.ClientSession(shared_pair.b.url) as http:
        for address in (path, f"{path}/logs", SESSIONS, "/livez", "/api/v1/openapi.json"):
            got = await shared_pair.b.ask("GET", address)
            async with http.head(address) as head:
                assert (head.status, await head.read()) == (200, b"")
                assert head.headers["Content-Type"] == got.headers["Content-Type"]
        # At once, though the stream goes on.
        async with asyncio.timeout(5), http.head(f"{path}/events") as stream:
            assert (stream.status, stream.content_type) == (200, "text/event-stream")
        async with http.head(f"{SESSIONS}/{fresh_id()}") as missing:
            assert (missing.status, await missing.read()) == (404, b"")


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"Content-Type": "text/plain"}, ("Accept", "application/json, application/gzip")),
        (
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            ("Accept-Encoding", "identity"),
        ),
    ],
)
async def test_a_body_of_another_type_is_refused_with_what_is_taken(
    shared_pair: Pair, fields: dict[str, str], missing: tuple[str, str]
) -> None:
    answer = await shared_pair.a.ask("POST", SESSIONS, data=b"{}", headers=fields)
    expect_problem(answer, 415, "unsupported_media_type")
    assert answer.headers[missing[0]] == missing[1]


@pytest.mark.node
@pytest.mark.parametrize("as_text", [False, True], ids=["object", "file"])
async def test_package_json_and_base64_reach_the_dev_server(
    shared_pair: Pair, as_text: bool
) -> None:
    source = (
        "const fs = require('fs');"
        "const all = [JSON.parse(fs.readFileSync('package.json')).name, process.env.WORD,"
        " fs.readFileSync('b.bin').toString('hex')].join(' ');"
        "require('http').createServer((_, answer) => answer.end(all))"
        ".listen(+process.argv[3], process.argv[2]);"
    )
    files = [
        {"path": "s.cjs", "content": source},
        {"path": "b.bin", "content": base64.b64encode(b"\x00\xff").decode(), "encoding": "base64"},
    ]
    package = {"name": "named"}
    body: dict[str, Any] = {
        "files": files,
        "command": ["node", "s.cjs", "{host}", "{port}"],
        "env": {"WORD": "spoken"},
    }
    if as_text:
        files.append({"path": "package.json", "content": json.dumps(package)})
    else:
        body["packageJson"] = package
    session = await shared_pair.a.create(body, ready=True)
    preview = await shared_pair.b.ask("GET", f"/preview/{session['id']}/")
    assert preview.body == "named spoken 00ff"
    await shared_pair.b.ask("DELETE", f"{SESSIONS}/{session['id']}")
