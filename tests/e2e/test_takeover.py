"""Faults 26 to 28 of the reference: replicas that die, stand still, or are slow."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.conftest import run_store
from tests.e2e.fleet import STATIC, Fleet, Load, dev_servers, run_fleet, until, until_one_runs
from tests.e2e.losses import expect_nothing_lost

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.node,
    pytest.mark.timeout(240),
]

LEASE_SECONDS = 3.0


@asynccontextmanager
async def run(data_dir: Path, **settings: str) -> AsyncIterator[Fleet]:
    """Three replicas with a registry and a client of their own."""
    connector = aiohttp.TCPConnector(limit=0)
    async with run_store() as store, aiohttp.ClientSession(connector=connector) as http:
        environ = {"GATEWAY_REDIS_URL": store.url, **settings}
        async with run_fleet(http, data_dir, environ, count=3) as fleet:
            yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stallable(data_dir: Path) -> AsyncIterator[Fleet]:
    """Replicas that tests stop and continue: in the end all of them are well."""
    async with run(data_dir, GATEWAY_LEASE_SECONDS=str(LEASE_SECONDS)) as fleet:
        yield fleet


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(stallable: Fleet) -> AsyncIterator[Fleet]:
    """Three replicas without a session."""
    yield stallable
    stallable.ready[:] = stallable.replicas
    await stallable.clear()


@pytest.fixture
def http(fleet: Fleet) -> aiohttp.ClientSession:
    """A client in the event loop of this module."""
    return fleet.http


async def owners(fleet: Fleet, sessions: list[str]) -> Counter[str]:
    """How many of the sessions each replica runs, by those that are ready."""
    found: Counter[str] = Counter()
    api = fleet.api(fleet.ready[0])
    for session_id in sessions:
        _, session = await api.call("GET", f"/api/v1/sessions/{session_id}")
        if session["state"] == "ready":
            found[session["owner"]] += 1
    return found


async def test_fault_26_a_killed_replica_costs_nothing_but_what_it_had_under_way(
    data_dir: Path,
) -> None:
    async with run(data_dir) as fleet:
        await lose_a_replica(fleet)


async def lose_a_replica(fleet: Fleet) -> None:
    """With the default lease, so that the time of the take-over is what is promised."""
    victim, *survivors = fleet.replicas
    sessions = [(await fleet.api(victim).create(STATIC, ready=True))["id"] for _ in range(10)]
    others = [(await fleet.api(survivors[0]).create(STATIC, ready=True))["id"] for _ in range(2)]
    load = Load(fleet, [*sessions, *others])
    async with load.running():
        await asyncio.sleep(1)
        fleet.ready.remove(victim)
        under_way = load.width
        # A lost node takes its dev servers with it.
        doomed = [process for name in sessions for process in dev_servers(name).values()]
        killed_at = time.monotonic()
        victim.kill(signal.SIGKILL)
        for process in doomed:
            process.kill()
        await victim.exited()

        async def all_back() -> bool:
            twice = all(len(load.seen.get(name, ())) > 1 for name in sessions)
            return twice and (await owners(fleet, sessions)).total() == len(sessions)

        await until(all_back, seconds=40)
        back = time.monotonic() - killed_at
        await asyncio.sleep(1)
    taken = await owners(fleet, sessions)
    assert len(load.failures) <= under_way, load.failures[:10]
    assert not [failure for failure in load.failures if " 404 " in failure]
    assert taken.total() == len(sessions)
    assert {owner.rpartition("-")[2] for owner in taken} == {
        replica.url.rpartition(":")[2] for replica in survivors
    }, "each survivor took its part"
    assert back < 20 + 5, "a lease and a start, and something for a busy machine"
    more = f"{under_way} were under way; back after {back:.1f} s, by {dict(taken)}"
    await expect_nothing_lost("26", fleet, [*sessions, *others], load, more=more)


async def test_what_outlives_a_killed_gateway_serves_until_it_is_taken_over_and_is_removed_then(
    data_dir: Path,
) -> None:
    async with run(data_dir, GATEWAY_LEASE_SECONDS="2") as fleet:
        await lose_a_gateway(fleet, data_dir)


async def lose_a_gateway(fleet: Fleet, data_dir: Path) -> None:
    """Its dev servers live on for a while."""
    victim, *_ = fleet.replicas
    sessions = [(await fleet.api(victim).create(STATIC, ready=True))["id"] for _ in range(3)]
    load = Load(fleet, sessions)
    async with load.running():
        await asyncio.sleep(0.5)
        fleet.ready.remove(victim)
        victim.kill(signal.SIGKILL)
        await victim.exited()

        async def all_back() -> bool:
            return all(len(load.seen.get(name, ())) > 1 for name in sessions)

        await until(all_back, seconds=30)
    assert len(load.failures) <= load.width, load.failures
    await until_one_runs(sessions, seconds=20)

    async def one_workspace_each() -> bool:
        names = [path.name.partition(".")[0] for path in (data_dir / "workspaces").iterdir()]
        return all(names.count(session) == 1 for session in sessions)

    await until(one_workspace_each, seconds=10)


async def ticks(http: aiohttp.ClientSession, url: str, seen: list[tuple[float, str]]) -> None:
    """Read an endless response, and when each part of it came."""
    try:
        async with http.get(url) as response:
            while chunk := await response.content.readany():
                seen.append((time.monotonic(), chunk.decode()))
    except aiohttp.ClientError:
        return


async def get(http: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    async with http.get(url) as response:
        return response.status, await response.text()


async def test_fault_27_a_frozen_owner_serves_nothing_of_its_old_dev_server_when_it_wakes(
    fleet: Fleet, http: aiohttp.ClientSession
) -> None:
    frozen, other, _ = fleet.replicas
    created = await fleet.api(frozen).create(STATIC, ready=True)
    session_id = created["id"]
    path = f"/preview/{session_id}/"
    status, first = await get(http, frozen.url + path)
    assert status == 200
    seen: list[tuple[float, str]] = []
    stream = asyncio.create_task(ticks(http, f"{frozen.url}{path}tick", seen), name="stream")

    async def streams() -> bool:
        return bool(seen)

    await until(streams, seconds=10)
    fleet.ready.remove(frozen)
    frozen.kill(signal.SIGSTOP)
    held = asyncio.create_task(get(http, frozen.url + path), name="request meanwhile")
    try:
        # Its dev server runs on and answers until others take over: then nobody asks it.
        async def taken_over() -> bool:
            return await get(http, other.url + path) != (200, first)

        await until(taken_over, seconds=30)
        status, second = await get(http, other.url + path)
        assert status == 200
        assert second > first
        assert set(dev_servers(session_id)) == {first, second}
    finally:
        woken_at = time.monotonic()
        frozen.kill(signal.SIGCONT)
    answers: Counter[Any] = Counter([await held])
    for _ in range(50):
        answers[await get(http, frozen.url + path)] += 1
    await until_one_runs([session_id], seconds=20)
    gone_after = time.monotonic() - woken_at
    await asyncio.wait_for(stream, 10)
    late = [when for when, _ in seen if when > woken_at + 0.05]
    assert set(answers) == {(200, second)}
    assert set(dev_servers(session_id)) == {second}
    assert late == []
    fleet.ready.append(frozen)
    more = (
        f"woken owner: {dict(answers)}; the old dev server was gone after {gone_after:.2f} s; "
        f"{len(late)} parts of its old stream came after that"
    )
    await expect_nothing_lost("27", fleet, [session_id], more=more)


async def test_fault_28_a_stall_shorter_than_the_lease_starts_nothing_twice(
    fleet: Fleet, http: aiohttp.ClientSession
) -> None:
    stalled, other, _ = fleet.replicas
    session = await fleet.api(stalled).create(STATIC, ready=True)
    path = f"/preview/{session['id']}/"
    before = dev_servers(session["id"])
    # Two thirds of it are what a replica is sure to have left at any moment.
    stalled.kill(signal.SIGSTOP)
    try:
        await asyncio.sleep(LEASE_SECONDS * 0.6)
        assert await get(http, other.url + path) == (200, next(iter(before)))
    finally:
        stalled.kill(signal.SIGCONT)
    await asyncio.sleep(LEASE_SECONDS)
    assert dev_servers(session["id"]) == before
    for replica in (stalled, other):
        assert await get(http, replica.url + path) == (200, next(iter(before)))
    more = "a stall shorter than the lease"
    await expect_nothing_lost("28", fleet, [session["id"]], more=more)


async def test_fault_28_a_stall_of_5_s_longer_than_the_lease_leaves_one_dev_server(
    fleet: Fleet, http: aiohttp.ClientSession
) -> None:
    stalled, other, _ = fleet.replicas
    sessions = [(await fleet.api(stalled).create(STATIC, ready=True))["id"] for _ in range(4)]
    stalled.kill(signal.SIGSTOP)
    try:
        await asyncio.sleep(5)
    finally:
        stalled.kill(signal.SIGCONT)
    for session_id in sessions:
        path = f"/preview/{session_id}/"
        answers = {await get(http, replica.url + path) for replica in fleet.replicas}
        assert len(answers) == 1, answers
        assert {status for status, _ in answers} == {200}
    await until_one_runs(sessions, seconds=20)
    for session_id in sessions:
        running = next(iter(dev_servers(session_id)))
        assert await get(http, f"{other.url}/preview/{session_id}/") == (200, running)
    more = f"a stall of 5 s, longer than the lease of {LEASE_SECONDS:g} s"
    await expect_nothing_lost("28", fleet, sessions, more=more)
