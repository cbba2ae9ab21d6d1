"""The dashboard as it is served: closed to all but its own scripts, and complete in itself."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.api.dashboard import Dashboard

ROOT: Final = Path(__file__).resolve().parents[2]
STATIC: Final = ROOT / "gateway" / "api" / "dashboard" / "static"
CLIENT: Final = ROOT / "clients" / "js"
PARTS: Final = sorted(
    path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.*") if path.suffix != ".html"
)
#: Ways to make markup or code of text.
SINKS: Final = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|new Function|"
    r"document\.cookie"
)


@pytest.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    app = web.Application()
    app.add_routes(Dashboard().routes())
    async with TestClient(TestServer(app)) as client:
        yield client


class Tags(HTMLParser):
    """Tags with their attributes, and what stands in scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))


async def test_the_policy_allows_the_pages_own_scripts_and_nothing_else(
    client: TestClient[web.Request, web.Application],
) -> None:
    pages = [await client.get("/") for _ in range(2)]
    nonces = []
    for response in pages:
        policy = response.headers["Content-Security-Policy"]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        match = re.fullmatch(r"'nonce-([\w-]{22})'", rules["script-src"])
        assert match is not None
        nonces.append(match[1])
        assert rules == {
            "default-src": "'none'",
            "script-src": f"'nonce-{match[1]}'",
            "style-src": f"'nonce-{match[1]}'",
            "img-src": "'self'",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
            "require-trusted-types-for": "'script'",
            "trusted-types": "'none'",
        }
        assert (await response.text()).count(f'nonce="{match[1]}"') == 2
    assert nonces[0] != nonces[1]
    fields = pages[0].headers
    assert fields["Cache-Control"] == "no-store"
    assert fields["X-Frame-Options"] == "DENY"
    assert fields["Cross-Origin-Opener-Policy"] == "same-origin"
    assert fields["Referrer-Policy"] == "no-referrer"
    assert "Set-Cookie" not in fields


async def test_the_page_has_no_inline_code_and_nothing_from_elsewhere(
    client: TestClient[web.Request, web.Application],
) -> None:
    text = await (await client.get("/")).text()
    assert "$" not in text
    assert not re.search(r"<style|<script[^>]*>[^<]", text)
    for tag, attributes in Tags(text).tags:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in {"src", "href"} & attributes.keys():
            assert attributes[name].startswith("/dashboard/"), tag
            assert (await client.get(attributes[name])).status == 200


@pytest.mark.parametrize("name", PARTS)
async def test_parts_are_served_as_what_they_are_and_make_no_markup_of_text(
    client: TestClient[web.Request, web.Application], name: str
) -> None:
    response = await client.get(f"/dashboard/{name}")
    assert response.status == 200
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    expected = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert response.content_type == expected[name.rpartition(".")[2]]
    text = await response.text()
    assert not SINKS.search(text)
    assert not re.search(r"""(?:from|import|url)\W+(?:https?:)?//""", text)
    for imported in re.findall(r'^import .* from "(.+)";$', text, re.MULTILINE):
        assert imported.startswith("./")


@pytest.mark.parametrize(
    "name",
    ["index.html", "nothing.js", "../__init__.py", "..%2f__init__.py", "client", "/etc/passwd"],
)
async def test_nothing_else_is_served(
    client: TestClient[web.Request, web.Application], name: str
) -> None:
    assert (await client.get(f"/dashboard/{name}")).status == 404


def test_the_page_uses_the_client_that_is_published() -> None:
    """After a change of the client: cp clients/js/*.js gateway/api/dashboard/static/client/."""
    published = {path.name: path.read_bytes() for path in CLIENT.glob("*.js")}
    used = {path.name: path.read_bytes() for path in (STATIC / "client").iterdir()}
    assert used == published
