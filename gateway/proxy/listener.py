"""The public port: it accepts client connections, looks after their deadlines, and drains them.

A drain loses no request. For a grace period the port goes on accepting, because whoever spreads the
connections (a Service) needs that long to forget this replica; meanwhile every response tells its
client to come back on another connection (RFC 9112 9.6). Only then the port closes: connections
without a request end, requests under way finish, tunnels end one by one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final

from gateway.errors import RegistryUnavailable
from gateway.proxy import drain, tcp
from gateway.proxy.connection import ClientConnection
from gateway.proxy.plane import DataPlane
from gateway.proxy.routes import Entry
from gateway.session import SessionId

log: Final = logging.getLogger(__name__)

_SWEEP_SECONDS: Final = 1.0
#: How often traffic is noted; idle times are minutes.
_ACTIVITY_SECONDS: Final = 1.0
_ABORT_SECONDS: Final = 1.0
#: Connections beyond the limit, at least, that are told so; that takes each of them a moment.
_REFUSING: Final = 64


class Listener:
    """The listening socket and its connections."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.connections: set[ClientConnection] = set()
        self.tunnels: set[ClientConnection] = set()
        #: Every response says ``Connection: close``.
        self.is_leaving = False
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        #: Set when no connection and no tunnel is left after the port was closed.
        self._empty = asyncio.Event()
        plane.routes.narrowed = self.review

    def review(self, entry: Entry) -> None:
        """End what is open for viewers who may no longer see a preview."""
        for connection in (*self.connections, *self.tunnels):
            connection.review(entry)

    @property
    def is_full(self) -> bool:
        """Whether there are as many connections as there may be."""
        return len(self.connections) + len(self.tunnels) >= self.plane.settings.max_connections

    @property
    def is_flooded(self) -> bool:
        """Whether there are so many that a further one is not even told why it is refused."""
        most = self.plane.settings.max_connections
        return len(self.connections) + len(self.tunnels) >= most + most // 8 + _REFUSING

    def became_tunnel(self, connection: ClientConnection) -> None:
        """A connection has left HTTP."""
        self.connections.discard(connection)
        self.tunnels.add(connection)
        self.plane.stats.tunnels += 1
        if self._server is None:
            connection.end_tunnel()  # its client was accepted before, and comes back elsewhere

    def gone(self, connection: ClientConnection) -> None:
        """A connection or tunnel has ended."""
        if connection in self.tunnels:
            self.tunnels.discard(connection)
            self.plane.stats.tunnels -= 1
        self.connections.discard(connection)
        self._note_empty()

    def _note_empty(self) -> None:
        if self._server is None and not self.connections and not self.tunnels:
            self._empty.set()

    async def open(self, sock: socket.socket) -> None:
        """Accept connections from ``sock``, which is bound."""
        loop = asyncio.get_running_loop()
        tcp.probe(sock)
        self._server = await loop.create_server(
            lambda: ClientConnection(self), sock=sock, backlog=4096
        )
        self._tasks = [
            asyncio.create_task(self._sweep(), name="deadline sweep"),
            asyncio.create_task(self._report_activity(), name="activity"),
        ]

    async def close(self, *, grace_seconds: float = 0.0, drain_seconds: float) -> None:
        """Drain: ask clients to leave, stop accepting, finish requests, end tunnels. Idempotent.

        Accepts for another ``grace_seconds``. What is left ``drain_seconds`` after that is cut off,
        and so is all that is left when this is cancelled.
        """
        if self._server is None or self.is_leaving:
            return
        self.is_leaving = True
        for connection in self.connections:
            connection.closing_soon = True
        try:
            await asyncio.sleep(grace_seconds)
            await self._drain(drain_seconds)
        finally:
            await self._cut_off()

    async def _drain(self, seconds: float) -> None:
        self._stop_accepting()
        for connection in tuple(self.connections):
            connection.leave()
        self._note_empty()
        ending = asyncio.create_task(self._end_tunnels(seconds), name="end of tunnels")
        try:
            if not await _within(seconds, self._empty):
                log.warning("what was under way was cut off after %g s", seconds)
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    def _stop_accepting(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _end_tunnels(self, seconds: float) -> None:
        tunnels, now = tuple(self.tunnels), self.plane.now
        begin = now()
        times = drain.closing_times(len(tunnels), budget_seconds=seconds)
        for connection, at in zip(tunnels, times, strict=True):
            await asyncio.sleep(begin + at - now())
            connection.end_tunnel()

    async def _cut_off(self) -> None:
        self._stop_accepting()
        self._note_empty()
        for connection in (*self.connections, *self.tunnels):
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
            self.plane.routes.alive(now)
            for connection in tuple(self.connections):
                connection.sweep(now)
            self.sweep_tunnels()
            self.plane.sweep_pools()

    def sweep_tunnels(self) -> None:
        """A second has passed: note which tunnels were used, end those that are dead."""
        active, ping_seconds = self.plane.active, self.plane.settings.ping_seconds
        for connection in tuple(self.tunnels):
            connection.look_after_tunnel(active, ping_seconds)

    async def _report_activity(self) -> None:
        """Note traffic in the registry, in batches; the owners decide by it who sleeps."""
        plane = self.plane
        while True:
            await asyncio.sleep(_ACTIVITY_SECONDS)
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
