"""Upgrades: a tunnel after a valid 101 and never before, byte for byte both ways.

The numbers are those of the faults in the reliability notes: bad WS, 9 to 14.
"""

from __future__ import annotations

import asyncio

import pytest

from gateway.proxy.tunnel import HALF_CLOSED_SECONDS
from gateway.session import Hmr
from tests.protocol.conftest import Start
from tests.protocol.harness import (
    ACCEPTED,
    BASE,
    HANDSHAKE,
    HELD_BYTES,
    TOKEN,
    Client,
    Gateway,
    Peer,
    eventually,
    never,
)

#: A chunk of content.
PART = b"%x\r\n%b\r\n" % (20_000, b"x" * 20_000)
INTERIM = b"HTTP/1.1 103 Early Hints\r\nX-Long: " + b"x" * 60_000 + b"\r\n\r\n"


async def asked(gateway: Gateway, *fields: bytes, rest: bytes = b"?token=t") -> tuple[Client, Peer]:
    """A client that has asked for an upgrade, and the dev server's end of it."""
    dev = gateway.servers[-1] if gateway.registry.sessions else await gateway.preview()
    client = await gateway.client()
    client.upgrade(rest, *fields)
    peer = await dev.accept()
    await peer.head()
    return client, peer


async def tunnelled(gateway: Gateway) -> tuple[Client, Peer]:
    client, peer = await asked(gateway)
    peer.send(ACCEPTED)
    assert (await client.response_head()).status == 101
    return client, peer


