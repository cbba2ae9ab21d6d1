"""Faults 29 to 33 of the reference: a registry that stalls, dies, fails over, or forgets.

Each test counts what it has lost and tells it (``pytest -rP`` shows that).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio

from gateway.registry.keys import events_key, session_key
from gateway.session import SessionId
from tests.contract.servers import (
    HOST,
    SentinelStore,
    Server,
    find_server,
    free_port,
    listening_server,
)
from tests.e2e.fleet import (
    STATIC,
    Fleet,
    Load,
    dev_servers,
    run_fleet,
    until,
    until_one_runs,
)
from tests.e2e.losses import expect_nothing_lost
from tests.e2e.replicas import Api, ReplicaProcess
from tests.fault_proxy import FaultProxy

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.node,
    pytest.mark.timeout(240),
]

LEASE_SECONDS: Final = 4.0
#: Longer than a lease, a route's maximal age, and the time in which a dead push link is noticed.
OUTAGE_SECONDS: Final = 10.0
DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always")
TOKEN: Final = "a token for the tests only"
#: One port: each replica has an address of its own.
ADMIN: Final = {"GATEWAY_ADMIN_PORT": str(free_port())}


@dataclass
class Shared:
    """A Redis, and three replicas on it, which outlive what tests of this module do to them."""

    redis: Server
    fleet: Fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(data_dir: Path) -> AsyncIterator[Shared]:
    """Started once: every test here ends with all of them well, or has failed."""
    connector = aiohttp.TCPConnector(limit=0)
    # Every write is on disk before it is acknowledged.
    with closing(Server(find_server("redis"), *DURABLE)) as redis:
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            run_fleet(http, data_dir, settings(redis.url, **ADMIN), count=3) as fleet,
        ):
            yield Shared(redis, fleet)


@pytest.fixture
def redis(shared: Shared) -> Server:
    """The Redis of the replicas."""
    return shared.redis


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(shared: Shared) -> AsyncIterator[Fleet]:
    """Three replicas without a session."""
    yield shared.fleet
    await shared.fleet.clear()


@pytest_asyncio.fixture(loop_scope="module")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without limits of its own, in the event loop of this module."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


def settings(url: str, **more: str) -> dict[str, str]:
    """Environment of a replica: short times, so that an outage outlasts all of them."""
    times = {
        "GATEWAY_LEASE_SECONDS": str(LEASE_SECONDS),
        "GATEWAY_ROUTE_MAX_AGE_SECONDS": "5",
    }
    return {"GATEWAY_REDIS_URL": url, **times, **more}


async def made(fleet: Fleet, count: int) -> dict[str, int]:
    """Sessions that run, spread over the replicas; id to generation."""
    owners = itertools.cycle(fleet.replicas)
    sessions = [await fleet.api(next(owners)).create(STATIC, ready=True) for _ in range(count)]
    return {session["id"]: session["generation"] for session in sessions}


async def known_everywhere(fleet: Fleet, sessions: dict[str, int]) -> None:
    """Let every replica have each session's route."""
    for replica in fleet.replicas:
        for name in sessions:
            async with fleet.http.get(f"{replica.url}/preview/{name}/") as response:
                assert response.status == 200


async def generations(fleet: Fleet, names: Any) -> dict[str, int]:
    """Each session's generation, as the registry knows it now."""
    api = fleet.api(fleet.replicas[0])
    found = {}
    for name in names:
        status, session = await api.call("GET", f"/api/v1/sessions/{name}")
        assert status == 200, session
        found[name] = session["generation"] if session["state"] == "ready" else -1
    return found


def running(names: Any) -> dict[str, list[str]]:
    """The dev servers of each session, by their marks."""
    return {name: sorted(dev_servers(name)) for name in names}


