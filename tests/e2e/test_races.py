"""What a load balancer does to a session that is seconds, or no milliseconds, old."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.e2e.calls import rounds
from tests.e2e.conftest import Pair

pytestmark = pytest.mark.timeout(240)

ROUNDS = 10_000
#: Sessions in the making at a time.
WIDTH = 16


@pytest.fixture
def environ() -> dict[str, str]:
    return {
        "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
        # The rounds are to show that nothing is lost, however slow the machine is at the moment.
        "GATEWAY_REGISTRATION_WAIT_SECONDS": "20",
        "GATEWAY_REGISTRY_TIMEOUT_SECONDS": "20",
        "GATEWAY_LOG_LEVEL": "warning",  # not two lines for each of 20,000 rounds
    }


@pytest.fixture
async def target() -> AsyncIterator[str]:
    """A server that answers every path with that path."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.raw_path)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        yield f"127.0.0.1:{server.port}"


async def fetch(http: aiohttp.ClientSession, url: str, **options: Any) -> tuple[int, str]:
    async with http.get(url, **options) as response:
        return response.status, await response.text()


async def test_ten_thousand_previews_are_found_on_b_right_after_their_create_on_a(
    pair: Pair, target: str, http: aiohttp.ClientSession
) -> None:
    async def once(_: int) -> tuple[int, bool]:
        session = await pair.a.create({"target": target})
        path = f"/preview/{session['id']}/x"
        status, text = await fetch(http, pair.b.url + path)
        return status, text == path

    assert await rounds(ROUNDS, WIDTH, once) == {(200, True): ROUNDS}


async def test_ten_thousand_requests_that_come_before_their_create_are_answered(
    pair: Pair, target: str, http: aiohttp.ClientSession
) -> None:
    async def once(_: int) -> tuple[int, bool]:
        session_id = secrets.token_hex(8)
        path = f"/preview/{session_id}/early"
        early = asyncio.create_task(fetch(http, pair.b.url + path))
        await asyncio.sleep(0.1)  # the figure: the create comes 100 ms later
        assert not early.done()
        await pair.a.create({"id": session_id, "target": target})
        status, text = await early
        return status, text == path

    assert await rounds(ROUNDS, 100, once) == {(200, True): ROUNDS}


@pytest.mark.parametrize("environ", [{}], ids=["default wait"])
async def test_an_id_that_never_comes_is_not_found_after_the_wait(
    pair: Pair, http: aiohttp.ClientSession
) -> None:
    url = f"{pair.b.url}/preview/never-created/"
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with http.get(url) as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == 404
    assert loop.time() - started > 1.99
    assert problem["success"] is False
    assert problem["error"] == "Preview session not found"
    assert problem["sessionId"] == "never-created"
    assert problem["code"] == "session_not_found"

    status, text = await fetch(http, url, headers={"Accept": "text/html"})
    assert status == 404
    assert "<!doctype html>" in text.lower()
    assert "never-created" in text
