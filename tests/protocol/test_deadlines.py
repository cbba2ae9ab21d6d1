"""Who has stopped is let go in time; who is only slow is not.

The numbers are those of the faults in the reliability notes: slow or abusive clients 15 and 16, and
24, a dev server that hangs. The sweep, which comes once a second, comes more often here.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.protocol.conftest import Start
from tests.protocol.harness import (
    ACCEPTED,
    BASE,
    HELD_BYTES,
    Client,
    Gateway,
    Peer,
    eventually,
    never,
    put_clock_on,
)

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
POST = b"Content-Length: 10000000"
SHORT = 0.4
#: How late a sweep may be.
LATE = 0.1


@pytest.fixture
async def start(start: Start) -> AsyncIterator[Start]:
    """Starts gateways that sweep more often."""
    gateways: list[Gateway] = []

    async def start_swept(**settings: Any) -> Gateway:
        gateways.append(await start(**settings))
        return gateways[-1]

    async def sweep() -> None:
        while True:
            await asyncio.sleep(LATE / 2)
            for gateway in gateways:
                for connection in tuple(gateway.listener.connections):
                    connection.sweep(gateway.plane.now())

    sweeping = asyncio.create_task(sweep())
    yield start_swept
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


async def asked(gateway: Gateway, *fields: bytes, method: bytes = b"GET") -> tuple[Client, Peer]:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", *fields, method=method)
    peer = await dev.accept()
    await peer.head()
    return client, peer


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """What happens in here comes soon after ``seconds``."""
    began = time.monotonic()
    yield
    assert seconds <= time.monotonic() - began < seconds + 2 * LATE + 1.5


async def sip(reader: Peer) -> None:
    """Take a kernel's buffer now and then, for some seconds."""
    for _ in range(8):
        reader.resume()
        await asyncio.sleep(0)
        reader.pause()
        await asyncio.sleep(0.2)


# -- fault 15: slow heads, silent connections ----------------------------------------------------


async def test_fault_15_many_slow_heads_hinder_nobody(start: Start) -> None:
    gateway = await start(head_timeout_seconds=SHORT)
    dev = await gateway.preview()
    slow = []
    for _ in range(100):
        slow.append(client := await gateway.client())
        client.send(b"GET " + BASE + b" HTTP/1.1\r\nHost: localhost\r\nX: ")
    silent = [await gateway.client() for _ in range(100)]
    client = await gateway.client()
    client.get()
    peer = await dev.accept()
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"
    for client in silent:
        assert await client.rest() == b""
    for client in slow:
        assert (await client.response()).status == 408
        await client.close()
    await eventually(lambda: len(gateway.listener.connections) <= 1)


# -- fault 16: slow content, slow readers --------------------------------------------------------


@pytest.mark.parametrize("framing", [POST, b"Transfer-Encoding: chunked"])
async def test_fault_16_an_upload_that_stops_is_408(start: Start, framing: bytes) -> None:
    gateway = await start(body_idle_seconds=SHORT)
    client, peer = await asked(gateway, framing, method=b"POST")
    client.send(b"3\r\nabc\r\n")
    async with within(SHORT):
        response = await client.response()
    assert (response.status, response.closes) == (408, True)
    assert response.json()["code"] == "upload_stalled"
    assert await peer.rest() == b"3\r\nabc\r\n"  # no end: nothing was executed


async def test_fault_16_an_upload_that_never_begins_is_408(start: Start) -> None:
    gateway = await start(body_idle_seconds=SHORT)
    client, _ = await asked(gateway, POST, method=b"POST")
    assert (await client.response()).status == 408


async def test_fault_16_chunk_sizes_alone_are_no_content(start: Start) -> None:
    gateway = await start(body_idle_seconds=SHORT)
    client, _ = await asked(gateway, b"Transfer-Encoding: chunked", method=b"POST")

    async def dribble() -> None:
        client.send(b"5;")
        while True:
            client.send(b"x")
            await asyncio.sleep(0.02)

    dribbling = asyncio.create_task(dribble())
    assert (await client.response()).status == 408
    dribbling.cancel()
    await asyncio.gather(dribbling, return_exceptions=True)