@asynccontextmanager
async def stream(
    fleet: Fleet, replica: ReplicaProcess, session_id: str
) -> AsyncIterator[list[str]]:
    """The names of the events that an SSE client of one replica gets meanwhile."""
    heard: list[str] = []

    async def listen() -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        url = f"{replica.url}/api/v1/sessions/{session_id}/events"
        async with fleet.http.get(url, timeout=timeout) as response:
            async for line in response.content:
                name, _, value = line.decode().partition(": ")
                heard.extend([value.strip()] if name == "event" else [])

    task = asyncio.create_task(listen(), name="sse client")
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def metrics(api: Api) -> dict[str, float]:
    """The gauges and counters without labels that one replica shows."""
    answer = await api.ask("GET", "/metrics", port=int(ADMIN["GATEWAY_ADMIN_PORT"]))
    found = re.findall(r"^preview_gateway_(\w+) (\S+)$", answer.body, re.MULTILINE)
    return {name: float(value) for name, value in found}


# -- 29 --------------------------------------------------------------------------------------------


async def test_fault_29_a_stall_in_the_middle_of_claims_makes_exactly_one(
    fleet: Fleet, redis: Server
) -> None:
    rounds, answers = 3, 0
    body = {**STATIC, "idleSeconds": 1}
    session = await fleet.api(fleet.replicas[0]).create(body, ready=True)
    name = session["id"]
    api = fleet.api(fleet.replicas[1])

    async def asleep() -> bool:
        return bool((await api.call("GET", f"/api/v1/sessions/{name}"))[1]["state"] == "sleeping")

    async def visit(replica: ReplicaProcess) -> str:
        for _ in range(20):
            async with fleet.http.get(f"{replica.url}/preview/{name}/") as response:
                text = await response.text()
                if response.status == 200:
                    return text
                assert response.status == 503, text
                assert "Retry-After" in response.headers
            await asyncio.sleep(0.2)
        raise AssertionError("never served again")

    for _ in range(rounds):
        await until(asleep, seconds=20)
        visits = [asyncio.create_task(visit(replica)) for replica in fleet.replicas * 3]
        await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311 - any moment of a claim
        with redis.stalled():
            await asyncio.sleep(2)
        served = await asyncio.gather(*visits)
        answers += len(served)
        assert len(set(served)) == 1, "one dev server for all"
        assert len(dev_servers(name)) == 1
    entries = await redis.ask("XRANGE", events_key(SessionId(name)), "-", "+")
    states = [json.loads(fields[3])["state"] for _, fields in entries if fields[1] == b"state"]
    claims, sleeps = states.count("starting") - 1, states.count("sleeping")
    starts = states.count("ready") - 1
    # Nobody can note traffic in a stall, so it may have slept more than once in a round. A claim
    # both of whose answers are lost starts nothing: its owner finds it, and claims once more.
    assert starts == sleeps >= rounds, states
    assert claims >= starts, states
    more = (
        f"{rounds} stalls of 2 s, {answers} visits served, {starts} starts after {sleeps} sleeps, "
        f"{claims - starts} claims made again"
    )
    await expect_nothing_lost("29", fleet, [name], more=more)


# -- 30 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dead", "silent"])
async def test_fault_30_what_is_known_goes_on_through_an_outage(
    fleet: Fleet, redis: Server, how: str
) -> None:
    before = await made(fleet, 6)
    await known_everywhere(fleet, before)
    marks = running(before)
    admin = Api(fleet.http, fleet.replicas[0])
    load = Load(fleet, list(before))
    replica = fleet.replicas[0]
    async with stream(fleet, replica, next(iter(before))) as heard, load.running():
        await asyncio.sleep(1)
        if how == "dead":
            redis.kill()
        else:
            redis.signal(signal.SIGSTOP)
        down_at = time.monotonic()
        status, problem = await admin.call("POST", "/api/v1/sessions", STATIC)
        assert (status, problem["code"]) == (503, "registry_unavailable")
        unknown = await admin.ask("GET", "/preview/never-heard-of-it/")
        assert unknown.status == 503
        assert "Retry-After" in unknown.headers
        assert (await admin.ask("GET", "/readyz")).status == 200
        async with asyncio.timeout(OUTAGE_SECONDS):
            while "degraded" not in heard:  # noqa: ASYNC110 - another task hears it
                await asyncio.sleep(0.05)

        async def is_shown() -> bool:
            values = await metrics(admin)
            return values["registry_linked"] == 0 and values["stale_routes_total"] > 0

        await until(is_shown, seconds=OUTAGE_SECONDS)
        await asyncio.sleep(max(0, OUTAGE_SECONDS - (time.monotonic() - down_at)))
        assert len(fleet.ready) == 3
        if how == "dead":
            redis.restart()
        else:
            redis.signal(signal.SIGCONT)

        async def healed() -> bool:
            return (await admin.call("POST", "/api/v1/sessions", STATIC))[0] == 201

        await until(healed, seconds=15)
        await asyncio.sleep(2 * LEASE_SECONDS)
    assert load.failures == []
    assert load.longest_seconds < 5
    assert await generations(fleet, before) == before
    assert running(before) == marks
    more = f"{how} for {OUTAGE_SECONDS:g} s, the slowest request took {load.longest_seconds:.2f} s"
    await expect_nothing_lost("30", fleet, before, load, more=more)


