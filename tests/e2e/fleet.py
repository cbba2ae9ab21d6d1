"""Several replicas behind something that works like a Kubernetes Service, and clients of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from tests.e2e.replicas import Api, ReplicaProcess

#: Says which generation of which session it is, to every request, and keeps saying it to ``/tick``.
#: A POST takes its time, and nobody may send it twice.
SERVER: Final = """
const http = require('http'), who = process.env.PREVIEW_SESSION;
http.createServer((request, response) => {
  if (request.method === 'POST') return setTimeout(() => response.end(who), 300);
  if (!request.url.endsWith('/tick')) return response.end(who);
  setInterval(() => response.write(who + '\\n'), 50);
}).listen(process.env.PORT, process.env.HOST);
"""
STATIC: Final[dict[str, Any]] = {
    "files": [{"path": "server.cjs", "content": SERVER}],
    "command": ["node", "server.cjs"],
}
_READINESS_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 0.1
#: How long another replica may route by what it was told before.
_PUSH_SECONDS: Final = 0.5


def dev_servers(session_id: str) -> dict[str, psutil.Process]:
    """The living processes that carry the session's mark, by ``<id>.<generation>``."""
    found = {}
    for process in psutil.process_iter():
        try:
            mark = process.environ().get("PREVIEW_SESSION", "")
            if mark.partition(".")[0] == session_id and process.status() != "zombie":
                found[mark] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float) -> None:
    """Wait for something that only looking tells: another process's state."""
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(_LOOK_SECONDS)


async def until_one_runs(sessions: Sequence[str], *, seconds: float) -> None:
    """Wait until each session has exactly one dev server: nothing is left of former ones."""

    async def one_each() -> bool:
        return all(len(dev_servers(session)) == 1 for session in sessions)

    await until(one_each, seconds=seconds)


class Fleet:
    """Replicas on addresses of their own, with one registry."""

    def __init__(
        self, http: aiohttp.ClientSession, data_dir: Path, settings: Mapping[str, str]
    ) -> None:
        self.http = http
        self._data_dir = data_dir
        self._settings = settings
        self._stack = AsyncExitStack()
        self.replicas: list[ReplicaProcess] = []
        #: What the Service sends new requests to.
        self.ready: list[ReplicaProcess] = []

    async def add(self) -> ReplicaProcess:
        """One more replica, ready."""
        host = f"127.0.0.{len(self.replicas) + 2}"
        replica = ReplicaProcess(host=host, data_dir=self._data_dir, environ=self._settings)
        await self._stack.enter_async_context(replica)
        self.replicas.append(replica)
        self.ready.append(replica)
        return replica

    async def watch(self) -> None:
        """Take replicas out of the Service once they are not ready, as a kubelet does."""
        while True:
            for replica in tuple(self.ready):
                if not await self._is_ready(replica):
                    self.ready.remove(replica)
            await asyncio.sleep(_READINESS_SECONDS)

    async def _is_ready(self, replica: ReplicaProcess) -> bool:
        try:
            async with self.http.get(f"{replica.url}/readyz", timeout=_SHORT) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def api(self, replica: ReplicaProcess) -> Api:
        """The API of one replica."""
        return Api(self.http, replica)

    async def close(self) -> None:
        """Stop every replica."""
        await self._stack.aclose()


_SHORT: Final = aiohttp.ClientTimeout(total=1.0)


@asynccontextmanager
async def run_fleet(
    http: aiohttp.ClientSession, data_dir: Path, settings: Mapping[str, str], *, count: int
) -> AsyncIterator[Fleet]:
    """``count`` replicas behind a Service."""
    fleet = Fleet(http, data_dir, settings)
    watching = asyncio.create_task(fleet.watch(), name="readiness")
    try:
        for _ in range(count):
            await fleet.add()
        yield fleet
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await fleet.close()


@dataclass
class Load:
    """Clients that ask for previews without a pause; what went wrong, and what they saw."""

    fleet: Fleet
    sessions: list[str]
    width: int = 6
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0
    #: Per session: (when it was first seen, generation), ascending.
    seen: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Ask for the time of the context."""
        stop = asyncio.Event()
        clients = [asyncio.create_task(self._ask_on(stop)) for _ in range(self.width)]
        try:
            yield self
        finally:
            stop.set()
            async with asyncio.timeout(60):
                await asyncio.gather(*clients)

    async def _ask_on(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.ask(random.choice(self.sessions))  # noqa: S311 - load

    async def ask(self, session_id: str) -> None:
        """One request, through whichever replica the Service chooses."""
        replica = random.choice(self.fleet.ready)  # noqa: S311 - load
        began = time.monotonic()
        oldest = max(
            (number for at, number in self.seen.get(session_id, ()) if at < began - _PUSH_SECONDS),
            default=0,
        )
        self.asked += 1
        method = "POST" if self.asked % 5 == 0 else "GET"
        url = f"{replica.url}/preview/{session_id}/"
        try:
            async with self.fleet.http.request(method, url) as response:
                text = await response.text()
                problem = "" if response.status == 200 else f"{response.status} {text[:200]}"
        except aiohttp.ClientError as exc:
            problem = repr(exc)
        took = time.monotonic() - began
        self.longest_seconds = max(self.longest_seconds, took)
        if not problem:
            name, _, generation = text.partition(".")
            if name != session_id or int(generation) < oldest:
                problem = f"{text} answered for {session_id}, {oldest} was seen before"
            elif all(number != int(generation) for _, number in self.seen.get(name, ())):
                self.seen.setdefault(name, []).append((time.monotonic(), int(generation)))
        if problem:
            self.failures.append(f"{method} {replica.host} after {took:.2f} s: {problem}")
