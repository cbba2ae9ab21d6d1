"""A gateway without API tokens: foreign pages and names stay out, targets stay inside."""

from __future__ import annotations

import asyncio
import json
from typing import Final

import pytest

from tests.e2e.calls import SESSIONS, expect_problem, fresh_id, stored
from tests.e2e.conftest import Pair

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ENVIRON: Final = {"GATEWAY_TARGET_ALLOWLIST": "127.0.0.1/32, ::1/128"}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
async def test_a_page_of_another_site_cannot_post(shared_pair: Pair, origin: str) -> None:
    session_id = fresh_id()
    answer = await shared_pair.a.ask(
        "POST",
        SESSIONS,
        data=json.dumps({"id": session_id, "command": "touch /tmp/x"}),
        headers={"Origin": origin, "Content-Type": "text/plain"},
    )
    expect_problem(answer, 403, "forbidden")
    assert await stored(shared_pair, session_id) == []


async def test_a_page_of_the_gateway_itself_can_post(shared_pair: Pair, shared_echo: str) -> None:
    answer = await shared_pair.a.ask(
        "POST", SESSIONS, json={"target": shared_echo}, headers={"Origin": shared_pair.a.url}
    )
    assert answer.status == 201


@pytest.mark.parametrize("path", [SESSIONS, "/livez", "/preview/some-id-1/"])
async def test_a_foreign_name_that_leads_here_is_refused(shared_pair: Pair, path: str) -> None:
    """DNS rebinding: the page's own site resolves to the loopback address."""
    answer = await shared_pair.a.ask("GET", path, headers={"Host": "evil.example"})
    assert "GATEWAY_PUBLIC_URL" in expect_problem(answer, 421, "unknown_host")


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("127.0.0.1", 400, "bad_request"),
        ("127.0.0.1:", 400, "bad_request"),
        ("127.0.0.1:0", 400, "bad_request"),
        ("127.0.0.1:65536", 400, "bad_request"),
        ("127.0.0.1:x", 400, "bad_request"),
        (":80", 400, "bad_request"),
        ("https://127.0.0.1:80", 400, "bad_request"),
        ("http://127.0.0.1:80/path", 400, "bad_request"),
        ("http://user:word@127.0.0.1:80", 400, "bad_request"),
        ("http://[::1:80", 400, "bad_request"),
        ("does-not-exist.invalid:80", 400, "bad_request"),
        ("x" * 64 + ".example:80", 400, "bad_request"),
        ("127.0.0.2:80", 403, "target_refused"),
        ("0.0.0.0:80", 403, "target_refused"),
        ("169.254.169.254:80", 403, "target_refused"),
        ("[::ffff:127.0.0.2]:80", 403, "target_refused"),
        ("2130706434:80", 403, "target_refused"),
    ],
)
async def test_a_bad_target_is_refused_and_leaves_nothing_behind(
    shared_pair: Pair, target: str, status: int, code: str
) -> None:
    session_id = fresh_id()
    answer = await shared_pair.a.ask("POST", SESSIONS, json={"id": session_id, "target": target})
    assert len(expect_problem(answer, status, code)) > 20
    assert await stored(shared_pair, session_id) == []


async def test_a_name_is_resolved_and_the_session_keeps_it(
    shared_pair: Pair, shared_echo: str
) -> None:
    name = f"localhost:{shared_echo.rpartition(':')[2]}"
    body = {"id": fresh_id(), "target": f"http://{name}/"}
    first = await shared_pair.a.ask("POST", SESSIONS, json=body)
    assert (first.status, first.body["target"]) == (201, name)
    again = await shared_pair.b.ask("POST", SESSIONS, json={**body, "target": name})
    assert again.status == 200


async def test_the_path_reaches_a_target_byte_for_byte(shared_pair: Pair, shared_echo: str) -> None:
    session = await shared_pair.a.create({"target": shared_echo})
    host, _, port = shared_pair.b.url.removeprefix("http://").partition(":")
    for rest in ("", "a//b/../c", "%2e%2e/%C3%A4?x=%20&y=+;z", "?", "a?b?c", "~(')*"):
        path = f"/preview/{session['id']}/{rest}"
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        start, end = body.index(b"{"), body.rindex(b"}")
        assert json.loads(body[start : end + 1])["path"] == path