async def test_fault_30_an_owner_that_alone_is_cut_off_finds_itself_fenced_when_it_returns(
    data_dir: Path, http: aiohttp.ClientSession
) -> None:
    """The registry is well, and all but one reach it: those take over, and that one goes on."""
    server, port = listening_server(find_server("redis"), *DURABLE)
    with closing(server):
        async with (
            FaultProxy(port) as proxy,
            run_fleet(http, data_dir, settings(f"redis://{HOST}:{port}"), count=2) as fleet,
        ):
            others = list(fleet.ready)
            lone = await fleet.add(GATEWAY_REDIS_URL=f"redis://{HOST}:{proxy.port}")
            sessions = [(await fleet.api(lone).create(STATIC, ready=True))["id"] for _ in range(4)]
            former = {name: await asked(http, lone, name) for name in sessions}
            # Nobody can tell the clients of the lone one that it is alone: these ask the others.
            fleet.ready = list(others)
            load = Load(fleet, sessions)
            async with load.running():
                proxy.swallows = lambda _: True
                proxy.swallow()
                cut_at = time.monotonic()

                async def taken_over() -> bool:
                    return all(len(load.seen.get(name, ())) > 1 for name in sessions)

                await until(taken_over, seconds=20)
                taken = time.monotonic() - cut_at
                during = {name: await asked(http, lone, name) for name in sessions}
                proxy.swallows = lambda _: False
                healed_at = time.monotonic()
                await until_one_runs(sessions, seconds=20)
                fenced = time.monotonic() - healed_at
                now = {name: await asked(http, lone, name) for name in sessions}
            fleet.ready.append(lone)
            assert during == former, "it goes on, as in any outage"
            assert all(now[name] > former[name] for name in sessions)
            assert load.failures == []
            more = f"taken over {taken:.1f} s after the cut, fenced {fenced:.1f} s after it healed"
            await expect_nothing_lost("30", fleet, sessions, load, more=more)
            assert fenced < LEASE_SECONDS, "its next heartbeat tells it"


async def asked(http: aiohttp.ClientSession, replica: ReplicaProcess, name: str) -> str:
    """Which dev server answers for a session at one replica."""
    async with http.get(f"{replica.url}/preview/{name}/") as response:
        assert response.status == 200, await response.text()
        return await response.text()


