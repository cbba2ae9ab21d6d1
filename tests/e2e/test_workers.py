"""One gateway of several processes: what a client, an operator and a crash see of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.e2e.calls import SESSIONS, fresh_id
from tests.e2e.conftest import Store
from tests.e2e.listening import listen
from tests.e2e.replicas import Api, ReplicaProcess

pytestmark = pytest.mark.timeout(120)

HOST: Final = "127.0.0.2"
TOKEN: Final = secrets.token_hex(24)
#: No wait of these tests is longer than this.
LIMIT_SECONDS: Final = 20.0


class Connection:
    """One keep-alive connection, told from others by the port of its client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.port: int = writer.get_extra_info("sockname")[1]
        self.headers: dict[str, str] = {}

    def send(self, method: str, path: str, body: Any = None, **fields: str) -> None:
        """Send a request."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if content:
            lines.append("Content-Type: application/json")
        self._writer.write("\r\n".join([*lines, "\r\n"]).encode() + content)

    async def answer(self) -> tuple[int, str]:
        """Status and body of the next answer."""
        async with asyncio.timeout(LIMIT_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            named = (line.split(": ", 1) for line in head[1:-2])
            self.headers = {name.lower(): value for name, value in named}
            length = int(self.headers.get("content-length", 0))
            body = await self._reader.readexactly(length)
        return int(head[0].split()[1]), body.decode()

    async def ask(self, method: str, path: str, body: Any = None, **fields: str) -> tuple[int, str]:
        """A request and its answer."""
        self.send(method, path, body, **fields)
        return await self.answer()

    def close(self) -> None:
        self._writer.close()


@dataclass
class Target:
    """A dev server that somebody else runs: any path, a WebSocket echo, a request that is held."""

    address: str = ""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/held"):
            self.asked.set()
            await self.release.wait()
        if request.path.endswith("/echo"):
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            async for message in ws:
                await ws.send_str(message.data)
            return ws
        return web.Response(text=request.path)


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    target = Target()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", target.answer)
    async with TestServer(app, host="127.0.0.1") as server:
        target.address = f"127.0.0.1:{server.port}"
        yield target


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = LIMIT_SECONDS) -> None:
    """Wait for what nobody announces to a test: what another process does."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.02)


class Team:
    """A gateway with workers, and connections to each of them."""

    def __init__(self, api: Api, admin_port: int, stack: AsyncExitStack) -> None:
        self.api = api
        self.replica = api.replica
        self.admin_port = admin_port
        self._stack = stack

    def workers(self) -> list[psutil.Process]:
        """Its data-plane processes, by their numbers."""
        children = psutil.Process(self.replica.pid).children()
        found = [child for child in children if _number(child) is not None]
        return sorted(found, key=lambda worker: _number(worker) or 0)

    async def connection(self, worker: psutil.Process | None = None) -> Connection:
        """A new connection; to a certain worker if one is given."""
        for _ in range(100):
            port = int(self.replica.url.rpartition(":")[2])
            connection = Connection(*await asyncio.open_connection(HOST, port))
            self._stack.callback(connection.close)
            if worker is None:
                return connection
            assert (await connection.ask("GET", "/livez"))[0] == 200
            if serves(worker, connection.port):
                return connection
            connection.close()
        raise AssertionError(f"no connection came to {worker}")

    async def previewing(self, target: Target, **more: Any) -> str:
        """The path of a preview of ``target``."""
        token = TOKEN if more.pop("token", False) else ""
        body = {"id": fresh_id(), "target": target.address, **more}
        status, session = await self.api.call("POST", SESSIONS, body, token=token)
        assert status == 201, session
        return f"/preview/{body['id']}"

    async def metrics(self) -> dict[str, float]:
        """The samples of the admin port, without the namespace."""
        answer = await self.api.ask("GET", "/metrics", port=self.admin_port)
        assert answer.status == 200
        lines = (line.rsplit(" ", 1) for line in answer.body.splitlines() if line[:1] != "#")
        named = {name.removeprefix("preview_gateway_"): float(value) for name, value in lines}
        return defaultdict(float, named)

    async def until_metrics(self, condition: Callable[[dict[str, float]], bool]) -> None:
        """Wait for what workers report once a second."""

        async def reported() -> bool:
            return condition(await self.metrics())

        await until(reported)

    async def until_replaced(self, old: psutil.Process) -> None:
        """Wait until a worker's successor serves."""
        await gone([old], seconds=LIMIT_SECONDS)
        ups = [f'worker_up{{worker="{number}"}}' for number in range(2)]
        await self.until_metrics(lambda found: all(found[up] == 1 for up in ups))