async def test_a_slow_upload_lives(start: Start) -> None:
    gateway = await start(body_idle_seconds=0.6, response_timeout_seconds=0.6)
    client, peer = await asked(gateway, b"Content-Length: 10", method=b"POST")
    for _ in range(10):
        client.send(b"x")
        await asyncio.sleep(0.2)
    assert await peer.exactly(10) == b"x" * 10
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_a_client_that_waits_for_permission_is_not_to_blame(start: Start) -> None:
    gateway = await start(body_idle_seconds=SHORT)
    client, peer = await asked(gateway, POST, b"Expect: 100-continue", method=b"POST")
    await never(client.reader.read(1), SHORT + 2 * LATE)
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_an_upload_may_stop_once_its_response_has_begun(start: Start) -> None:
    gateway = await start(body_idle_seconds=SHORT, response_timeout_seconds=SHORT)
    client, peer = await asked(gateway, POST, method=b"POST")
    peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    await client.response_head()
    await never(client.reader.read(1), SHORT + 2 * LATE)
    client.send(b"abc")
    assert await peer.exactly(3) == b"abc"


@pytest.mark.parametrize("framing", [b"Content-Length: 100000000\r\n", b""])
async def test_fault_16_a_reader_that_stops_is_cut_off(start: Start, framing: bytes) -> None:
    gateway = await start(write_idle_seconds=2.0)  # longer than a look at what is taken
    client, peer = await asked(gateway)
    client.pause()
    peer.send(OK + framing + b"\r\n")
    assert await peer.accepted(b"x" * 40_000_000) < 20_000_000
    await eventually(lambda: not gateway.listener.connections)
    await eventually(lambda: len(gateway.pool()) == 0)


