"""Real servers for the registry's contract: Debian's Redis and the Valkey of the wheel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from gateway.registry.base import NewSession, Subscriber
from gateway.registry.keys import PULSE
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Endpoint, Recipe, Route, SessionId
from gateway.settings import Settings
from tests.contract.servers import STORES as ALL_STORES
from tests.contract.servers import Server as Server
from tests.contract.servers import Store, find_server

LIMIT: Final = 2.0
Test = TypeVar("Test", bound=Callable[..., object])


@pytest.fixture(scope="session")
def stores() -> Iterator[Callable[[str], Store]]:
    """Starts each kind of store once, when it is first asked for."""
    started: dict[str, Store] = {}

    def get(kind: str) -> Store:
        if kind not in started:
            started[kind] = ALL_STORES[kind]()
        return started[kind]

    yield get
    for store in started.values():
        store.close()


_EVERYWHERE: Final[set[Callable[..., object]]] = set()


def on_every_store(test: Test) -> Test:
    """Run a test on all kinds of stores there are, whatever its module's list says.

    For those whose outcome may depend on the way to a server, or on where it is.
    """
    _EVERYWHERE.add(test)
    return test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module's tests run on each store in its list STORES, else on one server of each kind.

    SERVERS is the same for those that do more to a server than to ask it.
    """
    everywhere = metafunc.function in _EVERYWHERE
    for fixture, name, most in (
        ("store", "STORES", tuple(ALL_STORES)),
        ("server", "SERVERS", ("redis", "valkey")),
        ("binary", "SERVERS", ("redis", "valkey")),
    ):
        if fixture in metafunc.fixturenames:
            kinds = getattr(metafunc.module, name, ("redis", "valkey"))
            metafunc.parametrize(fixture, most if everywhere else kinds, indirect=True)


@pytest.fixture
async def store(request: pytest.FixtureRequest, stores: Callable[[str], Store]) -> Store:
    """An empty store."""
    store = stores(request.param)
    await store.settled()
    await store.ask("FLUSHALL")
    return store


@pytest.fixture
async def pulse(store: Store) -> AsyncIterator[None]:
    """Heartbeats of others as long as a test runs: whoever has no lease then has lost it."""

    async def beat() -> None:
        while True:
            seconds, microseconds = await store.ask("TIME")
            now_ms = int(seconds) * 1000 + int(microseconds) // 1000
            await store.ask("HSET", PULSE, "at", now_ms, "epoch", 1, "held_until", 0)
            beaten.set()
            await asyncio.sleep(0.1)

    beaten = asyncio.Event()
    task = asyncio.create_task(beat(), name="pulse")
    async with asyncio.timeout(10):
        await beaten.wait()
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def binary(request: pytest.FixtureRequest) -> str:
    """The program of each server in turn."""
    return find_server(request.param)


@pytest.fixture
async def server(stores: Callable[[str], Store], request: pytest.FixtureRequest) -> Server:
    """An empty server, reachable over a Unix socket."""
    server = stores(request.param)
    assert isinstance(server, Server)
    await server.ask("FLUSHALL")
    return server


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
async def registry(store: Store, connect: Opener) -> RedisRegistry:
    """A replica's registry."""
    return await connect(store.url)


@pytest.fixture
async def other(store: Store, connect: Opener) -> RedisRegistry:
    """The registry of another replica."""
    return await connect(store.url)


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
    """Passes bytes between clients and a server, and does to them what networks do.

    Answers are lost, requests arrive long after whoever sent them has gone, or nothing passes.
    """

    def __init__(self, server: Server, name: str = "relay") -> None:
        self._server = server
        self._target = server.socket
        self._path = server.folder / name
        self.url = f"unix://{self._path}"
        self._lose = b""
        self._times = 0
        self.lost = 0
        self._late = b""
        self._released = asyncio.Event()
        #: A request is withheld; the server has answered it, after its release.
        self.withheld, self.delivered = asyncio.Event(), asyncio.Event()
        #: Whatever is said is swallowed, on connections that are open and on new ones.
        self.is_cut = False
        self._tasks: set[asyncio.Task[None]] = set()

    def lose_answer_to(self, part: bytes, *, times: int = 1) -> None:
        """Cut the connection instead of passing the answer to the next requests with ``part``."""
        self._lose, self._times = part, times

    def withhold(self, part: bytes) -> None:
        """Keep the next request with ``part`` until ``release``, whoever waits for an answer."""
        self._late = part
        self._released.clear()
        self.withheld.clear()
        self.delivered.clear()

    def release(self) -> None:
        """Let what was withheld go on to the server."""
        self._late = b""
        self._released.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        """Listen for the time of the context."""
        listener = await asyncio.start_unix_server(self._accepted, str(self._path))
        try:
            yield self
        finally:
            listener.close()
            self.release()
            self.is_cut = False
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
        late = asyncio.Event()

        async def requests() -> None:
            while data := await reader.read(65536):
                if self.is_cut:
                    continue
                if self._times and self._lose in data:
                    self._times -= 1
                    cut.set()
                is_late = bool(self._late) and self._late in data
                if is_late:
                    self._late = b""
                    self.withheld.set()
                    await self._released.wait()
                    late.set()
                up_writer.write(data)
                await up_writer.drain()
                if is_late:
                    await self.delivered.wait()  # its sender may have gone: then this ends

        async def answers() -> None:
            while data := await up_reader.read(65536):
                if self.is_cut:
                    continue
                if late.is_set():
                    self.delivered.set()
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


#: Processes carry it as a mark, and tests that run beside these look for that.
ID: Final = SessionId(f"quick-fox-{os.environ.get('PYTEST_XDIST_WORKER', '1')}")


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
