"""Connections to dev servers (and to the control plane), pooled per session and generation.

A pool belongs to exactly one generation of one session: an address that is used again by another
session never meets a connection of its predecessor.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, cast

from gateway.errors import GatewayError
from gateway.proxy.http1 import ResponseParser
from gateway.session import Endpoint

#: Node closes an idle connection after 5 s; ours must let go of it first.
IDLE_SECONDS: Final = 4.0
#: How long a closed connection may take to send what is left before it is cut.
_FLUSH_SECONDS: Final = 5.0
HIGH_WATER: Final = 256 * 1024


class UpstreamUnreachable(GatewayError):
    """No connection to the dev server could be made."""

    status = 502
    code = "upstream_unreachable"
    title = "Dev server unreachable"


class UpstreamBusy(GatewayError):
    """All connections that one preview may have are in use."""

    status = 503
    code = "upstream_busy"
    title = "Preview is busy"
    retry_after = 1


class Consumer(Protocol):
    """Who gets the response of one request."""

    def response_events(self, events: Any) -> None:
        """Take what is in ``events`` (a deque of http1's events)."""

    def upstream_lost(self, exc: Exception | None) -> None:
        """The connection has ended before the response was complete."""

    def upstream_paused(self) -> None:
        """The dev server takes no more for now."""

    def upstream_resumed(self) -> None:
        """The dev server takes more again."""


class UpstreamConnection(asyncio.Protocol):
    """One connection. It serves one consumer at a time; ``consumer`` is None when it is idle."""

    #: For mypyc: what a tunnel no longer has.
    __deletable__ = ("parser",)
    __slots__ = (
        "_pool",
        "consumer",
        "heard",
        "idle_since",
        "is_tunnel",
        "parser",
        "reused",
        "transport",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.consumer: Consumer | None = None
        self.parser = ResponseParser(max_head=pool.max_head)
        #: The request under way is not the first one on this connection.
        self.reused = False
        #: Something of the response under way has come in.
        self.heard = False
        self.is_tunnel = False
        #: Idle, or closed, since then.
        self.idle_since = 0.0
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._pool.made(self)

    def send(self, consumer: Consumer, head: bytes, method: bytes) -> None:
        """Begin a request: ``head`` is its whole head."""
        self.consumer = consumer
        self.heard = False
        self.parser.expect(method)
        self.transport.write(head)

    def data_received(self, data: bytes) -> None:
        consumer = self.consumer
        if consumer is None:
            self.close()  # bytes that nobody asked for: not to be trusted any further
            return
        self.heard = True
        self.parser.feed(data)
        consumer.response_events(self.parser.events)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        consumer = self.consumer
        if consumer is None:
            return
        if exc is None and self.parser.eof():
            consumer.response_events(self.parser.events)
        else:
            self.consumer = None
            consumer.upstream_lost(exc)

    def pause_writing(self) -> None:
        if self.consumer is not None:
            self.consumer.upstream_paused()

    def resume_writing(self) -> None:
        if self.consumer is not None:
            self.consumer.upstream_resumed()

    def release(self, *, reusable: bool) -> None:
        """The response is complete: back to the pool if it ended cleanly.

        It did not if anything follows the response, or if the request is not sent yet.
        """
        self.consumer = None
        parser, transport = self.parser, self.transport
        if (
            reusable
            and not parser.events
            and not parser.in_message
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        ):
            # A slow client may have paused it; idle, it must notice when the dev server closes.
            transport.resume_reading()
            self._pool.give_back(self)
        else:
            self.close()

    def close(self) -> None:
        """End the connection with FIN: a reset kills some dev servers (vitejs/vite#22556)."""
        self.consumer = None
        if not self.transport.is_closing():
            self.idle_since = self._pool.now()
            self.transport.close()

    def detach(self) -> asyncio.Transport:
        """Leave HTTP: the transport goes to a tunnel, which says ``gone`` at its end."""
        self.consumer = None
        self.is_tunnel = True
        del self.parser  # half the memory of an idle socket pair: bench/proxies.py, case idle
        return self.transport

    def gone(self) -> None:
        """The tunnel has ended."""
        self._pool.forget(self)


class Pool:
    """Connections of one generation of one session. Implements ``routes.Retirable``."""

    def __init__(
        self,
        connect: Callable[[Callable[[], UpstreamConnection]], Awaitable[Any]],
        *,
        name: str,
        connect_timeout_seconds: float,
        max_connections: int,
        max_head: int,
        idle_seconds: float = IDLE_SECONDS,
        host: bytes = b"",
        origin: bytes = b"",
        address: bytes = b"",
        active: set[Pool] | None = None,
    ) -> None:
        self._connect = connect
        self.name = name
        self._connect_timeout = connect_timeout_seconds
        self._max_connections = max_connections
        self._idle_seconds = idle_seconds
        self.max_head = max_head
        #: What the dev server is told its own address were (header profile A).
        self.host = host
        self.origin = origin
        #: The host at which it is reached: an IP literal without brackets, or a name.
        self.address = address
        self._idle: list[UpstreamConnection] = []
        #: Where a pool is to be found as long as it has connections.
        self._active = active if active is not None else set()
        self._open: set[UpstreamConnection] = set()
        self._connecting: set[UpstreamConnection] = set()
        self.retired = False
        self.now: Callable[[], float] = asyncio.get_running_loop().time

    def take(self) -> UpstreamConnection | None:
        """An idle connection, the one used last, or None."""
        while self._idle:
            connection = self._idle.pop()
            if self.now() - connection.idle_since > self._idle_seconds:
                connection.close()
            elif not connection.transport.is_closing():
                connection.reused = True
                return connection
        return None

    async def open(self) -> UpstreamConnection:
        """A new connection. Raises UpstreamUnreachable, UpstreamBusy."""
        if len(self._open) + len(self._connecting) >= self._max_connections:
            raise UpstreamBusy(
                f"{self.name} has {self._max_connections} connections already; try again"
            )
        connection = UpstreamConnection(self)
        self._connecting.add(connection)
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._connect(lambda: connection)
        except TimeoutError as exc:
            raise UpstreamUnreachable(
                f"{self.name} did not accept a connection within {self._connect_timeout:g} s"
            ) from exc
        except OSError as exc:
            what = errno.errorcode.get(exc.errno or 0, type(exc).__name__)
            raise UpstreamUnreachable(f"{self.name} refuses connections ({what})") from exc
        finally:
            self._connecting.discard(connection)
        if connection.transport.is_closing():
            raise UpstreamUnreachable(f"{self.name} closed the connection at once")
        return connection

    def made(self, connection: UpstreamConnection) -> None:
        """A connection has been established."""
        self._connecting.discard(connection)
        self._open.add(connection)
        self._active.add(self)

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep an idle connection for the next request."""
        if self.retired:
            connection.close()
            return
        connection.idle_since = self.now()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long, cut what has been closed and does not end."""
        if not self._open:
            self._active.discard(self)
            return
        for connection in self._open:
            closed = connection.transport.is_closing() and not connection.is_tunnel
            if closed and now - connection.idle_since > _FLUSH_SECONDS:
                connection.transport.abort()
        kept = []
        for connection in self._idle:
            if now - connection.idle_since > self._idle_seconds:
                connection.close()
            else:
                kept.append(connection)
        self._idle = kept

    def retire(self) -> None:
        """Close what is idle; requests under way finish, tunnels are cut.

        Tunnels end without a Close frame: after a clean end HMR clients do not come back.
        """
        self.retired = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        for connection in self._open:
            if connection.is_tunnel:
                connection.transport.abort()

    def cut(self) -> None:
        """Retire, and end requests under way, too."""
        self.retire()
        for connection in tuple(self._open):
            connection.transport.abort()

    @property
    def is_unused(self) -> bool:
        """Whether all its connections are idle."""
        return len(self._open) + len(self._connecting) == len(self._idle)

    def __len__(self) -> int:
        return len(self._open) + len(self._connecting)


def tcp_connect(endpoint: Endpoint) -> Callable[..., Awaitable[Any]]:
    """How a pool connects to a dev server."""

    async def connect(factory: Callable[[], UpstreamConnection]) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.create_connection(factory, endpoint.host, endpoint.port)

    return connect


def unix_connect(path: str) -> Callable[..., Awaitable[Any]]:
    """How a pool connects to the control plane."""

    async def connect(factory: Callable[[], UpstreamConnection]) -> Any:
        return await asyncio.get_running_loop().create_unix_connection(factory, path)

    return connect
