"""Two replicas on one real Valkey, and a browser."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.conftest import find_valkey
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
    """One data directory for all tests, so that dependencies are installed once."""
    folder = Path(tempfile.mkdtemp(prefix="pgw-e2e-"))
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


@pytest.fixture
def environ() -> dict[str, str]:
    """Further settings of the replicas; a test module overrides this fixture."""
    return {}


@pytest.fixture
async def pair(
    store: Store, data_dir: Path, http: aiohttp.ClientSession, environ: dict[str, str]
) -> AsyncIterator[Pair]:
    """Two replicas that share nothing but the registry (and, to be quick, a disk)."""
    settings = {"GATEWAY_REDIS_URL": store.url, **environ}
    a = ReplicaProcess(host="127.0.0.2", data_dir=data_dir, environ=settings)
    b = ReplicaProcess(host="127.0.0.3", data_dir=data_dir, environ=settings)
    async with a, b:
        yield Pair(Api(http, a), Api(http, b))


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
