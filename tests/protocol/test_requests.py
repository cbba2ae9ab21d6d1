"""Requests on their way to the dev server: what it gets to see, byte for byte."""

from __future__ import annotations

import asyncio

import pytest

from tests.protocol.conftest import Start
from tests.protocol.harness import BASE, HELD_BYTES, TOKEN, Gateway, Server, eventually

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


async def sent(dev: Server, *fields: bytes, gateway: Gateway, method: bytes = b"GET") -> bytes:
    """The head that the dev server gets for a request with these fields."""
    client = await gateway.client()
    client.get(b"x", *fields, method=method)
    peer = await dev.accept()
    head = await peer.head()
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204
    return head


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"src/a%2Fb.js?x=%2F%40&y",
        b"%40fs/home/x//y/../z",
        b"%2e%2e/b",
        b"@fs/home/user/@id/__x00__virtual",
        b"/double//slash",
        b"/evil.example/",
        b"[slug]/page?a[0]=1&b={c}|d",
        b"q?" + b"k=" + b"v" * 30000,
    ],
)
async def test_the_target_arrives_byte_for_byte(gateway: Gateway, rest: bytes) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(rest)
    peer = await dev.accept()
    assert (await peer.head()).startswith(b"GET " + BASE + rest + b" HTTP/1.1\r\n")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    response = await client.response()
    assert (response.status, response.body) == (200, b"hello")


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PROPFIND", b"DELETE", b"OPTIONS"])
async def test_the_method_arrives_as_sent(gateway: Gateway, method: bytes) -> None:
    dev = await gateway.preview()
    head = await sent(dev, gateway=gateway, method=method)
    assert head.startswith(method + b" " + BASE + b"x HTTP/1.1\r\n")


async def test_end_to_end_fields_arrive_as_written_and_in_order(gateway: Gateway) -> None:
    dev = await gateway.preview()
    fields = (b"X-b: 1", b"x-A:2", b"Cookie: a=b; c=d", b"Range: bytes=0-4", b"X-b: 3", b"E:")
    head = await sent(dev, *fields, gateway=gateway)
    assert b"X-b: 1\r\nx-A: 2\r\nCookie: a=b; c=d\r\nRange: bytes=0-4\r\nX-b: 3\r\nE: \r\n" in head


async def test_the_dev_server_sees_itself_in_host_and_origin(gateway: Gateway) -> None:
    dev = await gateway.preview()
    head = await sent(dev, b"Origin: http://localhost", gateway=gateway, method=b"POST")
    own = b"localhost:%d\r\n" % dev.endpoint.port
    assert b"\r\nHost: " + own in head
    assert b"\r\nOrigin: http://" + own in head
    assert head.count(b"\r\nHost:") == 1


async def test_no_origin_is_made_up(gateway: Gateway) -> None:
    dev = await gateway.preview()
    assert b"origin" not in (await sent(dev, gateway=gateway)).lower()


@pytest.mark.parametrize(
    "name",
    [
        b"X-Forwarded-For",
        b"X-Forwarded-Host",
        b"X-Forwarded-Proto",
        b"X-Forwarded-Prefix",
        b"X-Forwarded-Port",
        b"Forwarded",
        b"X-Real-IP",
        b"X_Forwarded_For",
        b"X-Preview-Replica",
        b"Keep-Alive",
        b"Proxy-Connection",
        b"Proxy-Authorization",
        b"TE",
        b"HTTP2-Settings",
    ],
)
async def test_a_field_that_ends_here_does_not_arrive(gateway: Gateway, name: bytes) -> None:
    dev = await gateway.preview()
    head = await sent(dev, name + b": evil", b"X_Other: kept", gateway=gateway)
    assert b"evil" not in head
    assert b"X_Other: kept\r\n" in head


async def test_fields_named_in_connection_do_not_arrive(gateway: Gateway) -> None:
    dev = await gateway.preview()
    head = await sent(
        dev,
        b"X-A: secret",
        b"Connection: x-a, keep-alive",
        b"x-b: secret",
        b"Authorization: secret",
        b"Connection: X-B ,authorization",
        b"X-C: kept",
        gateway=gateway,
    )
    assert b"secret" not in head
    assert b"onnection" not in head
    assert b"X-C: kept\r\n" in head


#: One for a session, as POST .../tokens issues it, for which it need not be good.
SESSION_TOKEN = b"abcdef0123456789.3.1893456000.Zm9v-YmFy_MTIz"


@pytest.mark.parametrize("token", [TOKEN.encode(), SESSION_TOKEN])
@pytest.mark.parametrize("before", [b"Bearer ", b"bearer   ", b"Bearer\t", b"BEARER \t "])
async def test_the_gateways_token_is_never_sent_on(
    start: Start, token: bytes, before: bytes
) -> None:
    gateway = await start(api_tokens=[TOKEN])
    dev = await gateway.preview()
    assert b"uthorization" not in await sent(
        dev, b"Authorization: " + before + token, gateway=gateway
    )


async def test_a_session_token_is_never_sent_on_either_where_no_token_is_asked_for(
    gateway: Gateway,
) -> None:
    dev = await gateway.preview()
    head = await sent(dev, b"Authorization: Bearer " + SESSION_TOKEN, gateway=gateway)
    assert b"uthorization" not in head