async def test_a_slow_reader_lives(start: Start) -> None:
    """It takes little at a time: what it has taken shows in the kernel only."""
    gateway = await start(write_idle_seconds=0.6)
    client, peer = await asked(gateway)
    (connection,) = gateway.listener.connections
    sock = connection.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
    client.pause()
    size = 20_000_000
    peer.send(OK + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
    await eventually(lambda: connection.writing_paused)
    await sip(client)
    assert connection.writing_paused
    client.resume()
    await client.response_head()
    assert len(await client.exactly(size)) == size


# -- fault 24: a dev server that hangs -----------------------------------------------------------


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_fault_24_a_hanging_dev_server_is_504_at_the_deadline(
    start: Start, method: bytes
) -> None:
    gateway = await start(response_timeout_seconds=SHORT)
    client, peer = await asked(gateway, b"Content-Length: 0", method=method)
    async with within(SHORT):
        response = await client.response()
    assert (response.status, response.json()["code"]) == (504, "response_timeout")
    assert "GATEWAY_RESPONSE_TIMEOUT_SECONDS" in response.json()["detail"]
    assert not response.closes
    assert await peer.rest() == b""  # what it says later is nobody's answer


async def test_each_request_has_its_own_deadline(start: Start) -> None:
    """However busy the connection is: a sweep sees a request under way each time it looks."""
    gateway = await start(response_timeout_seconds=0.6)
    client, peer = await asked(gateway)
    for _ in range(8):
        await asyncio.sleep(0.2)
        peer.send(HELLO)
        assert (await client.response()).status == 200
        client.get(b"again")
        await peer.head()
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_fault_24_a_dev_server_that_takes_no_upload_is_504(start: Start) -> None:
    gateway = await start(response_timeout_seconds=SHORT, body_idle_seconds=0.1)
    client, peer = await asked(gateway, POST, method=b"POST")
    peer.pause()
    await gateway.fill(client)
    client.send(b"x" * 1_000_000)
    response = await client.response()
    assert (response.status, response.closes) == (504, True)


async def test_a_dev_server_that_takes_an_upload_slowly_lives(start: Start) -> None:
    gateway = await start(response_timeout_seconds=0.6, body_idle_seconds=0.6)
    size = 40_000_000
    client, peer = await asked(gateway, b"Content-Length: %d" % size, method=b"POST")
    client.send(b"x" * size)
    peer.pause()
    (connection,) = gateway.listener.connections
    await eventually(lambda: connection.exchange is not None and connection.exchange.blocked)
    await sip(peer)
    assert connection.exchange is not None
    assert connection.exchange.blocked
    peer.resume()
    assert len(await peer.exactly(size)) == size
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_interim_responses_put_the_deadline_off(start: Start) -> None:
    gateway = await start(response_timeout_seconds=0.6)
    client, peer = await asked(gateway)
    for _ in range(8):
        peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        assert (await client.response_head()).status == 102
        await asyncio.sleep(0.2)
    peer.send(HELLO)
    assert (await client.response()).status == 200


@pytest.mark.parametrize(
    "head", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n", b""]
)
async def test_fault_24_a_response_that_has_begun_may_be_silent(start: Start, head: bytes) -> None:
    gateway = await start(
        response_timeout_seconds=SHORT, body_idle_seconds=SHORT, write_idle_seconds=SHORT
    )
    client, peer = await asked(gateway)
    peer.send(OK + head + b"\r\n")
    await client.response_head()
    await never(client.reader.read(1), SHORT + 2 * LATE)


@pytest.mark.parametrize(
    "accept",
    [
        (b"Accept: text/event-stream",),
        (b"Accept: application/json, text/event-stream;q=0.9",),
        (b"Accept: Text/Event-Stream ; charset=utf-8",),
        (b"Accept: application/json", b"Accept: text/event-stream"),
    ],
)
async def test_fault_24_an_event_stream_may_be_silent_from_the_start(
    start: Start, accept: tuple[bytes, ...]
) -> None:
    """Some servers send its head with the first event."""
    gateway = await start(response_timeout_seconds=SHORT)
    client, peer = await asked(gateway, *accept)
    await never(client.reader.read(1), SHORT + 2 * LATE)
    peer.send(OK + b"\r\ndata: 1\n\n")
    assert (await client.response_head()).status == 200


async def test_fault_24_a_socket_may_be_silent(start: Start) -> None:
    gateway = await start(response_timeout_seconds=SHORT, upgrade_timeout_seconds=SHORT)
    dev = await gateway.preview()
    client = await gateway.client()
    client.upgrade()
    peer = await dev.accept()
    await peer.head()
    peer.send(ACCEPTED)
    assert (await client.response_head()).status == 101
    await never(client.reader.read(1), SHORT + 2 * LATE)
    client.send(b"abc")
    assert await peer.exactly(3) == b"abc"


async def test_the_deadline_of_a_response_can_be_turned_off(start: Start) -> None:
    gateway = await start(response_timeout_seconds=0)
    client, peer = await asked(gateway)
    await never(client.reader.read(1), 2 * LATE + 0.2)
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_the_control_plane_has_a_deadline_too(start: Start) -> None:
    gateway = await start(response_timeout_seconds=SHORT)
    client = await gateway.client()
    client.ask(b"/api/v1/sessions")
    await (await gateway.control.accept()).head()
    response = await client.response()
    assert response.status == 504
    assert "the control plane" in response.json()["detail"]


# -- death that nobody reads of ------------------------------------------------------------------


async def test_a_client_that_dies_while_its_upload_waits_is_noticed(gateway: Gateway) -> None:
    client, peer = await asked(gateway, POST, method=b"POST")
    peer.pause()
    await client.accepted(b"x" * 5_000_000)
    (connection,) = gateway.listener.connections
    assert connection.exchange is not None
    assert connection.exchange.blocked
    client.reset()
    await eventually(lambda: not gateway.listener.connections, LATE + 1.0)


async def test_a_client_that_dies_while_its_route_is_looked_for_is_noticed(
    gateway: Gateway,
) -> None:
    await gateway.preview()
    gateway.registry.gate = asyncio.Event()
    client = await gateway.client()
    client.get(b"x", POST, method=b"POST")
    await client.accepted(b"x" * 5_000_000)
    client.reset()
    await eventually(lambda: not gateway.listener.connections, LATE + 1.0)


@pytest.mark.parametrize("framing", [b"Content-Length: 100000000\r\n", b""])
async def test_a_dev_server_that_dies_while_the_client_is_slow_is_noticed(
    gateway: Gateway, framing: bytes
) -> None:
    """And the client sees that the response is not complete."""
    client, peer = await asked(gateway)
    client.pause()
    peer.send(OK + framing + b"\r\n")
    await peer.accepted(b"x" * 5_000_000)
    peer.reset()
    await eventually(lambda: len(gateway.pool()) == 0, LATE + 1.0)
    client.resume()
    rest = await client.rest()
    assert not rest.endswith(b"0\r\n\r\n")
    assert len(rest) < HELD_BYTES


async def test_a_client_that_ended_its_side_may_take_its_response_slowly(start: Start) -> None:
    gateway = await start()
    client, peer = await asked(gateway)
    client.end()
    peer.send(OK + b"\r\n")
    for _ in range(10):
        peer.send(b"x" * 1000)
        await asyncio.sleep(0.2)
        put_clock_on(gateway, 6)  # of ten
    await peer.close()
    assert b"0\r\n\r\n" in await client.rest()
