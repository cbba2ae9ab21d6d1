"""The registry: how fast changes reach all replicas, what one Valkey bears, what a session takes.

Eight replicas, each a process of its own, and one embedded Valkey as a gateway starts it. Then
whole gateways with real dev servers: the example app, its dependencies cached. Run with
``python -m bench.registry [--quick] [--record]``: about two minutes. Results go to
``.bench/registry.json``, with ``--record`` to ``docs/registry.json`` and ``docs/consistency.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from bench import spawn
from bench._replica import LEASE_SECONDS
from bench.proxy import machine
from bench.proxy.figures import percentile, shown
from bench.proxy.peers import CACHE, ROOT
from bench.proxy.running import Cores
from gateway.registry.keys import CHANGES
from gateway.registry.node import Node
from gateway.registry.valkey_process import ValkeyProcess

_BEGIN: Final = "<!-- figures: written by `python -m bench.registry --record` -->"
_END: Final = "<!-- end of figures -->"
#: Beside the replicas: points on the line of bench/scale.py.
_MORE_LISTENERS: Final = (0, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    replicas: int
    changes: int
    sessions: int
    taken_over: int
    wakes: int
    starts: int


FULL: Final = Effort(replicas=8, changes=1000, sessions=10_000, taken_over=100, wakes=50, starts=15)
QUICK: Final = Effort(replicas=8, changes=100, sessions=4000, taken_over=100, wakes=10, starts=3)


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure. ``reach``: what it is to stay below."""

    key: str
    title: str
    value: float
    unit: str
    reach: float | None = None

    @property
    def verdict(self) -> str:
        """Whether it is where it is to be."""
        if self.reach is None:
            return ""
        return "reached" if self.value < self.reach else "missed"


class Process:
    """One replica, seen from here."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    async def ask(self, command: str, *arguments: Any) -> Any:
        """The answer to one command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> Any:
        """The next line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            return json.loads(await self.process.stdout.readline())


@asynccontextmanager
async def replica(name: str, url: str) -> AsyncIterator[Process]:
    """A replica that is linked to the registry."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench._replica", name, url),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    try:
        found = Process(name, process)
        await found.answer()
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Valkey:
    """The server, and what it has used up."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.url = f"unix://{socket}"
        self._node = Node(self.url, None, limit_seconds=5)

    async def _facts(self, section: str) -> dict[bytes, bytes]:
        (text,) = await self._node.ask(("INFO", section), limit_seconds=5)
        return dict(line.split(b":", 1) for line in text.split(b"\r\n") if b":" in line)

    async def memory(self) -> int:
        """Bytes in use."""
        return int((await self._facts("memory"))[b"used_memory"])

    async def cpu(self) -> float:
        """Seconds of all its threads."""
        facts = await self._facts("cpu")
        return float(facts[b"used_cpu_user"]) + float(facts[b"used_cpu_sys"])

    async def close(self) -> None:
        """Let go of the connection."""
        await self._node.close()


@asynccontextmanager
async def valkey() -> AsyncIterator[Valkey]:
    """The embedded server, with the gateway's options: on disk every second."""
    folder = Path(tempfile.mkdtemp(prefix="bench-registry-"))
    process = ValkeyProcess(folder)
    process.start()
    try:
        socket = await process.ready(limit_seconds=10)
        server = Valkey(socket)
        yield server
        await server.close()
    finally:
        await process.stop(limit_seconds=10)
        shutil.rmtree(folder, ignore_errors=True)


def divided(ids: list[str], among: int) -> list[list[str]]:
    """The ids in so many parts."""
    return [ids[n::among] for n in range(among)]


