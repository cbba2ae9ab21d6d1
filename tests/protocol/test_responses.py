"""Responses on their way to the client, well-formed and not.

The numbers are those of the faults in the reliability notes: upstream, 19 to 23 (24 is among the
deadlines).
"""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from gateway.proxy.responses import MAX_INTERIM
from gateway.session import State
from tests.protocol.conftest import Start
from tests.protocol.harness import BASE, Client, Gateway, Peer, Server, eventually, session

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"


async def asked(gateway: Gateway, *fields: bytes, method: bytes = b"GET") -> tuple[Client, Peer]:
    """A client that has asked, and the dev server's end, which has got the request."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", *fields, method=method)
    peer = await dev.accept()
    await peer.head()
    return client, peer


async def again(client: Client, peer: Peer) -> None:
    """Check that both connections are used for the next request."""
    client.get(b"again")
    assert b"/again " in await peer.head()
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"


async def test_a_response_of_known_length_is_passed_on(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    peer.send(b"HTTP/1.1 404 What Ever\r\nContent-Length: 3\r\nX-a: b\r\nETag: W/1\r\n\r\nabc")
    response = await client.response()
    assert response.head.startswith(b"HTTP/1.1 404 What Ever\r\nX-a: b\r\nETag: W/1\r\n")
    assert (response.body, response.fields["content-length"]) == (b"abc", "3")
    assert not response.closes
    await again(client, peer)


async def test_chunks_are_passed_on_one_by_one(gateway: Gateway) -> None:
    """Server-sent events must not wait for anything."""
    client, peer = await asked(gateway)
    peer.send(OK + b"Transfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
    await client.response_head()
    for event in (b"data: 1\n\n", b"data: two\n\n"):
        peer.send(b"%x\r\n%b\r\n" % (len(event), event))
        assert await client.until(b"\n\n\r\n") == b"%x\r\n%b\r\n" % (len(event), event)
    peer.send(b"0\r\n\r\n")
    assert await client.exactly(5) == b"0\r\n\r\n"
    await again(client, peer)


async def test_content_until_the_end_is_sent_in_chunks(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    peer.send(OK + b"\r\nabc")
    head = await client.response_head()
    assert head.fields["transfer-encoding"] == "chunked"
    assert await client.until(b"abc\r\n") == b"3\r\nabc\r\n"
    peer.send(b"def")
    assert await client.until(b"def\r\n") == b"3\r\ndef\r\n"
    await peer.close()
    assert await client.exactly(5) == b"0\r\n\r\n"
    client.get(b"again")  # the client's connection goes on, on another one behind


async def test_a_dev_server_may_speak_http_1_0(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    peer.send(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc")
    response = await client.response()
    assert response.head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.body == b"abc"
    assert await peer.rest() == b""  # it did not offer to keep the connection


@pytest.mark.parametrize(
    ("fields", "announced"),
    [
        (b"Content-Length: 5\r\n", ("content-length", "5")),
        (b"Transfer-Encoding: chunked\r\n", ("transfer-encoding", "chunked")),
    ],
)
async def test_an_answer_to_head_has_no_content(
    gateway: Gateway, fields: bytes, announced: tuple[str, str]
) -> None:
    client, peer = await asked(gateway, method=b"HEAD")
    peer.send(OK + fields + b"\r\n")
    response = await client.response(to=b"HEAD")
    assert announced in response.fields.items()
    assert not response.closes
    await again(client, peer)


async def test_an_answer_to_head_may_announce_nothing(gateway: Gateway) -> None:
    client, peer = await asked(gateway, method=b"HEAD")
    peer.send(OK + b"X-No: length\r\n\r\n")
    response = await client.response(to=b"HEAD")
    assert "content-length" not in response.fields
    assert not response.closes
    await fresh(gateway, client)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_a_response_without_content_ends_with_its_head(
    gateway: Gateway, status: bytes
) -> None:
    client, peer = await asked(gateway)
    peer.send(b"HTTP/1.1 " + status + b'\r\nETag: "x"\r\n\r\n')
    response = await client.response()
    assert response.status == int(status[:3])
    assert "transfer-encoding" not in response.fields
    await again(client, peer)


async def test_interim_responses_are_passed_on(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
    early = await client.response_head()
    assert (early.status, early.fields["link"]) == (103, "</a.css>")
    peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n" + HELLO)
    assert (await client.response_head()).fields["link"] == "</b.css>"
    assert (await client.response()).body == b"hello"
    await again(client, peer)


async def test_fields_of_the_connection_do_not_arrive(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    peer.send(
        OK + b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n"
        b"X-Preview-Replica: me\r\n\r\n"
    )
    response = await client.response()
    assert set(response.fields) == {"content-length", "x-preview-replica"}


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"http://localhost:%d/a?b", "/a?b"),
        (b"http://localhost:%d", "/"),
        (b"http://localhost:%d//evil.example/", "/.//evil.example/"),
        (b"/relative", "/relative"),
        (b"http://localhost:%d9/a", None),
        (b"https://elsewhere.example/", "https://elsewhere.example/"),
    ],
)
async def test_a_redirect_to_the_dev_servers_own_address_stays_here(
    gateway: Gateway, location: bytes, expected: str | None
) -> None:
    client, peer = await asked(gateway)
    port = peer.writer.get_extra_info("sockname")[1]
    location = location.replace(b"%d", b"%d" % port)
    peer.send(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")
    got = (await client.response()).fields["location"]
    assert got == (location.decode() if expected is None else expected)


async def test_the_allowed_origin_is_the_one_that_asked(start: Start) -> None:
    gateway = await start(cors_origins=["http://app.example"])
    client, peer = await asked(gateway, b"Origin: http://app.example")
    port = peer.writer.get_extra_info("sockname")[1]
    own = b"Access-Control-Allow-Origin: http://localhost:%d\r\n" % port
    peer.send(OK + own + b"Content-Length: 0\r\n\r\n")
    response = await client.response()
    assert response.fields["access-control-allow-origin"] == "http://app.example"


# -- HTTP/1.0 clients, keep-alive and close ------------------------------------------------------


async def old_client(gateway: Gateway, *fields: bytes) -> tuple[Client, Peer]:
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(b"\r\n".join((b"GET " + BASE + b"x HTTP/1.0", *fields)) + b"\r\n\r\n")
    peer = await dev.accept()
    await peer.head()
    return client, peer


@pytest.mark.parametrize("framing", [b"chunked", b"until close"])
async def test_an_old_client_gets_content_without_chunks(gateway: Gateway, framing: bytes) -> None:
    client, peer = await old_client(gateway)
    if framing == b"chunked":
        peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
    else:
        peer.send(OK + b"\r\nabcdef")
        await peer.close()
    response = await client.response()
    assert "transfer-encoding" not in response.fields
    assert response.closes
    assert response.body == b"abcdef"


async def test_an_old_client_may_keep_the_connection(gateway: Gateway) -> None:
    client, peer = await old_client(gateway, b"Connection: keep-alive")
    peer.send(HELLO)
    response = await client.response()
    assert response.fields["connection"] == "keep-alive"
    await again(client, peer)


async def test_an_old_client_gets_no_interim_response(gateway: Gateway) -> None:
    client, peer = await old_client(gateway)
    peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + HELLO)
    assert (await client.response_head()).status == 200


async def test_an_old_client_notices_a_truncated_response(gateway: Gateway) -> None:
    """With nothing but the end of the connection to tell, it must be a reset."""
    client, peer = await old_client(gateway)
    peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await client.response_head()
    assert await client.exactly(3) == b"abc"
    await peer.close()
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def test_a_connection_ends_after_the_response_if_asked_to(gateway: Gateway) -> None:
    client, peer = await asked(gateway, b"Connection: close")
    peer.send(HELLO)
    response = await client.response()
    assert response.closes
    assert await client.rest() == b""


async def test_a_client_that_ended_its_side_gets_its_answers(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"1")
    client.get(b"2")
    client.end()
    peer = await dev.accept()
    for path in (b"/1 ", b"/2 "):
        assert path in await peer.head()
        peer.send(HELLO)
    assert not (await client.response()).closes
    assert (await client.response()).closes
    assert await client.rest() == b""


# -- early answers -------------------------------------------------------------------------------


async def test_an_early_answer_to_an_unfinished_upload_arrives(gateway: Gateway) -> None:
    client, peer = await asked(gateway, b"Content-Length: 10000000", method=b"POST")
    client.send(b"a" * 1000)
    peer.send(b"HTTP/1.1 413 Too Much\r\nContent-Length: 3\r\n\r\nno!")
    response = await client.response()
    assert (response.status, response.body, response.closes) == (413, b"no!", True)
    assert await peer.rest() in (b"a" * 1000, b"")  # its connection is not used again
    client.send(b"a" * 100000)  # read and thrown away
    assert await client.rest() == b""


async def test_what_follows_an_early_answer_is_bounded(gateway: Gateway) -> None:
    client, peer = await asked(gateway, b"Content-Length: 1000000000", method=b"POST")
    peer.send(HELLO)
    assert (await client.response()).closes
    client.send(b"a" * 10_000_000)
    await eventually(lambda: not gateway.listener.connections, 2)  # not by time, that is 5 s


async def test_an_upload_that_goes_wrong_cuts_its_answer(gateway: Gateway) -> None:
    client, peer = await asked(gateway, b"Transfer-Encoding: chunked", method=b"POST")
    peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await client.until(b"abc\r\n")
    client.send(b"nonsense\r\n")
    assert await client.rest() == b""  # no last chunk, and no second answer
    assert await peer.rest() == b""


async def test_an_own_early_answer_to_an_upload_arrives(gateway: Gateway) -> None:
    client = await gateway.client()
    client.ask(b"/preview/no-id/", b"Content-Length: 1000000", method=b"POST")
    client.send(b"a" * 300_000)
    response = await client.response()
    assert (response.status, response.closes) == (404, True)
    assert await client.rest() == b""


async def test_an_own_answer_to_a_complete_upload_keeps_the_connection(gateway: Gateway) -> None:
    client = await gateway.client()
    for _ in range(2):
        client.ask(b"/preview/no-id/", b"Content-Length: 3", method=b"POST")
        client.send(b"abc")
        response = await client.response()
        assert (response.status, response.closes) == (404, False)


# -- dev servers that break off, or speak no HTTP ------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        b"Content-Length: 10\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n8\r\nabc",
    ],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_fault_21_a_truncated_response_is_seen_as_such(
    gateway: Gateway, part: bytes, reset: bool
) -> None:
    client, peer = await asked(gateway)
    peer.send(OK + part)
    head = await client.response_head()
    assert not head.closes
    await client.until(b"abc")
    if reset:
        peer.reset()
    else:
        await peer.close()
    assert await client.rest() in (b"", b"\r\n")  # neither all bytes nor a last chunk
    assert not gateway.listener.connections


async def test_fault_21_content_until_the_end_that_is_reset_is_seen_as_truncated(
    gateway: Gateway,
) -> None:
    client, peer = await asked(gateway)
    peer.send(OK + b"\r\nabc")
    await client.until(b"abc\r\n")
    peer.reset()
    assert await client.rest() == b""


async def test_fault_21_content_until_the_end_that_is_cut_here_is_seen_as_truncated(
    gateway: Gateway,
) -> None:
    """After a stall the gateway itself ends what is under way: that is not the dev server's end."""
    client, peer = await asked(gateway)
    peer.send(OK + b"\r\nabc")
    await client.until(b"abc\r\n")
    gateway.pool().cut()
    assert await client.rest() == b""


