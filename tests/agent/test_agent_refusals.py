"""What the agent refuses, in raw JSON and raw bytes: it must neither obey nor break."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from typing import Any, Final

import psutil

from tests.agent.pods import NewPod, Pod, entry, push, tree, zipped

GIVEN: Final = {"generation": 1, "command": ["node", "say.mjs"]}


async def code(pod: Pod, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
    status, answer = await pod.raw(method, path, body, **more)
    assert isinstance(answer["detail"], str)
    return status, answer["code"]


async def wire(pod: Pod, data: bytes, *, seconds: float = 20) -> bytes:
    """All that is answered to these bytes until the connection ends."""
    reader, writer = await asyncio.open_connection(pod.host, pod.port)
    async with asyncio.timeout(seconds):
        writer.write(data)
        answer = await reader.read()
    writer.close()
    return answer


# -- who may, and what there is --------------------------------------------------------------------


async def test_without_the_token_nothing_is_said_or_read(pod: Pod) -> None:
    said = {"code": "unauthorized", "detail": "the token is missing or wrong"}
    for given in ("Bearer", "Bearer wrong", "Basic {}", "Bearer {}x", "Bearer  {}", "{}"):
        field = given.format(pod.token)
        for method, path in (("GET", "/v1/state"), ("PUT", "/v1/tree"), ("GET", "/nothing")):
            answer = await pod.raw(method, path, authorization=field)
            assert answer == (401, said)
    unread = await wire(pod, b"PUT /v1/tree HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
    assert unread.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close\r\n" in unread


async def test_health_needs_no_token(pod: Pod) -> None:
    assert await pod.raw("GET", "/healthz", authorization="") == (200, {"ready": True})


async def test_unknown_calls_and_methods_are_told_apart(pod: Pod) -> None:
    for path in ("/", "/v1", "/v1/state/", "/v2/state", "//v1/state", "/__proto__"):
        assert await code(pod, "GET", path) == (404, "not_found")
    for method, path in (("GET", "/v1/tree"), ("POST", "/v1/state"), ("DELETE", "/v1/events")):
        assert await code(pod, method, path, {}) == (405, "method_not_allowed")


# -- bodies ----------------------------------------------------------------------------------------


async def test_what_is_no_json_object_is_refused(pod: Pod) -> None:
    for data in (b"", b"{", b"[]", b"null", b'"text"', b"\xff{}", b'{"a": NaN}', b"{}{}"):
        assert await code(pod, "POST", "/v1/start", data=data) == (400, "bad_request"), data


WRONG: Final[dict[str, list[dict[str, Any]]]] = {
    "/v1/start": [
        {"generation": "1"},
        {"generation": -1},
        {"generation": 1.5},
        {"generation": 2**60},
        {"command": []},
        {"command": "node"},
        {"command": ["node", 1]},
        {"command": ["no\0de"]},
        {"command": [""]},
        {"env": {"A": 1}},
        {"env": {"A=B": "1"}},
        {"env": {"A": "\0"}},
        {"env": []},
        {"launchers": {"../a.mjs": ""}},
        {"launchers": {".a": ""}},
        {"launchers": {"a.mjs": 1}},
        {"install": {"command": []}},
        {"install": {"command": ["a"], "limitSeconds": "1"}},
        {"order": "two\nlines"},
        {"title": None},
    ],
    "/v1/stop": [{"graceSeconds": -1}, {"graceSeconds": None}],
    "/v1/read": [{"longest": 1, "paths": "a"}, {"longest": -1, "paths": []}, {"paths": []}],
}


async def test_a_field_of_another_kind_is_refused_by_its_name(pod: Pod) -> None:
    await push(pod)
    for path, bodies in WRONG.items():
        for wrong in bodies:
            body = {**GIVEN, **wrong} if path == "/v1/start" else wrong
            status, answer = await pod.raw("POST", path, body)
            assert (status, answer["code"]) == (400, "bad_request"), wrong
    assert (await pod.agent.state()).state == "idle"


async def test_a_giant_body_is_refused_before_or_as_it_comes(pod: Pod) -> None:
    head = f"PUT /v1/tree HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {pod.token}\r\n"
    announced = await wire(pod, f"{head}Content-Length: 99999999999\r\n\r\n".encode())
    assert announced.startswith(b"HTTP/1.1 413 ")

    reader, writer = await asyncio.open_connection(pod.host, pod.port)
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    async with asyncio.timeout(60):
        for _ in range(65):
            writer.write(chunk)
            await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()
    assert await pod.agent.healthy()


async def test_a_body_that_inflates_without_end_is_refused(new_pod: NewPod) -> None:
    pod = await new_pod(PREVIEW_AGENT_MAX_INFLATED_BYTES=str(2**20))
    before = psutil.Process(pod.process.pid).memory_info().rss
    bomb = gzip.compress(bytes(2**27), 1)
    assert await code(pod, "PUT", "/v1/tree", data=bomb, encoding="gzip") == (413, "too_large")
    assert psutil.Process(pod.process.pid).memory_info().rss - before < 2**26


async def test_encodings_that_are_unknown_or_not_kept_are_refused(pod: Pod) -> None:
    for encoding, status in (("br", 415), ("gzip, gzip", 415), ("gzip", 400)):
        answer = await pod.raw("PUT", "/v1/tree", {}, encoding=encoding)
        assert answer[0] == status
    cut = zipped(tree())[:-8]
    answer = await pod.raw("PUT", "/v1/tree", data=cut, encoding="gzip")
    assert answer[0] == 400


async def test_a_head_beyond_the_limit_or_malformed_is_refused(pod: Pod) -> None:
    long = b"GET /healthz HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 20_000 + b"\r\n\r\n"
    assert (await wire(pod, long)).startswith(b"HTTP/1.1 431 ")
    assert (await wire(pod, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    assert await pod.agent.healthy()


async def test_who_does_not_finish_a_request_is_cut_off(new_pod: NewPod) -> None:
    pod = await new_pod(PREVIEW_AGENT_HEAD_SECONDS="0.3", PREVIEW_AGENT_BODY_SECONDS="0.5")
    head = f"PUT /v1/tree HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {pod.token}\r\n"
    body = f"{head}Content-Length: 100\r\n\r\n{{".encode()
    answers = await asyncio.gather(wire(pod, head.encode()), wire(pod, body))
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 408 "] * 2
    assert (await push(pod)).revision == 1


async def test_who_goes_away_in_the_middle_of_a_body_does_no_harm(pod: Pod) -> None:
    head = f"PUT /v1/tree HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {pod.token}\r\n"
    _, writer = await asyncio.open_connection(pod.host, pod.port)
    writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    await writer.drain()
    writer.transport.abort()
    assert (await push(pod)).revision == 1


# -- files -----------------------------------------------------------------------------------------


PATHS: Final = (
    *(
        "",
        "/etc/passwd",
        "../a",
        "a/../../b",
        "a/./b",
        "a//b",
        "a/",
        "C:/a",
        "a\\b",
        "a\nb",
        "a\0b",
    ),
    *("\ud800", "node_modules/a", ".git/config", "a/.GIT/hooks/x", "x" * 300, "a/" * 600 + "b"),
)


async def test_a_path_that_may_not_be_written_is_refused_everywhere(pod: Pod) -> None:
    await push(pod)
    before = sorted(pod.root.rglob("*"))
    given = {"generation": 1, "baseRevision": 1, "revision": 2}
    for path in PATHS:
        file = {**entry("a", b"x"), "path": path}
        for method, call, body in (
            ("PUT", "/v1/tree", tree(entry("a", b"x"), file, revision=2)),
            ("PATCH", "/v1/files", {**given, "write": [entry("a", b"x"), file]}),
            ("PATCH", "/v1/files", {**given, "delete": ["run", path]}),
            ("POST", "/v1/read", {"paths": [path], "longest": 100}),
        ):
            assert await code(pod, method, call, body) == (400, "bad_files"), path
    assert sorted(pod.root.rglob("*")) == before


async def test_a_tree_that_contradicts_itself_is_refused(pod: Pod) -> None:
    a = entry("a", b"a")
    for entries in (
        [a, a],
        [a, entry("a/b", b"b")],
        [{**a, "sha256": hashlib.sha256(b"b").hexdigest()}],
        [{**a, "path": 1}],
    ):
        assert await code(pod, "PUT", "/v1/tree", tree(*entries)) == (400, "bad_files")
    wrong: list[Any] = [
        {**a, "sha256": "A" * 64},
        {**a, "encoding": "utf-16"},
        {**a, "content": 1},
        1,
    ]
    for one in wrong:
        assert await code(pod, "PUT", "/v1/tree", tree(one)) == (400, "bad_request")
    assert not pod.held()


async def test_names_that_mean_something_to_javascript_are_just_names(pod: Pod) -> None:
    files = {name: name.encode() for name in ("__proto__", "constructor/prototype", "toString")}
    state = await push(pod, files)
    assert pod.held() == files
    assert (await pod.agent.state(digests=True)).digests.keys() == files.keys()
    assert state.revision == 1


async def test_content_that_is_not_known_is_asked_for(pod: Pod) -> None:
    await push(pod)
    known = {k: v for k, v in entry("copy", b"a").items() if k in {"path", "sha256"}}
    unknown = {k: v for k, v in entry("new", b"new").items() if k in {"path", "sha256"}}
    status, answer = await pod.raw("PUT", "/v1/tree", tree(known, unknown, revision=2))
    assert (status, answer["code"], answer["paths"]) == (409, "missing", ["new"])
    assert (await pod.agent.state()).revision == 1
    status, _ = await pod.raw("PUT", "/v1/tree", tree(known, revision=2))
    assert (status, pod.held()) == (200, {"copy": b"a"})


async def test_an_edit_that_goes_back_is_refused(pod: Pod) -> None:
    await push(pod)
    body = {"generation": 1, "baseRevision": 1, "revision": 1, "write": [entry("run", b"no")]}
    assert await code(pod, "PATCH", "/v1/files", body) == (400, "bad_request")


async def test_events_are_asked_for_by_number(pod: Pod) -> None:
    for after in ("x", "-1", "1.5", "9" * 20):
        assert await code(pod, "GET", f"/v1/events?after={after}") == (400, "bad_request")


async def test_readers_beyond_the_limit_are_refused(pod: Pod) -> None:
    request = f"GET /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {pod.token}\r\n\r\n"
    writers = []
    for _ in range(16):
        reader, writer = await asyncio.open_connection(pod.host, pod.port)
        writer.write(request.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writers.append(writer)
    assert await code(pod, "GET", "/v1/events") == (503, "busy")
    for writer in writers:
        writer.close()
