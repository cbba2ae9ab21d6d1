"""The starting page in a real browser, against event streams of every kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Page, async_playwright, expect

from gateway.proxy import pages
from gateway.session import Route, SessionId, State

pytestmark = pytest.mark.browser

ROUTE: Final = Route(id=SessionId("starting-page"), generation=1, version=1, state=State.REGISTERED)
Send = Callable[[str, dict[str, Any]], Awaitable[None]]


class Gateway:
    """Serves the starting page until ``preview`` is set, and the event stream a test writes."""

    def __init__(self, stream: Callable[[Send], Awaitable[None]] | None) -> None:
        self.stream = stream
        self.preview: bytes | None = None
        self.loads: list[float] = []
        self.loaded = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/preview/x/", self.page)
        app.router.add_get("/events", self.events)
        return app

    async def page(self, _request: web.Request) -> web.Response:
        self.loads.append(asyncio.get_running_loop().time())
        self.loaded.set()
        body = self.preview or pages.starting(ROUTE, events_url="/events")
        status = 200 if self.preview else 503
        return web.Response(body=body, status=status, content_type="text/html", charset="utf-8")

    async def events(self, request: web.Request) -> web.StreamResponse:
        if self.stream is None:
            raise web.HTTPNotFound
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(kind: str, data: dict[str, Any]) -> None:
            await response.write(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())

        await self.stream(send)
        return response


@pytest.fixture
async def browser_page(chromium: str) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = await browser.new_page()
        page.set_default_timeout(10_000)
        yield page
        await browser.close()


@pytest.fixture
async def visit(
    browser_page: Page,
) -> AsyncIterator[Callable[[Gateway], Awaitable[list[str]]]]:
    """Open the starting page of a gateway; returns the list that gathers what goes wrong in it."""
    servers: list[TestServer] = []

    async def open_page(gateway: Gateway) -> list[str]:
        server = TestServer(gateway.app())
        servers.append(server)
        await server.start_server()
        complaints: list[str] = []
        browser_page.on("pageerror", lambda error: complaints.append(str(error)))
        browser_page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type in {"error", "warning"}
                and "Failed to load resource" not in message.text
                else None
            ),
        )
        await browser_page.goto(str(server.make_url("/preview/x/")))
        return complaints

    yield open_page
    await browser_page.close()
    for server in servers:
        await server.close()


Visit = Callable[[Gateway], Awaitable[list[str]]]


async def test_it_shows_the_start_live_and_opens_the_preview_when_ready(
    visit: Visit, browser_page: Page
) -> None:
    installed, started = asyncio.Event(), asyncio.Event()

    async def stream(send: Send) -> None:
        await send("state", {"state": "registered"})
        await send("state", {"state": "starting"})
        await send("event", {"type": "phase", "phase": "installing", "detail": "9 packages"})
        await send("log", {"lines": ["added 9 packages", "<b>bold</b>"], "phase": "installing"})
        await asyncio.wait_for(installed.wait(), 20)
        await send("event", {"type": "phase", "phase": "starting"})
        await asyncio.wait_for(started.wait(), 20)
        gateway.preview = b"<!doctype html><title>app</title><h1>the app</h1>"
        await send("state", {"state": "ready"})

    gateway = Gateway(stream)
    complaints = await visit(gateway)
    current = browser_page.locator('[aria-current="step"]')
    await expect(current).to_have_text("Installing")
    await expect(browser_page.get_by_role("status")).to_have_text(
        "Installing dependencies: 9 packages"
    )
    await expect(browser_page.locator("pre")).to_have_text("added 9 packages\n<b>bold</b>\n")
    installed.set()
    await expect(current).to_have_text("Starting")
    started.set()
    await expect(browser_page.locator("h1")).to_have_text("the app")
    assert len(gateway.loads) == 2
    assert complaints == []


async def test_a_ready_of_the_past_does_not_reload(visit: Visit, browser_page: Page) -> None:
    done = asyncio.Event()

    async def stream(send: Send) -> None:
        for state in ("registered", "starting", "ready", "sleeping", "starting"):
            await send("state", {"state": state})
        await send("event", {"type": "phase", "phase": "starting"})
        await asyncio.wait_for(done.wait(), 20)

    gateway = Gateway(stream)
    await visit(gateway)
    await expect(browser_page.locator('[aria-current="step"]')).to_have_text("Starting")
    # Longer than the page waits for a burst to settle; nothing happens, so nothing to wait for.
    await browser_page.wait_for_timeout(300)
    assert len(gateway.loads) == 1
    done.set()


@pytest.mark.parametrize("kind", ["state", "end"])
async def test_a_failure_loads_the_failed_page(visit: Visit, browser_page: Page, kind: str) -> None:
    async def stream(send: Send) -> None:
        gateway.preview = pages.failed(ROUTE)
        await send(kind, {"state": "failed", "reason": "npm exited with 1"})

    gateway = Gateway(stream)
    await visit(gateway)
    await expect(browser_page.locator("h1")).to_have_text("This preview has failed")
    assert len(gateway.loads) == 2


async def test_a_gateway_that_says_ready_and_is_not_is_asked_ever_more_rarely(
    visit: Visit,
) -> None:
    async def stream(send: Send) -> None:
        await send("state", {"state": "ready"})

    gateway = Gateway(stream)
    await visit(gateway)
    while len(gateway.loads) < 4:
        gateway.loaded.clear()
        await asyncio.wait_for(gateway.loaded.wait(), 20)
    first, second, third = (b - a for a, b in zip(gateway.loads, gateway.loads[1:], strict=False))
    assert first < 1 <= second < 2 <= third


async def test_without_events_it_reloads_by_itself(visit: Visit, browser_page: Page) -> None:
    gateway = Gateway(None)
    await visit(gateway)
    gateway.preview = b"<!doctype html><title>app</title><h1>the app</h1>"
    await expect(browser_page.locator("h1")).to_have_text("the app")
    assert len(gateway.loads) == 2


async def test_the_log_keeps_its_last_lines_and_shows_the_end(
    visit: Visit, browser_page: Page
) -> None:
    done = asyncio.Event()

    async def stream(send: Send) -> None:
        for start in range(0, 1000, 250):
            await send("log", {"lines": [f"line {n}" for n in range(start, start + 250)]})
        await asyncio.wait_for(done.wait(), 20)

    await visit(Gateway(stream))
    log = browser_page.locator("pre")
    await expect(log).to_contain_text("line 999")
    lines = (await log.inner_text()).splitlines()
    assert (lines[0], len(lines)) == ("line 800", 200)
    end = await log.evaluate("pre => pre.getBoundingClientRect().bottom")
    box = await browser_page.locator(".log").evaluate("box => box.getBoundingClientRect().bottom")
    assert end <= box
    done.set()
