"""A warm pool behind the API: who gets its processes, and that none outlives its replica."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.e2e.calls import APP, SESSIONS, fresh_id
from tests.e2e.conftest import Store
from tests.e2e.replicas import Api, ReplicaProcess

pytestmark = pytest.mark.node

HOST = "127.0.0.9"


@dataclass
class Warm:
    """A replica with a warm pool."""

    api: Api
    admin_port: int

    async def value(self, name: str) -> float:
        answer = await self.api.ask("GET", "/metrics", port=self.admin_port)
        found = re.search(rf"^preview_gateway_{name} (\S+)$", answer.body, re.MULTILINE)
        assert found, answer.body
        return float(found[1])

    async def until_waiting(self, count: int) -> None:
        async with asyncio.timeout(90):
            while await self.value("warm_processes") != count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def children(self) -> list[psutil.Process]:
        """Processes that wait, and all that they have started."""
        replica = psutil.Process(self.api.replica.pid)
        waiting = [child for child in replica.children() if "--wait" in child.cmdline()]
        return [each for child in waiting for each in (child, *child.children(recursive=True))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def run(
    http: aiohttp.ClientSession, store: Store, data_dir: Path, **settings: object
) -> AsyncIterator[Warm]:
    admin_port = free_port()
    values = {"redis_url": store.url, "admin_port": admin_port, **settings}
    environ = {f"GATEWAY_{name.upper()}": str(value) for name, value in values.items()}
    async with ReplicaProcess(host=HOST, data_dir=data_dir, environ=environ) as replica:
        yield Warm(Api(http, replica), admin_port)


@pytest.fixture
async def warm(http: aiohttp.ClientSession, store: Store, data_dir: Path) -> AsyncIterator[Warm]:
    """With two processes that wait for the smallest app."""
    async with run(http, store, data_dir, warm_pool=2) as warm:
        session = await warm.api.create({"files": APP}, ready=True)
        await warm.api.call("DELETE", f"{SESSIONS}/{session['id']}")
        await warm.until_waiting(2)
        yield warm


async def test_creates_with_an_id_and_without_get_the_processes_that_wait(warm: Warm) -> None:
    mine = fresh_id()
    sessions = await asyncio.gather(
        *(warm.api.create(body) for body in ({"files": APP, "id": mine}, {"files": APP}))
    )
    assert sessions[0]["id"] == mine
    for session in sessions:
        page = await warm.api.ask("GET", f"/preview/{session['id']}/")
        assert page.status == 200
        assert f"/preview/{session['id']}/@vite/client" in page.body
    assert await warm.value("warm_starts_total") == 2
    await warm.until_waiting(2)


async def test_a_session_that_sleeps_is_woken_by_a_process_that_waits(warm: Warm) -> None:
    session = await warm.api.create({"files": APP, "idleSeconds": 1}, ready=True)
    path = f"{SESSIONS}/{session['id']}"
    await warm.until_waiting(2)
    async with asyncio.timeout(60):
        while (await warm.api.call("GET", path))[1]["state"] != "sleeping":  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    page = await warm.api.ask("GET", f"/preview/{session['id']}/")
    assert page.status == 200
    assert await warm.value("warm_starts_total") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_process_that_waits_outlives_its_replica(
    warm: Warm, number: signal.Signals
) -> None:
    processes = warm.children()
    assert len(processes) >= 2
    warm.api.replica.kill(number)
    await warm.api.replica.exited()
    _, left = await asyncio.to_thread(psutil.wait_procs, processes, 10)
    assert left == []


async def test_what_a_killed_replica_left_on_disk_is_removed_by_the_next(
    http: aiohttp.ClientSession, store: Store, data_dir: Path
) -> None:
    async with run(http, store, data_dir, warm_pool=1) as warm:
        await warm.api.create({"files": APP}, ready=True)
        await warm.until_waiting(1)
        warm.api.replica.kill(signal.SIGKILL)
        await warm.api.replica.exited()
    assert list((data_dir / "workspaces").glob("warm-*"))
    async with run(http, store, data_dir):
        assert not list((data_dir / "workspaces").glob("warm-*"))
