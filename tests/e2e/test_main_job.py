"""The main job: created on A, shown through B, edited live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.async_api import Page, WebSocket, expect

from tests.e2e.conftest import ROOT, Pair
from tests.e2e.replicas import project

pytestmark = [pytest.mark.browser, pytest.mark.node, pytest.mark.timeout(240)]

FIXTURES: Final = ROOT / "tests" / "fixtures"


@dataclass(frozen=True)
class App:
    """A real app: where it is, what to edit, what to look for."""

    folder: Path
    file: str
    before: str
    after: str
    framework: str


APPS: Final = {
    "vite 8 with react": App(
        ROOT / "examples" / "vite-react",
        "src/App.jsx",
        "Hello from your preview",
        "Edited while it runs",
        "react",
    ),
    **{
        f"vite {major}": App(
            FIXTURES / f"vite{major}",
            "message.js",
            f"Hello from Vite {major}",
            "Edited while it runs",
            "vanilla",
        )
        for major in (5, 6, 7)
    },
}


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
async def test_an_edit_through_one_replica_shows_in_a_browser_on_another_without_reload(
    app: App, pair: Pair, page: Page
) -> None:
    session = await pair.a.create({"files": project(app.folder)}, ready=True)
    url = f"{pair.b.url}/preview/{session['id']}/"
    await expect_an_edit_to_show_without_reload(app, pair, page, session, url)


async def expect_an_edit_to_show_without_reload(
    app: App, pair: Pair, page: Page, session: dict[str, Any], url: str
) -> None:
    """Open a preview that replica A made at ``url``, which is replica B's; edit it through A."""
    frames: list[str] = []
    sockets: list[str] = []

    def note_socket(socket: WebSocket) -> None:
        sockets.append(socket.url)
        socket.on("framereceived", lambda frame: frames.append(str(frame)))

    page.on("websocket", note_socket)
    response = await page.goto(url)
    assert response is not None
    assert response.status == 200
    assert response.headers["x-preview-replica"] != session["owner"]
    await expect(page.locator("h1")).to_have_text(app.before)
    await page.evaluate("window.__mark = 'same document'")
    await page.click("#add")
    await page.click("#add")
    await expect(page.locator("#count")).to_have_text("2")

    source = (app.folder / app.file).read_text()
    assert app.before in source
    status, answer = await pair.a.call(
        "PATCH",
        f"/api/v1/sessions/{session['id']}/files",
        {"write": [{"path": app.file, "content": source.replace(app.before, app.after)}]},
    )
    assert (status, answer["revision"]) == (200, 2)

    await expect(page.locator("h1")).to_have_text(app.after)
    await expect(page.locator("#count")).to_have_text("2")
    assert await page.evaluate("window.__mark") == "same document"
    assert len(sockets) == 1, "the HMR socket was opened once and never lost"
    assert sockets[0].startswith(f"ws{url.removeprefix('http')}")
    assert any('"update"' in frame for frame in frames), "the HMR socket carried the update"