async def test_content_until_the_end_may_end_in_the_middle_of_an_upload(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", b"Content-Length: 10", method=b"POST")
    peer = await dev.accept()
    await peer.head()
    peer.send(OK + b"\r\nabc")
    peer.end()
    assert (await client.response()).body == b"abc"


BAD = {
    "no HTTP at all": b"Unauthorized",
    "CL and TE": OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "differing CL": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "the same CL twice": OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "CL of a list": OK + b"Content-Length: 3, 3\r\n\r\nabc",
    "other transfer coding": OK + b"Transfer-Encoding: gzip\r\n\r\nabc",
    "coding behind chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "folded field": OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "space before colon": OK + b"X : a\r\nContent-Length: 0\r\n\r\n",
    "control character in a field": OK + b"X: a\x01\r\nContent-Length: 0\r\n\r\n",
    "control character in the reason": b"HTTP/1.1 200 O\x01K\r\nContent-Length: 0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "two locations": OK + b"Location: /a\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n",
    "oversized head": OK + b"".join(b"X-%d: %b\r\n" % (i, b"a" * 1000) for i in range(70)),
    "oversized field": OK + b"X: " + b"a" * 1_000_000,
    "oversized reason": b"HTTP/1.1 200 " + b"a" * 500_000,
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "unsolicited 101": b"HTTP/1.1 101 Hm\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "101 without Upgrade": b"HTTP/1.1 101 Hm\r\n\r\nabc",
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD.keys())
async def test_fault_22_what_is_no_valid_response_becomes_502(
    gateway: Gateway, answer: bytes
) -> None:
    client, peer = await asked(gateway)
    peer.send(answer)
    response = await client.response()
    assert (response.status, response.json()["code"]) == (502, "bad_upstream_response")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await peer.exactly(1)  # that connection is closed
    await fresh(gateway, client)


async def fresh(gateway: Gateway, client: Client) -> None:
    """Check that the next request is answered, over a new connection to the dev server."""
    dev = gateway.servers[-1]
    client.get(b"next")
    peer = await dev.accept()
    assert b"/next " in await peer.head()
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"


@pytest.mark.parametrize("chunk", [b"xyz\r\n", b"0x3\r\nabc\r\n", b"3\r\nabcd\r\n", b"\r\n"])
async def test_fault_21_bad_chunks_cut_the_response(gateway: Gateway, chunk: bytes) -> None:
    client, peer = await asked(gateway)
    peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await client.response_head()
    await client.until(b"a\r\n")
    peer.send(chunk)
    rest = await client.rest()
    assert not rest.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (HELLO + b"more", b"hello"),
        (HELLO + HELLO, b"hello"),
        (HELLO + b"HT", b"hello"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nmore", b"a"),
        (b"HTTP/1.1 204 None\r\nContent-Length: 4\r\n\r\nmore", b""),
        (b"HTTP/1.1 304 None\r\n\r\nmore", b""),
    ],
)
async def test_fault_22_bytes_behind_a_response_never_reach_another_request(
    gateway: Gateway, answer: bytes, body: bytes
) -> None:
    client, peer = await asked(gateway)
    peer.send(answer)
    assert (await client.response()).body == body
    assert await peer.rest() == b""
    await fresh(gateway, client)


