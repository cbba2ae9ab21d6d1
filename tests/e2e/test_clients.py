"""Both clients against real replicas: every call, and streams that outlive a replica.

The JavaScript client runs in Node.js and in a page of another origin in a real browser.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Page, async_playwright

from gateway.client import ApiError, Client, PreviewEnded, decoded_file
from tests.e2e.calls import fresh_id
from tests.e2e.conftest import BROWSER_FLAGS, ROOT, run_store
from tests.e2e.fleet import STATIC, Fleet, run_fleet
from tests.e2e.service import Service

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.node,
    pytest.mark.timeout(120),
]

TOKEN: Final = secrets.token_hex(24)
JS: Final = Path(__file__).parent / "js"
PAGE: Final = b"<!doctype html><title>a builder</title>"
#: Takes events of a stream, as the clients give them.
Report: TypeAlias = Callable[[dict[str, Any]], None]
#: Follows a session's stream at an address, from its beginning to its end.
Follow: TypeAlias = Callable[[str, str, Report], Coroutine[Any, Any, None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def builder() -> AsyncIterator[str]:
    """The origin of another site: an empty page, and the modules that it uses."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=PAGE, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_static("/client", ROOT / "clients" / "js")
    app.router.add_static("/js", JS)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("")).rstrip("/")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(data_dir: Path, builder: str) -> AsyncIterator[Fleet]:
    """Replicas A, B and C, whose API pages of the builder may call."""
    settings = {
        "GATEWAY_API_TOKENS": TOKEN,
        "GATEWAY_CORS_ORIGINS": builder,
        "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
        "GATEWAY_STATUS_WAIT_SECONDS": "2",
    }
    async with (
        run_store() as store,
        aiohttp.ClientSession() as http,
        run_fleet(http, data_dir, {"GATEWAY_REDIS_URL": store.url, **settings}, count=3) as fleet,
    ):
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def foreign_page(chromium: str, builder: str) -> AsyncIterator[Page]:
    """The builder's page."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        page = await browser.new_page()
        await page.goto(f"{builder}/")
        yield page
        await browser.close()


async def in_page(page: Page, scenario: str, options: dict[str, Any], report: Report) -> None:
    """Run a scenario in the page."""
    name = f"report_{secrets.token_hex(4)}"
    await page.expose_function(name, report)
    await page.evaluate(
        """async ([scenario, options, report]) => {
            const client = await import("/client/index.js");
            const scenarios = await import("/js/scenarios.js");
            await scenarios[scenario]({...client, ...options, report: window[report]});
        }""",
        [scenario, options, name],
    )


async def in_node(node: str, scenario: str, options: dict[str, Any], report: Report) -> None:
    """Run a scenario in Node.js."""
    process = await asyncio.create_subprocess_exec(
        *(node, str(JS / "node.mjs"), scenario, json.dumps(options)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async for line in process.stdout:
            report(json.loads(line))
        wrong = (await process.stderr.read()).decode()
        assert await process.wait() == 0, wrong
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def calls_of(fleet: Fleet) -> dict[str, Any]:
    """What the scenario of every call needs."""
    a, b, _ = fleet.replicas
    return {"a": a.url, "b": b.url, "token": TOKEN, "project": STATIC, "id": fresh_id()}


def none_expected(event: dict[str, Any]) -> None:
    raise AssertionError(event)


async def test_every_call_works_from_node(fleet: Fleet, node: str) -> None:
    async with asyncio.timeout(60):
        await in_node(node, "everyCall", calls_of(fleet), none_expected)


@pytest.mark.browser
async def test_every_call_works_from_a_page_of_a_configured_origin(
    fleet: Fleet, foreign_page: Page
) -> None:
    async with asyncio.timeout(60):
        await in_page(foreign_page, "everyCall", calls_of(fleet), none_expected)


@asynccontextmanager
async def python_pair(fleet: Fleet) -> AsyncIterator[tuple[Client, Client]]:
    """The Python client of A, and that of B."""
    a, b, _ = fleet.replicas
    async with Client(a.url, token=TOKEN) as one, Client(b.url, token=lambda: TOKEN) as two:
        yield one, two


async def refusal(answer: Awaitable[Any]) -> str:
    """The code with which a call is refused."""
    with pytest.raises(ApiError) as refused:
        await answer
    return refused.value.problem_code


async def test_sessions_and_events_from_python(fleet: Fleet) -> None:
    session_id = fresh_id()
    async with asyncio.timeout(60), python_pair(fleet) as (one, two):
        assert await one.alive()
        assert len(await two.replicas()) == 3
        # Read and written to before it is there.
        early = asyncio.create_task(two.session(session_id), name="early read")
        posting = asyncio.create_task(two.post_event(session_id, "early", [1], t=1.5), name="post")
        created = await one.create(
            {"server.cjs": STATIC["files"][0]["content"].encode()},
            id=session_id,
            command=STATIC["command"],
            metadata={"mark": session_id, "n": 1},
            wait=True,
        )
        assert created["state"] == "ready"
        assert (await early)["id"] == session_id
        assert not (await posting)["late"]
        patched = await two.patch(session_id, metadata={"n": None, "x": {"y": 2}})
        assert patched["metadata"] == {"mark": session_id, "x": {"y": 2}}
        (listed,) = await one.sessions(metadata={"mark": session_id}, state="ready")
        assert listed["id"] == session_id
        assert isinstance(await two.logs(session_id, tail=5), str)
        assert "/events?token=ticket-" in (await two.ticket(session_id))["url"]
        assert not (await one.stop(session_id))["alreadyStopped"]
        assert (await two.stop(session_id))["alreadyStopped"]
        assert (await two.wait(session_id, until="ended"))["state"] == "stopped"
        with pytest.raises(PreviewEnded):
            await two.wait(session_id)
        assert await refusal(one.patch(session_id, ttl_seconds=5)) == "session_ended"
        async with aclosing(two.events(session_id)) as events:
            found = [event async for event in events]
        assert [e.data["data"] for e in found if e.data.get("source") == "client"] == [[1]]
        await one.delete(session_id)
        await two.delete(session_id)
        assert await refusal(two.session("no-such-id-1")) == "session_not_found"


async def test_files_and_access_from_python(fleet: Fleet) -> None:
    async with asyncio.timeout(60), python_pair(fleet) as (one, two):
        session = await one.create(
            {"a": b"a", "b": b"\xff\x00"}, command="sleep 1000", visibility="private"
        )
        name = session["id"]
        files = await two.files(name)
        assert {file["path"]: decoded_file(file) for file in files["files"]} == {
            "a": b"a",
            "b": b"\xff\x00",
        }
        edited = await two.edit(name, write={"c": b"c"}, delete=["a"], base_revision=1)
        assert await refusal(one.edit(name, write={"d": b""}, base_revision=1)) == (
            "revision_conflict"
        )
        revision, packed = await one.archive(name)
        assert revision == edited["revision"]
        await two.replace_files(name, {"only": b"this"})
        await one.edit(name, archive=packed, delete=["only"])
        assert [file["path"] for file in (await two.files(name))["files"]] == ["b", "c"]
        key = secrets.token_hex(8)
        copies = [
            await client.create(archive=packed, command="sleep 1", idempotency_key=key)
            for client in (one, two)
        ]
        assert copies[0]["id"] == copies[1]["id"]
        assert ".preview/open?token=" in (await two.create_link(name, ttl_seconds=60))["url"]
        token = (await one.create_token(name))["token"]
        async with Client(fleet.replicas[1].url, token=token) as reader:
            assert (await reader.session(name))["visibility"] == "private"
            assert await refusal(reader.stop(name)) == "forbidden"
            await two.revoke_links(name)
            assert await refusal(reader.session(name)) == "unauthorized"
        await asyncio.gather(*(one.delete(session_id) for session_id in (name, copies[0]["id"])))


# -- a stream outlives its replica -----------------------------------------------------------------


async def followed_by_python(url: str, session_id: str, report: Report) -> None:
    async with (
        Client(url, token=TOKEN) as client,
        aclosing(client.events(session_id)) as events,
    ):
        async for event in events:
            report(asdict(event))


async def resumed(fleet: Fleet, follow: Follow) -> None:
    """Create on A, follow on B, kill B under the stream, go on at C: nothing missing or twice."""
    a, b, c = fleet.replicas
    events: list[dict[str, Any]] = []
    news = asyncio.Event()

    def report(event: dict[str, Any]) -> None:
        events.append(event)
        news.set()

    def numbers() -> list[int]:
        return [e["data"]["data"] for e in events if e["data"].get("source") == "client"]

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while len(numbers()) < count:
                news.clear()
                await news.wait()

    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(Service(b.url))
        client = await stack.enter_async_context(Client(a.url, token=TOKEN))
        name = (await client.create(target="127.0.0.1:9"))["id"]
        following = asyncio.create_task(follow(service.url, name, report), name="follower")
        stack.callback(following.cancel)
        for number in range(20):
            await client.post_event(name, "n", number)
        await until(10)
        b.kill(signal.SIGKILL)
        for number in range(20, 40):
            await client.post_event(name, "n", number)
        async with asyncio.timeout(30):
            await service.failed.wait()
        service.target = c.url
        await until(40)
        for number in range(40, 60):
            await client.post_event(name, "n", number)
        await client.stop(name)
        async with asyncio.timeout(30):
            await following
    await b.exited()
    await b.start()
    assert numbers() == list(range(60))
    assert events[-1]["type"] == "end"
    assert len({event["id"] for event in events}) == len(events)


async def test_a_stream_of_the_python_client_outlives_its_replica(fleet: Fleet) -> None:
    await resumed(fleet, followed_by_python)


async def test_a_stream_in_node_outlives_its_replica(fleet: Fleet, node: str) -> None:
    async def follow(url: str, session_id: str, report: Report) -> None:
        options = {"url": url, "token": TOKEN, "id": session_id}
        await in_node(node, "follow", options, report)

    await resumed(fleet, follow)


@pytest.mark.browser
async def test_a_stream_in_a_page_outlives_its_replica(fleet: Fleet, foreign_page: Page) -> None:
    async def follow(url: str, session_id: str, report: Report) -> None:
        options = {"url": url, "token": TOKEN, "id": session_id}
        await in_page(foreign_page, "follow", options, report)

    await resumed(fleet, follow)


@pytest.mark.browser
async def test_an_event_source_listens_with_a_ticket_of_another_replica_once(
    fleet: Fleet, foreign_page: Page
) -> None:
    a, b, _ = fleet.replicas
    async with asyncio.timeout(30), Client(a.url, token=TOKEN) as client:
        name = (await client.create(target="127.0.0.1:9"))["id"]
        await client.post_event(name, "hello", "ä")
        await client.stop(name)
        heard = await foreign_page.evaluate(
            """async ([a, b, token, id]) => {
                const { Client } = await import("/client/index.js");
                const { url } = await new Client(a, { token }).ticket(id);
                const source = new EventSource(url.replace(a, b));
                const heard = [];
                source.addEventListener("event", ({ data }) => heard.push(JSON.parse(data).data));
                await new Promise((resolve) => source.addEventListener("end", resolve));
                source.close();
                const again = new EventSource(url.replace(a, b));
                await new Promise((resolve) => again.addEventListener("error", resolve));
                return [heard, again.readyState === EventSource.CLOSED];
            }""",
            [a.url, b.url, TOKEN, name],
        )
    assert heard == [["ä"], True]
