"""The life of real sessions: order of registration, ends, restarts, lost replicas."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import pytest

from tests.e2e.conftest import ROOT, Pair, Store
from tests.e2e.replicas import Api, ReplicaProcess, project

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

VITE: Final = ROOT / "tests" / "fixtures" / "vite7"


def dev_servers(session_id: str) -> list[psutil.Process]:
    """The processes that carry the session's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get("PREVIEW_SESSION", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if mark.partition(".")[0] == session_id:
            found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and only waits for init to notice does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def status_of(http: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    async with http.get(url) as response:
        return response.status, await response.text()


class Monitor:
    """Redis' own record of the commands that it was given, with its clock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.commands: list[tuple[float, str]] = []

    async def __aenter__(self) -> Monitor:
        path = str(self._store.socket)
        self._reader, self._writer = await asyncio.open_unix_connection(path)
        self._writer.write(b"MONITOR\r\n")
        assert (await self._reader.readline()).startswith(b"+OK")
        self._task = asyncio.create_task(self._read(), name="monitor")
        return self

    async def _read(self) -> None:
        async for raw in self._reader:
            moment, _, command = raw.decode(errors="replace").lstrip("+").partition(" ")
            self.commands.append((float(moment), command))

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        self._writer.close()
        await asyncio.gather(self._task, return_exceptions=True)


async def create_time_offset() -> float:
    """How far psutil's create times are off the clock: they count from a boot time in seconds."""
    before = time.time()
    process = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        return psutil.Process(process.pid).create_time() - before
    finally:
        process.kill()
        await process.wait()


async def test_a_session_is_registered_and_read_back_before_anything_is_spawned(
    pair: Pair, store: Store
) -> None:
    async with Monitor(store) as monitor:
        session = await pair.a.create({"files": project(VITE)}, ready=True)
    key = f"preview:{{{session['id']}}}:session"
    ours = [(moment, text) for moment, text in monitor.commands if key in text]
    written = next(i for i, (_, text) in enumerate(ours) if '"EVALSHA"' in text)
    read_back = next(
        i for i, (_, text) in enumerate(ours) if '"HGETALL"' in text and "lua" not in text
    )
    assert written < read_back
    spawned = min(process.create_time() for process in dev_servers(session["id"]))
    spawned -= await create_time_offset()
    assert ours[read_back][0] <= spawned + 0.02, "create times have a resolution of 10 ms"


async def test_sigterm_leaves_no_process_socket_or_file_behind(
    store: Store, scratch: Path, data_dir: Path, http: aiohttp.ClientSession
) -> None:
    environ = {"GATEWAY_REDIS_URL": store.url, "TMPDIR": str(scratch)}
    async with ReplicaProcess(host="127.0.0.2", data_dir=data_dir, environ=environ) as replica:
        api = Api(http, replica)
        session = await api.create({"files": project(VITE)}, ready=True)
        assert dev_servers(session["id"])
        children = psutil.Process(replica.pid).children(recursive=True)
        assert children
        assert await replica.stop() == 0
    assert dev_servers(session["id"]) == []
    assert [child for child in children if is_alive(child)] == []
    assert list(scratch.iterdir()) == []
    workspaces = data_dir / "workspaces"
    assert not [path for path in workspaces.iterdir() if path.name.startswith(session["id"])]
    assert not [line for line in replica.lines if "Traceback" in line], replica.lines


async def test_a_session_outlives_the_restart_of_its_only_replica(
    data_dir: Path, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    own = tmp_path / "data"
    own.mkdir()
    (own / "dependencies").symlink_to(data_dir / "dependencies")
    (data_dir / "dependencies").mkdir(exist_ok=True)
    async with ReplicaProcess(host="127.0.0.2", data_dir=own) as replica:
        session = await Api(http, replica).create({"files": project(VITE)}, ready=True)
    async with ReplicaProcess(host="127.0.0.2", data_dir=own) as replica:
        status, text = await status_of(http, f"{replica.url}/preview/{session['id']}/")
        assert status == 200, text
        assert "Vite 7" in text
        status, again = await Api(http, replica).call("GET", f"/api/v1/sessions/{session['id']}")
        assert again["state"] == "ready"
        assert again["generation"] > session["generation"]


@pytest.mark.parametrize("environ", [{"GATEWAY_LEASE_SECONDS": "2"}], ids=["lease of 2 s"])
async def test_a_preview_of_a_killed_replica_is_taken_over_by_the_other(
    pair: Pair, http: aiohttp.ClientSession
) -> None:
    session = await pair.a.create({"files": project(VITE)}, ready=True)
    old = dev_servers(session["id"])
    url = f"{pair.b.url}/preview/{session['id']}/"
    assert (await status_of(http, url))[0] == 200
    pair.a.replica.kill(signal.SIGKILL)
    await pair.a.replica.exited()
    for process in old:  # a lost node takes its dev servers with it
        if process.is_running():
            process.kill()
    seen: set[int] = set()
    deadline = time.monotonic() + 30
    while True:
        status, text = await status_of(http, url)
        seen.add(status)
        if status == 200 or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    assert status == 200, text
    assert 404 not in seen
    _, now = await pair.b.call("GET", f"/api/v1/sessions/{session['id']}")
    assert now["owner"] != session["owner"]
    assert now["generation"] > session["generation"]


async def test_a_stop_through_the_other_replica_ends_the_dev_server(
    pair: Pair, http: aiohttp.ClientSession
) -> None:
    session = await pair.a.create({"files": project(VITE)}, ready=True)
    assert dev_servers(session["id"])
    path = f"/api/v1/sessions/{session['id']}/stop"
    status, answer = await pair.b.call("POST", path, {})
    assert (status, answer["state"], answer["alreadyStopped"]) == (200, "stopped", False)
    assert dev_servers(session["id"]) == []
    status, answer = await pair.a.call("POST", path, {})
    assert (status, answer["state"], answer["alreadyStopped"]) == (200, "stopped", True)
    for api in (pair.a, pair.b):
        status, text = await status_of(http, f"{api.url}/preview/{session['id']}/")
        assert status == 410
        assert "stopped by request" in text


BROKEN: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "a package that does not exist": (
        {
            "packageJson": {
                "name": "broken",
                "devDependencies": {"vite": "7.3.8", "no-such-package-pgw-17": "1.0.0"},
            },
            "files": [{"path": "index.html", "content": "<p>hi</p>"}],
        },
        "no-such-package-pgw-17",
    ),
    "a command that exits": (
        {
            "files": [{"path": "x.txt", "content": "x"}],
            "command": ["sh", "-c", "echo cannot go on; exit 3"],
        },
        "3",
    ),
    "a server that never listens": (
        {"files": [{"path": "x.txt", "content": "x"}], "command": ["sleep", "600"]},
        "listen",
    ),
}


@pytest.mark.parametrize("environ", [{"GATEWAY_START_TIMEOUT_SECONDS": "3"}], ids=["3 s"])
@pytest.mark.parametrize(("body", "reason"), BROKEN.values(), ids=BROKEN)
async def test_what_cannot_start_fails_with_a_reason_and_the_end_of_the_log(
    body: dict[str, Any], reason: str, pair: Pair, http: aiohttp.ClientSession
) -> None:
    status, session = await pair.a.call(
        "POST", "/api/v1/sessions?wait=ready&timeout=60", body, seconds=70
    )
    assert status == 201
    assert session["state"] == "failed"
    assert reason in session["reason"]
    assert dev_servers(session["id"]) == []
    url = f"{pair.b.url}/preview/{session['id']}/"
    async with http.get(url, headers={"Accept": "text/html"}) as response:
        page = await response.text()
    assert response.status == 410
    assert reason in page
    if "echo" in str(body):
        assert "cannot go on" in page


async def test_a_dev_server_that_ends_by_itself_is_a_failed_session_with_its_last_words(
    pair: Pair, http: aiohttp.ClientSession
) -> None:
    script = (
        "require('http').createServer((q, r) => { r.end('bye'); if (q.url.endsWith('/end')) "
        "setTimeout(() => { console.log('last words'); process.exit(7) }, 50) })"
        ".listen(process.env.PORT, process.env.HOST)"
    )
    files = [{"path": "server.cjs", "content": script}]
    body = {"files": files, "command": ["node", "server.cjs"]}
    session = await pair.a.create(body, ready=True)
    assert await status_of(http, f"{pair.b.url}/preview/{session['id']}/end") == (200, "bye")
    async with asyncio.timeout(30):
        while True:
            _, now = await pair.b.call("GET", f"/api/v1/sessions/{session['id']}")
            if now["state"] != "ready":
                break
            await asyncio.sleep(0.05)
    assert now["state"] == "failed"
    assert "7" in now["reason"]
    _, log = await pair.b.call("GET", f"/api/v1/sessions/{session['id']}/logs")
    assert "last words" in log


@pytest.fixture
async def embedded(
    tmp_path: Path, data_dir: Path, http: aiohttp.ClientSession
) -> AsyncIterator[tuple[Api, Api]]:
    """Two replicas by two commands and nothing else: they share an embedded Valkey."""
    own = tmp_path / "data"
    async with (
        ReplicaProcess(host="127.0.0.2", data_dir=own) as a,
        ReplicaProcess(host="127.0.0.3", data_dir=own) as b,
    ):
        yield Api(http, a), Api(http, b)


async def test_two_replicas_with_one_data_directory_share_their_sessions(
    embedded: tuple[Api, Api], http: aiohttp.ClientSession
) -> None:
    a, b = embedded
    files = [{"path": "index.txt", "content": "x"}]
    command = ["python3", "-m", "http.server", "--bind", "{host}", "{port}"]
    session = await a.create({"files": files, "command": command}, ready=True)
    status, _ = await status_of(http, f"{b.url}/preview/{session['id']}/")
    assert status == 404, "the dev server's own answer: it knows no such path"
    _, known = await b.call("GET", f"/api/v1/sessions/{session['id']}")
    assert known["state"] == "ready"


async def hmr_socket(http: aiohttp.ClientSession, url: str) -> aiohttp.ClientWebSocketResponse:
    """Vite's HMR socket through the gateway, as a program reaches it."""
    socket = await http.ws_connect(url, autoping=False, max_msg_size=0)
    assert (await socket.receive_json(timeout=10))["type"] == "connected"
    return socket


@pytest.mark.parametrize("environ", [{"GATEWAY_LEASE_SECONDS": "1"}], ids=["lease of 1 s"])
async def test_an_open_page_that_only_sends_keep_alives_lets_its_preview_sleep(
    pair: Pair, http: aiohttp.ClientSession
) -> None:
    body = {"files": project(VITE), "idleSeconds": 5}
    session = await pair.a.create(body, ready=True)
    path = f"/preview/{session['id']}"
    socket = await hmr_socket(http, f"{pair.b.url}{path}/hmr")

    async def talk(message: str, until: float) -> str:
        """Say ``message`` twice a second; the state at the end."""
        state = ""
        while time.monotonic() < until and state != "sleeping":
            if not socket.closed:
                await socket.send_str(message)
            await asyncio.sleep(0.5)
            _, now = await pair.a.call("GET", f"/api/v1/sessions/{session['id']}")
            state = now["state"]
        return state

    busy = json.dumps({"type": "custom", "event": "app:hello", "data": 1})
    assert await talk(busy, time.monotonic() + 8) == "ready", "what an app says is traffic"
    ping = json.dumps({"type": "ping"}, separators=(",", ":"))
    assert await talk(ping, time.monotonic() + 40) == "sleeping", "keep-alives are none"
    # First nobody routes there any more, then it ends.
    async with asyncio.timeout(20):
        while dev_servers(session["id"]):  # noqa: ASYNC110 - processes tell nobody of their end
            await asyncio.sleep(0.05)
    status, text = await status_of(http, f"{pair.b.url}{path}/")
    assert (status, "Vite 7" in text) == (200, True)
    _, now = await pair.a.call("GET", f"/api/v1/sessions/{session['id']}")
    assert (now["state"], now["generation"] > session["generation"]) == ("ready", True)
    async with asyncio.timeout(10):  # the socket has outlived the sleep
        assert await socket.receive_json() == {"type": "full-reload", "path": "*"}
