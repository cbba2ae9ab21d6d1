"""Two replicas on one real Valkey, and a browser."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page, async_playwright

from tests.conftest import DEPENDENCIES, find_valkey
from tests.e2e.replicas import Api, ReplicaProcess

ROOT: Final = Path(__file__).resolve().parents[2]
#: Quiet, and without the background traffic that a browser makes by itself.
BROWSER_FLAGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    """One data directory for all tests; dependencies are installed once for all workers."""
    folder = Path(tempfile.mkdtemp(prefix="pgw-e2e-"))
    (folder / "dependencies").symlink_to(os.environ[DEPENDENCIES])
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty folder whose path is short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="pgw-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Store:
    """A real Valkey of the test's own."""

    url: str
    socket: Path
    process: asyncio.subprocess.Process


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    """A Valkey of one test."""
    async with run_store() as store:
        yield store


@asynccontextmanager
async def run_store() -> AsyncIterator[Store]:
    """A Valkey that listens on a Unix socket only."""
    folder = Path(tempfile.mkdtemp(prefix="pgw-store-"))
    socket = folder / "valkey.sock"
    process = await asyncio.create_subprocess_exec(
        find_valkey(),
        *("--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        await _connectable(socket)
        yield Store(f"unix://{socket}", socket, process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        shutil.rmtree(folder, ignore_errors=True)


async def _connectable(socket: Path) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(str(socket))
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.01)
                continue
            writer.close()
            await writer.wait_closed()
            return


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without limits of its own."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@dataclass
class Pair:
    """Replica A and replica B."""

    a: Api
    b: Api
    store: Store


@pytest.fixture
def environ() -> dict[str, str]:
    """Further settings of the replicas; a test module overrides this fixture."""
    return {}


@pytest.fixture
async def pair(
    store: Store, data_dir: Path, http: aiohttp.ClientSession, environ: dict[str, str]
) -> AsyncIterator[Pair]:
    """Two replicas of one test."""
    async with run_pair(store, data_dir, http, environ) as pair:
        yield pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_pair(request: pytest.FixtureRequest, data_dir: Path) -> AsyncIterator[Pair]:
    """Two replicas for a whole module, with the settings in its ENVIRON.

    Its tests run in one event loop: ``pytestmark = pytest.mark.asyncio(loop_scope="module")``.
    Whatever they do, the replicas may not log an error.
    """
    environ: dict[str, str] = getattr(request.module, "ENVIRON", {})
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        run_store() as store,
        aiohttp.ClientSession(connector=connector) as http,
        run_pair(store, data_dir, http, environ) as pair,
    ):
        yield pair
    for api in (pair.a, pair.b):
        wrong = [line for line in api.replica.lines if "Traceback" in line or '"error"' in line]
        assert not wrong, wrong


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_echo() -> AsyncIterator[str]:
    """``host:port`` of a server that answers with what it was asked, for a whole module."""

    async def answer(request: web.Request) -> web.Response:
        body = (await request.read()).decode()
        headers = {name.lower(): value for name, value in request.headers.items()}
        return web.json_response(
            {"method": request.method, "path": request.raw_path, "headers": headers, "body": body}
        )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        yield f"127.0.0.1:{server.port}"


@asynccontextmanager
async def run_pair(
    store: Store, data_dir: Path, http: aiohttp.ClientSession, environ: dict[str, str]
) -> AsyncIterator[Pair]:
    """Two replicas that share nothing but the registry (and, to be quick, a disk)."""
    settings = {"GATEWAY_REDIS_URL": store.url, **environ}
    a = ReplicaProcess(host="127.0.0.2", data_dir=data_dir, environ=settings)
    b = ReplicaProcess(host="127.0.0.3", data_dir=data_dir, environ=settings)
    async with a, b:
        yield Pair(Api(http, a), Api(http, b), store)


@pytest.fixture(scope="session")
def browser_path(chromium: str) -> str:
    """The browser's path."""
    return chromium


@pytest.fixture
async def browser(browser_path: str) -> AsyncIterator[Browser]:
    """A real Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=browser_path, args=BROWSER_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page whose uncaught errors fail the test."""
    context = await browser.new_context()
    page = await context.new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    await context.close()
    assert not errors, errors