async def test_a_handshake_arrives_with_all_it_needs(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.upgrade(
        b"?token=a%2Fb",
        b"Origin: http://localhost",
        b"Sec-WebSocket-Protocol: vite-hmr",
        b"Sec-WebSocket-Extensions: permessage-deflate",
    )
    peer = await dev.accept()
    head = await peer.head()
    assert head.startswith(b"GET " + BASE + b"?token=a%2Fb HTTP/1.1\r\n")
    for field in (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        *HANDSHAKE[2:],
        b"Origin: http://localhost:%d" % dev.endpoint.port,
        b"Sec-WebSocket-Protocol: vite-hmr",
        b"Sec-WebSocket-Extensions: permessage-deflate",
    ):
        assert head.count(b"\r\n" + field + b"\r\n") == 1
    peer.send(
        ACCEPTED[:-2]
        + b"Sec-WebSocket-Protocol: vite-hmr\r\n"
        + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    answer = await client.response_head()
    assert answer.status == 101
    assert answer.fields == {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "sec-websocket-protocol": "vite-hmr",
        "sec-websocket-extensions": "permessage-deflate",
        "x-preview-replica": "replica-a",
    }


async def test_bytes_flow_both_ways(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    for size in (1, 1000, 1_000_000):
        client.send(b"c" * size)
        assert await peer.exactly(size) == b"c" * size
        peer.send(b"p" * size)
        assert await client.exactly(size) == b"p" * size
    assert gateway.plane.stats.tunnels == 1


async def test_fault_9_nothing_raw_reaches_the_dev_server_before_its_101(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    request = b"\r\n".join((b"GET " + BASE + b" HTTP/1.1", b"Host: localhost", *HANDSHAKE))
    client.send(request + b"\r\n\r\nearly ")
    peer = await dev.accept()
    await peer.head()
    client.send(b"bird")
    await never(peer.reader.read(1))  # nothing raw reaches the dev server before its 101
    peer.send(ACCEPTED + b"hello")
    assert (await client.response_head()).status == 101
    assert await client.exactly(5) == b"hello"
    assert await peer.exactly(10) == b"early bird"


async def test_a_client_that_does_not_wait_is_held_back(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    content = b"x" * 10_000_000
    assert await client.accepted(content) < HELD_BYTES
    peer.send(ACCEPTED)
    await client.response_head()
    assert await peer.exactly(len(content)) == content


@pytest.mark.parametrize("first", ["client", "dev server"])
async def test_an_end_of_stream_is_passed_on(gateway: Gateway, first: str) -> None:
    client, peer = await tunnelled(gateway)
    ends, left = (client, peer) if first == "client" else (peer, client)
    ends.send(b"last words")
    ends.end()
    assert await left.rest() == b"last words"
    left.send(b"still there")
    assert await ends.exactly(11) == b"still there"
    left.end()
    assert await ends.rest() == b""
    await eventually(lambda: not gateway.listener.tunnels)


async def test_a_half_closed_tunnel_does_not_stay(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    client.end()
    assert await peer.rest() == b""
    for _ in range(HALF_CLOSED_SECONDS - 1):
        gateway.listener.sweep_tunnels()
    assert gateway.listener.tunnels
    gateway.listener.sweep_tunnels()
    assert await client.rest() == b""
    assert not gateway.listener.tunnels


@pytest.mark.parametrize("dies", ["client", "dev server"])
async def test_fault_14_the_death_of_one_side_closes_the_other(gateway: Gateway, dies: str) -> None:
    client, peer = await tunnelled(gateway)
    dead, left = (client, peer) if dies == "client" else (peer, client)
    dead.reset()
    assert await left.rest(1.0) == b""
    await eventually(lambda: not gateway.listener.tunnels, 1.0)


@pytest.mark.parametrize("dies", ["client", "dev server"])
async def test_fault_14_a_side_that_takes_nothing_does_not_keep_the_tunnel(
    gateway: Gateway, dies: str
) -> None:
    client, peer = await tunnelled(gateway)
    dead, left = (client, peer) if dies == "client" else (peer, client)
    left.pause()
    await gateway.fill(dead)
    dead.reset()
    await eventually(lambda: not gateway.listener.tunnels, 1.0)
    await eventually(lambda: len(gateway.pool()) == 0, 1.0)


async def test_a_tunnel_holds_a_bounded_amount_each_way(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    client.pause()
    peer.pause()
    content = b"x" * 20_000_000
    assert await client.accepted(content) < len(content) / 2
    assert gateway.held <= 512 * 1024
    assert await peer.accepted(content) < len(content) / 2
    assert gateway.held <= 2 * 512 * 1024
    client.resume()
    peer.resume()
    assert await peer.exactly(len(content)) == content
    assert await client.exactly(len(content)) == content


@pytest.mark.parametrize("before", [b"", INTERIM * 2], ids=["101", "103 and 101"])
async def test_a_tunnel_to_a_client_that_is_behind_already_holds_no_more(
    gateway: Gateway, before: bytes
) -> None:
    """What waits from before the upgrade counts: the dev server is held back from the beginning."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.pause()
    client.get(b"first")
    peer = await dev.accept()
    await peer.head()
    (connection,) = gateway.listener.connections
    parts = 0
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while connection.transport.get_write_buffer_size() < 150_000:
        parts += 1
        peer.send(PART)
        await peer.drain()
        await asyncio.sleep(0.01)
    peer.send(b"0\r\n\r\n")
    await eventually(lambda: connection.exchange is None)
    assert not connection.writing_paused
    client.upgrade()
    peer = await dev.accept()
    await peer.head()
    peer.send(before + ACCEPTED)
    content = b"y" * 20_000_000
    assert await peer.accepted(content) < len(content) / 2
    assert gateway.held <= 512 * 1024
    client.resume()
    assert (await client.response_head()).status == 200
    assert await client.exactly(len(PART) * parts + 5) == PART * parts + b"0\r\n\r\n"
    while (response := await client.response_head()).status == 103:
        pass
    assert response.status == 101
    assert await client.exactly(len(content)) == content


async def test_tunnels_give_back_their_place(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1)
    dev = await gateway.preview()
    for _ in range(3):
        client = await gateway.client()
        client.upgrade()
        peer = await dev.accept()
        await peer.head()
        peer.send(ACCEPTED)
        await client.response_head()
        await client.close()
        assert await peer.rest() == b""
        await peer.close()
        await eventually(lambda: len(gateway.pool()) == 0)


# -- refused, wrong and missing answers ----------------------------------------------------------


@pytest.mark.parametrize(
    "status", [b"200 OK", b"400 Bad Request", b"401 Unauthorized", b"503 Starting"]
)
async def test_fault_9_a_refused_upgrade_is_passed_on_and_ends_the_connection(
    gateway: Gateway, status: bytes
) -> None:
    """400 is what Vite answers where ``?token=`` is missing; 200, what knows no upgrade."""
    client, peer = await asked(gateway, rest=b"")
    client.send(b"GET " + BASE + b"secret HTTP/1.1\r\nHost: localhost\r\n\r\n")
    peer.send(b"HTTP/1.1 %s\r\nX-Why: because\r\nContent-Length: 11\r\n\r\n" % status)
    peer.send(b"Bad Request")
    response = await client.response()
    assert (response.status, response.body, response.closes) == (
        int(status[:3]),
        b"Bad Request",
        True,
    )
    assert response.fields["x-why"] == "because"
    # What the client had sent behind its head never reaches the dev server.
    assert await peer.rest() == b""
    assert await client.rest() == b""
    assert len(gateway.servers[-1].peers) == 1


WRONG = {
    "accept of another key": ACCEPTED.replace(b"s3pPLMBiTx", b"aaaaaaaaaa"),
    "no accept": b"HTTP/1.1 101 Hm\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "other protocol": ACCEPTED.replace(b"websocket", b"other"),
    "no Upgrade": ACCEPTED.replace(b"Upgrade: websocket\r\n", b""),
    "empty Upgrade": ACCEPTED.replace(b"Upgrade: websocket\r\n", b"Upgrade: ,\r\n"),
    "no Connection": ACCEPTED.replace(b"Connection: Upgrade\r\n", b""),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG.keys())
async def test_fault_12_a_wrong_101_becomes_502(gateway: Gateway, answer: bytes) -> None:
    client, peer = await asked(gateway)
    peer.send(answer)
    response = await client.response()
    assert (response.status, response.closes) == (502, True)
    assert await peer.rest() == b""


async def test_fault_12_a_101_that_nobody_asked_for_becomes_502(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    client.send(b"raw")
    peer = await dev.accept()
    await peer.head()
    peer.send(ACCEPTED + b"smuggled")
    response = await client.response()
    assert response.status == 502
    assert b"smuggled" not in response.body
    assert await peer.rest() == b""  # nor did anything raw go the other way


@pytest.mark.parametrize("fields", [(b"Content-Length: 5",), (b"Transfer-Encoding: chunked",)])
async def test_fault_10_an_upgrade_with_content_is_refused(
    gateway: Gateway, fields: tuple[bytes, ...]
) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.upgrade(b"", *fields)
    assert (await client.response()).status == 400
    assert dev.untouched


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ="),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZQ"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: a"),
        (b"Sec-WebSocket-Version: 13\r\n", b""),
        (b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Version:\r\n"),
        (b"GET", b"POST"),
    ],
)
async def test_fault_11_a_handshake_that_is_none_is_refused(
    gateway: Gateway, old: bytes, new: bytes
) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    lines = (b"GET " + BASE + b" HTTP/1.1", b"Host: localhost", *HANDSHAKE, b"", b"")
    request = b"\r\n".join(lines)
    assert old in request
    client.send(request.replace(old, new, 1))
    assert (await client.response()).status == 400
    assert dev.untouched


@pytest.mark.parametrize("version", [b"8", b"0", b"14", b"013", b"13, 8", b"thirteen"])
async def test_fault_11_a_handshake_of_another_version_is_told_which_one_is_spoken(
    gateway: Gateway, version: bytes
) -> None:
    """RFC 6455 4.4, RFC 9110 15.5.22; Upgrade is always named in Connection (RFC 9110 7.8)."""
    dev = await gateway.preview()
    client = await gateway.client()
    lines = (b"GET " + BASE + b" HTTP/1.1", b"Host: localhost", *HANDSHAKE, b"", b"")
    client.send(b"\r\n".join(lines).replace(b"Version: 13", b"Version: " + version))
    response = await client.response()
    assert (response.status, response.json()["code"]) == (426, "upgrade_required")
    assert response.fields["sec-websocket-version"] == "13"
    assert response.fields["upgrade"] == "websocket"
    assert response.fields["connection"] == "Upgrade, close"
    assert await client.rest() == b""
    assert dev.untouched


async def test_an_unanswered_upgrade_times_out_and_ends_without_a_reset(start: Start) -> None:
    gateway = await start(upgrade_timeout_seconds=0.1)
    client, peer = await asked(gateway)
    response = await client.response()
    assert (response.status, response.json()["code"]) == (504, "upgrade_timeout")
    assert await peer.rest() == b""  # a reset would raise
    assert await client.rest() == b""


async def test_an_answered_upgrade_does_not_time_out(start: Start) -> None:
    gateway = await start(upgrade_timeout_seconds=0.1)
    client, peer = await tunnelled(gateway)
    await never(client.reader.read(1), 0.2)
    refused, peer = await asked(gateway)
    await peer.close()
    assert (await refused.response()).status == 502
    assert await refused.rest(0.3) == b""


async def test_a_client_that_gives_up_ends_the_upgrade_without_a_reset(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    await client.close()
    assert await peer.rest() == b""


# -- which upgrades there are --------------------------------------------------------------------


async def test_any_protocol_is_tunnelled(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"", b"Connection: keep-alive, upgrade", b"Upgrade: h2c, Foo/2, bar", method=b"PUT")
    peer = await dev.accept()
    assert b"\r\nUpgrade: Foo/2, bar\r\n" in await peer.head()
    peer.send(b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: ,foo/2 ,\r\n\r\nabc")
    head = await client.response_head()
    assert (head.status, head.fields["upgrade"]) == (101, "foo/2")
    assert await client.exactly(3) == b"abc"


H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")


async def test_h2c_is_never_upgraded_to(gateway: Gateway) -> None:
    """Nor does it disturb the requests behind it."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"1", *H2C)
    client.get(b"2", *H2C, b"Content-Length: 3", method=b"POST")
    client.send(b"abc")
    client.get(b"3", *H2C, b"Transfer-Encoding: chunked", method=b"POST")
    client.send(b"3\r\nabc\r\n0\r\n\r\n")
    client.get(b"4")
    peer = await dev.accept()
    for number, content in ((1, b""), (2, b"abc"), (3, b"3\r\nabc\r\n0\r\n\r\n"), (4, b"")):
        head = await peer.head()
        assert b"/%d " % number in head
        assert b"pgrade" not in head
        assert b"ettings" not in head
        assert await peer.exactly(len(content)) == content
        peer.send(b"HTTP/1.1 204 None\r\n\r\n")
        response = await client.response()
        assert (response.status, response.closes) == (204, False)


async def test_many_h2c_requests_in_one_read_are_no_problem(gateway: Gateway) -> None:
    client = await gateway.client()
    request = b"\r\n".join((b"GET /preview/no-id/ HTTP/1.1", b"Host: localhost", *H2C, b"", b""))
    client.send(request * 1000)
    for _ in range(1000):
        assert (await client.response()).status == 404


async def test_an_upgrade_from_an_old_client_is_ignored(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    request = b"\r\n".join((b"GET " + BASE + b" HTTP/1.0", *HANDSHAKE, b"", b""))
    client.send(request)
    peer = await dev.accept()
    assert b"\r\nUpgrade" not in await peer.head()
    peer.send(b"HTTP/1.1 204 None\r\n\r\n")
    assert (await client.response()).status == 204


async def test_a_word_that_only_contains_upgrade_is_none(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"", b"Connection: no-upgrade", *HANDSHAKE[1:])
    peer = await dev.accept()
    assert b"\r\nUpgrade" not in await peer.head()
    peer.send(b"HTTP/1.1 204 None\r\n\r\n")
    assert (await client.response()).status == 204


# -- who may -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", [b"http://evil.example", b"null", b"http://localhost:1", b"http://localhost.evil"]
)
@pytest.mark.parametrize("kind", ["upgrade", "post"])
async def test_fault_13_a_foreign_page_is_refused_before_dialling(
    gateway: Gateway, origin: bytes, kind: str
) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    if kind == "upgrade":
        client.upgrade(b"?token=t", b"Origin: " + origin)
    else:
        client.get(b"", b"Content-Length: 0", b"Origin: " + origin, method=b"POST")
    response = await client.response()
    assert (response.status, response.json()["code"]) == (403, "forbidden")
    assert dev.untouched


async def test_a_foreign_page_may_be_allowed(start: Start) -> None:
    gateway = await start(cors_origins=["http://app.example"])
    client, peer = await asked(gateway, b"Origin: http://app.example")
    peer.send(ACCEPTED)
    assert (await client.response_head()).status == 101


async def test_fault_13_a_private_socket_needs_a_token(start: Start) -> None:
    gateway = await start(api_tokens=[TOKEN])
    dev = await gateway.preview(public=False)
    client = await gateway.client()
    client.upgrade()
    assert (await client.response()).status == 404
    assert dev.untouched
    client = await gateway.client()
    client.upgrade(b"", b"Authorization: Bearer " + TOKEN.encode())
    peer = await dev.accept()
    assert b"Bearer" not in await peer.head()
    peer.send(ACCEPTED)
    assert (await client.response_head()).status == 101


# -- the well-known HMR address ------------------------------------------------------------------

VITE = Hmr(path="?token=s3cret", protocol="vite-hmr")


@pytest.mark.parametrize("rest", [b"hmr", b"hmr?anything=1"])
async def test_the_hmr_address_reaches_the_dev_servers_socket(
    gateway: Gateway, rest: bytes
) -> None:
    dev = await gateway.preview(hmr=VITE)
    client = await gateway.client()
    client.upgrade(rest, b"Origin: http://localhost")
    peer = await dev.accept()
    head = await peer.head()
    assert head.startswith(b"GET " + BASE + b"?token=s3cret HTTP/1.1\r\n")
    assert b"\r\nSec-WebSocket-Protocol: vite-hmr\r\n" in head
    assert b"Origin" not in head
    peer.send(ACCEPTED[:-2] + b"Sec-WebSocket-Protocol: vite-hmr\r\n\r\n")
    answer = await client.response_head()
    assert answer.status == 101
    # A client fails a connection with a subprotocol that it has not asked for (RFC 6455 4.1).
    assert "sec-websocket-protocol" not in answer.fields


async def test_the_hmr_address_takes_the_subprotocol_too(gateway: Gateway) -> None:
    dev = await gateway.preview(hmr=VITE)
    client = await gateway.client()
    client.upgrade(b"hmr", b"Sec-WebSocket-Protocol: vite-hmr")
    peer = await dev.accept()
    assert (await peer.head()).count(b"Sec-WebSocket-Protocol: vite-hmr") == 1
    peer.send(ACCEPTED[:-2] + b"Sec-WebSocket-Protocol: vite-hmr\r\n\r\n")
    assert (await client.response_head()).fields["sec-websocket-protocol"] == "vite-hmr"


@pytest.mark.parametrize("hmr", [VITE, Hmr()])
async def test_a_page_called_hmr_is_the_apps_own(gateway: Gateway, hmr: Hmr) -> None:
    dev = await gateway.preview(hmr=hmr)
    client = await gateway.client()
    client.get(b"hmr")
    peer = await dev.accept()
    assert (await peer.head()).startswith(b"GET " + BASE + b"hmr HTTP/1.1\r\n")
    peer.send(b"HTTP/1.1 204 None\r\n\r\n")
    assert (await client.response()).status == 204


# -- the control plane ---------------------------------------------------------------------------


async def test_the_control_plane_may_upgrade_too(gateway: Gateway) -> None:
    client = await gateway.client()
    client.ask(b"/api/v1/socket", *HANDSHAKE)
    peer = await gateway.control.accept()
    assert b"\r\nUpgrade: websocket\r\n" in await peer.head()
    peer.send(ACCEPTED + b"abc")
    assert (await client.response_head()).status == 101
    assert await client.exactly(3) == b"abc"


async def test_a_hundred_tunnels_at_once(gateway: Gateway) -> None:
    dev = await gateway.preview()

    async def one() -> None:
        client = await gateway.client()
        client.upgrade()
        assert (await client.response_head()).status == 101
        client.send(b"ping")
        assert await client.exactly(4) == b"pong"

    async def other() -> None:
        peer = await dev.accept()
        await peer.head()
        peer.send(ACCEPTED)
        assert await peer.exactly(4) == b"ping"
        peer.send(b"pong")

    await asyncio.gather(*(one() for _ in range(100)), *(other() for _ in range(100)))
    assert gateway.plane.stats.tunnels == 100
