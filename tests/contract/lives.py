"""Life cycles of several replicas in one process: a real registry, spawners that do as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.errors import RegistryUnavailable, SpawnFailed
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Replica
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Endpoint, Hmr, Session, SessionId, State
from gateway.settings import Settings
from gateway.spawner.base import DevServer, Found, Job, Reports, Running
from tests.contract.conftest import ID, Opener, Server

FAST = {"lease_seconds": 1.0, "stop_grace_seconds": 0.1}


class ScriptedSpawner:
    """Starts nothing; each start waits for ``go`` and ends as the test says."""

    def __init__(self, *, outlasting: bool = False) -> None:
        self.outlasting = outlasting
        self.adopted: list[Running] = []
        self.strays: list[Running] = []
        self.released: list[tuple[SessionId, int]] = []
        self.started: list[Job] = []
        self.stopped: list[tuple[SessionId, int | None]] = []
        self.read_paths: list[str] = []
        self.written: list[tuple[dict[str, bytes], list[str]]] = []
        self.running: dict[SessionId, int] = {}
        self.reports: dict[SessionId, Reports] = {}
        self.go = asyncio.Event()
        self.go.set()
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.failure: SpawnFailed | None = None
        self.news = asyncio.Event()

    async def open(self) -> None:
        return None

    async def tidy(self, *, grace_seconds: float) -> None:
        return None

    def seen(self, *, seconds: float) -> Collection[Running]:
        return list(self.strays)

    async def close(self) -> None:
        self.running.clear()

    async def start(self, job: Job, reports: Reports) -> DevServer:
        self.started.append(job)
        self.news.set()
        reports.phase("starting", "scripted")
        reports.log(["one", "two"])
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        self.running[job.session_id] = job.generation
        self.reports[job.session_id] = reports
        return DevServer(Endpoint("127.0.0.1", 4000 + len(self.started)), Hmr("", "vite-hmr"))

    async def adopt(self, running: Running, reports: Reports) -> Found:
        self.adopted.append(running)
        self.news.set()
        if self.failure is not None:
            raise self.failure
        self.running[running.session_id] = running.generation
        self.reports[running.session_id] = reports
        return Found(1, {})

    async def release(self, session_id: SessionId, *, generation: int) -> None:
        self.released.append((session_id, generation))
        self.running.pop(session_id, None)
        self.news.set()

    async def write(
        self,
        session_id: SessionId,
        *,
        write: Mapping[str, bytes],
        delete: Sequence[str] = (),
        revision: int = 0,
    ) -> None:
        self.written.append((dict(write), list(delete)))
        self.news.set()

    async def read(self, session_id: SessionId, paths: Collection[str]) -> dict[str, bytes]:
        self.read_paths += paths
        return dict.fromkeys(paths, b"from the workspace")

    async def stop(self, session_id: SessionId, *, generation: int | None = None) -> None:
        self.stopped.append((session_id, generation))
        self.news.set()
        await self.may_stop.wait()
        if generation in (None, self.running.get(session_id)):
            self.running.pop(session_id, None)
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what the life cycle asked for fulfils a condition."""
        async with asyncio.timeout(10):
            while not condition():
                self.news.clear()
                await self.news.wait()


class Replicated:
    """One replica's life cycle, with its registry and its spawner."""

    def __init__(
        self, name: str, registry: RedisRegistry, settings: Settings, *, outlasting: bool
    ) -> None:
        self.registry = registry
        self.spawner = ScriptedSpawner(outlasting=outlasting)
        self.life = Lifecycle(settings, registry, self.spawner, Replica(name, "1"))

    async def state(self, state: State, session_id: SessionId = ID) -> Session:
        """The session once it is in ``state``, with patience for a registry that is late.

        Some tests give it a fifth of a second, which a busy machine may take to connect.
        """
        async with asyncio.timeout(20):
            while True:
                try:
                    session = await self.life.wait(
                        session_id, lambda s: s.state is state, seconds=10
                    )
                except RegistryUnavailable:
                    await asyncio.sleep(0.05)
                    continue
                assert session.state is state
                return session


Start = Callable[..., Awaitable[Replicated]]


@asynccontextmanager
async def lives(server: Server, connect: Opener) -> AsyncIterator[Start]:
    """Starts replicas' life cycles and closes them in the end."""
    opened: list[Lifecycle] = []

    async def start(
        name: str, *, outlasting: bool = False, url: str = "", **changes: Any
    ) -> Replicated:
        settings = Settings(**{**FAST, **changes})
        registry = await connect(url or server.url, **{**FAST, **changes})
        replica = Replicated(name, registry, settings, outlasting=outlasting)
        opened.append(replica.life)
        await replica.life.open()
        return replica

    yield start
    for life in opened:
        await life.close()
