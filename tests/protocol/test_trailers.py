"""Trailer fields pass in both directions, where the message goes on in chunks."""

from __future__ import annotations

import asyncio

import pytest

from tests.protocol.conftest import Start
from tests.protocol.harness import BASE, Client, Gateway, Peer, eventually

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
OK_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
#: What a recipient would act upon, or what the gateway says itself, does not pass.
REFUSED_NAMES = [
    b"Host: evil",
    b"Authorization: Bearer x",
    b"Cookie: a=b",
    b"Set-Cookie: a=b",
    b"Content-Type: text/html",
    b"Connection: close",
    b"Keep-Alive: 5",
    b"TE: trailers",
    b"Forwarded: for=1",
    b"X-Forwarded-For: 1.1.1.1",
    b"X_Forwarded_For: 1.1.1.1",
    b"content_length: 5",
    b"X-Preview-Replica: evil",
    b"X-Named: 1",
]


async def uploading(gateway: Gateway, *fields: bytes) -> tuple[Client, Peer]:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", CHUNKED, *fields, method=b"POST")
    client.send(b"3\r\nabc\r\n")
    peer = await dev.accept()
    await peer.head()
    assert await peer.exactly(8) == b"3\r\nabc\r\n"
    return client, peer


async def downloading(gateway: Gateway, *fields: bytes) -> tuple[Client, Peer]:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x")
    peer = await dev.accept()
    await peer.head()
    peer.send(OK_CHUNKED + b"".join(line + b"\r\n" for line in fields) + b"\r\n3\r\nabc\r\n")
    await client.until(b"3\r\nabc\r\n")
    return client, peer


async def test_trailers_of_a_request_arrive(gateway: Gateway) -> None:
    client, peer = await uploading(gateway)
    client.send(b"0\r\nX-Sum:  1 \r\nServer-Timing: db;dur=5\r\nx-sum: 2\r\n\r\n")
    trailers = b"X-Sum: 1\r\nServer-Timing: db;dur=5\r\nx-sum: 2\r\n"
    assert await peer.until(b"\r\n\r\n") == b"0\r\n" + trailers + b"\r\n"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


async def test_trailers_of_a_response_arrive(gateway: Gateway) -> None:
    client, peer = await downloading(gateway, b"Trailer: X-Sum")
    peer.send(b"0\r\nX-Sum: 1\r\n")
    peer.send(b"X-More: \r\n\r\n")
    assert await client.until(b"\r\n\r\n") == b"0\r\nX-Sum: 1\r\nX-More: \r\n\r\n"
    client.get(b"again")
    assert b"/again " in await peer.head()  # both connections are used again
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


async def test_the_trailer_field_announces_them_both_ways(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", CHUNKED, b"Trailer: X-Sum", method=b"POST")
    peer = await dev.accept()
    assert b"\r\nTrailer: X-Sum\r\n" in await peer.head()
    client.send(b"0\r\n\r\n")
    assert await peer.exactly(5) == b"0\r\n\r\n"
    peer.send(OK_CHUNKED + b"Trailer: X-Time\r\n\r\n")
    assert (await client.response_head()).fields["trailer"] == "X-Time"


@pytest.mark.parametrize("line", REFUSED_NAMES)
async def test_what_must_not_be_a_trailer_is_dropped(gateway: Gateway, line: bytes) -> None:
    client, peer = await uploading(gateway, b"Connection: x-named")
    client.send(b"0\r\n" + line + b"\r\nX-Good: 1\r\n\r\n")
    assert await peer.until(b"\r\n\r\n") == b"0\r\nX-Good: 1\r\n\r\n"
    peer.send(OK_CHUNKED + b"Connection: X-Named\r\n\r\n0\r\n" + line + b"\r\n\r\n")
    await client.response_head()
    assert await client.exactly(5) == b"0\r\n\r\n"


async def test_the_next_request_is_not_touched_by_trailers(gateway: Gateway) -> None:
    client, peer = await uploading(gateway)
    client.send(b"0\r\nX-Sum: 1\r\n\r\nGET " + BASE + b"next HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert await peer.until(b"\r\n\r\n") == b"0\r\nX-Sum: 1\r\n\r\n"
    peer.send(NO_CONTENT)
    head = await peer.head()
    assert b"/next " in head
    assert b"X-Sum" not in head


async def test_trailers_wait_with_their_request(gateway: Gateway) -> None:
    dev = await gateway.preview()
    gateway.registry.gate = asyncio.Event()
    client = await gateway.client()
    client.get(b"x", CHUNKED, method=b"POST")
    client.send(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")
    await eventually(lambda: gateway.registry.reads == 1)
    gateway.registry.gate.set()
    peer = await dev.accept()
    await peer.head()
    assert await peer.until(b"\r\n\r\n") == b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


async def test_an_old_client_gets_content_without_trailers(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(b"GET " + BASE + b"x HTTP/1.0\r\nHost: localhost\r\n\r\n")
    peer = await dev.accept()
    await peer.head()
    peer.send(OK_CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")
    assert (await client.response()).body == b"abc"


@pytest.mark.parametrize("line", [b"X-Sum : 1", b"Content-Length: 5", b"Transfer-Encoding: gzip"])
async def test_a_malformed_trailer_is_refused(gateway: Gateway, line: bytes) -> None:
    client, peer = await uploading(gateway)
    client.send(b"0\r\n" + line + b"\r\n\r\n")
    assert (await client.response()).status == 400
    assert await peer.rest() == b""  # no last chunk


@pytest.mark.parametrize("from_client", [True, False])
@pytest.mark.parametrize("line", [b"X-Sum: " + b"a" * 80, b"Cookie: " + b"a" * 80])
async def test_trailers_are_held_to_the_limit_of_heads(
    start: Start, from_client: bool, line: bytes
) -> None:
    """Those that would be dropped, too."""
    gateway = await start(max_head_bytes=1024)
    client, peer = await (uploading if from_client else downloading)(gateway)
    sender, receiver = (client, peer) if from_client else (peer, client)
    sender.send(b"0\r\n" + (line + b"\r\n") * 20 + b"\r\n")
    assert await receiver.rest() == b""
    if from_client:
        assert (await client.response()).status == 431
