"""Event streams: what many listeners to one session cost a replica, and how soon all of them know.

One replica with a Valkey as a gateway starts it, 10,000 listeners over real sockets. Run with
``python -m bench.streams [--quick] [--record]``: about two minutes. Results go to
``.bench/streams.json``, with ``--record`` to ``docs/streams.json`` and ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import select
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

from bench.proxy import machine
from bench.proxy.figures import percentile
from bench.proxy.peers import CACHE, ROOT
from bench.proxy.running import Cores
from bench.registry import Measured, Process, Valkey, as_json, markdown, valkey
from gateway.client import Client
from gateway.registry.keys import events_key
from gateway.registry.node import Node
from gateway.session import SessionId

_BEGIN: Final = "<!-- streams: written by `python -m bench.streams --record` -->"
_END: Final = "<!-- end of streams -->"
SESSION: Final = "listened-to"
#: Descriptors of a replica for one listener, where one process does it all: its connection, and
#: both ends of that to the control plane.
_DESCRIPTORS: Final = 3
_SPARE: Final = 500
_EVENT_BYTES: Final = 8000
#: Streams that are opened in one go; an answer is awaited for a minute.
_AT_ONCE: Final = 500
_WRITE_IDLE_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. ``flood``: events for the listener who does not read."""

    listeners: int
    events: int
    idle_seconds: float
    flood: int


FULL: Final = Effort(listeners=10_000, events=30, idle_seconds=16.0, flood=1000)
QUICK: Final = Effort(listeners=1000, events=20, idle_seconds=15.0, flood=500)


class Replica:
    """A gateway, and what all its processes have used."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._root = psutil.Process(pid)

    def _family(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds."""
        return sum(sum(process.cpu_times()[:2]) for process in self._family())

    def memory(self) -> int:
        """Bytes that are its own."""
        return sum(process.memory_full_info().uss for process in self._family())


def workers_for(listeners: int) -> int:
    """Data-plane processes, so that no process needs more descriptors than it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if _DESCRIPTORS * listeners + _SPARE < hard else 2


@asynccontextmanager
async def replica(server: Valkey, effort: Effort, workers: int) -> AsyncIterator[Replica]:
    """One replica, whose children inherit the highest limit of descriptors."""
    folder = Path(tempfile.mkdtemp(prefix="bench-streams-"))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    most = effort.listeners + 100
    settings = {
        "PORT": 0,
        "DATA_DIR": folder,
        "REDIS_URL": server.url,
        "SPAWNER": "none",
        "REGISTRY_TIMEOUT_SECONDS": 10,  # all cores are shared with the load
        "WORKERS": workers,
        "TARGET_ALLOWLIST": "127.0.0.0/8",
        "MAX_CONNECTIONS": 2 * most,
        "WRITE_IDLE_SECONDS": _WRITE_IDLE_SECONDS,
        "LOG_LEVEL": "warning",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "serve"),
        cwd=ROOT,
        env=environ | {f"GATEWAY_{name}": str(value) for name, value in settings.items()},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            banner = (await process.stdout.readline()).decode()
        yield Replica(banner.split()[-1], process.pid)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def crowd(url: str) -> AsyncIterator[Process]:
    """The listeners' process."""
    parts = urlsplit(url)
    path = f"/api/v1/sessions/{SESSION}/events"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench._listeners", str(parts.hostname), str(parts.port), path),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    try:
        found = Process("listeners", process)
        await found.answer()
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def subscriptions(server: Valkey) -> tuple[int, int]:
    """How often the session's events are subscribed to, and by how many connections of all."""
    node = Node(server.url, None, limit_seconds=5)
    try:
        channel = events_key(SessionId(SESSION))
        (answer,) = await node.ask(("PUBSUB", "NUMSUB", channel), limit_seconds=5)
        (clients,) = await node.ask(("CLIENT", "LIST", "TYPE", "pubsub"), limit_seconds=5)
    finally:
        await node.close()
    return int(answer[1]), len(clients.splitlines())


async def measure_crowd(
    found: Replica, server: Valkey, client: Client, effort: Effort
) -> list[Measured]:
    """Memory, silence, and events that all of them hear."""
    count = effort.listeners
    async with crowd(found.url) as listeners:
        memory, started = found.memory(), time.monotonic()
        opened = 0
        for start in range(0, count, _AT_ONCE):
            opened = await listeners.ask("open", min(_AT_ONCE, count - start))
        assert opened == count, f"{opened} of {count} streams were opened"
        seconds = time.monotonic() - started
        numbering = await listeners.ask("settled")
        per_listener = (found.memory() - memory) / count
        subscribed, connections = await subscriptions(server)
        assert subscribed == 1, f"{subscribed} subscriptions for {count} listeners"

        cpu = found.cpu()
        await asyncio.sleep(effort.idle_seconds)
        idle = (found.cpu() - cpu) / effort.idle_seconds

        cpu, firsts, lasts = found.cpu(), [], []
        for number in range(effort.events):
            posted = time.monotonic()
            await client.post_event(SESSION, "tick", number)
            at = await listeners.ask("until", numbering + number)
            assert not at["lost"], f"{at['lost']} listeners were lost"
            firsts.append((at["first"] - posted) * 1000)
            lasts.append((at["last"] - posted) * 1000)
        cpu = (found.cpu() - cpu) / (effort.events * count)
    return [
        Measured("opened", f"{count:,} streams opened, a second", count / seconds, "1/s"),
        Measured("memory", "memory per listener", per_listener / 1024, "KiB", 64),
        Measured(
            "subscriptions", f"registry subscriptions for {count:,} listeners", subscribed, ""
        ),
        Measured("links", "pub/sub connections of the replica", connections, ""),
        Measured("idle", f"{count:,} silent listeners (heartbeats)", idle * 100, "% of a core"),
        Measured("cpu", "CPU per delivered event", cpu * 1e6, "us"),
        Measured("first-p50", "post to the first listener: p50", percentile(firsts, 50), "ms"),
        Measured("last-p50", f"post to the last of {count:,}: p50", percentile(lasts, 50), "ms"),
        Measured("last-p99", f"post to the last of {count:,}: p99", percentile(lasts, 99), "ms"),
    ]


