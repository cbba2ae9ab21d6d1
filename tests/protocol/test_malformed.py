"""What is ambiguous or no HTTP is refused, and no byte of it reaches a dev server.

The numbers are those of the faults in the reliability notes: bad HTTP, 1 to 8.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.protocol.conftest import Start
from tests.protocol.harness import BASE, HELD_BYTES, Client, Gateway, never, session

GET = b"GET " + BASE + b"x HTTP/1.1\r\n"
POST = b"POST " + BASE + b"x HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

FRAMING = {  # fault 1
    "CL and TE": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE and CL": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "differing CL": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "the same CL twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "CL as a list": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "CL with a sign": POST + b"Content-Length: +3\r\n\r\nabc",
    "CL in hexadecimal": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "CL without a number": POST + b"Content-Length:\r\n\r\nabc",
    "CL beyond all bounds": POST + b"Content-Length: 99999999999999999999\r\n\r\nabc",
    "TE identity": POST + b"Transfer-Encoding: identity\r\n\r\nabc",
    "TE of two": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE with chunked first": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "TE twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE of an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE quoted": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "TE in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
}
LINES = {  # fault 2
    "bare LF everywhere": GET.replace(b"\r", b"") + b"Host: localhost\n\n",
    "bare LF in a field": GET + b"Host: localhost\nX: y\r\n\r\n",
    "bare LF at the end": GET + b"Host: localhost\r\n\n",
    "bare CR in a field": GET + b"Host: localhost\r\nX: a\rb\r\n\r\n",
    "folded field": GET + b"Host: localhost\r\nX: a\r\n b\r\n\r\n",
    "folded first field": GET + b" X: a\r\nHost: localhost\r\n\r\n",
    "NUL in a value": GET + b"Host: localhost\r\nX: a\0b\r\n\r\n",
    "NUL in a name": GET + b"Host: localhost\r\nX\0: a\r\n\r\n",
    "NUL in the target": GET.replace(b"/x", b"/\0") + b"Host: localhost\r\n\r\n",
    "space before the colon": GET + b"Host: localhost\r\nX : a\r\n\r\n",
    "tab before the colon": GET + b"Host: localhost\r\nX\t: a\r\n\r\n",
    "no name": GET + b"Host: localhost\r\n: a\r\n\r\n",
    "no colon": GET + b"Host: localhost\r\nX\r\n\r\n",
    "non-ASCII name": GET + b"Host: localhost\r\nX\xc3\xa4: a\r\n\r\n",
    "non-ASCII target": GET.replace(b"/x", b"/\xc3\xa4") + b"Host: localhost\r\n\r\n",
    "space in the target": GET.replace(b"/x", b"/x y") + b"Host: localhost\r\n\r\n",
    "fragment in the target": GET.replace(b"/x", b"/x#y") + b"Host: localhost\r\n\r\n",
    "no version": GET.replace(b" HTTP/1.1", b"") + b"Host: localhost\r\n\r\n",
    "unknown method": GET.replace(b"GET", b"GRAB") + b"Host: localhost\r\n\r\n",
    "method in small letters": GET.replace(b"GET", b"get") + b"Host: localhost\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}
VERSIONS = {
    "HTTP/0.9": GET.replace(b"1.1", b"0.9") + b"Host: localhost\r\n\r\n",
    "HTTP/2.0": GET.replace(b"1.1", b"2.0") + b"Host: localhost\r\n\r\n",
    "HTTP/1.2": GET.replace(b"1.1", b"1.2") + b"Host: localhost\r\n\r\n",
}
HOSTS = {  # fault 3
    "no Host": GET + b"\r\n",
    "two Hosts": GET + b"Host: localhost\r\nHost: localhost\r\n\r\n",
    "two Hosts that differ": GET + b"Host: localhost\r\nHost: evil\r\n\r\n",
    "empty Host": GET + b"Host:\r\n\r\n",
    "user in Host": GET + b"Host: localhost@evil\r\n\r\n",
    "path in Host": GET + b"Host: localhost/evil\r\n\r\n",
    "space in Host": GET + b"Host: local host\r\n\r\n",
    "comma in Host": GET + b"Host: localhost, evil\r\n\r\n",
    "port that is none": GET + b"Host: localhost:80a\r\n\r\n",
    "port beyond all ports": GET + b"Host: localhost:65536\r\n\r\n",
    "port beyond all ports of an address": GET + b"Host: [::1]:99999\r\n\r\n",
    "empty label": GET + b"Host: a..localhost\r\n\r\n",
    "empty first label": GET + b"Host: .localhost\r\n\r\n",
    "two dots at the end": GET + b"Host: localhost..\r\n\r\n",
    "nothing but a dot": GET + b"Host: .\r\n\r\n",
    "nothing but a dot, and a port": GET + b"Host: .:80\r\n\r\n",
    "nothing but a port": GET + b"Host: :80\r\n\r\n",
    "bracket left open": GET + b"Host: [::1\r\n\r\n",
    "Host beyond all bounds": GET + b"Host: " + b"a" * 300 + b"\r\n\r\n",
}
CHUNKS = {  # fault 5
    "0x": CHUNKED + b"0x5\r\nabcde\r\n0\r\n\r\n",
    "sign": CHUNKED + b"+5\r\nabcde\r\n0\r\n\r\n",
    "negative": CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n",
    "underscore": CHUNKED + b"0_2e\r\nabcde\r\n0\r\n\r\n",
    "overflow": CHUNKED + b"10000000000000005\r\nabcde\r\n0\r\n\r\n",
    "empty": CHUNKED + b"\r\nabcde\r\n0\r\n\r\n",
    "space in front": CHUNKED + b" 5\r\nabcde\r\n0\r\n\r\n",
    "space behind": CHUNKED + b"5 \r\nabcde\r\n0\r\n\r\n",
    "bare LF behind the size": CHUNKED + b"5\nabcde\r\n0\r\n\r\n",
    "bare LF in an extension": CHUNKED + b"5;a\nb\r\nabcde\r\n0\r\n\r\n",
    "bare LF behind the data": CHUNKED + b"5\r\nabcde\n0\r\n\r\n",
    "more data than announced": CHUNKED + b"5\r\nabcdef\r\n0\r\n\r\n",
    "bad trailer": CHUNKED + b"0\r\nX : y\r\n\r\n",
}
REFUSED = {**FRAMING, **LINES, **VERSIONS, **HOSTS}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
async def test_faults_1_to_3_are_refused_without_a_byte_upstream(
    gateway: Gateway, request_: bytes
) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(request_ + GET + b"Host: localhost\r\n\r\n")
    response = await client.response()
    assert response.status in (400, 501, 505)
    assert (response.closes, response.json()["code"]) == (True, "malformed_request")
    assert await client.rest() == b""
    assert dev.untouched
    assert gateway.control.untouched


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
async def test_faults_1_to_3_are_refused_when_nothing_follows(
    gateway: Gateway, request_: bytes
) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(request_)
    client.end()
    assert (await client.response()).status in (400, 501, 505)
    assert await client.rest() == b""
    assert dev.untouched


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
async def test_they_are_refused_behind_a_good_request_too(
    gateway: Gateway, request_: bytes
) -> None:
    """The good one is answered first."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(GET + b"Host: localhost\r\n\r\n" + request_)
    peer = await dev.accept()
    assert b"/x " in await peer.head()
    peer.send(b"HTTP/1.1 204 None\r\n\r\n")
    assert (await client.response()).status == 204
    assert (await client.response()).status in (400, 501, 505)
    assert await client.rest() == b""
    await never(peer.reader.read(1), 0.02)
    assert len(dev.peers) == 1


