"""The embedded registry: one Valkey per data directory, shared by all gateways that use it.

The first gateway starts it, the last one to leave stops it. Each holds a share of a lock for its
life, so a gateway that was killed no longer counts. Starting and leaving are serialised by a
second lock.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final
from urllib.parse import quote

from gateway.errors import RegistryUnavailable, SettingsError
from gateway.registry.flock import Flock
from gateway.registry.valkey_process import ValkeyProcess

_log = logging.getLogger(__name__)

#: How long a server without a socket may be one that is just starting.
_SOCKET_GRACE_SECONDS: Final = 3.0
_STOP_SECONDS: Final = 5.0


class EmbeddedValkey:
    """A gateway's use of the Valkey in ``data_dir``."""

    def __init__(self, data_dir: Path, *, start_seconds: float = 30.0) -> None:
        self._folder = data_dir / "valkey"
        self._start_seconds = start_seconds
        self._server = ValkeyProcess(self._folder)
        self._users: Flock | None = None

    async def start(self) -> str:
        """Start the server, or join the one that runs; returns its ``unix://`` URL.

        Raises RegistryUnavailable (with the end of the server's log) if it does not get ready,
        SettingsError if data or runtime directory cannot be used.
        """
        self._make_folder()
        users = Flock(self._folder / "users.lock")
        gate = await self._enter()
        try:
            socket = await self._join(users)
        except BaseException:
            await self._leave(users)
            raise
        finally:
            gate.release()
        self._users = users
        return f"unix://{quote(str(socket))}"

    async def close(self) -> None:
        """Leave; stops the server, with its data on disk, if nobody else uses it. Idempotent."""
        users, self._users = self._users, None
        if users is None:
            return
        try:
            gate = await self._enter()
        except BaseException:
            users.release()
            raise
        try:
            await self._leave(users)
        finally:
            gate.release()

    # -- below, the gate is held -----------------------------------------------------------------

    async def _join(self, users: Flock) -> Path:
        # Only whoever holds the gate ever asks for this lock alone.
        if not users.try_shared():
            raise RegistryUnavailable(f"{self._folder} is locked by another program")
        return await self._find_or_start()

    async def _find_or_start(self) -> Path:
        if self._server.is_running():
            socket = await self._appeared()
            if socket is not None:
                return await self._server.ready(limit_seconds=self._start_seconds)
            # Somebody cleared the runtime directory: nobody can reach this server any more.
            _log.warning("the embedded Valkey has lost its socket and is started anew")
            await self._server.stop(limit_seconds=_STOP_SECONDS)
        self._server.start()
        return await self._server.ready(limit_seconds=self._start_seconds)

    async def _appeared(self) -> Path | None:
        """The socket of the running server, unless it is missing for good."""
        try:
            async with asyncio.timeout(_SOCKET_GRACE_SECONDS):
                # Another process makes it, which no event of this loop tells.
                while not ((socket := self._server.socket()) and socket.exists()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                return socket
        except TimeoutError:
            return None

    async def _leave(self, users: Flock) -> None:
        try:
            if users.try_exclusive():
                await self._server.stop(limit_seconds=_STOP_SECONDS)
        finally:
            users.release()

    async def _enter(self) -> Flock:
        gate = Flock(self._folder / "start.lock")
        try:
            # Whoever is inside starts or stops a server: both have limits.
            await gate.exclusive(limit_seconds=self._start_seconds + 3 * _STOP_SECONDS)
        except TimeoutError as exc:
            gate.release()
            raise RegistryUnavailable(
                f"another gateway has been starting or stopping the Valkey in {self._folder} "
                "for too long"
            ) from exc
        except BaseException:
            gate.release()
            raise
        return gate

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
        except OSError as exc:
            raise SettingsError(
                f"GATEWAY_DATA_DIR cannot be used ({exc}): choose a directory you may write to"
            ) from exc