class SlowListener:
    """Opens a stream with small buffers, reads its beginning, and then nothing more."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self._socket.settimeout(30)
        self._socket.connect((parts.hostname, parts.port))
        head = f"GET /api/v1/sessions/{SESSION}/events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
        self._socket.sendall(head.encode())
        self.text = self._socket.recv(1000)

    def until_dropped(self) -> None:
        """Wait for the end of the connection without reading a byte of it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLHUP | select.POLLERR)
        assert poll.poll(60_000), "it is still connected"

    def read_all(self) -> list[str]:
        """The ids of whole events up to the end of the connection."""
        try:
            while data := self._socket.recv(65536):
                self.text += data
        except ConnectionResetError:
            pass
        self._socket.close()
        blocks = self.text.replace(b"\r\n", b"").split(b"\n\n")[:-1]
        return [
            block.partition(b"id: ")[2].split(b"\n")[0].decode()
            for block in blocks
            if b"id: " in block
        ]


async def measure_slow(found: Replica, client: Client, effort: Effort) -> list[Measured]:
    """A listener who stops to read: what it costs, when it is dropped, what it gets afterwards."""
    slow = await asyncio.to_thread(SlowListener, found.url)
    before, most, posted = found.memory(), 0, []
    text = "x" * _EVENT_BYTES
    started = time.monotonic()
    for number in range(effort.flood):
        posted.append((await client.post_event(SESSION, "flood", text))["id"])
        if number % 50 == 0:
            most = max(most, found.memory() - before)
    await asyncio.to_thread(slow.until_dropped)
    seconds = time.monotonic() - started
    # Its kernel still has what it took before.
    ids = await asyncio.to_thread(slow.read_all)
    missing = posted[posted.index(ids[-1]) + 1 :] if ids[-1] in posted else posted
    assert missing, "it was never slow"
    resumed: list[str] = []
    async with aclosing(client.events(SESSION, after=ids[-1])) as events:
        while len(resumed) < len(missing):
            resumed.append((await anext(events)).id)
    assert resumed == missing, "a gap or a repeat after the listener came back"
    sent = effort.flood * _EVENT_BYTES / 2**20
    return [
        Measured(
            "slow-memory",
            f"memory grown by {sent:.1f} MiB for one who does not read",
            most / 2**20,
            "MiB",
            16,
        ),
        Measured(
            "slow-dropped",
            f"until it is dropped (GATEWAY_WRITE_IDLE_SECONDS={_WRITE_IDLE_SECONDS})",
            seconds,
            "s",
        ),
        Measured("slow-resumed", "events it gets when it resumes, of those it missed", 100, "%"),
    ]


async def run(effort: Effort) -> tuple[list[Measured], int]:
    """Everything on one replica; and its number of workers."""
    workers = workers_for(effort.listeners)
    async with (
        valkey() as server,
        replica(server, effort, workers) as found,
        Client(found.url) as client,
    ):
        await client.create(target="127.0.0.1:9", id=SESSION)
        figures = await measure_crowd(found, server, client, effort)
        figures += await measure_slow(found, client, effort)
    return figures, workers


def record(results: dict[str, Any], docs: Path) -> None:
    """Put the run into the documentation."""
    (docs / "streams.json").write_text(json.dumps(results, indent=1) + "\n")
    page = docs / "performance.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{markdown(results)}\n{_END}{after}")


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it all")
    parser.add_argument("--record", action="store_true", help="write the figures into docs/")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    described = machine.describe(Cores.of_this_machine())
    described.pop("pinned")  # replica, registry and listeners share all cores
    found, workers = asyncio.run(run(QUICK if options.quick else FULL))
    described["replica"] = "one process" if not workers else f"a control process, {workers} workers"
    results = as_json(found, described)
    print(markdown(results))
    CACHE.mkdir(exist_ok=True)
    (CACHE / "streams.json").write_text(json.dumps(results, indent=1) + "\n")
    if options.record:
        record(results, ROOT / "docs")


if __name__ == "__main__":
    main()
