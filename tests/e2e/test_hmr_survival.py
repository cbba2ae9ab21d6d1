"""A page in a real browser while its dev server sleeps, is lost with its replica, or moves."""

from __future__ import annotations

import signal
from typing import Any, Final

import pytest
from playwright.async_api import Page, Response, WebSocket, expect

from tests.e2e.conftest import Pair
from tests.e2e.fleet import dev_servers, until
from tests.e2e.replicas import Api, project
from tests.e2e.test_main_job import APPS, App

pytestmark = [pytest.mark.browser, pytest.mark.node, pytest.mark.timeout(240)]

NAMES: Final = ["vite 8 with react", "vite 5"]
IDLE_SECONDS: Final = 3
#: Vite's client looks once a second for a dev server whose socket it has lost.
_POLLS_SECONDS: Final = 5.0


@pytest.fixture
def environ() -> dict[str, str]:
    return {"GATEWAY_LEASE_SECONDS": "4", "GATEWAY_HANDOVER_SECONDS": "30"}


class Watched:
    """A page of an app, what it loaded, and its sockets."""

    def __init__(self, page: Page, app: App) -> None:
        self.page = page
        self.app = app
        self.documents: list[int] = []
        self.sockets: list[WebSocket] = []
        self.frames: list[str] = []
        page.on("response", self._note_response)
        page.on("websocket", self._note_socket)

    def _note_response(self, response: Response) -> None:
        if response.request.resource_type == "document":
            self.documents.append(response.status)

    def _note_socket(self, socket: WebSocket) -> None:
        self.sockets.append(socket)
        socket.on("framereceived", lambda frame: self.frames.append(str(frame)))

    async def open(self, url: str) -> None:
        await self.page.goto(url)
        await expect(self.page.locator("h1")).to_have_text(self.app.before)
        await self.count_to_two()

    async def count_to_two(self) -> None:
        await self.page.evaluate("window.__mark = 'same document'")
        await self.page.click("#add")
        await self.page.click("#add")
        await self.expect_state()

    async def expect_state(self) -> None:
        await expect(self.page.locator("#count")).to_have_text("2")
        assert await self.page.evaluate("window.__mark") == "same document"

    async def edit(self, api: Api, session: dict[str, Any], text: str) -> None:
        source = (self.app.folder / self.app.file).read_text().replace(self.app.before, text)
        path = f"/api/v1/sessions/{session['id']}/files"
        write = [{"path": self.app.file, "content": source}]
        status, answer = await api.call("PATCH", path, {"write": write})
        assert status == 200, answer

    async def expect_hmr(self, api: Api, session: dict[str, Any]) -> None:
        """An edit shows, and what the page holds stays."""
        await self.count_to_two()
        await self.edit(api, session, "Edited afterwards")
        await expect(self.page.locator("h1")).to_have_text("Edited afterwards")
        await self.expect_state()
        assert any('"update"' in frame for frame in self.frames)

    async def reloaded(self) -> None:
        """Wait until the page has loaded itself again, once, and from a dev server."""
        await self.page.wait_for_function("window.__mark === undefined", timeout=60_000)
        await expect(self.page.locator("h1")).to_have_text(self.app.before)
        assert self.documents == [200, 200]
        assert sum('"full-reload"' in frame for frame in self.frames) == 1


async def state_of(api: Api, session: dict[str, Any]) -> str:
    _, now = await api.call("GET", f"/api/v1/sessions/{session['id']}")
    return str(now["state"])


@pytest.mark.parametrize("name", NAMES)
async def test_a_session_sleeps_behind_an_open_page_and_wakes_for_an_edit(
    name: str, pair: Pair, page: Page
) -> None:
    app = APPS[name]
    body = {"files": project(app.folder), "idleSeconds": IDLE_SECONDS}
    session = await pair.a.create(body, ready=True)
    watched = Watched(page, app)
    await watched.open(f"{pair.b.url}/preview/{session['id']}/")

    async def sleeps() -> bool:
        return await state_of(pair.a, session) == "sleeping"

    await until(sleeps, seconds=30)
    await page.wait_for_timeout(_POLLS_SECONDS * 1000)
    assert await sleeps(), "the page does not wake it"
    assert dev_servers(session["id"]) == {}
    await watched.expect_state()
    assert len(watched.sockets) == 1
    assert not watched.sockets[0].is_closed()

    await watched.edit(pair.a, session, "Edited while it slept")
    await expect(page.locator("h1")).to_have_text("Edited while it slept", timeout=30_000)
    assert watched.documents == [200, 200], "it was told to reload once"
    await watched.expect_hmr(pair.a, session)
    assert len(watched.sockets) == 2


@pytest.mark.parametrize("name", NAMES)
async def test_a_page_outlives_the_replica_that_ran_its_dev_server(
    name: str, pair: Pair, page: Page
) -> None:
    app = APPS[name]
    session = await pair.a.create({"files": project(app.folder)}, ready=True)
    watched = Watched(page, app)
    await watched.open(f"{pair.b.url}/preview/{session['id']}/")
    doomed = dev_servers(session["id"])
    pair.a.replica.kill(signal.SIGKILL)
    for process in doomed.values():
        process.kill()
    await page.wait_for_timeout(1000)
    await watched.expect_state()
    assert not watched.sockets[0].is_closed()
    await watched.reloaded()
    await watched.expect_hmr(pair.b, session)


async def test_a_page_is_told_once_when_its_session_moves_to_another_replica(
    pair: Pair, page: Page
) -> None:
    app = APPS["vite 8 with react"]
    session = await pair.a.create({"files": project(app.folder)}, ready=True)
    watched = Watched(page, app)
    await watched.open(f"{pair.b.url}/preview/{session['id']}/")
    assert await pair.a.replica.stop() == 0
    await watched.reloaded()
    await watched.expect_hmr(pair.b, session)