async def test_an_upgrade_does_not_send_a_session_token_on_either(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.upgrade(b"", b"Authorization: Bearer " + SESSION_TOKEN)
    peer = await dev.accept()
    assert b"uthorization" not in await peer.head()


async def test_the_control_plane_gets_the_gateways_tokens(start: Start) -> None:
    gateway = await start(api_tokens=[TOKEN])
    for token in (TOKEN.encode(), SESSION_TOKEN):
        client = await gateway.client()
        client.ask(b"/api/v1/sessions", b"Authorization: Bearer " + token)
        peer = await gateway.control.accept()
        assert b"\r\nAuthorization: Bearer " + token + b"\r\n" in await peer.head()


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer app-token",
        b"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        b"Bearer " + SESSION_TOKEN + b".more",
        b"Digest " + SESSION_TOKEN,
        b"Basic YTpi",
        b"Bearer",
    ],
)
async def test_an_apps_own_authorization_is_sent_on(start: Start, value: bytes) -> None:
    gateway = await start(api_tokens=[TOKEN])
    dev = await gateway.preview()
    head = await sent(dev, b"Authorization: " + value, gateway=gateway)
    assert b"Authorization: " + value + b"\r\n" in head


async def test_content_of_known_length_arrives(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", b"Content-Length: 6", method=b"POST")
    peer = await dev.accept()
    assert b"\r\nContent-Length: 6\r\n" in await peer.head()
    client.send(b"abc")
    assert await peer.exactly(3) == b"abc"  # before the rest is there
    client.send(b"def")
    assert await peer.exactly(3) == b"def"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


async def test_an_empty_content_is_announced_as_such(gateway: Gateway) -> None:
    dev = await gateway.preview()
    head = await sent(dev, b"Content-Length: 0", gateway=gateway, method=b"POST")
    assert b"\r\nContent-Length: 0\r\n" in head


async def test_chunked_content_is_framed_anew(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", b"Transfer-Encoding: Chunked", method=b"POST")
    client.send(b"3;ext=1\r\nabc\r\n")
    peer = await dev.accept()
    head = await peer.head()
    assert b"\r\nTransfer-Encoding: chunked\r\n" in head
    assert b"ontent-" not in head
    assert await peer.exactly(8) == b"3\r\nabc\r\n"
    client.send(b"A\r\n0123456789\r\n0\r\n\r\n")
    assert await peer.until(b"0\r\n\r\n") == b"a\r\n0123456789\r\n0\r\n\r\n"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


async def test_content_that_comes_with_its_head_arrives(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    target = BASE + b"x"
    client.send(
        b"POST " + target + b" HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 3\r\n\r\nabc"
        b"POST " + target + b" HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\ndef\r\n0\r\n\r\n"
    )
    peer = await dev.accept()
    await peer.head()
    assert await peer.exactly(3) == b"abc"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204
    await peer.head()
    assert await peer.until(b"0\r\n\r\n") == b"3\r\ndef\r\n0\r\n\r\n"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


async def test_a_request_may_come_byte_by_byte(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    request = b"POST " + BASE + b"x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
    for byte in request:
        client.send(bytes([byte]))
        await client.drain()
    peer = await dev.accept()
    await peer.head()
    assert await peer.exactly(3) == b"abc"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


async def test_expect_is_passed_on_and_so_is_the_permission(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", b"Content-Length: 3", b"Expect: 100-continue", method=b"PUT")
    peer = await dev.accept()
    assert b"\r\nExpect: 100-continue\r\n" in await peer.head()
    peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert (await client.response_head()).status == 100
    client.send(b"abc")
    assert await peer.exactly(3) == b"abc"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


async def test_an_expectation_of_an_old_client_is_ignored(gateway: Gateway) -> None:
    """HTTP/1.0 has no 100 (RFC 9110 10.1.1): passed on, it would be waited for in vain."""
    dev = await gateway.preview()
    client = await gateway.client()
    start_line = b"PUT " + BASE + b"x HTTP/1.0\r\n"
    client.send(start_line + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc")
    peer = await dev.accept()
    assert b"xpect" not in await peer.head()
    assert await peer.exactly(3) == b"abc"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


@pytest.mark.parametrize("status", [b"413 Content Too Large", b"417 Expectation Failed"])
@pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
async def test_a_final_answer_instead_of_the_permission_ends_both_connections(
    gateway: Gateway, status: bytes, framing: bytes
) -> None:
    """The content is never sent, so what followed on either could be taken for it."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", framing, b"Expect: 100-continue", method=b"PUT")
    peer = await dev.accept()
    assert b"\r\nExpect: 100-continue\r\n" in await peer.head()
    peer.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno")
    response = await client.response()
    assert (response.status, response.body, response.closes) == (int(status[:3]), b"no", True)
    assert await client.rest() == b""
    assert await peer.rest() == b""
    again = await gateway.client()
    again.get(b"again")
    assert (await (await dev.accept()).head()).startswith(b"GET " + BASE + b"again ")


async def test_content_waits_while_the_route_is_being_found(gateway: Gateway) -> None:
    """The client is paused meanwhile; nothing is lost."""
    dev = await gateway.preview()
    gateway.registry.gate = asyncio.Event()
    client = await gateway.client()
    content = bytes(range(256)) * 2**15
    client.get(b"x", b"Content-Length: %d" % len(content), method=b"POST")
    assert await client.accepted(content) < HELD_BYTES
    assert dev.untouched
    gateway.registry.gate.set()
    peer = await dev.accept()
    await peer.head()
    assert await peer.exactly(len(content)) == content
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204


async def test_chunked_content_waits_too(gateway: Gateway) -> None:
    dev = await gateway.preview()
    gateway.registry.gate = asyncio.Event()
    client = await gateway.client()
    client.get(b"x", b"Transfer-Encoding: chunked", method=b"POST")
    client.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    await eventually(lambda: gateway.registry.reads == 1)
    gateway.registry.gate.set()
    peer = await dev.accept()
    await peer.head()
    assert await peer.until(b"0\r\n\r\n") == b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    peer.send(NO_CONTENT)
    assert (await client.response()).status == 204
