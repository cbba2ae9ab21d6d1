"""A private Vite preview in a frame of another site's page, over https, opened by a signed link.

Third-party cookies are blocked, as browsers do more and more: only a partitioned one gets through.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, WebSocket, async_playwright, expect

from tests.conftest import require_tool
from tests.e2e.conftest import BROWSER_FLAGS, Pair
from tests.e2e.replicas import project
from tests.e2e.test_main_job import APPS

pytestmark = [pytest.mark.browser, pytest.mark.node, pytest.mark.timeout(240)]

TOKEN: Final = secrets.token_hex(24)
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
DOMAIN: Final = "previews.test"
BUILDER: Final = "https://builder.example/"
APP: Final = APPS["vite 7"]
Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=["path", "subdomain"])
def mode(request: pytest.FixtureRequest) -> str:
    """How previews are addressed."""
    return str(request.param)


@pytest.fixture
def environ(mode: str) -> dict[str, str]:
    """The settings of both replicas, which are behind a proxy that speaks TLS."""
    return {
        "GATEWAY_API_TOKENS": TOKEN,
        "GATEWAY_PUBLIC_URL": f"https://gateway.{DOMAIN}",
        **({"GATEWAY_PREVIEW_DOMAIN": DOMAIN} if mode == "subdomain" else {}),
    }


def certificate(folder: Path) -> ssl.SSLContext:
    """What a server for all hosts of the domain shows; nobody vouches for it."""
    key, pem = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *(require_tool("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={DOMAIN}"),
            *("-keyout", str(key), "-out", str(pem)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return context


@asynccontextmanager
async def tls_server(tls: ssl.SSLContext, accept: Accept) -> AsyncIterator[int]:
    """The port of a server. Not one of the browser's own answers: it keeps pages of the internet,
    for which it takes those, away from servers on this machine.
    """
    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def page_of(html: str) -> Accept:
    """A server of one page."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(html)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n{html}".encode())
        writer.close()

    return accept


def proxy_to(host: str, port: int) -> Accept:
    """A server that takes TLS off and passes everything on."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(relay(reader, far_writer), relay(far_reader, writer))

    return accept


@asynccontextmanager
async def strict_page(browser_path: str, *, builder: int, previews: int) -> AsyncIterator[Page]:
    """A page of a browser that blocks third-party cookies and finds the hosts at these ports."""
    rules = f"MAP builder.example 127.0.0.1:{builder}, MAP *.{DOMAIN} 127.0.0.1:{previews}"
    flags = [f"--host-resolver-rules={rules}", "--test-third-party-cookie-phaseout"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=browser_path, args=[*BROWSER_FLAGS, *flags]
        )
        try:
            context = await browser.new_context(ignore_https_errors=True)
            page = await context.new_page()
            page.set_default_timeout(20_000)
            yield page
        finally:
            await browser.close()


async def test_a_private_preview_lives_in_a_frame_of_another_site(
    pair: Pair, browser_path: str, tmp_path: Path, mode: str
) -> None:
    body = {"files": project(APP.folder), "visibility": "private"}
    created = await pair.a.ask(
        "POST", "/api/v1/sessions?wait=ready&timeout=120", json=body, headers=BEARER, seconds=130
    )
    assert created.body["state"] == "ready", created.body
    path = f"/api/v1/sessions/{created.body['id']}"
    link = (await pair.a.ask("POST", f"{path}/links", json={}, headers=BEARER)).body["url"]
    preview = created.body["previewUrl"]
    assert link.startswith(f"{preview}.preview/open?token=")

    at_b = urlsplit(pair.b.url)
    assert at_b.hostname is not None
    assert at_b.port is not None
    tls, html = certificate(tmp_path), f'<iframe src="{link}" width=600 height=400></iframe>'
    async with (
        tls_server(tls, proxy_to(at_b.hostname, at_b.port)) as previews,
        tls_server(tls, page_of(html)) as builder,
        strict_page(browser_path, builder=builder, previews=previews) as page,
    ):
        sockets: list[WebSocket] = []
        page.on("websocket", lambda socket: sockets.append(socket))
        await page.goto(BUILDER)
        frame = page.frame_locator("iframe")
        await expect(frame.locator("h1")).to_have_text(APP.before)
        await frame.locator("#add").click()
        assert page.frames[1].url == preview, "the token has left the address"

        cookies = await page.context.cookies(preview)
        prefix = "__Host-" if mode == "subdomain" else "__Secure-"
        assert [cookie.get("name") for cookie in cookies] == [f"{prefix}preview-gateway-access"]
        assert cookies[0].get("httpOnly")
        assert cookies[0].get("partitionKey"), "of this embedding page only"
        assert await page.frames[1].evaluate("document.cookie") == ""

        source = (APP.folder / APP.file).read_text()
        edit = {"write": [{"path": APP.file, "content": source.replace(APP.before, APP.after)}]}
        edited = await pair.a.ask("PATCH", f"{path}/files", json=edit, headers=BEARER)
        assert edited.status == 200
        await expect(frame.locator("h1")).to_have_text(APP.after)
        await expect(frame.locator("#count")).to_have_text("1")
        assert len(sockets) == 1

        async with sockets[0].expect_event("close", timeout=5_000):
            revoked = await pair.a.ask("DELETE", f"{path}/links", headers=BEARER)
            assert revoked.status == 204
        async with page.expect_response(lambda response: response.url == link) as response:
            await page.goto(BUILDER)
        assert (await response.value).status == 404
