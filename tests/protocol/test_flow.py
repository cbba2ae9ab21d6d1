"""Bodies of any size: streamed, never held, as fast as the slower side and no faster."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil
import pytest

from tests.protocol.conftest import Start
from tests.protocol.harness import (
    ACCEPTED,
    BASE,
    HANDSHAKE,
    ID,
    Client,
    Gateway,
    Peer,
    eventually,
    never,
    put_clock_on,
    session,
)

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
MIB = 2**20
#: The promise: in the gateway, each way.
HELD_BYTES = 512 * 1024


async def asked(gateway: Gateway, *fields: bytes, method: bytes = b"GET") -> tuple[Client, Peer]:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", *fields, method=method)
    peer = await dev.accept()
    await peer.head()
    return client, peer


async def send_all(peer: Peer, blocks: int, *, chunked: bool) -> str:
    """Send ``blocks`` MiB; returns their digest."""
    digest = hashlib.sha256()
    for number in range(blocks):
        block = bytes([number % 251]) * MIB
        digest.update(block)
        peer.send(b"100000\r\n" + block + b"\r\n" if chunked else block)
        await peer.drain()
    if chunked:
        peer.send(b"0\r\n\r\n")
    return digest.hexdigest()


async def plain(peer: Peer, size: int) -> AsyncIterator[bytes]:
    while size:
        async with asyncio.timeout(5):
            data = await peer.reader.read(min(size, 65536))
        assert data
        size -= len(data)
        yield data


async def unchunked(peer: Peer) -> AsyncIterator[bytes]:
    while size := int(await peer.until(b"\r\n"), 16):
        yield await peer.exactly(size)
        assert await peer.exactly(2) == b"\r\n"
    assert await peer.exactly(2) == b"\r\n"


async def digest_of(parts: AsyncIterator[bytes]) -> str:
    digest = hashlib.sha256()
    async for part in parts:
        digest.update(part)
    return digest.hexdigest()


def grown(before: int) -> int:
    gc.collect()
    return psutil.Process().memory_info().rss - before


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_50_mb_pass_through_in_bounded_memory(
    gateway: Gateway, chunked: bool, direction: str
) -> None:
    size = 50 * MIB
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    if direction == "up":
        client, peer = await asked(gateway, framing, method=b"POST")
        sender: Peer = client
        receiver: Peer = peer
    else:
        client, peer = await asked(gateway)
        peer.send(OK + framing + b"\r\n\r\n")
        await client.response_head()
        sender, receiver = peer, client
    before = psutil.Process().memory_info().rss
    parts = unchunked(receiver) if chunked else plain(receiver, size)
    sent, got = await asyncio.gather(send_all(sender, 50, chunked=chunked), digest_of(parts))
    assert sent == got
    assert grown(before) < 16 * MIB
    if direction == "up":
        peer.send(HELLO)
        assert (await client.response()).body == b"hello"


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 40000000\r\n", b"Transfer-Encoding: chunked\r\n", b""]
)
async def test_fault_16_a_slow_reader_holds_the_dev_server_back(
    gateway: Gateway, framing: bytes
) -> None:
    client, peer = await asked(gateway)
    peer.send(OK + framing + b"\r\n")
    head = await client.response_head()
    client.pause()
    size = 40_000_000
    content = b"%x\r\n" % size + b"x" * size if b"chunked" in framing else b"x" * size
    assert await peer.accepted(content) < len(content) / 2
    assert 0 < gateway.held <= HELD_BYTES
    client.resume()
    if "content-length" in head.fields:
        assert await digest_of(plain(client, size)) == hashlib.sha256(b"x" * size).hexdigest()
        await again(client, peer)


async def test_fault_16_a_slow_dev_server_holds_the_upload_back(gateway: Gateway) -> None:
    size = 40_000_000
    client, peer = await asked(gateway, b"Content-Length: %d" % size, method=b"POST")
    peer.pause()
    assert await client.accepted(b"x" * size) < size / 2
    assert 0 < gateway.held <= HELD_BYTES
    peer.resume()
    assert await digest_of(plain(peer, size)) == hashlib.sha256(b"x" * size).hexdigest()
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"
    await again(client, peer)


async def again(client: Client, peer: Peer) -> None:
    client.get(b"again")
    await peer.head()
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"


async def test_a_response_that_ends_while_the_client_is_slow_leaves_a_usable_connection(
    gateway: Gateway,
) -> None:
    """The last bytes pause the dev server's connection; in the pool it must read again."""
    client, peer = await asked(gateway)
    (connection,) = gateway.listener.connections
    paused = 0
    for size in range(300_000, 900_000, 20_000):
        client.pause()
        peer.send(OK + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        await asyncio.sleep(0.03)
        paused += connection.exchange is None and gateway.held > 256 * 1024
        client.resume()
        assert len((await client.response()).body) == size
        client.get(b"again")
        await peer.head()
    assert paused, "no size was right: the test proves nothing"
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"


async def test_a_connection_with_an_unsent_request_is_not_used_again(gateway: Gateway) -> None:
    """An answer came before the dev server had taken the upload."""
    client, peer = await asked(gateway, b"Transfer-Encoding: chunked", method=b"POST")
    peer.pause()
    parts = await gateway.fill(client, b"3E8\r\n" + b"x" * 1000 + b"\r\n")
    client.send(b"0\r\n\r\n")
    await never(client.reader.read(1), 0.1)
    peer.send(HELLO)
    response = await client.response()
    assert (response.body, response.closes) == (b"hello", False)
    peer.resume()
    assert len(await peer.rest()) == parts * 1007 + 5


async def test_a_client_that_leaves_a_slow_upload_does_not_stay(gateway: Gateway) -> None:
    """The dev server takes nothing, so that what is left can never be sent."""
    client, peer = await asked(gateway, b"Content-Length: 40000000", method=b"POST")
    peer.pause()
    await gateway.fill(client)
    client.reset()
    await eventually(lambda: not gateway.listener.connections)
    pool = gateway.pool()
    await never(eventually(lambda: len(pool) == 0))
    put_clock_on(gateway, 6)
    await eventually(lambda: len(pool) == 0)


async def test_a_dev_server_that_dies_frees_an_upload(gateway: Gateway) -> None:
    client, peer = await asked(gateway, b"Content-Length: 40000000", method=b"POST")
    peer.pause()
    await client.accepted(b"x" * 100_000)
    peer.reset()
    response = await client.response()
    assert (response.status, response.closes) == (502, True)


async def test_hundreds_of_requests_at_once(gateway: Gateway) -> None:
    dev = await gateway.preview()

    async def ask(number: int) -> None:
        client = await gateway.client()
        for turn in range(5):
            client.get(b"%d-%d" % (number, turn))
            response = await client.response()
            assert response.body == BASE + b"%d-%d" % (number, turn)

    async def serve() -> None:
        while True:
            peer = await dev.accept()
            serving.append(asyncio.create_task(answer(peer)))

    async def answer(peer: Peer) -> None:
        while True:
            target = (await peer.reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
            peer.send(OK + b"Content-Length: %d\r\n\r\n" % len(target) + target)

    serving = [asyncio.create_task(serve())]
    await asyncio.gather(*(ask(number) for number in range(300)))
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
    assert len(dev.peers) <= 300


# -- limits --------------------------------------------------------------------------------------


async def test_connections_to_one_preview_have_a_limit(start: Start) -> None:
    gateway = await start(max_connections_per_preview=2, max_queue_per_preview=0)
    dev = await gateway.preview()
    clients = [await gateway.client() for _ in range(3)]
    for client in clients[:2]:
        client.get()
    peers = [await dev.accept() for _ in range(2)]
    clients[2].get()
    response = await clients[2].response()
    assert (response.status, response.json()["code"]) == (503, "upstream_busy")
    assert response.fields["retry-after"] == "1"
    for peer in peers:
        await peer.head()
        peer.send(HELLO)
    for client in clients[:2]:
        await client.response()
    await again(clients[2], peers[-1])  # there is room: the one used last is taken


async def test_client_connections_have_a_limit(start: Start) -> None:
    gateway = await start(max_connections=2)
    dev = await gateway.preview()
    first, second = [await gateway.client() for _ in range(2)]
    await eventually(lambda: len(gateway.listener.connections) == 2)
    third = await gateway.client()
    third.get(b"x" * 5000)
    response = await third.response()
    assert (response.status, response.closes) == (503, True)
    assert response.fields["retry-after"] == "1"
    assert await third.rest() == b""
    await third.close()
    first.get()
    peer = await dev.accept()
    await peer.head()
    peer.send(HELLO)
    assert (await first.response()).status == 200
    await second.close()
    await eventually(lambda: len(gateway.listener.connections) == 1)
    fourth = await gateway.client()
    await again(fourth, peer)


# -- deadlines -----------------------------------------------------------------------------------


async def test_fault_15_a_silent_connection_is_closed(start: Start) -> None:
    gateway = await start(head_timeout_seconds=0.2)
    client = await gateway.client()
    assert await client.rest() == b""


async def dribble(client: Client) -> None:
    for byte in b"GET " + BASE + b" HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 10_000:
        client.send(bytes([byte]))
        await asyncio.sleep(0.02)


async def test_fault_15_a_slow_head_is_408_at_the_deadline(start: Start) -> None:
    gateway = await start(head_timeout_seconds=0.5)
    client = await gateway.client()
    loop = asyncio.get_running_loop()
    began = loop.time()

    dribbling = asyncio.create_task(dribble(client))
    response = await client.response()
    assert (response.status, response.closes) == (408, True)
    assert loop.time() - began < 0.5 + 1 + 1.5  # the sweep comes once a second
    dribbling.cancel()
    await asyncio.gather(dribbling, return_exceptions=True)


async def test_fault_15_a_slow_second_head_is_408_too(start: Start) -> None:
    """Its deadline begins with its first byte, not with the connection."""
    gateway = await start(head_timeout_seconds=0.5, keepalive_seconds=60)
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    peer = await dev.accept()
    await peer.head()
    peer.send(HELLO)
    await client.response()
    await asyncio.sleep(1.2)  # idle is not slow
    dribbling = asyncio.create_task(dribble(client))
    assert (await client.response()).status == 408
    dribbling.cancel()
    await asyncio.gather(dribbling, return_exceptions=True)


async def test_empty_lines_do_not_keep_a_connection(start: Start) -> None:
    gateway = await start(head_timeout_seconds=0.3, keepalive_seconds=0.3)
    client = await gateway.client()

    async def dribble() -> None:
        while True:
            client.send(b"\r\n")
            await asyncio.sleep(0.02)

    dribbling = asyncio.create_task(dribble())
    with contextlib.suppress(ConnectionResetError):  # a line may have crossed the end
        assert await client.rest() == b""
    dribbling.cancel()
    await asyncio.gather(dribbling, return_exceptions=True)


async def test_an_idle_connection_is_closed(start: Start) -> None:
    gateway = await start(keepalive_seconds=0.2)
    client = await gateway.client()
    client.ask(b"/preview/no_id/")
    assert not (await client.response()).closes
    assert await client.rest() == b""


async def test_no_deadline_ends_a_slow_response(start: Start) -> None:
    gateway = await start(head_timeout_seconds=0.1, keepalive_seconds=0.1)
    client, peer = await asked(gateway)
    await asyncio.sleep(1.3)
    peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    await client.response_head()
    await asyncio.sleep(1.3)
    peer.send(b"0\r\n\r\n")
    assert await client.exactly(5) == b"0\r\n\r\n"


async def test_a_client_that_left_without_a_word_is_not_served_for_ever(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    (connection,) = gateway.listener.connections
    client.end()
    await eventually(lambda: connection.deadline < math.inf)
    put_clock_on(gateway, 11)
    assert await peer.rest() == b""


async def test_an_idle_upstream_connection_is_closed_before_node_does(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    gateway.pool()._idle_seconds = 0.2
    peer.send(HELLO)
    await client.response()
    assert await peer.rest() == b""


async def test_a_client_that_does_not_take_its_last_answer_is_cut(gateway: Gateway) -> None:
    client, peer = await asked(gateway, b"Connection: close")
    (connection,) = gateway.listener.connections
    client.pause()
    peer.send(OK + b"\r\n" + b"x" * 5_000_000)
    await eventually(lambda: connection.writing_paused)
    peer.reset()
    await eventually(lambda: connection.closing_soon)
    put_clock_on(gateway, 6)
    await eventually(lambda: connection.deadline > gateway.plane.now() + 50)
    put_clock_on(gateway, 61)
    await eventually(lambda: not gateway.listener.connections)


async def test_a_client_that_takes_its_last_answer_slowly_gets_it(gateway: Gateway) -> None:
    client, peer = await asked(gateway, b"Connection: close")
    (connection,) = gateway.listener.connections
    client.pause()
    size = 350_000
    peer.send(OK + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
    await eventually(lambda: connection.deadline < math.inf)
    socket = client.writer.get_extra_info("socket").fileno()
    taken = b""
    deadlines = 0
    while held := gateway.held:
        while gateway.held == held:
            with contextlib.suppress(BlockingIOError):
                taken += os.read(socket, 20_000)  # around the transport, which would take it all
            await asyncio.sleep(0.001)
        if gateway.held:
            put_clock_on(gateway, 6)
            await eventually(lambda: connection.deadline > gateway.plane.now())
            deadlines += 1
    assert deadlines
    client.resume()
    taken += await client.rest()
    assert taken.endswith(b"\r\n\r\n" + b"x" * size)


# -- drain ---------------------------------------------------------------------------------------


async def test_a_drain_lets_requests_finish_and_closes_what_is_idle(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    idle = await gateway.client()
    await eventually(lambda: len(gateway.listener.connections) == 2)
    draining = asyncio.create_task(gateway.drain())
    assert await idle.rest() == b""
    assert not draining.done()
    peer.send(HELLO)
    response = await client.response()
    assert (response.body, response.closes) == (b"hello", True)
    assert await client.rest() == b""
    async with asyncio.timeout(0.5):
        await draining
    with pytest.raises(ConnectionRefusedError):
        await gateway.client()


async def test_a_drain_lets_a_slow_client_take_its_response(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    client.pause()
    size = 600_000
    peer.send(OK + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
    await eventually(lambda: gateway.held > 0)
    draining = asyncio.create_task(gateway.drain())
    await asyncio.sleep(0.1)
    client.resume()
    assert len((await client.response()).body) == size
    async with asyncio.timeout(2):  # the client was told that it may ask again
        await draining


async def test_a_drain_has_an_end(start: Start) -> None:
    gateway = await start(drain_seconds=0.1)
    client, peer = await asked(gateway)
    async with asyncio.timeout(1):
        await gateway.drain()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.response()
    assert await peer.rest() == b""


async def test_a_drain_cuts_tunnels_without_a_close_frame(gateway: Gateway) -> None:
    """A clean close leaves the HMR client of Vite 5 and older dead."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.upgrade()
    peer = await dev.accept()
    await peer.head()
    peer.send(ACCEPTED)
    await client.response_head()
    async with asyncio.timeout(0.5):
        await gateway.drain()
    assert await client.rest() == b""
    assert await peer.rest() == b""
    assert not gateway.listener.tunnels


async def test_pipelined_requests_are_not_begun_while_draining(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    client.get(b"second")
    await eventually(lambda: any(c.parser.events for c in gateway.listener.connections))
    draining = asyncio.create_task(gateway.drain())
    await asyncio.sleep(0)
    peer.send(HELLO)
    assert (await client.response()).closes
    assert await client.rest() == b""
    await draining
    assert await peer.rest() == b""


async def drained(gateway: Gateway) -> None:
    await gateway.drain()


async def stalled(gateway: Gateway) -> None:
    gateway.pool().cut()


async def made_private(gateway: Gateway) -> None:
    endpoint = gateway.registry.sessions[ID].endpoint
    gateway.registry.put(session(version=2, public=False, endpoint=endpoint))


@pytest.mark.parametrize("end", [drained, stalled, made_private])
@pytest.mark.parametrize("fields", [(), HANDSHAKE], ids=["request", "upgrade"])
async def test_what_is_cut_off_unanswered_ends_without_a_reset(
    start: Start, end: Callable[[Gateway], Awaitable[None]], fields: tuple[bytes, ...]
) -> None:
    """A reset kills some dev servers (vitejs/vite#22556)."""
    gateway = await start(drain_seconds=0.1)
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", *fields)
    peer = await dev.accept()
    await peer.head()
    await end(gateway)
    assert await peer.rest() == b""  # a reset would raise
