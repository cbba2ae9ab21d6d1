"""The oracle itself, against what the RFCs say in so many words."""

from __future__ import annotations

import pytest

from tests.fuzz import oracle
from tests.fuzz.oracle import End

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def test_messages_come_one_after_the_other() -> None:
    reading = oracle.requests(
        b"\r\n"
        + POST
        + b"Content-Length: 3\r\n\r\nabc"
        + CHUNKED
        + b"1;x\r\nd\r\n0\r\nT: u\r\n\r\n"
        + GET
    )
    assert [message.body for message in reading.messages] == [b"abc", b"d"]
    assert reading.messages[1].trailers == [(b"T", b"u")]
    assert (reading.end, reading.rest) == (End.INCOMPLETE, GET)


@pytest.mark.parametrize(
    ("line", "keeps"),
    [(b"X: y", True), (b"Connection: close", False), (b"connection: a ,\tCLOSE", False)],
)
def test_close_ends_a_connection(line: bytes, keeps: bool) -> None:
    reading = oracle.requests(GET + line + b"\r\n\r\n" + b"!")
    assert reading.messages[0].keep_alive is keeps
    assert reading.end is (End.INCOMPLETE if keeps else End.CLOSED)


@pytest.mark.parametrize(
    "data",
    [
        GET.replace(b" /", b"  /") + b"\r\n",
        GET.replace(b"1.1", b"1.2") + b"\r\n",
        GET.replace(b"GET", b"CONNECT") + b"\r\n",
        GET.replace(b"/a", b"/a#b") + b"\r\n",
        b"\n" + GET + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        GET + b"Host: a\r\n\r\n",
        GET.replace(b": a", b": a b") + b"\r\n",
        GET.replace(b": a", b": [:::]") + b"\r\n",
        GET.replace(b": a", b": a:65536") + b"\r\n",
        GET.replace(b": a", b": [::1]:99999") + b"\r\n",
        GET.replace(b": a", b": a..b") + b"\r\n",
        GET.replace(b": a", b": .a") + b"\r\n",
        GET.replace(b": a", b": a..") + b"\r\n",
        GET.replace(b": a", b": .") + b"\r\n",
        GET + b"X : a\r\n\r\n",
        GET + b"X: a\r\n b\r\n\r\n",
        GET + b"X: a\0\r\n\r\n",
        GET + b"X: a\rb\r\n\r\n",
        GET + b"X: a\nY: b\r\n\r\n",
        GET + b": a\r\n\r\n",
        GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        GET + b"Content-Length: 1, 1\r\n\r\na",
        GET + b"Content-Length: +1\r\n\r\na",
        GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        GET.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n",
        GET + b"Connection: upgrade\r\nUpgrade: a\r\nContent-Length: 1\r\n\r\na",
        GET + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        CHUNKED + b"0x1\r\na\r\n",
        CHUNKED + b"1 \r\na\r\n",
        CHUNKED + b"1;a\nb\r\na\r\n",
        CHUNKED + b"1\r\nab\r\n",
        CHUNKED + b"0\r\nX : y\r\n\r\n",
    ],
)
def test_what_breaks_a_rule_is_refused(data: bytes) -> None:
    assert oracle.requests(data).end is End.REFUSED


@pytest.mark.parametrize("host", [b"a.b", b"a.b.", b"a:65535", b"[::1]:65535", b"a.:80", b"a:"])
def test_a_host_that_is_one_is_accepted(host: bytes) -> None:
    reading = oracle.requests(GET.replace(b": a", b": " + host) + b"\r\n")
    assert (reading.end, reading.messages[0].refusable) == (End.COMPLETE, "")


def test_an_upgrade_hands_over_the_rest() -> None:
    reading = oracle.requests(GET + b"Connection: upgrade\r\nUpgrade: h2c, a\r\n\r\nrest")
    assert (reading.end, reading.messages[0].upgrade, reading.rest) == (
        End.UPGRADED,
        [b"a"],
        b"rest",
    )
    reading = oracle.requests(GET + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert reading.end is End.COMPLETE


@pytest.mark.parametrize(
    ("head", "method", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"GET", b"abc"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"HEAD", b""),
        (b"HTTP/1.1 204\r\nContent-Length: 3\r\n\r\n", b"GET", b""),
        (b"HTTP/1.1 304 \r\nTransfer-Encoding: chunked\r\n\r\n", b"GET", b""),
        (b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.0 200 OK\r\n\r\n", b"GET", b"abcdef"),
    ],
)
def test_a_response_ends_where_rfc_9112_6_3_says(head: bytes, method: bytes, body: bytes) -> None:
    reading = oracle.responses(head + b"abcdef", method, ended=True)
    assert reading.messages[-1].body == body
    assert reading.rest == b"abcdef"[len(body) :]
    assert reading.end is (End.CLOSED if body == b"abcdef" else End.COMPLETE)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 099 A\r\n\r\n",
        b"RTSP/1.0 200 A\r\n\r\n",
        b"\r\nHTTP/1.1 200 A\r\n\r\n",
        b"HTTP/1.1 101 A\r\nUpgrade: a\r\n\r\n",
        b"HTTP/1.1 200 A\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 A\r\nLocation: a\r\nLocation: b\r\n\r\n",
    ],
)
def test_what_is_no_response_is_refused(data: bytes) -> None:
    assert oracle.responses(data, b"GET", ended=True).end is End.REFUSED


def test_a_response_that_the_connection_ends_is_complete_with_it() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nabc"
    assert oracle.responses(data, b"GET").end is End.INCOMPLETE
    assert oracle.responses(data, b"GET", ended=True).messages[0].complete
