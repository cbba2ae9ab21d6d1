"""The dashboard in a real browser, before real replicas."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Page, Route, async_playwright, expect

from gateway.client import Client
from tests.e2e.calls import fresh_id
from tests.e2e.conftest import BROWSER_FLAGS, Pair

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.browser,
    pytest.mark.timeout(120),
]

TOKEN: Final = secrets.token_hex(24)
CREATOR: Final = secrets.token_hex(24)
DOMAIN: Final = "previews.test"
ENVIRON: Final = {
    "GATEWAY_API_TOKENS": f"{TOKEN},create:builder:{CREATOR}",
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_PREVIEW_DOMAIN": DOMAIN,
    "GATEWAY_STATUS_WAIT_SECONDS": "0.1",
}
EVIL: Final = "</span><img src=x onerror=alert(1)><script>alert(2)</script>\"'&amp;"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chrome(chromium: str) -> AsyncIterator[Any]:
    """A browser for the whole module."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(chrome: Any) -> AsyncIterator[Page]:
    """A page in which no script of a stranger runs, and no script of ours fails."""
    context = await chrome.new_context()
    page: Page = await context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on(
        "console",
        # A refused call is logged by the browser itself; a violated policy is, too.
        lambda message: wrong.append(message.text) if "olicy" in message.text else None,
    )
    yield page
    await context.close()
    assert not wrong, wrong


async def signed_in(page: Page, url: str, token: str = TOKEN) -> None:
    await page.goto(f"{url}/")
    await page.get_by_label("API token").fill(token)
    await page.get_by_role("button", name="Sign in").click()


def rows(page: Page) -> Any:
    return page.locator("#rows .row")


async def test_who_has_no_token_is_asked_for_one_and_it_stays_in_the_tab(
    shared_pair: Pair, page: Page
) -> None:
    sent: list[dict[str, str]] = []
    page.on("request", lambda request: sent.append({"url": request.url, **request.headers}))
    await signed_in(page, shared_pair.a.url, "not-one-of-its-tokens")
    await expect(page.locator("#refusal")).to_contain_text("not known")
    await expect(page.locator("#board")).to_be_hidden()
    await signed_in(page, shared_pair.a.url)
    await expect(page.locator("#pulse")).to_have_text("live")
    await expect(page.get_by_text("No sessions yet")).to_be_visible()
    await expect(page.locator("#replicas li")).to_have_count(2)
    await page.reload()
    await expect(page.locator("#board")).to_be_visible()
    assert TOKEN not in page.url
    assert not [fields["url"] for fields in sent if TOKEN in fields["url"]]
    assert {fields["url"].split("/")[2] for fields in sent} == {shared_pair.a.url.split("/")[2]}
    assert not [fields for fields in sent if "cookie" in fields]
    assert await page.context.cookies() == []
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("API token")).to_be_visible()
    assert await page.evaluate("sessionStorage.length") == 0
    other = await page.context.new_page()
    await other.goto(f"{shared_pair.a.url}/")
    await expect(other.get_by_label("API token")).to_be_visible()


async def test_sessions_come_change_and_are_followed_live(shared_pair: Pair, page: Page) -> None:
    name = fresh_id()
    await signed_in(page, shared_pair.a.url)
    await expect(page.locator("#pulse")).to_have_text("live")
    async with Client(shared_pair.b.url, token=TOKEN) as client:
        made = await client.create(target="127.0.0.1:9", id=name, metadata={"experiment": "blue"})
        row = rows(page).filter(has_text=name)
        await expect(row).to_contain_text("ready")
        await expect(row).to_contain_text("experiment: blue")
        await expect(row.locator(".owner")).to_have_text(made["owner"])
        link = row.get_by_role("link")
        await expect(link).to_have_attribute("href", f"http://{name}.{DOMAIN}/")
        await expect(link).to_have_attribute("rel", "noopener noreferrer")
        await row.get_by_role("button").click()
        await expect(page.locator("#following")).to_have_text("live")
        await client.stop(name)
        await expect(page.locator("#following")).to_have_text("complete")
        await expect(page.locator("#details-state")).to_have_text("stopped")
        await page.keyboard.press("Escape")
        await expect(page.locator("#details")).to_be_hidden()
        await expect(row).to_contain_text("stopped by request")
        await page.get_by_label("Find sessions").fill("nothing like it")
        await expect(page.get_by_text("No session fits")).to_be_visible()
        await page.get_by_label("Find sessions").fill("BLUE")
        await expect(rows(page)).to_have_count(1)
        await client.delete(name)


async def test_what_strangers_have_written_is_shown_as_text(shared_pair: Pair, page: Page) -> None:
    name = fresh_id()
    script = f"import sys; print({EVIL!r}, flush=True); sys.exit(3)"
    async with Client(shared_pair.a.url, token=TOKEN) as client:
        await client.create(
            {"a.py": script.encode()},
            id=name,
            command=["python3", "a.py"],
            metadata={EVIL: EVIL, "nested": {"x": EVIL}},
        )
        await client.wait(name, until="ended", timeout_seconds=30)
        await signed_in(page, shared_pair.a.url)
        await rows(page).filter(has_text=name).get_by_role("button").click()
        await expect(page.locator("#log")).to_contain_text(EVIL)
        await expect(page.locator("#facts")).to_contain_text("<script>alert(2)</script>")
        assert await page.locator("main img, dialog img, main script, dialog script").count() == 0
        await client.delete(name)