async def test_fault_22_bytes_on_an_idle_connection_end_it(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    peer.send(HELLO)
    await client.response()
    peer.send(HELLO)
    assert await peer.rest() == b""
    await fresh(gateway, client)


async def test_content_in_an_answer_to_head_is_not_passed_on(gateway: Gateway) -> None:
    client, peer = await asked(gateway, method=b"HEAD")
    peer.send(HELLO)
    await client.response(to=b"HEAD")
    assert await peer.rest() == b""
    await fresh(gateway, client)


async def test_a_connection_closed_without_an_answer_is_502(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    await peer.close()
    response = await client.response()
    assert (response.status, response.json()["code"]) == (502, "upstream_unreachable")


# -- stale pooled connections --------------------------------------------------------------------


async def pooled(gateway: Gateway) -> tuple[Client, Peer, Server]:
    """An idle connection to the dev server, about to be closed by it."""
    client, peer = await asked(gateway)
    peer.send(HELLO)
    await client.response()
    return client, peer, gateway.servers[-1]


@pytest.mark.parametrize("reset", [False, True])
async def test_fault_20_a_get_on_a_stale_connection_is_retried_once(
    gateway: Gateway, reset: bool
) -> None:
    client, peer, dev = await pooled(gateway)
    client.get(b"twice?q")
    await peer.head()
    if reset:
        peer.reset()
    else:
        await peer.close()
    second = await dev.accept()
    assert b"/twice?q " in await second.head()
    await second.close()
    assert (await client.response()).status == 502  # not a third time
    assert len(dev.peers) == 2


@pytest.mark.parametrize(
    "fields", [(b"Content-Length: 3",), (b"Content-Length: 0",), (b"Transfer-Encoding: chunked",)]
)
async def test_fault_20_a_post_is_executed_at_most_once(
    gateway: Gateway, fields: tuple[bytes]
) -> None:
    client, peer, dev = await pooled(gateway)
    client.get(b"once", *fields, method=b"POST")
    await peer.head()
    await peer.close()
    assert (await client.response()).status == 502
    assert len(dev.peers) == 1


async def test_fault_20_a_retry_takes_a_new_connection(gateway: Gateway) -> None:
    """Another pooled one may be just as stale."""
    first, one = await asked(gateway)
    dev = gateway.servers[-1]
    second = await gateway.client()
    second.get(b"x")
    other = await dev.accept()
    await other.head()
    for peer, client in ((one, first), (other, second)):
        peer.send(HELLO)
        await client.response()
    first.get(b"again")
    await other.head()  # the one used last
    await other.close()
    third = await dev.accept()
    assert b"/again " in await third.head()
    third.send(HELLO)
    assert (await first.response()).body == b"hello"


async def test_an_upload_is_never_retried(gateway: Gateway) -> None:
    """Though PUT is idempotent: its content has gone."""
    client, peer, dev = await pooled(gateway)
    client.get(b"once", b"Content-Length: 3", method=b"PUT")
    client.send(b"abc")
    await peer.head()
    await peer.close()
    assert (await client.response()).status == 502
    assert len(dev.peers) == 1


async def test_nothing_is_retried_once_the_dev_server_has_spoken(gateway: Gateway) -> None:
    client, peer, dev = await pooled(gateway)
    client.get(b"once")
    await peer.head()
    peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    await client.response_head()
    await peer.close()
    assert (await client.response()).status == 502
    assert len(dev.peers) == 1


async def test_a_connection_closed_while_idle_is_not_used(gateway: Gateway) -> None:
    client, peer, _ = await pooled(gateway)
    await peer.close()
    await eventually(lambda: len(gateway.pool()) == 0)
    await fresh(gateway, client)


async def test_a_response_without_keep_alive_ends_its_connection(gateway: Gateway) -> None:
    client, peer = await asked(gateway)
    peer.send(OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
    assert not (await client.response()).closes  # that concerns the dev server only
    assert await peer.rest() == b""
    await fresh(gateway, client)


# -- clients that go -----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["route", "hold", "connect", "head", "upload", "response"])
async def test_nothing_is_left_of_a_client_that_goes(start: Start, phase: str) -> None:
    gateway = await start()
    dev = await gateway.preview()
    if phase == "route":
        gateway.registry.gate = asyncio.Event()
    if phase == "hold":
        gateway.starting()
    client = await gateway.client()
    length = b"Content-Length: 10000" if phase == "upload" else b"X: y"
    client.get(b"x", length, method=b"POST" if phase == "upload" else b"GET")
    if phase == "route":
        await eventually(lambda: gateway.registry.reads == 1)
    if phase in ("head", "upload", "response"):
        peer = await dev.accept()
        await peer.head()
        if phase == "response":
            peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await client.until(b"abc\r\n")
    client.reset()
    await eventually(lambda: not gateway.listener.connections)
    if phase in ("head", "upload", "response"):
        assert await peer.rest() == b""  # the dev server is told, and not by a reset
    else:
        await eventually(lambda: not any(len(pool) for pool in gateway.plane.pools))
    if gateway.registry.gate is not None:
        gateway.registry.gate.set()


# -- dev servers that come and go ----------------------------------------------------------------


async def test_fault_19_a_dev_server_that_refuses_while_it_starts_is_waited_for(
    start: Start,
) -> None:
    """Its address refuses connections: the session counts as starting until it is ready."""
    gateway = await start(hold_seconds=5)
    gone = await gateway.preview()
    await gone.close()

    def wake() -> bool:
        gateway.starting(generation=2)
        return True

    gateway.waker.on_wake = wake
    program, page = await gateway.client(), await gateway.client()
    program.get(b"x")
    await eventually(lambda: bool(gateway.waker.woken))
    page.get(b"", b"Sec-Fetch-Mode: navigate")
    shown = await page.response()
    assert (shown.status, shown.fields["retry-after"]) == (503, "1")
    assert shown.fields["content-type"].startswith("text/html")
    dev = await gateway.preview(generation=2, version=3)
    peer = await dev.accept()
    assert b"/x " in await peer.head()
    peer.send(HELLO)
    assert (await program.response()).status == 200


async def test_fault_19_one_that_goes_on_refusing_is_503_in_the_end(start: Start) -> None:
    gateway = await start(hold_seconds=0.3)
    gateway.starting()
    client = await gateway.client()
    client.get(b"x")
    response = await client.response()
    assert (response.status, response.fields["retry-after"]) == (503, "1")


async def test_fault_23_an_address_of_another_session_meets_no_connection_of_it(
    gateway: Gateway,
) -> None:
    """The port that a session had is given to the next one: not a byte crosses over."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"one")
    old = await dev.accept()
    await old.head()
    old.send(HELLO)
    await client.response()  # the connection is idle now, and good
    gateway.registry.put(session(State.STOPPED, version=2, reason="over"))
    gateway.registry.put(session(session_id="other123", endpoint=dev.endpoint))
    old.send(OK + b"Content-Length: 6\r\n\r\nsecret")  # a late word of the first session
    client.ask(b"/preview/other123/two")
    new = await dev.accept()
    assert b"/two " in await new.head()
    new.send(OK + b"Content-Length: 3\r\n\r\ntwo")
    assert (await client.response()).body == b"two"
    with contextlib.suppress(ConnectionResetError):  # its late word met a closed connection
        assert await old.rest() == b""
    client.get(b"three")
    assert (await client.response()).status == 410


async def test_a_504_of_the_dev_servers_own_passes(gateway: Gateway) -> None:
    """Vite says so of a dependency that it has bundled anew; its client reloads then."""
    client, peer = await asked(gateway)
    peer.send(b"HTTP/1.1 504 Outdated Optimize Dep\r\nContent-Length: 0\r\n\r\n")
    response = await client.response()
    assert response.head.startswith(b"HTTP/1.1 504 Outdated Optimize Dep\r\n")
    assert not response.closes
    await again(client, peer)


@pytest.mark.parametrize("status", [100, 102, 103, 199])
@pytest.mark.parametrize("parts", [1, 2])
async def test_a_hundred_interim_responses_may_come(
    gateway: Gateway, status: int, parts: int
) -> None:
    """To each request, and however they arrive."""
    interim = b"HTTP/1.1 %d Wait\r\nX-N: 1\r\n\r\n" % status
    client, peer = await asked(gateway)
    for _ in range(2):
        for _ in range(parts):
            peer.send(interim * (MAX_INTERIM // parts))
            for _ in range(MAX_INTERIM // parts):
                assert (await client.response_head()).status == status
        peer.send(HELLO)
        assert (await client.response()).body == b"hello"
        client.get(b"next")
        await peer.head()
    peer.send(interim * MAX_INTERIM + HELLO)
    assert (await client.response()).body == b"hello"


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("status", [103, 199])
async def test_one_more_interim_response_is_a_bad_answer(
    gateway: Gateway, status: int, parts: int
) -> None:
    client, peer = await asked(gateway)
    interim = b"HTTP/1.1 %d Wait\r\nX-N: 1\r\n\r\n" % status
    first = MAX_INTERIM if parts == 2 else 0
    peer.send(interim * first)
    for _ in range(first):
        assert (await client.response_head()).status == status
    peer.send(interim * (MAX_INTERIM + 1 - first) + HELLO)
    for _ in range(MAX_INTERIM - first):
        assert (await client.response_head()).status == status
    response = await client.response_head()
    assert response.status == 502
    body = json.loads(await client.exactly(int(response.fields["content-length"])))
    assert body["code"] == "bad_upstream_response"
    assert "more than 100 interim responses" in body["detail"]
    assert await peer.rest() == b""