def _number(process: psutil.Process) -> int | None:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return None
    return int(words[-3]) if any("gateway.workers.main" in word for word in words) else None


def serves(worker: psutil.Process, client_port: int) -> bool:
    """Whether a worker has accepted the connection of this client."""
    found = worker.net_connections(kind="tcp")
    return any(connection.raddr[1:] == (client_port,) for connection in found)


def runs(process: psutil.Process) -> bool:
    """Whether it does; one that has ended and that nobody asked for its status does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(processes: list[psutil.Process], *, seconds: float) -> None:
    """Wait for the end of processes that are no children of the test."""

    async def ended() -> bool:
        return not any(map(runs, processes))

    await until(ended, seconds)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def running(
    store: Store, data_dir: Path, http: aiohttp.ClientSession, environ: Mapping[str, str]
) -> AsyncIterator[Team]:
    """A gateway with two workers."""
    admin_port = free_port()
    settings = {
        "GATEWAY_REDIS_URL": store.url,
        "GATEWAY_WORKERS": "2",
        "GATEWAY_ADMIN_PORT": str(admin_port),
        "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
        "GATEWAY_DRAIN_GRACE_SECONDS": "0",
        **environ,
    }
    async with (
        AsyncExitStack() as stack,
        ReplicaProcess(host=HOST, data_dir=data_dir, environ=settings) as replica,
    ):
        yield Team(Api(http, replica), admin_port, stack)
    assert not [line for line in replica.lines if "Traceback" in line], replica.lines


@pytest.fixture
async def team(
    store: Store, data_dir: Path, http: aiohttp.ClientSession, environ: dict[str, str]
) -> AsyncIterator[Team]:
    async with running(store, data_dir, http, environ) as team:
        yield team


# -- one gateway -----------------------------------------------------------------------------------


async def test_every_worker_serves_previews_under_the_name_of_the_one_replica(
    team: Team, target: Target
) -> None:
    preview = await team.previewing(target)
    first, second = team.workers()
    served: Counter[int] = Counter()
    names = set()
    for _ in range(64):
        connection = await team.connection()
        assert await connection.ask("GET", f"{preview}/x") == (200, f"{preview}/x")
        names.add(connection.headers["x-preview-replica"])
        served.update(worker.pid for worker in (first, second) if serves(worker, connection.port))
    assert served.total() == 64
    assert min(served[first.pid], served[second.pid]) >= 10, served
    _, listed = await team.api.call("GET", "/api/v1/replicas")
    assert [replica["id"] for replica in listed["replicas"]] == list(names)


async def test_a_thousand_previews_are_found_by_the_other_worker_right_after_their_create(
    team: Team, target: Target
) -> None:
    workers = team.workers()
    lanes = [
        (await team.connection(workers[n % 2]), await team.connection(workers[1 - n % 2]))
        for n in range(4)
    ]
    results: Counter[tuple[int, bool]] = Counter()

    async def work(creator: Connection, reader: Connection) -> None:
        for _ in range(250):
            status, text = await creator.ask("POST", SESSIONS, {"target": target.address})
            assert status == 201
            path = f"/preview/{json.loads(text)['id']}/x"
            status, text = await reader.ask("GET", path)
            results[status, text == path] += 1

    async with asyncio.TaskGroup() as tasks:
        for lane in lanes:
            tasks.create_task(work(*lane))
    assert results == {(200, True): 1000}


async def test_a_private_preview_opens_with_a_token_at_every_worker(
    store: Store, data_dir: Path, http: aiohttp.ClientSession, target: Target
) -> None:
    environ = {"GATEWAY_API_TOKENS": TOKEN, "GATEWAY_REGISTRATION_WAIT_SECONDS": "0.2"}
    async with running(store, data_dir, http, environ) as team:
        preview = await team.previewing(target, visibility="private", token=True)
        for worker in team.workers():
            connection = await team.connection(worker)
            assert (await connection.ask("GET", f"{preview}/"))[0] == 404
            opened = await connection.ask("GET", f"{preview}/", Authorization=f"Bearer {TOKEN}")
            assert opened == (200, f"{preview}/")
            assert (await connection.ask("GET", SESSIONS))[0] == 401
            assert TOKEN not in " ".join(worker.cmdline())
            assert TOKEN not in worker.environ().values(), "secrets come over the link only"


async def test_metrics_are_those_of_all_workers_and_never_go_back(
    team: Team, target: Target
) -> None:
    preview = await team.previewing(target)
    first, second = team.workers()
    for worker, count in ((first, 30), (second, 20)):
        connection = await team.connection(worker)
        for _ in range(count):
            await connection.ask("PUT", f"{preview}/x")
    key = 'responses_total{code="200"}'
    await team.until_metrics(lambda found: found[key] >= 50)
    before = await team.metrics()
    assert before["registry_linked"] == 1
    assert before['worker_up{worker="0"}'] == before['worker_up{worker="1"}'] == 1

    lowest = before
    first.kill()
    replacing = asyncio.create_task(team.until_replaced(first))
    while not replacing.done():
        now = await team.metrics()
        for name in now:
            if name.partition("{")[0].endswith("_total"):
                assert now[name] >= lowest[name], name
        lowest = now
        await asyncio.sleep(0.01)
    await replacing
    connection = await team.connection(team.workers()[0])
    for _ in range(10):
        await connection.ask("PUT", f"{preview}/x")
    await team.until_metrics(lambda found: found[key] >= before[key] + 10)
    after = await team.metrics()
    assert after['worker_restarts_total{worker="0"}'] == 1
    assert after['worker_restarts_total{worker="1"}'] == 0


# -- sessions through workers ----------------------------------------------------------------------


def program(before_listening: str = "") -> dict[str, Any]:
    """A session of a small Node server that says something before it listens."""
    source = (
        "const http = require('http'); console.log('begun');"
        f"{before_listening or 'listen()'};"
        "function listen() { http.createServer((_, answer) => answer.end('from node'))"
        ".listen(+process.argv[3], process.argv[2]) }"
    )
    return {
        "id": fresh_id(),
        "files": [{"path": "s.cjs", "content": source}],
        "command": ["node", "s.cjs", "{host}", "{port}"],
    }


@pytest.mark.node
@pytest.mark.parametrize("environ", [{"GATEWAY_LEASE_SECONDS": "1"}], ids=["lease of 1 s"])
async def test_traffic_through_a_worker_keeps_a_preview_awake_and_wakes_it_again(
    team: Team,
) -> None:
    body = {**program(), "idleSeconds": 2}
    session = await team.api.create(body, ready=True)
    path = f"{SESSIONS}/{body['id']}"
    connections = [await team.connection(worker) for worker in team.workers()]

    async def state() -> tuple[str, int]:
        _, now = await team.api.call("GET", path)
        return now["state"], now["generation"]

    # Twice as long as it may be idle, plus the time between two looks at it.
    for number in range(10):
        answer = await connections[number % 2].ask("GET", f"/preview/{body['id']}/")
        assert answer == (200, "from node")
        await asyncio.sleep(0.5)
    assert await state() == ("ready", session["generation"])

    async def sleeps() -> bool:
        return (await state())[0] == "sleeping"

    for connection in connections:
        await until(sleeps)
        answer = await connection.ask("GET", f"/preview/{body['id']}/")
        assert answer == (200, "from node")
    assert (await state())[1] > session["generation"]


@pytest.mark.node
async def test_the_starting_page_and_its_events_come_through_every_worker(team: Team) -> None:
    body = program("setTimeout(listen, 2000)")
    await team.api.create(body)
    preview = f"/preview/{body['id']}"
    held = []
    for worker in team.workers():
        connection = await team.connection(worker)
        status, page = await connection.ask(
            "GET", f"{preview}/", Accept="text/html", **{"Sec-Fetch-Mode": "navigate"}
        )
        assert (status, "<!doctype html>" in page.lower()) == (503, True)
        connection.send("GET", f"{preview}/")  # no page is wanted: it waits
        held.append(connection)
    for url in (f"{SESSIONS}/{body['id']}/events", f"{preview}/.preview/events"):
        async with listen(team.api.url + url) as stream:
            states = []
            while "ready" not in states:
                event = await stream.next()
                assert event is not None
                states += [event.data["state"]] if event.type == "state" else []
    for connection in held:
        assert await connection.answer() == (200, "from node")


# -- crashes ---------------------------------------------------------------------------------------


async def test_a_crash_of_one_worker_touches_nothing_at_the_other(
    team: Team, target: Target, http: aiohttp.ClientSession
) -> None:
    preview = await team.previewing(target)
    victim, other = team.workers()
    connection = await team.connection(other)
    sockets = [await http.ws_connect(f"{team.api.url}{preview}/echo") for _ in range(32)]

    async def echoes(ws: aiohttp.ClientWebSocketResponse) -> bool:
        with contextlib.suppress(ConnectionError):
            await ws.send_str("still there?")
        message = await ws.receive(timeout=LIMIT_SECONDS)
        return message.type == aiohttp.WSMsgType.TEXT and message.data == "still there?"

    mine = [ws for ws in sockets if serves(other, ws.get_extra_info("sockname")[1])]
    lost = [ws for ws in sockets if ws not in mine]
    assert mine
    assert lost
    results: Counter[tuple[int, str]] = Counter()
    replaced = asyncio.Event()

    async def keep_asking() -> None:
        while not replaced.is_set():
            results[await connection.ask("GET", f"{preview}/x")] += 1

    asking = asyncio.create_task(keep_asking())
    victim.kill()
    assert not [ws for ws in lost if await echoes(ws)]
    assert all([await echoes(ws) for ws in mine])
    await team.until_replaced(victim)
    replaced.set()
    await asking
    assert set(results) == {(200, f"{preview}/x")}
    assert all([await echoes(ws) for ws in mine])
    assert team.workers()[1] == other
    assert await (await team.connection(team.workers()[0])).ask("GET", f"{preview}/x") == (
        200,
        f"{preview}/x",
    )
    for ws in sockets:
        await ws.close()


async def test_connections_in_the_queue_of_a_dead_worker_are_served_by_its_successor(
    team: Team, target: Target
) -> None:
    preview = await team.previewing(target)
    victim, other = team.workers()
    victim.suspend()
    connections = [await team.connection() for _ in range(40)]
    for connection in connections:
        connection.send("GET", f"{preview}/x")

    async def shared_out() -> bool:
        """Whether the one that goes on has accepted all that the kernel gave it."""
        before = len(other.net_connections(kind="tcp"))
        await asyncio.sleep(0.2)
        return before == len(other.net_connections(kind="tcp"))

    await until(shared_out)
    waiting = [connection for connection in connections if not serves(other, connection.port)]
    assert len(waiting) >= 5, "they wait in the queue of the one that stands still"
    victim.kill()
    for connection in connections:
        assert await connection.answer() == (200, f"{preview}/x")


async def test_a_worker_that_hangs_is_replaced(team: Team) -> None:
    victim, _ = team.workers()
    victim.suspend()
    await team.until_replaced(victim)
    assert any("has said nothing for 10 s" in line for line in team.replica.lines)
    assert (await (await team.connection(team.workers()[0])).ask("GET", "/livez"))[0] == 200


async def test_a_worker_that_starts_while_the_registry_is_away_serves_when_it_is_back(
    team: Team, target: Target, store: Store
) -> None:
    preview = await team.previewing(target)
    victim, other = team.workers()
    known = await team.connection(other)
    assert (await known.ask("GET", f"{preview}/"))[0] == 200
    store.process.send_signal(signal.SIGSTOP)
    victim.kill()
    await team.until_replaced(victim)
    unknowing = await team.connection(team.workers()[0])
    status, text = await unknowing.ask("GET", f"{preview}/")
    assert (status, json.loads(text)["code"]) == (503, "registry_unavailable")
    assert (await known.ask("GET", f"{preview}/"))[0] == 200
    store.process.send_signal(signal.SIGCONT)

    async def healed() -> bool:
        return (await unknowing.ask("GET", f"{preview}/"))[0] == 200

    await until(healed)
    await team.until_metrics(lambda found: found["registry_linked"] == 1)


@pytest.mark.node
@pytest.mark.parametrize("environ", [{"GATEWAY_LEASE_SECONDS": "1"}], ids=["lease of 1 s"])
async def test_a_control_process_that_stands_still_stops_no_preview_and_blames_no_worker(
    team: Team, target: Target
) -> None:
    preview = await team.previewing(target)
    body = {**program(), "idleSeconds": 1}
    await team.api.create(body, ready=True)

    async def sleeps() -> bool:
        _, now = await team.api.call("GET", f"{SESSIONS}/{body['id']}")
        return bool(now["state"] == "sleeping")

    await until(sleeps)
    workers = team.workers()
    connections = [await team.connection(worker) for worker in workers]
    waking = await team.connection(workers[0])
    team.replica.kill(signal.SIGSTOP)
    try:
        waking.send("GET", f"/preview/{body['id']}/")
        answer = asyncio.create_task(waking.answer())
        while not answer.done():  # for longer than a worker may be silent
            for connection in connections:
                assert await connection.ask("GET", f"{preview}/x") == (200, f"{preview}/x")
            await asyncio.sleep(0.05)
    finally:
        team.replica.kill(signal.SIGCONT)
    status, text = await answer
    assert (status, json.loads(text)["code"]) == (503, "control_unavailable")
    assert (await connections[1].ask("GET", f"/preview/{body['id']}/")) == (200, "from node")
    assert team.workers() == workers


async def test_a_killed_control_process_takes_its_workers_along_even_one_that_hangs(
    team: Team,
) -> None:
    workers = team.workers()
    workers[0].suspend()
    team.replica.kill(signal.SIGKILL)
    await gone(workers, seconds=5)
    await _refused(team)


# -- the end ---------------------------------------------------------------------------------------


def all_of(team: Team) -> list[psutil.Process]:
    root = psutil.Process(team.replica.pid)
    return [root, *root.children(recursive=True)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_workers_finish_what_they_have_begun_and_leaves_nothing_behind(
    store: Store,
    data_dir: Path,
    scratch: Path,
    http: aiohttp.ClientSession,
    target: Target,
    number: signal.Signals,
) -> None:
    environ = {"TMPDIR": str(scratch), "GATEWAY_DRAIN_SECONDS": "10"}
    async with running(store, data_dir, http, environ) as team:
        preview = await team.previewing(target)
        connections = [await team.connection(worker) for worker in team.workers()]
        for connection in connections:
            target.asked.clear()
            connection.send("GET", f"{preview}/held")
            await target.asked.wait()
        processes = all_of(team)
        assert len(processes) >= 3
        # As a terminal or a service manager does it: to all of them.
        for process in processes:
            if process.pid == team.replica.pid or _number(process) is not None:
                process.send_signal(number)
        await _refused(team)
        assert all(map(runs, processes)), "they wait for what is under way"
        target.release.set()
        for connection in connections:
            assert await connection.answer() == (200, f"{preview}/held")
        assert await team.replica.exited() == 0
        assert not [process for process in processes if runs(process)]
        assert list(scratch.iterdir()) == []
        assert not [line for line in team.replica.lines if '"error"' in line], team.replica.lines


async def _refused(team: Team) -> None:
    """Wait until no worker accepts any more."""
    port = int(team.replica.url.rpartition(":")[2])

    async def closed() -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    await until(closed)


@pytest.mark.parametrize("environ", [{"GATEWAY_DRAIN_GRACE_SECONDS": "2"}], ids=["2 s of grace"])
async def test_every_worker_accepts_through_the_grace_period_and_sends_its_clients_away(
    team: Team, target: Target
) -> None:
    preview = await team.previewing(target)
    workers = team.workers()
    known = [await team.connection(worker) for worker in workers]
    team.replica.kill(signal.SIGTERM)

    async def unready() -> bool:
        return (await team.api.ask("GET", "/readyz", port=team.admin_port)).status == 503

    await until(unready, 1.0)
    new = [await team.connection() for _ in range(16)]
    for connection in (*known, *new):
        assert await connection.ask("GET", f"{preview}/x") == (200, f"{preview}/x")
        assert connection.headers["connection"] == "close"
    assert await team.replica.exited() == 0
    assert not any(map(runs, workers))


@pytest.mark.parametrize("environ", [{"GATEWAY_DRAIN_SECONDS": "60"}], ids=["drain of 60 s"])
async def test_a_second_signal_does_not_wait_for_the_workers(team: Team, target: Target) -> None:
    preview = await team.previewing(target)
    connection = await team.connection()
    connection.send("GET", f"{preview}/held")
    await target.asked.wait()
    processes = all_of(team)
    team.replica.kill(signal.SIGTERM)
    await _refused(team)
    team.replica.kill(signal.SIGTERM)
    await gone(processes, seconds=8)
    target.release.set()


# -- the start -------------------------------------------------------------------------------------


async def _fails(environ: Mapping[str, str], *words: str) -> None:
    """A ``serve`` that ends at once and says why in a line."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "serve", "--log-level", "error"),
        env={**clean, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out) == (2, b"")
    assert err.count(b"\n") == 1
    assert all(word in err.decode() for word in words), err


@pytest.mark.parametrize("count", ["0", "2"])
async def test_a_second_gateway_cannot_join_the_port_of_the_first(
    team: Team, data_dir: Path, store: Store, count: str
) -> None:
    port = team.replica.url.rpartition(":")[2]
    environ = {
        "GATEWAY_HOST": HOST,
        "GATEWAY_PORT": port,
        "GATEWAY_DATA_DIR": str(data_dir),
        "GATEWAY_REDIS_URL": store.url,
        "GATEWAY_WORKERS": count,
    }
    await _fails(environ, f"{HOST}:{port}", "GATEWAY_PORT")


async def test_more_workers_than_the_machine_can_use_are_refused(data_dir: Path) -> None:
    environ = {"GATEWAY_WORKERS": "1000", "GATEWAY_DATA_DIR": str(data_dir)}
    await _fails(environ, "GATEWAY_WORKERS", "at most")
