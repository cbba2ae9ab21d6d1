"""Several replicas behind something that works like a Kubernetes Service, and clients of it."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from tests.e2e.replicas import Api, ReplicaProcess

#: Says which generation of which session it is, to every request, and keeps saying it to ``/tick``;
#: a field says which process that is. A POST takes its time, and nobody may send it twice.
SERVER: Final = """
const http = require('http'), who = process.env.PREVIEW_SESSION;
http.createServer((request, response) => {
  response.setHeader('x-process', process.pid);
  if (request.method === 'POST') return setTimeout(() => response.end(who), 300);
  if (!request.url.endsWith('/tick')) return response.end(who);
  setInterval(() => response.write(who + '\\n'), 50);
}).listen(process.env.PORT, process.env.HOST);
"""
STATIC: Final[dict[str, Any]] = {
    "files": [{"path": "server.cjs", "content": SERVER}],
    "command": ["node", "server.cjs"],
}
_MARK: Final = b"PREVIEW_SESSION="
_READINESS_SECONDS: Final = 0.2
#: Between two requests of one client: what is tested is what they get, not how many there are.
_THINK_SECONDS: Final = 0.01
_LOOK_SECONDS: Final = 0.1
#: How long another replica may route by what it was told before.
_PUSH_SECONDS: Final = 0.5


def dev_servers(session_id: str) -> dict[str, psutil.Process]:
    """The living processes that carry the session's mark, by ``<id>.<generation>``."""
    return {mark: process for mark, process in marked() if mark.partition(".")[0] == session_id}


def marked() -> Iterator[tuple[str, psutil.Process]]:
    """Every living process of a session, with its mark."""
    for number in filter(str.isdecimal, os.listdir("/proc")):
        # Asked ten times a second: psutil takes a tenth of a processor for that.
        with suppress(OSError, psutil.NoSuchProcess):
            environ = Path("/proc", number, "environ").read_bytes().split(b"\0")
            for variable in environ:
                if variable.startswith(_MARK):
                    process = psutil.Process(int(number))
                    if process.status() != psutil.STATUS_ZOMBIE:
                        yield variable[len(_MARK) :].decode(), process


def process_groups() -> dict[str, set[tuple[str, int]]]:
    """What runs of each session: (mark, process group), of which each dev server is one."""
    found: dict[str, set[tuple[str, int]]] = {}
    for mark, process in marked():
        with suppress(ProcessLookupError):
            found.setdefault(mark.partition(".")[0], set()).add((mark, os.getpgid(process.pid)))
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
        found = process_groups()
        return all(len(found.get(session, ())) == 1 for session in sessions)

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

    async def begin(self, count: int) -> None:
        """So many replicas, which start beside each other."""
        await asyncio.gather(*(self.add() for _ in range(count)))

    async def add(self, **settings: str) -> ReplicaProcess:
        """One more replica, ready, with further settings of its own."""
        host = f"127.0.0.{len(self.replicas) + 2}"
        environ = {**self._settings, **settings}
        replica = ReplicaProcess(host=host, data_dir=self._data_dir, environ=environ)
        self.replicas.append(replica)
        await self._stack.enter_async_context(replica)
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

    async def clear(self) -> None:
        """End all sessions, for the next test."""
        api = self.api(self.ready[0])
        _, listed = await api.call("GET", "/api/v1/sessions?limit=500")
        names = [session["id"] for session in listed["sessions"]]
        await asyncio.gather(*(api.call("DELETE", f"/api/v1/sessions/{name}") for name in names))

    async def close(self) -> None:
        """Stop every replica."""
        running = [replica for replica in self.replicas if replica.is_running]
        await asyncio.gather(*(replica.stop() for replica in running), return_exceptions=True)
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
        await fleet.begin(count)
        yield fleet
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await fleet.close()


@dataclass
class Load:
    """Clients that ask for previews over and over; what went wrong, and what they saw."""

    fleet: Fleet
    sessions: list[str]
    width: int = 6
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0
    #: Per session: (when it was first seen, generation), ascending.
    seen: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    #: Per mark: the processes that have answered under it.
    processes: dict[str, set[str]] = field(default_factory=dict)
    #: Answers of a generation when a newer one had been seen before.
    outdated: int = 0

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
            await asyncio.sleep(_THINK_SECONDS)

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
                process = response.headers.get("x-process", "")
        except aiohttp.ClientError as exc:
            problem = repr(exc)
        took = time.monotonic() - began
        self.longest_seconds = max(self.longest_seconds, took)
        if not problem:
            name, _, generation = text.partition(".")
            self.processes.setdefault(text, set()).add(process)
            if name != session_id or int(generation) < oldest:
                self.outdated += 1
                problem = f"{text} answered for {session_id}, {oldest} was seen before"
            elif all(number != int(generation) for _, number in self.seen.get(name, ())):
                self.seen.setdefault(name, []).append((time.monotonic(), int(generation)))
        if problem:
            self.failures.append(f"{method} {replica.host} after {took:.2f} s: {problem}")