async def measure_load(members: list[Process], server: Valkey, effort: Effort) -> list[Measured]:
    """Registrations, misses, memory."""
    ids = [f"session-{n:08}" for n in range(effort.sessions)]
    parts = list(zip(members, divided(ids, len(members)), strict=True))
    memory, cpu, started = await server.memory(), await server.cpu(), time.monotonic()
    await asyncio.gather(*(member.ask("register", part) for member, part in parts))
    seconds, create_cpu = time.monotonic() - started, await server.cpu() - cpu
    cpu = await server.cpu()
    await asyncio.gather(*(member.ask("settle", part) for member, part in parts))
    move_cpu = await server.cpu() - cpu
    cpu = await server.cpu()
    await asyncio.gather(*(member.ask("touch", part[:500]) for member, part in parts))
    touch_cpu = await server.cpu() - cpu
    touched = sum(len(part[:500]) for _, part in parts)
    per_session = (await server.memory() - memory) / effort.sessions

    async with replica("late", server.url) as late:
        cpu = await server.cpu()
        read = await late.ask("read", ids)
        miss_cpu = await server.cpu() - cpu
    count = effort.sessions
    return [
        Measured("creates", f"registrations, {len(members)} replicas", count / seconds, "1/s"),
        Measured("create-cpu", "Valkey's CPU per registration", create_cpu / count * 1e6, "us"),
        Measured(
            "move-cpu", "Valkey's CPU per start (2 moves, 1 read)", move_cpu / count * 1e6, "us"
        ),
        Measured("misses", "route misses, one replica", count / read["seconds"], "1/s"),
        Measured("miss-cpu", "Valkey's CPU per route miss", miss_cpu / count * 1e6, "us"),
        Measured("touch-cpu", "Valkey's CPU per note of traffic", touch_cpu / touched * 1e6, "us"),
        Measured("session-bytes", "Redis memory per ready session", per_session, "B", 2048),
        Measured(
            "route-bytes", "replica memory per cached route", read["bytes"] / count, "B", 1024
        ),
    ]


async def measure_push(members: list[Process], effort: Effort) -> list[Measured]:
    """From the beginning of a change on one replica to its place in every route table."""
    (session_id,) = ids = ["pushed-to-all"]
    await members[0].ask("register", ids)
    for member in members:
        await member.ask("read", ids)
        await member.ask("versions")
    changes = {}
    for number in range(effort.changes):
        started, version = await members[number % len(members)].ask("change", session_id, number)
        changes[version] = started
    await asyncio.sleep(0.2)  # for the last one, should a push be slow; it is missed then
    last: dict[int, list[float]] = {version: [] for version in changes}
    for member in members:
        for version, _, _, at in (await member.ask("versions")).get(session_id, []):
            if version in last:
                last[version].append(at - changes[version])
    assert all(len(heard) == len(members) for heard in last.values()), "a push was lost"
    slowest = [max(heard) * 1000 for heard in last.values()]
    title = f"change on one, visible on all {len(members)}"
    return [
        Measured("push-p50", f"{title}: p50", percentile(slowest, 50), "ms"),
        Measured("push-p99", f"{title}: p99", percentile(slowest, 99), "ms", 10),
        Measured("push-max", f"{title}: worst of {effort.changes}", max(slowest), "ms"),
    ]


async def measure_fanout(members: list[Process], server: Valkey, effort: Effort) -> list[Measured]:
    """What a change costs the server when so many listen: replicas, and plain connections."""
    found = []
    (session_id,) = ids = ["pushed-to-many"]
    await members[0].ask("register", ids)
    for more in _MORE_LISTENERS:
        async with listeners(server.socket, more):
            cpu, heard = await server.cpu(), cpu_of(members[1:])
            for number in range(effort.changes):
                await members[0].ask("change", session_id, number)
            cpu, heard = await server.cpu() - cpu, cpu_of(members[1:]) - heard
        if not more:
            each = heard / effort.changes / (len(members) - 1) * 1e6
            found.append(Measured("heard-cpu", "a replica's CPU per change it hears", each, "us"))
        count = len(members) + more
        title = f"Valkey's CPU per change, {count} listen"
        found.append(Measured(f"change-cpu-{count}", title, cpu / effort.changes * 1e6, "us"))
    return found


