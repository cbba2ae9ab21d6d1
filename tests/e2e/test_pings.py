"""The gateway's pings, and what real clients and real dev servers make of them."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest
from playwright.async_api import Page, WebSocket, expect
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.e2e.conftest import Pair
from tests.e2e.replicas import project
from tests.e2e.test_main_job import APPS

pytestmark = [pytest.mark.browser, pytest.mark.node, pytest.mark.timeout(240)]

#: Who answers no ping is gone after 6 s (a client) or 30 s (a dev server): with half of that, a
#: browser on a busy machine was once too late.
_PING_SECONDS: Final = 2
_PATIENCE_SECONDS: Final = 15.0 * _PING_SECONDS + 2
_HANDSHAKE: Final = (
    "GET /preview/{id}/hmr HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture
def environ() -> dict[str, str]:
    return {"GATEWAY_PING_SECONDS": str(_PING_SECONDS)}


@pytest.mark.parametrize("name", ["vite 5", "vite 8 with react"])
async def test_browsers_libraries_and_vite_answer_pings_and_bear_pongs_of_others(
    name: str, pair: Pair, page: Page
) -> None:
    vite = APPS[name]
    session = await pair.a.create({"files": project(vite.folder)}, ready=True)
    sockets: list[WebSocket] = []
    page.on("websocket", lambda socket: sockets.append(socket))  # playwright marks its handlers
    await page.goto(f"{pair.b.url}/preview/{session['id']}/")
    await expect(page.locator("h1")).to_have_text(vite.before)
    await page.evaluate("window.__mark = 'same document'")

    port = int(pair.b.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(pair.b.replica.host, port)
    writer.write(_HANDSHAKE.format(id=session["id"]).encode())
    await reader.readuntil(b"\r\n\r\n")
    url = f"ws{pair.b.url[4:]}/preview/{session['id']}/hmr"
    async with connect(url, subprotocols=[Subprotocol("vite-hmr")]) as library:
        await asyncio.sleep(_PATIENCE_SECONDS)
        assert await library.recv() == '{"type":"connected"}'
        # The dev server answers a ping of the client's own, too: the socket is alive both ways.
        async with asyncio.timeout(5):
            await (await library.ping())
    # Who hears pings and says nothing has been let go meanwhile, without a Close frame.
    async with asyncio.timeout(5):
        heard = await reader.read()
    writer.close()
    assert b"\x89\x00" in heard
    assert b"\x88" not in heard

    source = (vite.folder / vite.file).read_text()
    write = [{"path": vite.file, "content": source.replace(vite.before, vite.after)}]
    status, _ = await pair.a.call(
        "PATCH", f"/api/v1/sessions/{session['id']}/files", {"write": write}
    )
    assert status == 200
    await expect(page.locator("h1")).to_have_text(vite.after)
    assert await page.evaluate("window.__mark") == "same document"
    assert len(sockets) == 1, "the HMR socket was never lost"