@pytest.mark.parametrize("request_", CHUNKS.values(), ids=CHUNKS.keys())
async def test_fault_5_bad_chunks_are_refused(gateway: Gateway, request_: bytes) -> None:
    """The head is good, so it may have gone; but never a complete request."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(request_)
    assert (await client.response()).status == 400
    assert await client.rest() == b""
    for peer in dev.peers:
        assert not (await peer.rest()).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("start_of_it", "part"), [(b"5;a=", b"a" * 1000), (b"0\r\nX: ", b"a" * 1000)]
)
async def test_fault_5_endless_extensions_and_trailers_are_refused(
    gateway: Gateway, start_of_it: bytes, part: bytes
) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(CHUNKED + b"1\r\na\r\n")
    peer = await dev.accept()
    await peer.head()
    client.send(start_of_it)
    for _ in range(100):
        client.send(part)
        await client.drain()
        await asyncio.sleep(0)
    response = await client.response()
    assert (response.status, response.closes) == (431, True)
    assert await peer.rest() == b"1\r\na\r\n"


async def endless(client: Client, part: bytes) -> None:
    """Send without end."""
    while True:
        client.send(part)
        await client.drain()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("start_of_it", "part", "status"),
    [
        (GET + b"Host: localhost\r\n", b"X-Field: 0123456789\r\n", 431),
        (GET + b"Host: localhost\r\nX: ", b"a" * 1000, 431),
        (GET + b"Host: localhost\r\n", b"a" * 1000, 431),
        (GET + b"Host: localhost\r\nX:", b" " * 1000, 431),
        (b"GET " + BASE, b"a" * 1000, 414),
        (b"GET " + BASE + b"?", b"a=b&" * 100, 414),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_fault_4_heads_and_targets_have_a_limit(
    gateway: Gateway, start_of_it: bytes, part: bytes, status: int, at_once: bool
) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(start_of_it)
    sending = None
    if at_once:
        client.send(part * 4000)
    else:
        sending = asyncio.create_task(endless(client, part))
    response = await client.response()
    assert (response.status, response.closes) == (status, True)
    assert dev.untouched
    if sending is not None:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_fault_4_also_byte_by_byte(start: Start) -> None:
    gateway = await start(max_head_bytes=1024, max_target_bytes=256)
    for head, status in ((b"GET /" + b"a" * 2000, 414), (GET + b"X: " + b"a" * 2000, 431)):
        client = await gateway.client()
        for byte in head:
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.response()).status == status


async def test_a_head_below_the_limit_passes_however_it_is_split(start: Start) -> None:
    gateway = await start(max_head_bytes=2048)
    dev = await gateway.preview()
    client = await gateway.client()
    for byte in GET + b"Host: localhost\r\nX: " + b"a" * 1900 + b"\r\n\r\n":
        client.send(bytes([byte]))
        await client.drain()
    peer = await dev.accept()
    assert b"\r\nX: " + b"a" * 1900 + b"\r\n" in await peer.head()
    peer.send(b"HTTP/1.1 204 None\r\n\r\n")
    assert (await client.response()).status == 204


@pytest.mark.parametrize(
    "target",
    [
        b"http://169.254.169.254/latest/meta-data",
        b"http://localhost:81" + BASE,
        b"http://user@localhost" + BASE,
        b"http:/localhost" + BASE,
        b"http://" + BASE,
        b"ws://localhost" + BASE,
        b"//169.254.169.254/",
        b"*",
        b"evil.example:80",
    ],
)
async def test_fault_6_only_paths_are_targets(gateway: Gateway, target: bytes) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    if target.startswith(b"//"):  # a path, and none of a preview
        client.ask(target)
        peer = await gateway.control.accept()
        assert (await peer.head()).startswith(b"GET //169.254.169.254/ HTTP/1.1\r\n")
        peer.send(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n")
        assert (await client.response()).status == 404
        return
    client.ask(target, method=b"OPTIONS" if target == b"*" else b"GET")
    assert (await client.response()).status == 400
    assert dev.untouched
    assert gateway.control.untouched


@pytest.mark.parametrize(
    ("target", "arrives"),
    [
        (b"http://localhost" + BASE + b"%2F?a=//b", BASE + b"%2F?a=//b"),
        (b"HTTPS://LocalHost" + BASE, BASE),
    ],
)
async def test_an_absolute_target_may_name_this_host(
    gateway: Gateway, target: bytes, arrives: bytes
) -> None:
    """RFC 9112 3.2.2: a server must take it, though only proxies are sent it."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.ask(target)
    peer = await dev.accept()
    assert (await peer.head()).startswith(b"GET " + arrives + b" HTTP/1.1\r\nHost: localhost:")
    peer.send(b"HTTP/1.1 204 None\r\n\r\n")
    assert (await client.response()).status == 204


