"""The embedded Valkey: shared by the gateways of a data directory, gone with the last of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from gateway.errors import RegistryUnavailable, SettingsError
from gateway.registry.embedded import EmbeddedValkey
from gateway.registry.node import Argument
from gateway.registry.redis_client import RedisClient

#: A gateway reduced to its registry: says the URL, and leaves at the end of its input.
_USER = """
import asyncio, pathlib, sys
from gateway.registry.embedded import EmbeddedValkey

async def main():
    valkey = EmbeddedValkey(pathlib.Path(sys.argv[1]))
    print(await valkey.start(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await valkey.close()

asyncio.run(main())
"""


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data directory; nothing of its server may be left after the test."""
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        monkeypatch.setenv("XDG_RUNTIME_DIR", root)
        folder = Path(root) / "data"
        yield folder
        left = _servers(folder)
        for process in left:
            process.kill()
        assert left == []
        assert list(Path(root).glob("preview-gateway-*/*")) == []


def _servers(folder: Path) -> list[psutil.Process]:
    """The processes that work in the data directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder.resolve()):
                found.append(process)
    return found


@contextlib.asynccontextmanager
async def user(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Another process that uses the data directory, and the URL it was given."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _USER, str(folder)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    try:
        async with asyncio.timeout(20):
            url = (await process.stdout.readline()).decode().strip()
        assert url
        yield process, url
        process.stdin.close()
        async with asyncio.timeout(20):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ask(url: str, *parts: Argument) -> object:
    """The answer to one command."""
    client = RedisClient(url, limit_seconds=5)
    try:
        answer: object = await client.ask("test", lambda exchange: exchange.command(*parts))
    finally:
        await client.close()
    return answer


def socket_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


async def test_it_starts_persists_and_leaves_nothing_running(data_dir: Path) -> None:
    valkey = EmbeddedValkey(data_dir)
    url = await valkey.start()
    assert await ask(url, "SET", "key", "value") == b"OK"
    assert stat.S_IMODE(socket_of(url).stat().st_mode) == 0o700
    assert stat.S_IMODE(socket_of(url).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((data_dir / "valkey").stat().st_mode) == 0o700
    assert len(_servers(data_dir)) == 1
    await valkey.close()
    assert _servers(data_dir) == []
    assert not socket_of(url).exists()
    again = EmbeddedValkey(data_dir)
    assert await again.start() == url
    assert await ask(url, "GET", "key") == b"value"
    await again.close()
    await again.close()


async def test_it_is_configured_for_durability_and_privacy(data_dir: Path) -> None:
    valkey = EmbeddedValkey(data_dir)
    url = await valkey.start()
    for name, value in {
        "port": b"0",
        "appendonly": b"yes",
        "appendfsync": b"everysec",
        "save": b"",
        "maxmemory-policy": b"noeviction",
    }.items():
        assert await ask(url, "CONFIG", "GET", name) == [name.encode(), value]
    (server,) = _servers(data_dir)
    assert server.net_connections("inet") == []
    assert server.environ() == {}
    await valkey.close()


async def test_a_second_process_joins_and_the_last_one_stops_it(data_dir: Path) -> None:
    valkey = EmbeddedValkey(data_dir)
    url = await valkey.start()
    await ask(url, "SET", "key", "value")
    async with user(data_dir) as (_, joined):
        assert joined == url
        assert len(_servers(data_dir)) == 1
        await valkey.close()
        assert await ask(url, "GET", "key") == b"value"
    assert _servers(data_dir) == []


async def test_many_starting_at_once_share_one_server(data_dir: Path) -> None:
    users = [EmbeddedValkey(data_dir) for _ in range(5)]
    async with user(data_dir) as (_, url):
        assert await asyncio.gather(*(each.start() for each in users)) == [url] * 5
        assert len(_servers(data_dir)) == 1
        await asyncio.gather(*(each.close() for each in users))
        assert await ask(url, "PING") == b"PONG"


async def test_starting_and_leaving_in_turns_never_loses_the_server(data_dir: Path) -> None:
    async def come_and_go() -> None:
        for _ in range(5):
            valkey = EmbeddedValkey(data_dir)
            url = await valkey.start()
            assert await ask(url, "PING") == b"PONG"
            await valkey.close()

    await asyncio.gather(*(come_and_go() for _ in range(4)))
    assert _servers(data_dir) == []


async def test_a_killed_user_no_longer_counts(data_dir: Path) -> None:
    async with user(data_dir) as (first, url):
        await ask(url, "SET", "key", "value")
        os.kill(first.pid, signal.SIGKILL)
        await first.wait()
        assert len(_servers(data_dir)) == 1
        valkey = EmbeddedValkey(data_dir)
        assert await valkey.start() == url
        assert await ask(url, "GET", "key") == b"value"
        await valkey.close()
        assert _servers(data_dir) == []


async def test_a_signal_to_the_terminal_does_not_reach_the_server(data_dir: Path) -> None:
    valkey = EmbeddedValkey(data_dir)
    await valkey.start()
    (server,) = _servers(data_dir)
    assert os.getsid(server.pid) != os.getsid(0)
    assert os.getpgid(server.pid) != os.getpgid(0)
    await valkey.close()


async def test_a_server_that_died_is_started_anew_with_its_data(data_dir: Path) -> None:
    valkey = EmbeddedValkey(data_dir)
    url = await valkey.start()
    await ask(url, "SET", "key", "value")
    (server,) = _servers(data_dir)
    server.kill()
    psutil.wait_procs([server], timeout=10)
    second = EmbeddedValkey(data_dir)
    assert await second.start() == url
    assert await ask(url, "GET", "key") == b"value"
    await valkey.close()
    assert len(_servers(data_dir)) == 1
    await second.close()


async def test_a_server_that_ignores_a_gentle_stop_is_killed(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.registry.embedded._STOP_SECONDS", 0.3)
    valkey = EmbeddedValkey(data_dir)
    await valkey.start()
    (server,) = _servers(data_dir)
    server.suspend()
    await valkey.close()
    assert _servers(data_dir) == []


async def test_a_server_whose_socket_was_cleared_away_is_replaced(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.registry.embedded._SOCKET_GRACE_SECONDS", 0.1)
    monkeypatch.setattr("gateway.registry.embedded._STOP_SECONDS", 2.0)
    valkey = EmbeddedValkey(data_dir)
    url = await valkey.start()
    await ask(url, "SET", "key", "value")
    socket_of(url).unlink()
    second = EmbeddedValkey(data_dir)
    assert await second.start() == url
    assert await ask(url, "GET", "key") == b"value"
    await second.close()
    await valkey.close()


async def test_a_long_and_odd_path_of_data_is_no_obstacle(data_dir: Path) -> None:
    folder = data_dir / ("long" * 40) / 'it\'s "odd" ü'
    valkey = EmbeddedValkey(folder)
    url = await valkey.start()
    assert len(os.fsencode(socket_of(url))) <= 103
    assert await ask(url, "SET", "key", "value") == b"OK"
    await valkey.close()
    assert (folder / "valkey" / "appendonlydir").is_dir()


async def test_joining_does_not_depend_on_the_environment(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    valkey = EmbeddedValkey(data_dir)
    url = await valkey.start()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    second = EmbeddedValkey(data_dir)
    assert await second.start() == url
    await valkey.close()
    await second.close()


async def test_a_runtime_directory_others_may_enter_is_refused(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(data_dir.parent))
    shared = data_dir.parent / f"preview-gateway-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(SettingsError, match="chmod 700"):
        await EmbeddedValkey(data_dir).start()
    shared.rmdir()
    elsewhere = data_dir.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    shared.symlink_to(elsewhere)
    with pytest.raises(SettingsError, match="chmod 700"):
        await EmbeddedValkey(data_dir).start()
    shared.unlink()


async def test_a_data_directory_that_cannot_be_made_is_a_setting_error(data_dir: Path) -> None:
    data_dir.write_text("a file")
    with pytest.raises(SettingsError, match="GATEWAY_DATA_DIR"):
        await EmbeddedValkey(data_dir).start()


async def test_a_server_that_cannot_start_shows_the_end_of_its_log(data_dir: Path) -> None:
    valkey = EmbeddedValkey(data_dir)
    await valkey.start()
    await valkey.close()
    manifest = data_dir / "valkey" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("no manifest\n")
    with pytest.raises(RegistryUnavailable, match="manifest"):
        await EmbeddedValkey(data_dir).start()


async def test_a_cancelled_start_leaves_nothing(data_dir: Path) -> None:
    for turns in range(1, 12, 2):
        task = asyncio.create_task(EmbeddedValkey(data_dir).start())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert _servers(data_dir) == []


async def test_no_descriptor_leaks_into_children_of_the_gateway(data_dir: Path) -> None:
    valkey = EmbeddedValkey(data_dir)
    await valkey.start()
    code = "import os; [print(os.path.realpath(f'/proc/self/fd/{n}')) for n in range(256)]"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE, close_fds=False
    )
    out, _ = await child.communicate()
    assert child.returncode == 0
    assert str(data_dir) not in out.decode()
    await valkey.close()