async def test_a_gateway_that_lies_makes_no_markup_and_no_script_links(
    shared_pair: Pair, page: Page
) -> None:
    evil: dict[str, Any] = dict.fromkeys(
        ("id", "owner", "reason", "framework", "target", "createdAt", "expiresAt", "endedAt"), EVIL
    )
    evil |= {"state": EVIL, "previewUrl": "javascript:alert(3)", "visibility": "public"}
    evil |= {"metadata": {EVIL: EVIL}, "revision": 1, "generation": 1}

    async def lie(route: Route) -> None:
        await route.fulfill(json={"sessions": [evil], "cursor": ""})

    async def lie_about_replicas(route: Route) -> None:
        await route.fulfill(json={"replicas": [{"id": EVIL, "incarnation": "", "url": EVIL}]})

    await page.route("**/api/v1/sessions?*", lie)
    await page.route("**/api/v1/replicas", lie_about_replicas)
    await page.goto(f"{shared_pair.a.url}/")
    await expect(rows(page)).to_contain_text(EVIL)
    await expect(page.locator("#replicas")).to_contain_text(EVIL)
    await expect(rows(page).locator("a")).to_be_hidden()
    await rows(page).get_by_role("button").click()
    await expect(page.locator("#details-title")).to_have_text(EVIL)
    assert await page.locator("main img, dialog img, main script, dialog script").count() == 0
    assert await page.locator('[href^="javascript"]').count() == 0


async def test_who_may_only_create_sees_its_own_sessions_and_no_replicas(
    shared_pair: Pair, page: Page
) -> None:
    own, foreign = fresh_id(), fresh_id()
    async with (
        Client(shared_pair.a.url, token=CREATOR) as creator,
        Client(shared_pair.a.url, token=TOKEN) as admin,
    ):
        await creator.create(target="127.0.0.1:9", id=own, visibility="private")
        await admin.create(target="127.0.0.1:9", id=foreign)
        await signed_in(page, shared_pair.b.url, CREATOR)
        await expect(rows(page)).to_have_count(1)
        await expect(rows(page)).to_contain_text(own)
        await expect(page.locator("#replicas")).to_contain_text("scope admin")
        # A private preview opens by a signed link, in a tab that knows nothing of this one.
        async with page.context.expect_page() as opened, page.expect_response("**/links"):
            await rows(page).get_by_role("link").click()
        assert await (await opened.value).evaluate("opener") is None
        for client, name in ((creator, own), (admin, foreign)):
            await client.delete(name)


async def test_a_gateway_that_does_not_answer_is_told_and_found_again(
    shared_pair: Pair, page: Page
) -> None:
    name = fresh_id()
    async with Client(shared_pair.a.url, token=TOKEN) as client:
        await client.create(target="127.0.0.1:9", id=name)
        await signed_in(page, shared_pair.a.url)
        await expect(rows(page).filter(has_text=name)).to_be_visible()
        problem = {"code": "registry_unavailable", "detail": "the registry did not answer"}

        async def refuse(route: Route) -> None:
            await route.fulfill(status=503, body=json.dumps(problem))

        await page.route("**/api/v1/**", refuse)
        await expect(page.locator("#notice")).to_contain_text("the registry did not answer")
        await expect(page.locator("#pulse")).to_have_text("no answer")
        await expect(rows(page).filter(has_text=name)).to_be_visible()
        await page.unroute("**/api/v1/**")
        await page.route("**/api/v1/**", lambda route: route.abort())
        await expect(page.locator("#notice")).to_contain_text("no gateway answers")
        await page.unroute("**/api/v1/**")
        await expect(page.locator("#pulse")).to_have_text("live")
        await expect(page.locator("#notice")).to_be_hidden()
        await client.delete(name)


@pytest.mark.parametrize(("width", "height"), [(320, 640), (1280, 800)])
async def test_fifty_sessions_fit_the_window(
    shared_pair: Pair, page: Page, width: int, height: int
) -> None:
    session = {
        "owner": "gateway-7c9f6d5b8-x2k4p-of-a-long-name",
        "state": "ready",
        "reason": "",
        "createdAt": "2026-11-21T10:00:00.000Z",
        "previewUrl": "http://127.0.0.1/preview/x/",
        "visibility": "public",
        "metadata": {"branch": "feature/" + "very-long-" * 30},
    }
    sessions = [
        {**session, "id": f"a-session-id-of-forty-characters-long-{n:02}"} for n in range(50)
    ]

    async def many(route: Route) -> None:
        await route.fulfill(json={"sessions": sessions, "cursor": ""})

    await page.set_viewport_size({"width": width, "height": height})
    await page.route("**/api/v1/sessions?*", many)
    await signed_in(page, shared_pair.a.url)
    await expect(rows(page)).to_have_count(50)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = await rows(page).first.get_by_role("button").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= width


async def test_the_page_is_at_the_gateways_own_address_only(shared_pair: Pair) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        async with http.get(f"{shared_pair.a.url}/") as response:
            assert response.status == 200
            assert "Preview gateway" in await response.text()
        for path in ("/", "/dashboard/app.js"):
            preview = {"Host": f"{fresh_id()}.{DOMAIN}"}
            async with http.get(f"{shared_pair.a.url}{path}", headers=preview) as response:
                assert response.status == 404
        for path in ("/api/v1/sessions", "/api/v1/replicas", "/dashboard", "/dashboard/x/../../"):
            async with http.get(f"{shared_pair.a.url}{path}") as response:
                assert response.status in (401, 200), path
                assert ("sessions" not in await response.text()) or response.status == 200
