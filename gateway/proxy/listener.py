"""The public port: it accepts client connections, looks after their deadlines, and drains them."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final

from gateway.errors import RegistryUnavailable
from gateway.proxy.connection import ClientConnection
from gateway.proxy.plane import DataPlane
from gateway.session import SessionId

log: Final = logging.getLogger(__name__)

_SWEEP_SECONDS: Final = 1.0
#: How often traffic is noted; idle times are minutes.
_ACTIVITY_SECONDS: Final = 1.0
_ABORT_SECONDS: Final = 1.0


class Listener:
    """The listening socket and its connections."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.connections: set[ClientConnection] = set()
        self.tunnels: set[ClientConnection] = set()
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        #: Set, while closing, when no connection is left but tunnels, and when none is left.
        self._drained = asyncio.Event()
        self._empty = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether there are as many connections as there may be."""
        return len(self.connections) + len(self.tunnels) >= self.plane.settings.max_connections

    def became_tunnel(self, connection: ClientConnection) -> None:
        """A connection has left HTTP."""
        self.connections.discard(connection)
        self.tunnels.add(connection)
        self.plane.stats.tunnels += 1
        self._note_empty()

    def gone(self, connection: ClientConnection) -> None:
        """A connection or tunnel has ended."""
        if connection in self.tunnels:
            self.tunnels.discard(connection)
            self.plane.stats.tunnels -= 1
        self.connections.discard(connection)
        self._note_empty()

    def _note_empty(self) -> None:
        if self._server is None and not self.connections:
            self._drained.set()
            if not self.tunnels:
                self._empty.set()

    async def open(self, sock: socket.socket) -> None:
        """Accept connections from ``sock``, which is bound."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self), sock=sock, backlog=4096
        )
        self._tasks = [
            asyncio.create_task(self._sweep(), name="deadline sweep"),
            asyncio.create_task(self._report_activity(), name="activity"),
        ]

    async def close(self, *, drain_seconds: float) -> None:
        """Stop accepting, let requests under way finish, close the rest. Idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for connection in tuple(self.connections):
            connection.closing_soon = True
            if connection.exchange is None:
                connection.shut()
        self._note_empty()
        if not await _within(drain_seconds, self._drained):
            log.warning("requests under way were cut off after %g s", drain_seconds)
        for connection in (*self.connections, *self.tunnels):
            # Without a Close frame: a clean close leaves the HMR client of Vite 5 and older dead.
            connection.transport.abort()
        await _within(_ABORT_SECONDS, self._empty)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in tuple(self.plane.pools):
            pool.retire()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = self.plane.now()
            for connection in tuple(self.connections):
                if connection.deadline < now:
                    connection.expire()
            self.plane.sweep_pools()

    async def _report_activity(self) -> None:
        """Note traffic in the registry, in batches; the owners decide by it who sleeps."""
        plane = self.plane
        while True:
            await asyncio.sleep(_ACTIVITY_SECONDS)
            for connection in self.tunnels:
                connection.note_activity(plane.active)
            if not plane.active:
                continue
            active, plane.active = plane.active, set()
            try:
                await plane.waker.touch([SessionId(session_id) for session_id in active])
            except RegistryUnavailable as exc:
                plane.active |= active
                log.warning("traffic of %d sessions is noted later: %s", len(active), exc)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether ``event`` was set in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