@pytest.mark.parametrize(
    ("target", "arrives"),
    [
        (b"http://localhost", b"/"),
        (b"http://localhost?a", b"/?a"),
        (b"http://localhost//evil.example", b"//evil.example"),
    ],
)
async def test_of_an_absolute_target_the_control_plane_gets_the_path(
    gateway: Gateway, target: bytes, arrives: bytes
) -> None:
    client = await gateway.client()
    client.ask(target)
    peer = await gateway.control.accept()
    assert (await peer.head()).startswith(b"GET " + arrives + b" HTTP/1.1\r\n")
    peer.send(b"HTTP/1.1 204 None\r\n\r\n")
    assert (await client.response()).status == 204


async def test_an_absolute_target_leads_to_nothing_internal(gateway: Gateway) -> None:
    client = await gateway.client()
    client.ask(b"http://localhost/-/previews/abcdef0123456789/events")
    assert (await client.response()).status == 400
    assert gateway.control.untouched


async def test_fault_6_connect_is_refused(gateway: Gateway) -> None:
    client = await gateway.client()
    client.ask(b"169.254.169.254:80", method=b"CONNECT")
    assert (await client.response()).status == 405
    assert gateway.control.untouched


@pytest.mark.parametrize(
    "target",
    [
        b"/-/previews/%b/events",
        b"/%%2d/previews/%b/events",
        b"/%%2D%%2Fpreviews/%b/events",
        b"%%2f-/previews/%b/events",
    ],
)
async def test_internal_paths_cannot_be_asked_for(gateway: Gateway, target: bytes) -> None:
    client = await gateway.client()
    client.ask(target % b"abcdef0123456789")
    assert (await client.response()).status == 400
    assert gateway.control.untouched