def cpu_of(members: list[Process]) -> float:
    """Seconds that these replicas have used up together."""
    times = [psutil.Process(member.process.pid).cpu_times() for member in members]
    return sum(time.user + time.system for time in times)


@asynccontextmanager
async def listeners(socket: Path, count: int) -> AsyncIterator[None]:
    """So many connections that hear every change, and throw it away."""

    async def drain(reader: asyncio.StreamReader) -> None:
        while await reader.read(65536):
            pass

    async with AsyncExitStack() as stack:
        for _ in range(count):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            writer.write(b"SUBSCRIBE %b\r\n" % CHANGES.encode())
            await reader.read(1024)
            task = asyncio.create_task(drain(reader), name="listener")
            stack.callback(writer.close)
            stack.callback(task.cancel)
        yield


async def measure_lives(members: list[Process], effort: Effort) -> list[Measured]:
    """Wakes, and a replica that is killed."""
    for member in members:
        await member.ask("live")
    ids = [f"lived-{n:04}" for n in range(effort.taken_over)]
    victim, *others = members
    await victim.ask("create", ids)
    wakes = []
    for number in range(effort.wakes):
        asked = others[number % len(others)]
        session_id = f"asleep-{number:04}"
        await others[0].ask("create", [session_id])
        generation = await others[0].ask("sleep", session_id)
        wakes.append(await asked.ask("wake", session_id, generation) * 1000)
    await others[0].ask("read", ids)  # a route table takes pushes of what it knows
    await others[0].ask("versions")
    killed = time.monotonic()
    victim.process.kill()
    ready: dict[str, float] = {}
    async with asyncio.timeout(60):
        while len(ready) < len(ids):
            await asyncio.sleep(0.2)
            for heard_id, heard in (await others[0].ask("versions")).items():
                for _, state, owner, at in heard:
                    if heard_id in ids and state == "ready" and owner != victim.name:
                        ready.setdefault(heard_id, at)
    first, last = min(ready.values()) - killed, max(ready.values()) - killed
    count = len(ids)
    return [
        Measured(
            "wake-p50", "wake, without the dev server's start: p50", percentile(wakes, 50), "ms"
        ),
        Measured(
            "wake-p99", "wake, without the dev server's start: p99", percentile(wakes, 99), "ms"
        ),
        Measured(
            "takeover",
            f"kill to the first of {count} taken over (lease {LEASE_SECONDS:g} s)",
            first,
            "s",
        ),
        Measured("takeover-all", f"from there to all {count} ready elsewhere", last - first, "s"),
        # With the default lease of 15 s this is the promise of 20 s.
        Measured(
            "takeover-last",
            f"kill to the last of {count} ready elsewhere (lease {LEASE_SECONDS:g} s)",
            last,
            "s",
            LEASE_SECONDS + 5,
        ),
    ]