# -- 31 --------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_fault_31_a_failover_that_loses_acknowledged_writes_loses_no_session(
    data_dir: Path, http: aiohttp.ClientSession
) -> None:
    with closing(SentinelStore(find_server("redis"), down_after_ms=1500)) as store:
        await store.settled()
        async with run_fleet(http, data_dir, settings(store.url), count=3) as fleet:
            old = await made(fleet, 3)
            again, *_ = old
            tokens = set(old.values())
            # From now on the replica hears nothing, and the primary acknowledges alone.
            store.replica.signal(signal.SIGSTOP)
            await store.primary.ask("CLIENT", "KILL", "TYPE", "replica")
            lost = await made(fleet, 3)
            tokens |= set(lost.values())
            api = fleet.api(fleet.replicas[0])
            await api.call("POST", f"/api/v1/sessions/{again}/stop")
            anew = await fleet.api(fleet.replicas[1]).create({**STATIC, "id": again}, ready=True)
            tokens.add(anew["generation"])
            assert len(tokens) == 7
            wanted = {**old, **lost, again: anew["generation"]}
            marks = running(wanted)
            store.primary.kill()
            store.replica.signal(signal.SIGCONT)
            lost_at = time.monotonic()

            async def all_back() -> bool:
                for name in wanted:
                    status, session = await api.call("GET", f"/api/v1/sessions/{name}")
                    if status != 200 or session["generation"] != wanted[name]:
                        return False
                return True

            await until(all_back, seconds=60)
            back = time.monotonic() - lost_at
            load = Load(fleet, list(wanted))
            async with load.running():
                await asyncio.sleep(1)
            for name in wanted:
                await api.call("POST", f"/api/v1/sessions/{name}/stop")
                later = await api.create({**STATIC, "id": name}, ready=True)
                assert later["generation"] > max(tokens), "a token was handed out twice"
                tokens.add(later["generation"])
            assert load.failures == []
            assert len(tokens) == 7 + len(wanted)
            more = (
                f"{len(lost)} sessions and 1 begun anew unknown to the new primary, all back "
                f"after {back:.1f} s; {len(tokens)} tokens handed out"
            )
            await expect_nothing_lost("31", fleet, wanted, load, more=more)
            assert all(len(each) == 1 for each in marks.values())
            assert await store.replica.ask("EXISTS", session_key(SessionId(again))) == 1


# -- 32 --------------------------------------------------------------------------------------------


def is_push_link(link: Any) -> bool:
    return b"SUBSCRIBE" in link.sent


async def test_fault_32_a_push_link_that_is_half_open_is_noticed(
    data_dir: Path, http: aiohttp.ClientSession
) -> None:
    """Redis is well, and so is every other connection of the replica."""
    server, port = listening_server(find_server("redis"))
    more = {
        "GATEWAY_API_TOKENS": TOKEN,
        "GATEWAY_ADMIN_PORT": str(free_port()),
        # A private preview is "not found" only after this.
        "GATEWAY_REGISTRATION_WAIT_SECONDS": "0.05",
    }
    with closing(server):
        async with FaultProxy(port) as proxy:
            a = ReplicaProcess(
                host="127.0.0.2",
                data_dir=data_dir,
                environ=settings(f"redis://{HOST}:{port}", GATEWAY_API_TOKENS=TOKEN),
            )
            b = ReplicaProcess(
                host="127.0.0.3",
                data_dir=data_dir,
                environ=settings(f"redis://{HOST}:{proxy.port}", **more),
            )
            async with a, b:
                api = Api(http, a)
                bearer = {"Authorization": f"Bearer {TOKEN}"}
                answer = await api.ask(
                    "POST",
                    "/api/v1/sessions?wait=ready&timeout=60",
                    json={**STATIC, "visibility": "public"},
                    headers=bearer,
                )
                name = answer.body["id"]

                async def shown() -> int:
                    async with http.get(f"{b.url}/preview/{name}/") as response:
                        return response.status

                async def unlinked() -> bool:
                    port = int(more["GATEWAY_ADMIN_PORT"])
                    metrics = await Api(http, b).ask("GET", "/metrics", port=port)
                    return "preview_gateway_registry_linked 0.0" in metrics.body

                async def turn(visibility: str) -> float:
                    """Seconds until B knows."""
                    path = f"/api/v1/sessions/{name}"
                    body = {"visibility": visibility}
                    changed = await api.ask("PATCH", path, json=body, headers=bearer)
                    assert changed.status == 200, changed
                    began, was = time.monotonic(), await shown()
                    wanted = 200 if visibility == "public" else 404
                    while await shown() != wanted:
                        assert time.monotonic() - began < 20, was
                        await asyncio.sleep(0.02)
                    return time.monotonic() - began

                assert await shown() == 200
                usual = await turn("private")
                await turn("public")
                # One link is a black hole; the next one is well.
                assert proxy.swallow(is_push_link) == 1
                once = await turn("private")
                # No link ever works again.
                proxy.swallows = is_push_link
                await until(unlinked, seconds=20)
                never = [await turn("public"), await turn("private")]
                assert await unlinked()
                running_now = len(dev_servers(name))
    sys.stdout.write(
        f"fault 32: told after {usual * 1000:.0f} ms; with a dead link after {once:.1f} s, "
        f"without any link after {max(never):.1f} s; {running_now} dev server of 1 session runs\n"
    )
    assert running_now == 1
    assert usual < 0.5
    assert once < 5 + 2 + 1, "the pause between pings, the limit of a call, and the change itself"
    assert max(never) < 2


