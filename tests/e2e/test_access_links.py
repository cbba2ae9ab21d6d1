"""Private previews: who sees them by a signed link, what that is worth, and how it ends."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.calls import SESSIONS, expect_problem, fresh_id
from tests.e2e.conftest import Pair
from tests.e2e.fleet import until
from tests.e2e.replicas import Answer, Api

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

TOKEN: Final = secrets.token_hex(24)
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
ENVIRON: Final = {
    "GATEWAY_API_TOKENS": TOKEN,
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_REGISTRATION_WAIT_SECONDS": "0.3",
    "GATEWAY_STATUS_WAIT_SECONDS": "0.3",
    "GATEWAY_LOG_LEVEL": "debug",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target() -> AsyncIterator[str]:
    """A server with a socket that echoes, a stream without an end, and an echo of requests."""

    async def socket(request: web.Request) -> web.WebSocketResponse:
        opened = web.WebSocketResponse()
        await opened.prepare(request)
        async for message in opened:
            await opened.send_str(str(message.data))
        return opened

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"tick\n")
            await asyncio.sleep(0.02)

    async def answer(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        return web.json_response({"path": request.raw_path, "headers": headers})

    app = web.Application()
    app.router.add_get("/preview/{id}/socket", socket)
    app.router.add_get("/preview/{id}/stream", stream)
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        yield f"127.0.0.1:{server.port}"


async def private(pair: Pair, target: str, **more: Any) -> str:
    """A private session."""
    body = {"id": fresh_id(), "target": target, "visibility": "private", **more}
    created = await pair.a.ask("POST", SESSIONS, json=body, headers=BEARER)
    assert created.status == 201, created.body
    return str(body["id"])


async def link(pair: Pair, session_id: str, **body: Any) -> str:
    """The path and query of a new link."""
    path = f"{SESSIONS}/{session_id}/links"
    answer = await pair.a.ask("POST", path, json=body, headers=BEARER)
    assert answer.status == 201, answer.body
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.body["url"].startswith(f"{pair.a.url}/preview/{session_id}/.preview/open?token=")
    return str(answer.body["url"]).removeprefix(pair.a.url)


async def follow(api: Api, path: str) -> Answer:
    """What a browser gets that follows a link."""
    return await api.ask("GET", path, allow_redirects=False)


async def cookie(pair: Pair, session_id: str, **body: Any) -> dict[str, str]:
    """The Cookie field of somebody who has followed a link, at replica B."""
    answer = await follow(pair.b, await link(pair, session_id, **body))
    assert answer.status == 303
    return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


async def patch(api: Api, session_id: str, **body: Any) -> None:
    """Change a session."""
    answer = await api.ask("PATCH", f"{SESSIONS}/{session_id}", json=body, headers=BEARER)
    assert answer.status == 200, answer.body


def socket_at(api: Api, session_id: str, headers: dict[str, str]) -> connect:
    """A WebSocket through one replica."""
    url = f"ws{api.url[4:]}/preview/{session_id}/socket"
    return connect(url, additional_headers=headers, proxy=None)


async def closes(opened: ClientConnection) -> None:
    """Check that a socket is closed at once."""
    async with asyncio.timeout(2):
        with pytest.raises(ConnectionClosed):
            await opened.recv()


async def works(opened: ClientConnection) -> None:
    """Check that a socket is open at both ends."""
    async with asyncio.timeout(2):
        await opened.send("hello")
        assert await opened.recv() == "hello"


def comparable(answer: Answer, session_id: str) -> tuple[int, dict[str, str], str]:
    """An answer without the id, which differs by nature."""
    headers = {name: value for name, value in answer.headers.items() if name != "Content-Length"}
    text = answer.body if isinstance(answer.body, str) else repr(answer.body)
    return answer.status, headers, text.replace(session_id, "ID")


# -- links -----------------------------------------------------------------------------------------


async def test_a_link_becomes_a_cookie_and_leaves_the_address(
    shared_pair: Pair, target: str
) -> None:
    session_id = await private(shared_pair, target)
    path = f"/preview/{session_id}/"
    answer = await follow(shared_pair.b, await link(shared_pair, session_id, ttlSeconds=60))
    assert (answer.status, answer.headers["Location"]) == (303, path)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    value, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert value.startswith("preview-gateway-access=")
    assert re.fullmatch(r"Max-Age=(5[0-9]|6[01])", attributes.pop(1))
    assert attributes == [f"Path={path}", "HttpOnly", "SameSite=Lax"]
    for api in (shared_pair.a, shared_pair.b):
        seen = await api.ask("GET", path + "x", headers={"Cookie": f"own=1; {value}"})
        assert seen.status == 200
        assert seen.body["headers"]["cookie"] == "own=1"


async def test_the_upgrade_of_a_socket_is_let_in_by_the_same_cookie(
    shared_pair: Pair, target: str
) -> None:
    session_id = await private(shared_pair, target)
    headers = await cookie(shared_pair, session_id)
    for api in (shared_pair.a, shared_pair.b):
        async with socket_at(api, session_id, headers) as opened:
            await works(opened)
        with pytest.raises(InvalidStatus, match="404"):
            await socket_at(api, session_id, {})


async def test_a_link_opens_one_preview_only(shared_pair: Pair, target: str) -> None:
    mine, other = await private(shared_pair, target), await private(shared_pair, target)
    headers = await cookie(shared_pair, mine)
    assert (await shared_pair.a.ask("GET", f"/preview/{other}/", headers=headers)).status == 404
    stolen = (await link(shared_pair, mine)).replace(mine, other)
    assert (await follow(shared_pair.a, stolen)).status == 404


async def test_a_link_and_its_cookie_end_when_it_says(shared_pair: Pair, target: str) -> None:
    session_id = await private(shared_pair, target)
    path = await link(shared_pair, session_id, ttlSeconds=2)
    answer = await follow(shared_pair.b, path)
    headers = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    async with (
        socket_at(shared_pair.a, session_id, headers) as opened,
        socket_at(shared_pair.a, session_id, BEARER) as admitted,
    ):
        async with asyncio.timeout(6):
            with pytest.raises(ConnectionClosed):
                await opened.recv()
        await works(admitted)
    assert (await follow(shared_pair.a, path)).status == 404
    seen = await shared_pair.a.ask("GET", f"/preview/{session_id}/", headers=headers)
    assert seen.status == 404


@pytest.mark.parametrize("accept", ["text/html", "*/*"])
async def test_what_may_not_be_seen_answers_as_what_does_not_exist(
    shared_pair: Pair, target: str, accept: str
) -> None:
    hidden, unknown = await private(shared_pair, target), fresh_id()
    expired = await cookie(shared_pair, hidden, ttlSeconds=1)

    async def is_expired() -> bool:
        seen = await shared_pair.a.ask("GET", f"/preview/{hidden}/", headers=expired)
        return seen.status == 404

    await until(is_expired, seconds=5)
    token = {"Authorization": "Bearer " + "x" * 48}
    for more in ({}, expired, token, {"Cookie": "preview-gateway-access=1." + "A" * 43}):
        headers = {"Accept": accept, **more}
        for rest in ("", "x.js", ".preview/events", ".preview/open?token=1.x"):
            asked = [
                await shared_pair.b.ask("GET", f"/preview/{name}/{rest}", headers=headers)
                for name in (hidden, unknown)
            ]
            assert asked[0].status == 404
            assert comparable(asked[0], hidden) == comparable(asked[1], unknown)


async def test_links_of_a_former_session_do_not_open_the_next_one_of_this_id(
    shared_pair: Pair, target: str
) -> None:
    session_id = await private(shared_pair, target)
    headers, path = await cookie(shared_pair, session_id), await link(shared_pair, session_id)
    stopped = await shared_pair.a.ask("POST", f"{SESSIONS}/{session_id}/stop", headers=BEARER)
    assert stopped.status == 200
    await private(shared_pair, target, id=session_id)
    assert (await follow(shared_pair.b, path)).status == 404
    seen = await shared_pair.b.ask("GET", f"/preview/{session_id}/", headers=headers)
    assert seen.status == 404


async def test_a_link_to_a_public_preview_keeps_it_open_when_it_becomes_private(
    shared_pair: Pair, target: str
) -> None:
    session_id = await private(shared_pair, target, visibility="public")
    headers = await cookie(shared_pair, session_id)
    await patch(shared_pair.a, session_id, visibility="private")
    path = f"/preview/{session_id}/"
    assert (await shared_pair.b.ask("GET", path, headers=headers)).status == 200
    assert (await shared_pair.b.ask("GET", path)).status == 404


async def test_a_link_to_a_public_preview_leads_there_whatever_it_is_worth(
    shared_pair: Pair, target: str
) -> None:
    session_id = await private(shared_pair, target, visibility="public")
    path = f"/preview/{session_id}/"
    answer = await follow(shared_pair.b, f"{path}.preview/open?token=worthless")
    assert (answer.status, answer.headers["Location"]) == (303, path)
    assert "Set-Cookie" not in answer.headers


async def test_links_are_for_sessions_that_live(shared_pair: Pair, target: str) -> None:
    session_id = await private(shared_pair, target)
    await shared_pair.a.ask("POST", f"{SESSIONS}/{session_id}/stop", headers=BEARER)
    path = f"{SESSIONS}/{session_id}/links"
    ended = await shared_pair.a.ask("POST", path, json={}, headers=BEARER)
    expect_problem(ended, 410, "session_ended")
    for method in ("POST", "DELETE"):
        path = f"{SESSIONS}/{fresh_id()}/links"
        answer = await shared_pair.a.ask(method, path, json={}, headers=BEARER)
        expect_problem(answer, 404, "session_not_found")


# -- the switch ------------------------------------------------------------------------------------


async def test_a_preview_becomes_private_at_once_for_all_that_is_open(
    shared_pair: Pair, target: str
) -> None:
    session_id = await private(shared_pair, target, visibility="public")
    viewer = await cookie(shared_pair, session_id)
    path = f"/preview/{session_id}/"
    async with aiohttp.ClientSession() as http:
        for api in (shared_pair.a, shared_pair.b):
            async with (
                socket_at(api, session_id, {}) as stranger,
                socket_at(api, session_id, viewer) as invited,
                socket_at(api, session_id, BEARER) as admitted,
                http.get(f"{api.url}{path}stream") as cut,
                http.get(f"{api.url}{path}stream", headers=viewer) as kept,
            ):
                for stream in (cut, kept):
                    assert await stream.content.readline() == b"tick\n"
                for opened in (stranger, invited, admitted):
                    await works(opened)
                await patch(shared_pair.a, session_id, visibility="private")
                await closes(stranger)
                async with asyncio.timeout(2):
                    with pytest.raises(aiohttp.ClientError):
                        await cut.read()
                await works(invited)
                await works(admitted)
                for _ in range(5):
                    assert await kept.content.readline() == b"tick\n"
                assert (await api.ask("GET", path)).status == 404
            await patch(shared_pair.b, session_id, visibility="public")
            assert (await api.ask("GET", path)).status == 200


async def test_revoked_links_end_all_that_they_opened_but_no_more(
    shared_pair: Pair, target: str
) -> None:
    session_id = await private(shared_pair, target)
    viewer, path = await cookie(shared_pair, session_id), await link(shared_pair, session_id)
    async with (
        socket_at(shared_pair.b, session_id, viewer) as invited,
        socket_at(shared_pair.b, session_id, BEARER) as admitted,
    ):
        await works(invited)
        revoked = await shared_pair.a.ask(
            "DELETE", f"{SESSIONS}/{session_id}/links", headers=BEARER
        )
        assert revoked.status == 204
        await closes(invited)
        await works(admitted)
    assert (await follow(shared_pair.b, path)).status == 404
    again = await cookie(shared_pair, session_id)
    async with socket_at(shared_pair.b, session_id, again) as invited:
        await works(invited)


# -- the log ---------------------------------------------------------------------------------------


async def test_no_link_and_no_cookie_is_ever_logged(shared_pair: Pair, target: str) -> None:
    session_id = await private(shared_pair, target)
    path = await link(shared_pair, session_id)
    viewer = await cookie(shared_pair, session_id)
    await shared_pair.a.ask("GET", f"/preview/{session_id}/", headers=viewer)
    lines = "\n".join(shared_pair.a.replica.lines + shared_pair.b.replica.lines)
    assert session_id in lines
    assert path.partition("token=")[2] not in lines
    assert viewer["Cookie"].partition("=")[2] not in lines
