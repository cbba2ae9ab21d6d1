"""The command line as people and programs use it: real processes, judged by what they print."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import pytest

from gateway.api.catalogue import document
from tests.e2e.calls import fresh_id
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.timeout(180)

_SECONDS: Final = 90.0
FIXTURE: Final = ROOT / "tests" / "fixtures" / "vite5"


class Command:
    """A running ``preview-gateway``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err = ""
        self._more = asyncio.Event()
        self._reading = asyncio.gather(self._read_out(), self._read_err())

    async def _read_out(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            self.out.append(raw.decode().rstrip("\n"))
            self._more.set()

    async def _read_err(self) -> None:
        assert self.process.stderr is not None
        self.err = (await self.process.stderr.read()).decode()
        self._more.set()

    async def until(self, pattern: str) -> re.Match[str]:
        """The first line of the output that has ``pattern``."""
        async with asyncio.timeout(_SECONDS):
            while True:
                for line in self.out:
                    if match := re.search(pattern, line):
                        return match
                if self._reading.done():
                    raise AssertionError(f"no {pattern!r} in {self.out} {self.err}")
                self._more.clear()
                await self._more.wait()

    async def ended(self) -> int:
        """The exit status, when all output was read."""
        async with asyncio.timeout(_SECONDS):
            status = await self.process.wait()
            await self._reading
        return status

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return await self.ended()


@pytest.fixture
def settings(data_dir: Path) -> dict[str, str]:
    """The environment of the commands."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    drain = {"GATEWAY_DRAIN_GRACE_SECONDS": "0", "GATEWAY_DRAIN_SECONDS": "1"}
    return {**clean, "GATEWAY_DATA_DIR": str(data_dir), **drain}


@asynccontextmanager
async def started(settings: Mapping[str, str], *arguments: str) -> AsyncIterator[Command]:
    """A command; what it has left running when the block ends is a failure."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        env=settings,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    command = Command(process)
    try:
        yield command
    finally:
        if process.returncode is None:
            process.terminate()
        await command.ended()
        assert "Traceback" not in command.err, command.err


async def run(settings: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    """(status, standard output, standard error) of a command that ends by itself."""
    async with started(settings, *arguments) as command:
        status = await command.ended()
        return status, "\n".join(command.out), command.err


def family(pid: int) -> set[psutil.Process]:
    return {psutil.Process(pid), *psutil.Process(pid).children(recursive=True)}


def left(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; where nobody collects orphans, an ended one stays as a zombie."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if runs(process)]


def users_of(folder: Path) -> set[psutil.Process]:
    """Processes that run in ``folder``."""

    def uses(process: psutil.Process) -> bool:
        try:
            return Path(process.cwd()).is_relative_to(folder)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    return {process for process in psutil.process_iter() if uses(process)}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A project of a person's own, with what must not be sent."""
    folder = tmp_path / "My App"
    shutil.copytree(FIXTURE, folder)
    (folder / "node_modules" / "secret").mkdir(parents=True)
    (folder / "node_modules" / "secret" / "index.js").write_text("x")
    (folder / ".gitignore").write_text("*.log\n/private/\n")
    (folder / "debug.log").write_text("x")
    (folder / "private").mkdir()
    (folder / "private" / "key").write_text("x")
    return folder


@pytest.fixture
async def serving(settings: dict[str, str]) -> AsyncIterator[str]:
    """The URL of a gateway that serves."""
    async with started(settings, "serve", "--port", "0") as command:
        yield (await command.until("serves (http://.*)"))[1]


# -- serve -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_ends_quietly_on_a_signal(
    settings: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    settings["GATEWAY_DATA_DIR"] = str(tmp_path)  # with a Valkey of its own
    async with started(settings, "serve", "--port", "0", "--log-level", "warning") as command:
        url = (await command.until("serves (http://.*)"))[1]
        processes = family(command.process.pid) | users_of(tmp_path)
        assert len(processes) > 1, "the replica and its Valkey"
        assert await command.end(number) == 0
        assert command.err == ""
        assert command.out == [f"preview-gateway serves {url}"]
    assert left(processes) == []


@pytest.mark.parametrize(
    ("environ", "arguments", "words"),
    [
        ({"GATEWAY_PROT": "1"}, [], ["GATEWAY_PROT", "did you mean GATEWAY_PORT?"]),
        ({"GATEWAY_PORT": "high"}, [], ["GATEWAY_PORT"]),
        ({}, ["--port", "70000"], ["GATEWAY_PORT"]),
        ({}, ["--host", "0.0.0.0"], ["GATEWAY_API_TOKENS", "--insecure"]),
        ({"GATEWAY_API_TOKENS": "short-secret"}, [], ["GATEWAY_API_TOKENS", "openssl"]),
        ({"GATEWAY_REDIS_URL": "http://x"}, [], ["GATEWAY_REDIS_URL", "redis://"]),
    ],
)
async def test_bad_settings_are_refused_with_a_line_that_names_them(
    settings: dict[str, str], environ: dict[str, str], arguments: list[str], words: list[str]
) -> None:
    status, out, err = await run({**settings, **environ}, "serve", *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in words)
    assert "short-secret" not in err


@pytest.mark.parametrize("setting", ["PORT", "ADMIN_PORT"])
async def test_a_port_in_use_is_named(settings: dict[str, str], setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings |= {"GATEWAY_PORT": "0", f"GATEWAY_{setting}": str(taken.getsockname()[1])}
        status, out, err = await run(settings, "serve", "--log-level", "warning")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"GATEWAY_{setting}" in err


async def test_a_registry_that_is_away_is_named(settings: dict[str, str]) -> None:
    settings["GATEWAY_REDIS_URL"] = "redis://:hidden-word@127.0.0.1:9"
    status, out, err = await run(settings, "serve", "--port", "0", "--log-level", "error")
    assert (status, out) == (1, "")
    assert "registry" in err
    assert "hidden-word" not in err


async def test_check_config_prints_settings_without_secrets(settings: dict[str, str]) -> None:
    settings |= {
        "GATEWAY_API_TOKENS": "a-token-nobody-may-see",
        "GATEWAY_REDIS_URL": "redis://me:hidden-word@store:6379/1",
        "GATEWAY_CORS_ORIGINS": "https://a.example,https://b.example",
    }
    status, out, err = await run(settings, "check-config", "--port", "81")
    assert (status, err) == (0, "")
    lines = dict(line.split("=", 1) for line in out.splitlines())
    assert lines["GATEWAY_PORT"] == "81"
    assert lines["GATEWAY_CORS_ORIGINS"] == "https://a.example,https://b.example"
    assert lines["GATEWAY_API_TOKENS"] == "**********"
    assert lines["GATEWAY_REDIS_URL"] == "redis://me:**********@store:6379/1"
    status, as_json, _ = await run(settings, "check-config", "--json")
    assert json.loads(as_json)["api_tokens"] == ["**********"]
    for text in (out, as_json):
        assert "nobody-may-see" not in text
        assert "hidden-word" not in text


async def test_a_switch_can_be_turned_on_and_off_by_a_flag(settings: dict[str, str]) -> None:
    for flag, value in (("--keep-hmr-sockets", True), ("--no-keep-hmr-sockets", False)):
        _, shown, _ = await run(settings, "check-config", "--json", flag)
        assert json.loads(shown)["keep_hmr_sockets"] is value


async def test_the_document_of_the_api_is_printed_without_a_gateway(
    settings: dict[str, str],
) -> None:
    status, out, err = await run(settings, "openapi")
    assert (status, err) == (0, "")
    assert json.loads(out) == document()


async def test_help_names_every_command_and_setting(settings: dict[str, str]) -> None:
    status, out, _ = await run(settings, "--help")
    assert status == 0
    for command in ("serve", "up", "ls", "logs", "stop", "doctor", "check-config", "openapi"):
        assert re.search(rf"^    {command}\s+\w", out, re.MULTILINE)
    status, out, _ = await run({**settings, "COLUMNS": "100"}, "serve", "--help")
    assert status == 0
    assert "--redis-url VALUE" in out
    assert "GATEWAY_REDIS_URL" in out
    status, out, err = await run(settings, "frobnicate")
    assert (status, out) == (2, "")
    assert "invalid choice" in err


# -- up --------------------------------------------------------------------------------------------


async def shown(url: str) -> str:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def until_shown(url: str, text: str) -> None:
    """Wait until the dev server, told of an edit by its file system, serves it."""
    async with asyncio.timeout(_SECONDS):
        while text not in await shown(url):  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.05)


@pytest.mark.node
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_up_shows_a_folder_live_and_leaves_nothing_behind(
    settings: dict[str, str], app: Path, number: signal.Signals
) -> None:
    async with started(settings, "up", str(app), "--port", "0") as command:
        url = (await command.until(r"^  (http://\S+/preview/my-app-\w+/)$"))[1]
        begun = "\n".join(command.out)
        assert re.search(
            r"^serving +http://127\.0\.0\.1:\d+\nregistered +my-app-\w+ \(\d+ files\)\npreparing\n"
            r"(installing +\(.+\)\n)*starting +\(vite\)\nready +in \d+\.\d s\n",
            begun,
        ), begun
        assert "/@vite/client" in await shown(url)

        gateway, session_id = url.removesuffix("/").split("/preview/")
        (app / "message.js").write_text("export const message = 'edited on disk';\n")
        await command.until(r"^synced +message\.js$")
        await until_shown(f"{url}message.js", "edited on disk")
        # A folder that is moved in and out again is more than one event can tell.
        aside = app.parent / "aside"
        aside.mkdir()
        (aside / "deep.js").write_text("export default 'moved in';\n")
        aside.rename(app / "inner")
        await command.until(r"^synced +inner/deep\.js$")
        await until_shown(f"{url}inner/deep.js", "moved in")
        (app / "inner").rename(aside)
        await command.until(r"^synced +inner/deep\.js \(deleted\)$")
        (app / "more.log").write_text("x")
        (app / "node_modules" / "other.js").write_text("x")
        (app / "last.js").write_text("export default 'the last';\n")
        await command.until(r"^synced +last\.js$")
        await until_shown(f"{url}last.js", "the last")

        workspace = next(Path(settings["GATEWAY_DATA_DIR"]).glob(f"workspaces/{session_id}.*/app"))
        sent = {path.name for path in workspace.iterdir()}
        assert {"package.json", "index.html", "last.js"} <= sent
        assert not sent & {"private", "debug.log", "more.log"}
        assert not (workspace / "node_modules" / "secret").exists()

        processes = family(command.process.pid)
        assert len(processes) > 2
        assert await command.end(number) == 128 + number
        assert command.out[-1] == f"stopped      {session_id}"
        assert command.err == ""
    assert left(processes) == []
    assert not workspace.exists()
    with pytest.raises(aiohttp.ClientConnectionError):
        await shown(gateway)


@pytest.mark.node
async def test_up_speaks_json_and_joins_a_gateway_that_serves(
    settings: dict[str, str], serving: str, app: Path
) -> None:
    port = serving.rpartition(":")[2]
    async with started(settings, "up", str(app), "--port", port, "--json") as command:
        await command.until('"registered"')
        (app / "early.js").write_text("export default 1;\n")  # perhaps before it is watched
        await command.until('"ready"')
        await command.until('"synced".*early.js')
        said = [json.loads(line) for line in command.out]
        events = [line["event"] for line in said]
        assert events[0] == "registered", "nothing is served here: one serves already"
        assert {"phase", "ready"} <= set(events)
        session_id = said[0]["session"]["id"]
        (ready,) = [line for line in said if line["event"] == "ready"]
        assert ready["previewUrl"] == f"{serving}/preview/{session_id}/"

        client = ("--url", serving)
        _, listed, _ = await run(settings, "ls", *client, "--json")
        (session,) = [entry for entry in json.loads(listed) if entry["id"] == session_id]
        assert session["state"] == "ready"
        status, stopped, _ = await run(settings, "stop", session_id, *client)
        assert (status, stopped) == (0, f"{session_id} is stopped: stopped by request")
        assert await command.ended() == 0
        assert json.loads(command.out[-2])["event"] == "ended"
    assert (await run(settings, "ls", *client))[0] == 0


@pytest.mark.node
@pytest.mark.parametrize(
    ("package", "words"),
    [
        (None, ["has no package.json"]),
        ('{"devDependencies": {', ["package.json is not valid JSON", "line 1"]),
        ('{"name": "plain"}', ["supported are vite"]),
        (
            '{"devDependencies": {"vite": "file:./no/such/folder"}}',
            ["  | ", "the preview failed"],
        ),
    ],
    ids=["none", "malformed", "unknown", "not installable"],
)
async def test_up_says_why_a_folder_cannot_be_shown(
    settings: dict[str, str], tmp_path: Path, package: str | None, words: list[str]
) -> None:
    if package is not None:
        (tmp_path / "package.json").write_text(package)
    (tmp_path / "index.html").write_text("<h1>hello</h1>")
    status, out, err = await run(settings, "up", str(tmp_path), "--port", "0")
    assert status == 1, out
    assert all(word in err for word in words), err
    assert err.splitlines()[-1].startswith("preview-gateway: ")


async def test_up_of_no_folder_is_refused(settings: dict[str, str], tmp_path: Path) -> None:
    status, _, err = await run(settings, "up", str(tmp_path / "none"))
    assert status == 1
    assert "is no folder" in err


# -- ls, logs, stop --------------------------------------------------------------------------------


@pytest.mark.node
async def test_sessions_can_be_listed_read_followed_and_stopped(
    settings: dict[str, str], serving: str
) -> None:
    client = ("--url", serving)
    source = (
        "const http = require('http'); console.log('begun'); let n = 0;"
        "http.createServer((_, answer) => { console.log('asked ' + ++n); answer.end('x'); })"
        ".listen(+process.argv[3], process.argv[2]);"
    )
    body = {
        "id": fresh_id(),
        "files": [{"path": "s.cjs", "content": source}],
        "command": ["node", "s.cjs", "{host}", "{port}"],
    }
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{serving}/api/v1/sessions?wait=ready", json=body) as response,
    ):
        assert (await response.json())["state"] == "ready"
    session_id = str(body["id"])
    status, out, _ = await run(settings, "ls", *client, "--state", "ready")
    assert status == 0
    assert re.search(rf"^{session_id} +ready +\S+ +20\d\d-", out, re.MULTILINE)

    async with started(settings, "logs", session_id, "-f", *client) as following:
        await following.until("begun")
        await shown(f"{serving}/preview/{session_id}/")
        await following.until(r"asked \d")
        status, out, _ = await run(settings, "logs", session_id, "--tail", "1", *client)
        assert (status, re.fullmatch(r"asked \d", out) is not None) == (0, True)
        _, as_json, _ = await run(settings, "logs", session_id, "--json", *client)
        assert json.loads(as_json)["lines"][0] == "begun"

        _, out, _ = await run(settings, "stop", session_id, *client, "--json")
        assert json.loads(out)["alreadyStopped"] is False
        assert await following.ended() == 0, "the log ends with its session"
        assert following.out[-1] == "-- stopped: stopped by request"
    status, out, _ = await run(settings, "stop", session_id, *client)
    assert (status, out) == (0, f"{session_id} was already stopped: stopped by request")


async def test_what_a_client_command_cannot_do_is_said_in_a_line(
    settings: dict[str, str], serving: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for arguments, words in (
        (("ls", "--url", nowhere), "no gateway answers"),
        (("ls", "--url", "nonsense"), "no gateway answers"),
        (("stop", "never-created", "--url", serving), "there is no session never-created"),
        (("stop", "No", "--url", serving), "is no session id"),
        (("logs", "x", "-f", "--url", serving), "is no session id"),
        (("ls", "--state", "odd", "--url", serving), "'odd' is none of"),
    ):
        status, out, err = await run(settings, *arguments)
        assert (status, out) == (1, ""), arguments
        assert err.count("\n") == 1, err
        assert words in err


async def test_a_followed_log_can_be_left(settings: dict[str, str], serving: str) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{serving}/api/v1/sessions", json={"command": "sleep 1000"}) as response,
    ):
        session_id = (await response.json())["id"]
    async with started(settings, "logs", session_id, "-f", "--json", "--url", serving) as command:
        await command.until('"starting"')
        assert await command.end(signal.SIGINT) == 130
        assert command.err == ""
