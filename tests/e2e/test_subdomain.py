"""Subdomain mode, in both header profiles: real Vite, a real browser, hosts that are not local.

The preview domain is none of those that dev servers allow by themselves (``localhost``, addresses);
the browser finds every host below it at replica B.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.e2e.calls import SESSIONS
from tests.e2e.conftest import BROWSER_FLAGS, Pair
from tests.e2e.replicas import project
from tests.e2e.test_main_job import APPS, App, expect_an_edit_to_show_without_reload

pytestmark = pytest.mark.timeout(240)

DOMAIN: Final = "previews.test"


@pytest.fixture(params=["local", "public"])
def profile(request: pytest.FixtureRequest) -> str:
    """The header profile."""
    return str(request.param)


@pytest.fixture
def environ(profile: str) -> dict[str, str]:
    """The settings of both replicas; the tests themselves are the proxy in front."""
    return {
        "GATEWAY_PREVIEW_DOMAIN": DOMAIN,
        "GATEWAY_HEADER_PROFILE": profile,
        "GATEWAY_TRUSTED_PROXIES": "127.0.0.1",
    }


@pytest.fixture
async def browser(browser_path: str, pair: Pair) -> AsyncIterator[Browser]:
    """A Chromium that finds all previews at replica B."""
    rules = f"--host-resolver-rules=MAP *.{DOMAIN} {pair.b.replica.host}"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=browser_path, args=[*BROWSER_FLAGS, rules]
        )
        try:
            yield browser
        finally:
            await browser.close()


@pytest.mark.browser
@pytest.mark.node
@pytest.mark.parametrize(
    ("profile", "app"),
    [
        *(pytest.param("local", app, id=f"local-{name}") for name, app in APPS.items()),
        # Which hosts Vite allows differs between the oldest and the newest.
        *(
            pytest.param("public", APPS[name], id=f"public-{name}")
            for name in ("vite 5", "vite 8 with react")
        ),
    ],
    indirect=["profile"],
)
async def test_an_edit_shows_in_a_browser_without_reload(app: App, pair: Pair, page: Page) -> None:
    session = await pair.a.create({"files": project(app.folder)}, ready=True)
    assert session["previewUrl"] == f"http://{session['id']}.{DOMAIN}/"
    url = f"http://{host_at_b(pair, session['id'])}/"
    await expect_an_edit_to_show_without_reload(app, pair, page, session, url)


@pytest.mark.node
async def test_the_hmr_socket_is_reached_by_host_and_by_path_but_not_from_foreign_pages(
    pair: Pair,
) -> None:
    session = await pair.a.create({"files": project(APPS["vite 7"].folder)}, ready=True)
    assert session["wsUrl"] == f"ws://{session['id']}.{DOMAIN}/hmr"
    host = host_at_b(pair, session["id"])
    by_host, by_path = f"ws://{host}/hmr", f"ws{pair.b.url[4:]}/preview/{session['id']}/hmr"
    for url, origin in ((by_host, None), (by_host, Origin(f"http://{host}")), (by_path, None)):
        hmr = connect(url, sock=reach(pair), origin=origin, subprotocols=[Subprotocol("vite-hmr")])
        async with hmr as opened:
            assert json.loads(await opened.recv()) == {"type": "connected"}
    for foreign in ("https://evil.example", f"http://other-id-1.{host.partition('.')[2]}", "null"):
        with pytest.raises(InvalidStatus, match="403"):
            await connect(by_host, sock=reach(pair), origin=Origin(foreign))


async def test_a_trusted_proxys_scheme_and_host_are_those_of_the_urls(pair: Pair) -> None:
    """The previews are never started: nothing but their addresses is looked at."""
    body = {"files": [], "command": "no-such-command"}
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "gateway.localhost"}
    answer = await pair.a.ask("POST", SESSIONS, json=body, headers=said)
    assert answer.status == 201
    session_id = answer.body["id"]
    assert answer.body["previewUrl"] == f"https://{session_id}.{DOMAIN}/"
    assert answer.body["wsUrl"] == f"wss://{session_id}.{DOMAIN}/hmr"
    assert answer.body["eventsUrl"] == (f"https://gateway.localhost{SESSIONS}/{session_id}/events")
    plain = (await pair.b.ask("GET", f"{SESSIONS}/{session_id}")).body
    assert plain["previewUrl"] == f"http://{session_id}.{DOMAIN}/"
    assert plain["eventsUrl"] == f"{pair.b.url}{SESSIONS}/{session_id}/events"


def host_at_b(pair: Pair, session_id: str) -> str:
    """A preview's host with the port of replica B, which has not the usual one."""
    return f"{session_id}.{DOMAIN}:{urlsplit(pair.b.url).port}"


def reach(pair: Pair) -> socket.socket:
    """A connection to replica B, for a host that no resolver knows."""
    return socket.create_connection((pair.b.replica.host, urlsplit(pair.b.url).port))
