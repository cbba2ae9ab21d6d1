"""What waits in the gateway is bounded: fault 16 of the reliability notes, measured.

A connection holds at most 512 KiB each way: what waits to be written (256 KiB of high water, and
one read that was under way when it was reached) or what was read and is not parsed yet. The
architecture document has the sum.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator

import pytest

from gateway.proxy.responses import MAX_INTERIM
from tests.protocol.harness import ACCEPTED, Client, Gateway, Peer, Server, eventually

CONNECTIONS = 6
HELD_BYTES = 512 * 1024
#: For the objects of connections and of the test itself.
OTHER_BYTES = 2**20
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 100000000"
CHUNKED = b"Transfer-Encoding: chunked"
#: One object for all, so that senders hold nothing of their own.
PLAIN = b"x" * 10_000_000
TINY_CHUNKS = b"1\r\nx\r\n" * 1_700_000
TINY_INTERIM = b"HTTP/1.1 103 \r\n\r\n" * 31_000
LONG_INTERIM = (b"HTTP/1.1 103 \r\nX-N: " + b"x" * 60_000 + b"\r\n\r\n") * 10

Open = Callable[[Gateway, Server], Awaitable[tuple[Peer, Peer]]]


async def requested(gateway: Gateway, dev: Server, *fields: bytes) -> tuple[Client, Peer]:
    client = await gateway.client()
    client.get(b"x", *fields, method=b"POST" if fields else b"GET")
    peer = await dev.accept()
    await peer.head()
    return client, peer


def download(framing: bytes) -> Open:
    async def opened(gateway: Gateway, dev: Server) -> tuple[Peer, Peer]:
        client, peer = await requested(gateway, dev)
        peer.send(OK + framing + b"\r\n\r\n" if framing else OK + b"\r\n")
        await client.response_head()
        return peer, client

    return opened


async def asked(gateway: Gateway, dev: Server) -> tuple[Peer, Peer]:
    client, peer = await requested(gateway, dev)
    return peer, client


def upload(framing: bytes) -> Open:
    async def opened(gateway: Gateway, dev: Server) -> tuple[Peer, Peer]:
        return await requested(gateway, dev, framing)

    return opened


def tunnel(*, up: bool) -> Open:
    async def opened(gateway: Gateway, dev: Server) -> tuple[Peer, Peer]:
        client = await gateway.client()
        client.upgrade()
        peer = await dev.accept()
        await peer.head()
        peer.send(ACCEPTED)
        await client.response_head()
        return (client, peer) if up else (peer, client)

    return opened


async def settled(gateway: Gateway) -> int:
    """What is held when nothing moves any more."""
    await eventually(lambda: gateway.held > CONNECTIONS * 64 * 1024, 20)
    held, same = gateway.held, 0
    async with asyncio.timeout(20):
        while same < 10:
            await asyncio.sleep(0.05)
            same = same + 1 if gateway.held == held else 0
            held = gateway.held
    return held


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    """Python's own account of memory: unlike the kernel's, what was freed does not hide growth."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def allocated() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize(
    ("opened", "data"),
    [
        pytest.param(download(LENGTH), PLAIN, id="download"),
        pytest.param(download(b""), PLAIN, id="download until close"),
        pytest.param(download(CHUNKED), TINY_CHUNKS, id="download of tiny chunks"),
        pytest.param(asked, LONG_INTERIM, id="interim responses"),
        pytest.param(upload(LENGTH), PLAIN, id="upload"),
        pytest.param(upload(CHUNKED), TINY_CHUNKS, id="upload of tiny chunks"),
        pytest.param(tunnel(up=False), PLAIN, id="tunnel down"),
        pytest.param(tunnel(up=True), PLAIN, id="tunnel up"),
    ],
)
async def test_fault_16_a_receiver_that_takes_nothing_holds_a_bounded_amount(
    gateway: Gateway, opened: Open, data: bytes
) -> None:
    dev = await gateway.preview()
    pairs = [await opened(gateway, dev) for _ in range(CONNECTIONS)]
    for _, receiver in pairs:
        receiver.pause()
    before = allocated()
    for sender, _ in pairs:
        for _ in range(10):
            sender.send(data)
    held = await settled(gateway)
    assert held <= CONNECTIONS * HELD_BYTES
    assert allocated() - before <= CONNECTIONS * HELD_BYTES + OTHER_BYTES


async def test_fault_16_a_flood_of_interim_responses_is_not_taken_apart(gateway: Gateway) -> None:
    """A read of 256 KiB holds 15,000 heads: megabytes of objects, and of fields added to them."""
    dev = await gateway.preview()
    client, peer = await requested(gateway, dev)
    before = allocated()
    tracemalloc.reset_peak()
    peer.send(TINY_INTERIM)
    for _ in range(MAX_INTERIM):
        assert (await client.response_head()).status == 103
    assert (await client.response()).status == 502
    with contextlib.suppress(ConnectionResetError):  # nobody read all of it
        assert await peer.rest() == b""
    assert tracemalloc.get_traced_memory()[1] - before <= HELD_BYTES + OTHER_BYTES


async def test_fault_16_uploads_that_wait_for_their_route_hold_a_bounded_amount(
    gateway: Gateway,
) -> None:
    await gateway.preview()
    gateway.registry.gate = asyncio.Event()
    clients = [await gateway.client() for _ in range(CONNECTIONS)]
    for client in clients:
        client.get(b"x", CHUNKED, method=b"POST")
    await eventually(lambda: len(gateway.listener.connections) == CONNECTIONS)
    before = allocated()
    for client in clients:
        client.send(TINY_CHUNKS)
    await asyncio.sleep(0.5)
    assert allocated() - before <= CONNECTIONS * HELD_BYTES + OTHER_BYTES
    for connection in gateway.listener.connections:
        assert connection.exchange is not None
        assert connection.exchange.blocked
