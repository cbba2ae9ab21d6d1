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
from gateway.proxy.http1 import ResponseEvent, ResponseParser
from gateway.session import Endpoint

#: Node closes an idle connection after 5 s; ours must let go of it first.
IDLE_SECONDS: Final = 4.0
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
        """Take what is in ``events`` (a deque of ResponseEvent)."""

    def upstream_lost(self, exc: Exception | None) -> None:
        """The connection has ended before the response was complete."""

    def upstream_paused(self) -> None:
        """The dev server takes no more for now."""

    def upstream_resumed(self) -> None:
        """The dev server takes more again."""


class UpstreamConnection(asyncio.Protocol):
    """One connection. It serves one consumer at a time; ``consumer`` is None when it is idle."""

    __slots__ = ("_pool", "consumer", "idle_since", "parser", "reused", "transport")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.consumer: Consumer | None = None
        self.parser = ResponseParser(max_head=pool.max_head)
        self.reused = False
        self.idle_since = 0.0
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def send(self, consumer: Consumer, head: bytes, method: bytes) -> None:
        """Begin a request: ``head`` is its whole head."""
        self.consumer = consumer
        self.parser.expect(method)
        self.transport.write(head)

    def data_received(self, data: bytes) -> None:
        consumer = self.consumer
        if consumer is None:
            self.close()  # bytes that nobody asked for: not to be trusted any further
            return
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
        """The response is complete: back to the pool if it ended cleanly."""
        self.consumer = None
        if reusable and not self.parser.events and not self.transport.is_closing():
            self._pool.give_back(self)
        else:
            self.close()

    def close(self) -> None:
        """End the connection with FIN: a reset kills some dev servers (vitejs/vite#22556)."""
        self.consumer = None
        self.transport.close()

    def detach(self) -> asyncio.Transport:
        """Leave HTTP: the transport goes to a tunnel, the pool only counts it."""
        self.consumer = None
        return self.transport


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
        self._idle: list[UpstreamConnection] = []
        self._open: set[UpstreamConnection] = set()
        self._connecting = 0
        self.retired = False

    def take(self) -> UpstreamConnection | None:
        """An idle connection, the one used last, or None."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                connection.reused = True
                return connection
        return None

    async def open(self) -> UpstreamConnection:
        """A new connection. Raises UpstreamUnreachable, UpstreamBusy."""
        if len(self._open) + self._connecting >= self._max_connections:
            raise UpstreamBusy(
                f"{self.name} has {self._max_connections} connections already; try again"
            )
        self._connecting += 1
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await self._connect(lambda: UpstreamConnection(self))
        except TimeoutError as exc:
            raise UpstreamUnreachable(
                f"{self.name} did not accept a connection within {self._connect_timeout:g} s"
            ) from exc
        except OSError as exc:
            what = errno.errorcode.get(exc.errno or 0, type(exc).__name__)
            raise UpstreamUnreachable(f"{self.name} refuses connections ({what})") from exc
        finally:
            self._connecting -= 1
        self._open.add(connection)
        return cast("UpstreamConnection", connection)

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep an idle connection for the next request."""
        if self.retired:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if connection.consumer is None and connection in self._idle:
            self._idle.remove(connection)

    def drop_idle(self, now: float) -> None:
        """Close connections that have been idle for too long."""
        kept = []
        for connection in self._idle:
            if now - connection.idle_since > self._idle_seconds:
                connection.close()
            else:
                kept.append(connection)
        self._idle = kept

    def retire(self) -> None:
        """Close what is idle; requests under way finish."""
        self.retired = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __len__(self) -> int:
        return len(self._open)


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


__all__ = [
    "Consumer",
    "Pool",
    "ResponseEvent",
    "UpstreamBusy",
    "UpstreamConnection",
    "UpstreamUnreachable",
    "tcp_connect",
    "unix_connect",
]
