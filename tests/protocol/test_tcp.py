"""What the kernel tells about connections whose transports know nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from typing import cast

import pytest

from gateway.proxy import tcp
from tests.protocol.harness import eventually


class Paused(asyncio.Protocol):
    """An accepted connection that reads nothing."""

    def __init__(self) -> None:
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class Pair:
    """A paused transport and the raw socket of its peer."""

    def __init__(self, transport: asyncio.Transport, side: Paused, peer: socket.socket) -> None:
        self.transport = transport
        self.side = side
        self.peer = peer


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    listening = socket.create_server(("127.0.0.1", 0))
    tcp.probe(listening)
    accepted: asyncio.Queue[Paused] = asyncio.Queue()

    class Accepting(Paused):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.put_nowait(self)

    server = await asyncio.get_running_loop().create_server(Accepting, sock=listening)
    peer = socket.create_connection(listening.getsockname())
    async with asyncio.timeout(5):
        side = await accepted.get()
    server.close()
    yield Pair(side.transport, side, peer)
    side.transport.abort()
    peer.close()
    await eventually(lambda: side.lost)


async def test_a_reset_is_seen_though_reading_is_paused(pair: Pair) -> None:
    pair.peer.send(b"unread")
    assert not tcp.is_dead(pair.transport)
    pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.peer.close()
    await eventually(lambda: tcp.is_dead(pair.transport), 1.0)
    assert not pair.side.lost  # the event loop does not know


async def test_an_end_of_stream_is_no_death(pair: Pair) -> None:
    pair.peer.send(b"unread")
    pair.peer.shutdown(socket.SHUT_WR)
    info = pair.transport.get_extra_info("socket")
    close_wait = 8
    await eventually(
        lambda: info.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == close_wait, 1.0
    )
    assert not tcp.is_dead(pair.transport)


async def test_a_peer_that_takes_slowly_is_being_delivered_to(pair: Pair) -> None:
    assert not tcp.is_delivering(pair.transport)
    pair.transport.write(b"x" * 20_000_000)
    await eventually(lambda: tcp.is_delivering(pair.transport))


async def test_accepted_connections_are_probed_by_the_kernel(pair: Pair) -> None:
    sock = pair.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    idle, interval, count = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert idle + interval * count == 60


async def test_of_what_is_no_tcp_connection_nothing_is_claimed(pair: Pair) -> None:
    pair.transport.abort()
    await eventually(lambda: pair.side.lost)
    assert not tcp.is_dead(pair.transport)
    assert not tcp.is_delivering(pair.transport)
    left, right = socket.socketpair()
    tcp.probe(left)
    assert not left.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    transport, side = await asyncio.get_running_loop().create_connection(Paused, sock=left)
    assert not tcp.is_dead(transport)
    transport.abort()
    await eventually(lambda: side.lost)
    right.close()
    reading, writing = os.pipe()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        asyncio.Protocol, os.fdopen(reading, "rb")
    )
    assert not tcp.is_dead(pipe)
    pipe.close()
    os.close(writing)
