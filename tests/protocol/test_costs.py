"""What one message may cost is bounded: no few bytes keep the event loop, or memory, for long.

Each of these took seconds of the loop, or tens of MiB for good, while all other previews waited.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.proxy.authority import is_host
from gateway.proxy.frames import FrameWatch
from gateway.proxy.http1 import MAX_FIELDS
from gateway.proxy.messages import END
from gateway.proxy.requests import RequestParser
from gateway.proxy.viewers import Viewers
from tests.protocol.conftest import Start
from tests.protocol.harness import BASE, Client, Gateway, Peer, eventually, session

#: Of CPU. What is meant here takes milliseconds; what it must not be took more than ten times this.
MOST_SECONDS = 0.5
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
GET = b"GET " + BASE + b"x HTTP/1.1\r\nHost: localhost\r\n"


@contextmanager
def little_work() -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < MOST_SECONDS


async def heard(gateway: Gateway, client: Client, *lines: bytes) -> tuple[Peer, bytes]:
    """The connection of a request with these fields, and its head."""
    (dev,) = gateway.servers[1:]
    client.get(b"x", *lines)
    peer = await dev.accept()
    return peer, await peer.head()


async def test_white_space_in_cookies_costs_little(gateway: Gateway) -> None:
    await gateway.preview()
    client = await gateway.client()
    blank = b" " * 16_000
    with little_work():
        cookies = b"a=b;" + blank + b"; =" + blank + b";preview-gateway-x=1"
        peer, head = await heard(gateway, client, b"Cookie: " + cookies)
        assert b"\r\nCookie: a=b;" + blank + b"; =" + blank + b"\r\n" in head
        cookies = b"=" + blank + b"=;" + blank + b";"
        peer.send(OK + b"Set-Cookie: " + cookies + b"\r\n\r\n")
        assert (await client.response()).fields["set-cookie"] == cookies.decode()


@pytest.mark.parametrize("side", ["client", "dev server"])
async def test_many_names_in_connection_and_many_trailers_cost_little(
    start: Start, side: str
) -> None:
    gateway = await start(max_head_bytes=2**20)
    dev = await gateway.preview()
    client = await gateway.client()
    names = b",".join(b"%x" % number for number in range(100_000))
    chunked = b"Connection: " + names + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    last = b"0\r\n" + b"".join(b"z%d: 1\r\n" % n for n in range(MAX_FIELDS - 10)) + b"\r\n"
    with little_work():
        if side == "client":
            client.send(GET.replace(b"GET", b"POST") + chunked + last)
            peer = await dev.accept()
            await peer.head()
            assert await peer.exactly(len(last)) == last
            peer.send(OK + b"\r\n")
            assert (await client.response()).status == 200
        else:
            client.get(b"x")
            peer = await dev.accept()
            await peer.head()
            peer.send(b"HTTP/1.1 200 OK\r\n" + chunked + last)
            assert (await client.response_head()).status == 200
            assert await client.exactly(len(last)) == last


async def test_tiny_chunks_cost_no_more_the_more_come_at_once(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x")
    peer = await dev.accept()
    await peer.head()
    (connection,) = gateway.listener.connections
    exchange = connection.exchange
    assert exchange is not None
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.response_head()
    chunks: list[object] = [b"a"] * 40_000
    began = time.process_time()
    exchange.response_events(chunks)
    assert time.process_time() - began < 0.1
    assert not chunks
    peer.send(b"0\r\n\r\n")
    assert await client.exactly(6 * 40_000 + 5) == b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n"


async def test_requests_that_the_gateway_answers_itself_let_others_be_served_in_between(
    gateway: Gateway,
) -> None:
    client = await gateway.client()
    await eventually(lambda: len(gateway.listener.connections) == 1)
    (connection,) = gateway.listener.connections
    refused = b"HEAD /preview/!/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
    count = 256 * 1024 // len(refused)
    connection.data_received(refused * count)
    errors = gateway.plane.stats.errors
    assert 0 < errors["session_not_found"] < count // 7
    for _ in range(count):
        assert (await client.response_head()).status == 404
    assert errors["session_not_found"] == count


@pytest.mark.parametrize("frame", [b"\x89\x00", b"\x81\x00", b"\x81\x80mask", b"\x01\x01a"])
def test_tiny_frames_cost_little(frame: bytes) -> None:
    watch = FrameWatch()
    frames = frame * (2**18 // len(frame))
    began = time.process_time()
    watch.see(frames)
    assert time.process_time() - began < 0.15
    assert watch.at_boundary
    assert watch.active is (frame != b"\x89\x00")
    assert watch.at_message_boundary is (frame[0] >= 0x80)


async def test_whether_a_request_may_wait_is_not_asked_of_a_long_head_each_second(
    start: Start,
) -> None:
    gateway = await start()
    await gateway.preview()
    waiting = []
    for _ in range(30):
        client = await gateway.client()
        waiting.append((client, await heard(gateway, client, b"Accept: " + b"," * 50_000)))
    connections = tuple(gateway.listener.connections)
    for _ in range(2):
        began = time.process_time()
        for connection in connections:
            connection.sweep(gateway.plane.now())
    assert time.process_time() - began < 0.05
    for _, (peer, _) in waiting:
        peer.send(OK + b"\r\n")


@pytest.mark.parametrize("line", [b"a:", b"Accept:", b"X-Forwarded-For:", b"x_a: 1"])
@pytest.mark.parametrize("extra", [0, 1])
async def test_fault_4_a_message_has_a_limited_number_of_fields(
    gateway: Gateway, line: bytes, extra: int
) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", *[line] * (MAX_FIELDS - 1 + extra))
    if extra:
        response = await client.response()
        assert (response.status, response.closes) == (431, True)
        assert dev.untouched
        return
    peer = await dev.accept()
    await peer.head()
    peer.send(OK + b"\r\n")
    assert (await client.response()).status == 200


async def test_fault_4_fields_that_are_known_are_counted_too(gateway: Gateway) -> None:
    """They come by another way than those that llhttp reads."""
    await gateway.preview()
    client = await gateway.client()
    peer, _ = await heard(gateway, client, b"X-Known: 1")
    peer.send(OK + b"\r\n")
    await client.response()
    client.get(b"x", *[b"X-Known: 1"] * MAX_FIELDS)
    assert (await client.response()).status == 431


async def test_fault_4_an_upgrade_that_is_not_followed_adds_no_fields(gateway: Gateway) -> None:
    """Behind it llhttp is begun anew, with a head of the gateway's own."""
    dev = await gateway.preview()
    client = await gateway.client()
    lines = b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n"
    client.send(GET + lines + b"a:\r\n" * (MAX_FIELDS - 5) + b"\r\n1\r\nb\r\n0\r\nc: 1\r\n\r\n")
    peer = await dev.accept()
    await peer.head()
    assert await peer.until(b"\r\n\r\n") == b"1\r\nb\r\n0\r\nc: 1\r\n\r\n"
    peer.send(OK + b"\r\n")
    assert (await client.response()).status == 200


@pytest.mark.parametrize("line", [b"a: b\r\n", b"X-Accel: \r\n", b"Set-Cookie: a=b\r\n"])
async def test_fault_22_a_response_with_too_many_fields_becomes_502(
    gateway: Gateway, line: bytes
) -> None:
    await gateway.preview()
    client = await gateway.client()
    peer, _ = await heard(gateway, client)
    peer.send(OK + line * MAX_FIELDS + b"\r\n")
    assert (await client.response()).status == 502


def test_what_is_remembered_of_strangers_takes_little_memory() -> None:
    """Hosts, cookies and names of fields that anybody can make up, each as long as a head."""
    viewers = Viewers("k" * 32)
    route = session(public=False).route
    tracemalloc.start()
    try:
        for number in range(100):
            stranger = b"%d" % number + b"x" * 60_000
            assert not is_host(stranger)
            assert not viewers.admits(route, b"preview-gateway-access=" + stranger)
            parser = RequestParser(max_head=2**16, max_target=2**15)
            parser.feed(GET + b"X-" + stranger + b": 1\r\n\r\n")
            assert END in parser.events
            parser.feed(GET + b"X: " + stranger + b"\r\n\r\n")
        del stranger, parser
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
