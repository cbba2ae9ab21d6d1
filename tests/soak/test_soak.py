"""A gateway under everything at once for a while, which afterwards is as it was before.

``SOAK_SECONDS`` says for how long there is traffic (default: 30).
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import pytest
import redis.asyncio

from tests.e2e.conftest import Store, run_store
from tests.e2e.replicas import Api, ReplicaProcess
from tests.protocol.harness import ID
from tests.soak.lives import LIVES
from tests.soak.traffic import STEADY, Round
from tests.soak.wire import LIMIT_SECONDS
from tests.soak.world import DevServer, Preview, World, dev_server

_SECONDS: Final = float(os.environ.get("SOAK_SECONDS", "30"))
#: The first traffic fills caches, pools and arenas; what is measured begins after it.
_WARM_SECONDS: Final = 8.0
#: Longer than any connection without a request is kept, to a dev server or to the control plane.
_SETTLE_SECONDS: Final = 30.0
#: Growth beyond the first traffic, however long the second one was. Resident memory depends on the
#: allocator; blocks are what Python objects really take: one kept per request would be thousands.
_GROWN_BYTES: Final = 16 * 2**20
_GROWN_BLOCKS: Final = 10_000
_SETTINGS: Final = {
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_UPGRADE_TIMEOUT_SECONDS": "2",
    "GATEWAY_REGISTRATION_WAIT_SECONDS": "0.5",
}


@dataclass(frozen=True)
class Level:
    """What the gateway holds while nobody asks it for anything."""

    tasks: int
    #: But for connections to the registry, whose number follows the most that were needed at once.
    descriptors: int
    blocks: int
    resident_bytes: int


@dataclass
class Soak:
    """The gateway, its world, and its admin port."""

    replica: ReplicaProcess
    world: World
    store: Store
    admin_port: int

    async def run(self, rounds: Sequence[Round], seconds: float) -> None:
        """All kinds of traffic side by side."""
        end = time.monotonic() + seconds

        async def repeat(one: Round) -> None:
            while time.monotonic() < end:
                try:
                    await one(self.world)
                except Exception as exc:
                    self.world.complain(one.__name__, exc)
                    await asyncio.sleep(0.1)
                self.world.done[one.__name__] += 1

        async with asyncio.timeout(seconds + 4 * LIMIT_SECONDS):
            await asyncio.gather(*map(repeat, rounds))

    async def level(self) -> Level:
        """What is held once all connections of the traffic are over."""
        samples: Mapping[str, float] = {}
        names = ("client_connections", "active_tunnels", "upstream_connections")
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                while not samples or any(samples[name] for name in names):
                    samples = await self.world.metrics(self.admin_port)
                    await asyncio.sleep(0.5)
        except TimeoutError:
            left = {name: samples[name] for name in names}
            pytest.fail(f"still open after {_SETTLE_SECONDS:g} s: {left}; {self.descriptors()}")
        async with redis.asyncio.from_url(self.store.url) as client:
            linked = int((await client.info("clients"))["connected_clients"])
        return Level(
            tasks=int(samples["tasks"]),
            descriptors=int(samples["open_descriptors"]) - linked,
            blocks=int(samples["allocated_blocks"]),
            resident_bytes=int(samples["resident_memory_bytes"]),
        )

    def descriptors(self) -> list[str]:
        """What the gateway's descriptors are, for whoever has to find a leak."""
        folder = Path(f"/proc/{self.replica.pid}/fd")
        links = [link for name in folder.iterdir() if (link := _readlink(name))]
        sockets = psutil.Process(self.replica.pid).net_connections("all")
        return sorted(links) + [f"{s.fd}: {s.laddr} {s.raddr} {s.status}" for s in sockets]


def _readlink(path: Path) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def soaking(folder: Path) -> AsyncIterator[Soak]:
    """A gateway with two previews, and the account of what is done to it."""
    host, admin_port = "127.0.0.2", _free_port("127.0.0.2")
    async with (
        run_store() as store,
        dev_server("stable") as stable,
        ReplicaProcess(
            host=host,
            data_dir=folder,
            environ={
                **_SETTINGS,
                "GATEWAY_REDIS_URL": store.url,
                "GATEWAY_ADMIN_PORT": str(admin_port),
            },
        ) as replica,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http,
    ):
        changing = Preview("soak-changing", await DevServer.start("changing-0"))
        world = World(
            Api(http, replica),
            (host, int(replica.url.rpartition(":")[2])),
            Preview(ID, stable),
            changing,
            random.Random(0),  # noqa: S311 - the same dice each time
        )
        try:
            for preview in (world.stable, world.changing):
                await world.begin(preview)
            yield Soak(replica, world, store, admin_port)
        finally:
            await changing.server.kill()


@pytest.mark.timeout(_SECONDS + 300)
async def test_after_everything_at_once_nothing_is_left_over(tmp_path: Path) -> None:
    async with soaking(tmp_path) as soak:
        world = soak.world
        await soak.run([*STEADY, *LIVES], _WARM_SECONDS)
        before = await soak.level()
        await soak.run([*STEADY, *LIVES], _SECONDS)
        after = await soak.level()
        samples = await world.metrics(soak.admin_port)
        print(before, after, dict(world.done), dict(world.provoked), sep="\n")  # noqa: T201

        assert not world.wrong
        assert min(world.done[one.__name__] for one in (*STEADY, *LIVES)) > 1, world.done
        answered = {
            int(name.partition('"')[2][:3]): int(value)
            for name, value in samples.items()
            if name.startswith('responses_total{code="5')
        }
        assert answered == world.provoked
        assert after.tasks <= before.tasks
        assert after.descriptors <= before.descriptors, soak.descriptors()
        assert after.blocks - before.blocks < _GROWN_BLOCKS
        assert after.resident_bytes - before.resident_bytes < _GROWN_BYTES
    wrong = [line for line in soak.replica.lines if "Traceback" in line or '"error"' in line]
    assert not wrong
