"""Connections to dev servers (and to the control plane), pooled per session and generation.

A pool belongs to exactly one generation of one session: an address that is used again by another
session never meets a connection of its predecessor.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from gateway.errors import GatewayError
from gateway.proxy.messages import ResponseHead
from gateway.proxy.outbox import Outbox, Sender
from gateway.proxy.responses import ResponseParser
from gateway.proxy.turns import Turns
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
    """All connections that one preview may have are in use, and none became free in time."""

    status = 503
    code = "upstream_busy"
    title = "Preview is busy"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # Not in the class: compiled, it would have no such attribute, as the root declares it for
        # instances.
        self.retry_after = 1


class Consumer(ABC):
    """Who gets the response of one request."""

    __slots__ = ()

    @abstractmethod
    def response_begun(self, response: ResponseHead, content: bytes, *, whole: bool) -> None:
        """Take a final response of which nothing was taken before, with all of its content, if it
        is ``whole``; else what is left of it comes as events.
        """

    @abstractmethod
    def response_events(self, events: list[Any]) -> None:
        """Take what is in ``events`` (a list of http1's events)."""

    @abstractmethod
    def upstream_lost(self, exc: Exception | None) -> None:
        """The connection has ended before the response was complete."""

    @abstractmethod
    def upstream_paused(self) -> None:
        """The dev server takes no more for now."""

    @abstractmethod
    def upstream_resumed(self) -> None:
        """The dev server takes more again."""


class UpstreamConnection(Sender):
    """One connection. It serves one consumer at a time; ``consumer`` is None when it is idle."""

    #: For mypyc: what a tunnel no longer has.
    __deletable__ = ("parser",)
    __slots__ = (
        "_pool",
        "_reading_paused",
        "_share",
        "consumer",
        "heard",
        "idle_since",
        "is_tunnel",
        "parser",
        "reused",
    )

    def __init__(self, pool: Pool, share: Share) -> None:
        super().__init__(pool.outbox)
        self._pool = pool
        self._share = share
        self._reading_paused = False
        self.consumer: Consumer | None = None
        self.parser = ResponseParser(max_head=pool.max_head)
        #: The request under way is not the first one on this connection.
        self.reused = False
        #: Something of the response under way has come in.
        self.heard = False
        self.is_tunnel = False
        #: Idle, or closed, since then.
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._share.connecting.discard(self)
        self._share.open.add(self)
        self._pool.made()

    def send(self, consumer: Consumer, head: bytes, method: bytes) -> None:
        """Begin a request: ``head`` is its whole head."""
        self.consumer = consumer
        self.heard = False
        self.parser.expect(method)
        self.write(head)

    def data_received(self, data: bytes) -> None:
        consumer = self.consumer
        if consumer is None:
            self.close()  # bytes that nobody asked for: not to be trusted any further
            return
        self.heard = True
        parser = self.parser
        begun = parser.begun(data)
        if begun is None:
            parser.parse(data)
            consumer.response_events(parser.events)
        else:
            response, content = begun
            consumer.response_begun(response, content, whole=not parser.in_message)

    def eof_received(self) -> bool:
        # Only the dev server's own end completes a response; a connection that is cut here is lost
        # without an error, too.
        consumer = self.consumer
        if consumer is not None and self.parser.eof():
            consumer.response_events(self.parser.events)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone()
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            consumer.upstream_lost(exc)

    def pause_writing(self) -> None:
        if self.consumer is not None:
            self.consumer.upstream_paused()

    def resume_writing(self) -> None:
        if self.consumer is not None:
            self.consumer.upstream_resumed()

    def pause_reading(self) -> None:
        """Take no more of the response for now."""
        if not self._reading_paused and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take what comes again."""
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

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
            and not self._unsent
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        ):
            # A slow client may have paused it; idle, it must notice when the dev server closes.
            self.resume_reading()
            self._pool.give_back(self)
        else:
            self.close()

    def close(self) -> None:
        """End the connection with FIN: a reset kills some dev servers (vitejs/vite#22556)."""
        self.consumer = None
        self._unsent = b""
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
        """The connection, or the tunnel that it became, has ended."""
        self._share.open.discard(self)
        self._pool.forget(self)


class Share:
    """The connections of one kind, and how many there may be."""

    __slots__ = ("connecting", "most", "open", "promised")

    def __init__(self, most: int) -> None:
        self.most = most
        self.open: set[UpstreamConnection] = set()
        self.connecting: set[UpstreamConnection] = set()
        #: Places given to those who are about to connect.
        self.promised = 0

    def __len__(self) -> int:
        return len(self.open) + len(self.connecting) + self.promised

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another one."""
        return len(self) >= self.most


class PoolLimits:
    """How many requests and tunnels one dev server may have, how many requests wait, how long."""

    __slots__ = ("queue", "queue_seconds", "requests", "tunnels")

    def __init__(self, *, requests: int, tunnels: int, queue: int, queue_seconds: float) -> None:
        self.requests = requests
        self.tunnels = tunnels
        self.queue = queue
        self.queue_seconds = queue_seconds


class Pool:
    """Connections of one generation of one session. Implements ``routes.Retirable``."""

    def __init__(
        self,
        connect: Callable[[Callable[[], UpstreamConnection]], Awaitable[Any]],
        *,
        name: str,
        connect_timeout_seconds: float,
        limits: PoolLimits,
        max_head: int,
        outbox: Outbox,
        idle_seconds: float = IDLE_SECONDS,
        host: bytes = b"",
        origin: bytes = b"",
        address: bytes = b"",
        active: set[Pool] | None = None,
    ) -> None:
        self._connect = connect
        self.name = name
        self._connect_timeout = connect_timeout_seconds
        self._limits = limits
        self._requests = Share(limits.requests)
        #: Apart, because a tunnel keeps its place for hours.
        self._upgrades = Share(limits.tunnels)
        #: Requests that wait for a connection, or (None) for a place to open one.
        self._turns: Turns[UpstreamConnection | None] = Turns(unused=self._pass_on)
        self._idle_seconds = idle_seconds
        self.max_head = max_head
        self.outbox = outbox
        #: What the dev server is told its own address were (header profile A).
        self.host = host
        self.origin = origin
        #: The host at which it is reached: an IP literal without brackets, or a name.
        self.address = address
        self._idle: list[UpstreamConnection] = []
        #: Where a pool is to be found as long as it has connections.
        self._active = active if active is not None else set()
        self.retired = False
        self.now: Callable[[], float] = asyncio.get_running_loop().time

    def take(self, now: float) -> UpstreamConnection | None:
        """An idle connection, the one used last, or None."""
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since > self._idle_seconds:
                connection.close()
            elif not connection.transport.is_closing():
                connection.reused = True
                return connection
        return None

    async def open(self, *, upgrade: bool = False, fresh: bool = False) -> UpstreamConnection:
        """A connection for a request or an upgrade. Raises UpstreamUnreachable, UpstreamBusy.

        It is new, or one that was given back while the request waited (not if ``fresh``).
        """
        if upgrade:
            if self._upgrades.is_full:
                raise UpstreamBusy(
                    f"{self.name} has {self._upgrades.most} open sockets already; close a page of "
                    "it, or raise GATEWAY_MAX_TUNNELS_PER_PREVIEW"
                )
            return await self._dial(self._upgrades)
        if self._requests.is_full:
            connection = self._idle.pop(0) if self._idle else await self._turn()
            if connection is not None:
                if not (fresh or self.retired or connection.transport.is_closing()):
                    return connection
                connection.close()  # its place is taken by the new one
        return await self._dial(self._requests)

    async def _turn(self) -> UpstreamConnection | None:
        """What was given back, or None: there is a place for a new one."""
        limits = self._limits
        under_way = f"{self.name} has {limits.requests} requests under way"
        if len(self._turns) >= limits.queue:
            raise UpstreamBusy(f"{under_way} and {limits.queue} waiting; try again")
        try:
            connection = await self._turns.wait(seconds=limits.queue_seconds)
        except TimeoutError as exc:
            raise UpstreamBusy(
                f"{under_way}, and none ended within {limits.queue_seconds:g} s; try again"
            ) from exc
        if connection is None:
            self._requests.promised -= 1
        return connection

    def _admit(self) -> None:
        """Give places that have become free to those who wait."""
        while self._turns and not self._requests.is_full:
            self._requests.promised += 1
            if not self._turns.give(None):
                self._requests.promised -= 1

    def _pass_on(self, turn: UpstreamConnection | None) -> None:
        """Who was to have this connection, or place, has gone."""
        if turn is None:
            self._requests.promised -= 1
            self._admit()
        elif not turn.transport.is_closing():
            self.give_back(turn)

    async def _dial(self, share: Share) -> UpstreamConnection:
        connection = UpstreamConnection(self, share)
        share.connecting.add(connection)
        is_established = False
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._connect(lambda: connection)
            is_established = True
        except TimeoutError as exc:
            raise UpstreamUnreachable(
                f"{self.name} did not accept a connection within {self._connect_timeout:g} s"
            ) from exc
        except OSError as exc:
            what = errno.errorcode.get(exc.errno or 0, type(exc).__name__)
            raise UpstreamUnreachable(f"{self.name} refuses connections ({what})") from exc
        finally:
            share.connecting.discard(connection)
            if not is_established and connection in share.open:
                # Cancelled in the moment at which it was made: uvloop closes it and tells nobody.
                connection.transport.abort()
                connection.gone()
            self._admit()
        if self.retired:
            connection.close()
            raise UpstreamUnreachable(f"{self.name} was replaced by a newer one")
        if connection.transport.is_closing():
            raise UpstreamUnreachable(f"{self.name} closed the connection at once")
        return connection

    def made(self) -> None:
        """A connection has been established."""
        self._active.add(self)

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep an idle connection for the next request, or give it to one that waits."""
        if self.retired:
            connection.close()
            return
        if self._turns:
            connection.reused = True
            if self._turns.give(connection):
                return
        connection.idle_since = self.now()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is gone."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._admit()

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long, cut what has been closed and does not end."""
        if not self._requests.open and not self._upgrades.open:
            self._active.discard(self)
            return
        for connection in self.connections():
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
        """Close what is idle; requests under way finish, those that wait do not, tunnels are cut.

        Tunnels end without a Close frame: after a clean end HMR clients do not come back.
        """
        self.retired = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._turns.refuse(lambda: UpstreamUnreachable(f"{self.name} was replaced by a newer one"))
        for connection in self._upgrades.open:
            if connection.is_tunnel:
                connection.transport.abort()

    def cut(self) -> None:
        """Retire, and end requests under way, too."""
        self.retire()
        for connection in self.connections():
            connection.transport.abort()

    def connections(self) -> list[UpstreamConnection]:
        """All connections that are established."""
        return [*self._requests.open, *self._upgrades.open]

    @property
    def is_unused(self) -> bool:
        """Whether all its connections are idle."""
        return len(self) == len(self._idle)

    def __len__(self) -> int:
        return len(self._requests) + len(self._upgrades)


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