# -- 33 --------------------------------------------------------------------------------------------


async def test_fault_33_an_emptied_registry_gets_everything_back(
    fleet: Fleet, redis: Server
) -> None:
    before = await made(fleet, 6)
    await known_everywhere(fleet, before)
    marks = running(before)
    load = Load(fleet, list(before))
    async with load.running():
        await asyncio.sleep(0.5)
        await redis.ask("FLUSHALL")
        emptied_at = time.monotonic()

        async def all_back() -> bool:
            return int(await redis.ask("EXISTS", *map(session_key, map(SessionId, before)))) == 6

        await until(all_back, seconds=20)
        back = time.monotonic() - emptied_at
        await asyncio.sleep(2 * LEASE_SECONDS)
    assert load.failures == []
    assert await generations(fleet, before) == before
    assert running(before) == marks, "none was started"
    more = f"{len(before)} sessions forgotten by the registry, back after {back:.1f} s"
    await expect_nothing_lost("33", fleet, before, load, more=more)


async def test_fault_33_a_record_of_a_later_version_is_unavailable_and_hurts_nobody_else(
    fleet: Fleet, redis: Server
) -> None:
    before = await made(fleet, 2)
    odd, well = before
    for field, value in (("v", "9"), ("state", "dreaming"), ("port", "no number")):
        kept = await redis.ask("HGET", session_key(SessionId(odd)), field)
        await redis.ask("HSET", session_key(SessionId(odd)), field, value)
        await redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
        for replica in fleet.replicas:
            api = fleet.api(replica)
            status, problem = await api.call("GET", f"/api/v1/sessions/{odd}")
            assert (status, problem["code"]) == (503, "registry_unavailable")
            assert odd in problem["detail"]
            assert (await api.ask("GET", f"/preview/{odd}/")).status in {200, 503}
            assert (await api.ask("GET", f"/preview/{well}/")).status == 200
            status, listed = await api.call("GET", "/api/v1/sessions")
            found = {session["id"] for session in listed["sessions"]}
            assert found & {odd, well} == {well}
        await redis.ask("HSET", session_key(SessionId(odd)), field, kept)
    assert await generations(fleet, before) == before
    assert all(replica.is_running for replica in fleet.replicas)
    await expect_nothing_lost("33", fleet, before, more="3 damages to a record")


async def test_fault_33_a_registry_without_memory_refuses_creates_only(
    fleet: Fleet, redis: Server
) -> None:
    before = await made(fleet, 4)
    await known_everywhere(fleet, before)
    load = Load(fleet, list(before))
    async with load.running():
        await redis.ask("CONFIG", "SET", "maxmemory", "1")
        api = fleet.api(fleet.replicas[0])
        status, problem = await api.call("POST", "/api/v1/sessions", STATIC)
        assert status == 503
        assert "out of memory" in problem["detail"]
        await asyncio.sleep(2 * LEASE_SECONDS)
        ended, *_ = before
        load.sessions.remove(ended)
        await asyncio.sleep(0.5)
        status, stopped = await api.call("POST", f"/api/v1/sessions/{ended}/stop")
        assert (status, stopped["state"]) == (200, "stopped")
        await redis.ask("CONFIG", "SET", "maxmemory", "0")
        await api.create(STATIC, ready=True)
    assert load.failures == []
    del before[ended]
    assert await generations(fleet, before) == before
    await expect_nothing_lost("33", fleet, before, load, ended=[ended], more="out of memory")