async def measure_starts(effort: Effort) -> list[Measured]:
    """Whole gateways and real dev servers, from the call to the first 200 of the preview."""
    work = Path(tempfile.mkdtemp(prefix="bench-starts-"))
    admin_port = spawn.free_port()
    cold: list[float] = []
    pooled: list[float] = []
    try:
        async with (
            spawn.gateway(work / "data", lease_seconds=1) as plain,
            spawn.gateway(work / "data", warm_pool=1, admin_port=admin_port) as warm,
            aiohttp.ClientSession() as http,
        ):
            files = spawn.project()
            for url in (plain, warm):
                await spawn.through(http, url, files)  # fills the dependency cache, and the pool
            for _ in range(effort.starts):
                await spawn.warm(http, admin_port)
                pooled.append((await spawn.through(http, warm, files))[1] * 1000)
                cold.append((await spawn.through(http, plain, files))[1] * 1000)
            wakes = [
                await wake_of_a_preview(http, plain, files) * 1000
                for _ in range(max(effort.starts // 3, 1))
            ]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [
        Measured("create", "create to first 200, Vite: median", percentile(cold, 50), "ms"),
        Measured(
            "create-warm", "the same with a warm pool: median", percentile(pooled, 50), "ms", 100
        ),
        Measured(
            "wake",
            "request that wakes a preview to its 200, Vite: median",
            percentile(wakes, 50),
            "ms",
            1000,
        ),
    ]


async def wake_of_a_preview(http: aiohttp.ClientSession, url: str, files: Any) -> float:
    """Seconds from the request for a sleeping preview to its answer."""
    sessions = f"{url}/api/v1/sessions"
    async with http.post(
        f"{sessions}?wait=ready&timeout=60", json={"files": files, "idleSeconds": 1}
    ) as response:
        session = await response.json()
    async with asyncio.timeout(30):
        while session["state"] != "sleeping":
            await asyncio.sleep(0.1)
            async with http.get(f"{sessions}/{session['id']}") as response:
                session = await response.json()
    started = time.perf_counter()
    async with http.get(session["previewUrl"]) as response:  # held until the preview is ready
        await response.read()
        assert response.status == 200, await response.text()
    took = time.perf_counter() - started
    async with http.post(f"{sessions}/{session['id']}/stop") as response:
        await response.read()
    return took


async def run(effort: Effort) -> list[Measured]:
    """Everything, on a server of its own for each part."""
    found: list[Measured] = []
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(valkey())
        members = [
            await stack.enter_async_context(replica(f"replica-{n}", server.url))
            for n in range(effort.replicas)
        ]
        found += await measure_push(members, effort)
        found += await measure_fanout(members, server, effort)
        found += await measure_load(members, server, effort)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(valkey())
        members = [
            await stack.enter_async_context(replica(f"replica-{n}", server.url)) for n in range(3)
        ]
        found += await measure_lives(members, effort)
    return [*found, *await measure_starts(effort)]


def as_json(found: list[Measured], described: dict[str, str]) -> dict[str, Any]:
    """The whole run."""
    return {
        "taken_at": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": described,
        "figures": {
            figure.key: {
                "title": figure.title,
                "value": figure.value,
                "unit": figure.unit,
                "reach": figure.reach,
                "verdict": figure.verdict,
            }
            for figure in found
        },
    }


def markdown(results: dict[str, Any]) -> str:
    """One table."""
    lines = [f"Measured on {results['taken_at']}.", ""]
    lines += [f"- {name}: {text}" for name, text in results["machine"].items()]
    lines += ["", "| | measured | to stay below | |", "|---|---:|---:|---|"]
    for figure in results["figures"].values():
        reach = "" if figure["reach"] is None else f"{figure['reach']:,} {figure['unit']}"
        value = f"{shown(figure['value'])} {figure['unit']}"
        lines.append(f"| {figure['title']} | {value} | {reach} | {figure['verdict']} |")
    return "\n".join(lines) + "\n"


def record(results: dict[str, Any], docs: Path) -> None:
    """Put the run into the documentation."""
    (docs / "registry.json").write_text(json.dumps(results, indent=1) + "\n")
    page = docs / "consistency.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{markdown(results)}\n{_END}{after}")


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it all")
    parser.add_argument("--record", action="store_true", help="write the figures into docs/")
    options = parser.parse_args()
    described = machine.describe(Cores.of_this_machine())
    described.pop("pinned")  # replicas and server share all cores
    found = asyncio.run(run(QUICK if options.quick else FULL))
    results = as_json(found, described)
    print(markdown(results))
    CACHE.mkdir(exist_ok=True)
    (CACHE / "registry.json").write_text(json.dumps(results, indent=1) + "\n")
    if options.record:
        record(results, ROOT / "docs")


if __name__ == "__main__":
    main()