@pytest.mark.parametrize(
    "rest", [b"%2e%2e/other123/", b"../other123/", b"..%2fother123", b".preview/../x", b"/evil.ex"]
)
async def test_fault_7_no_path_leads_to_another_session(gateway: Gateway, rest: bytes) -> None:
    other = await gateway.preview(session_id="other123")
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(rest)
    peer = await dev.accept()
    assert (await peer.head()).startswith(b"GET " + BASE + rest + b" HTTP/1.1\r\n")
    peer.send(b"HTTP/1.1 204 None\r\n\r\n")
    assert (await client.response()).status == 204
    assert other.untouched
    assert gateway.control.untouched


@pytest.mark.parametrize(
    "target",
    [b"//evil.example", b"//evil.example/%2e%2e", b"/%%5Cevil.example", b"//evil.example%b"],
)
async def test_fault_7_what_looks_like_another_site_is_a_path(
    gateway: Gateway, target: bytes
) -> None:
    """The gateway itself redirects to nowhere: it is the control plane's to answer."""
    await gateway.preview()
    client = await gateway.client()
    target = target.replace(b"%b", BASE[:-1])
    client.ask(target)
    peer = await gateway.control.accept()
    assert (await peer.head()).startswith(b"GET " + target + b" HTTP/1.1\r\n")
    peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    response = await client.response()
    assert (response.status, response.fields.get("location")) == (404, None)


@pytest.mark.parametrize("rest", [b"//evil.example", b"/abcdef01%2f/evil.example", b"/%5cevil.ex"])
async def test_fault_7_no_missing_slash_leads_to_another_site(
    gateway: Gateway, rest: bytes
) -> None:
    client = await gateway.client()
    client.ask(b"/preview" + rest)
    response = await client.response()
    assert (response.status, response.fields.get("location")) == (404, None)


@pytest.mark.parametrize("answered_by", ["dev server", "gateway"])
async def test_fault_8_ten_thousand_pipelined_requests_are_answered_in_order(
    gateway: Gateway, answered_by: str
) -> None:
    dev = await gateway.preview()
    client = await gateway.client()

    async def serve() -> None:
        peer = await dev.accept()
        for number in range(10_000):
            assert b"/%d " % number in await peer.head()
            body = b"%d" % number
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    base = BASE if answered_by == "dev server" else b"/preview/"
    requests = [b"GET %b%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % (base, n) for n in range(10_000)]
    client.send(b"".join(requests))
    serving = asyncio.create_task(serve()) if answered_by == "dev server" else None
    for number in range(10_000):
        response = await client.response()
        if serving:
            assert response.body == b"%d" % number
        else:
            assert response.json()["sessionId"] == str(number)
    if serving:
        await serving
        assert len(dev.peers) == 1


async def test_fault_8_what_waits_is_bounded(gateway: Gateway) -> None:
    """A client that does not read its responses cannot make the gateway keep them."""
    client = await gateway.client()
    client.pause()
    taken = await client.accepted(b"GET /preview/x HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200_000)
    assert taken < HELD_BYTES
    (connection,) = gateway.listener.connections
    assert connection.transport.get_write_buffer_size() < 512 * 1024
    assert len(connection.parser.events) < 2000


async def test_one_is_refused_behind_requests_that_failed(gateway: Gateway) -> None:
    """Its end is read while the gateway still deals with the failure of the first."""
    dead = await gateway.server()
    await dead.close()
    gateway.registry.put(session(endpoint=dead.endpoint))
    client = await gateway.client()
    good = GET + b"Host: localhost\r\n\r\n"
    without_host = GET + b"X: " + b"x" * 40_000 + b"\r\n\r\n"
    client.send(good + good + without_host)
    assert (await client.response()).status == 502
    assert (await client.response()).status == 502
    response = await client.response()
    assert (response.status, response.json()["code"]) == (400, "malformed_request")
    assert await client.rest() == b""
