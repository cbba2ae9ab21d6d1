"""Fault 25 of the reference: replicas that leave under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import ROOT, Store
from tests.e2e.fleet import STATIC, Fleet, Load, dev_servers, run_fleet
from tests.e2e.losses import expect_nothing_lost
from tests.e2e.replicas import project

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]


@pytest.fixture
async def fleet(store: Store, data_dir: Path, http: aiohttp.ClientSession) -> AsyncIterator[Fleet]:
    settings = {
        "GATEWAY_REDIS_URL": store.url,
        "GATEWAY_DRAIN_GRACE_SECONDS": "2",
        "GATEWAY_DRAIN_SECONDS": "5",
    }
    async with run_fleet(http, data_dir, settings, count=3) as fleet:
        yield fleet


class HmrClient:
    """Vite's HMR socket as a page holds it: it comes back when it is lost."""

    def __init__(self, fleet: Fleet, session_id: str) -> None:
        self._fleet = fleet
        self._path = f"/preview/{session_id}/hmr"
        self.connected = asyncio.Event()
        #: How long each interruption was, in seconds.
        self.gaps: list[float] = []

    async def run(self) -> None:
        lost_at = time.monotonic()
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                replica = self._fleet.ready[-1]
                async with self._fleet.http.ws_connect(
                    replica.url + self._path, max_msg_size=0
                ) as socket:
                    assert (await socket.receive_json(timeout=5))["type"] == "connected"
                    self.gaps.append(time.monotonic() - lost_at)
                    self.connected.set()
                    async for _ in socket:
                        pass
                lost_at = time.monotonic()
            await asyncio.sleep(0.1)


async def test_fault_25_a_rolling_restart_under_load_fails_no_request(fleet: Fleet) -> None:
    sessions = []
    for number in range(6):
        api = fleet.api(fleet.replicas[number % 3])
        sessions.append((await api.create(STATIC, ready=True))["id"])
    files = project(ROOT / "tests" / "fixtures" / "vite7")
    vite = await fleet.api(fleet.replicas[0]).create({"files": files}, ready=True)
    hmr = HmrClient(fleet, vite["id"])
    page = asyncio.create_task(hmr.run(), name="page")
    async with asyncio.timeout(20):
        await hmr.connected.wait()
    old = list(fleet.replicas)
    async with Load(fleet, sessions).running() as load:
        for replica in old:
            await fleet.add()
            assert await replica.stop() == 0
    page.cancel()
    await asyncio.gather(page, return_exceptions=True)
    generations = [len(load.seen[session]) for session in sessions]
    assert load.failures == [], load.failures[:5]
    assert min(generations) >= 2, "every session has moved"
    assert hmr.gaps[1:], "the page's session has moved, too"
    assert max(hmr.gaps[1:]) < 5
    assert len(dev_servers(vite["id"])) == 1
    more = (
        f"the longest took {load.longest_seconds:.2f} s; generations {generations}; the HMR socket "
        f"was away for {[f'{gap:.2f} s' for gap in hmr.gaps[1:]]}"
    )
    await expect_nothing_lost("25", fleet, sessions, load, more=more)
    for replica in old:
        assert not [line for line in replica.lines if "Traceback" in line]


async def test_a_session_that_nobody_looks_at_is_asleep_after_its_replica_left(
    fleet: Fleet, store: Store
) -> None:
    a, b = fleet.replicas[:2]
    session = await fleet.api(a).create(STATIC, ready=True)
    reader, writer = await asyncio.open_unix_connection(str(store.socket))
    writer.write(f"HSET preview:{{{session['id']}}}:session active_at 1000\r\n".encode())
    await reader.readline()
    writer.close()
    await writer.wait_closed()
    await a.stop()
    _, now = await fleet.api(b).call("GET", f"/api/v1/sessions/{session['id']}")
    assert now["state"] == "sleeping"
    assert dev_servers(session["id"]) == {}
    load = Load(fleet, [session["id"]])
    await load.ask(session["id"])
    assert load.failures == []
