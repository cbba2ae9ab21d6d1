"""Lines that come again mean what they meant at first."""

from __future__ import annotations

import pytest

from gateway.proxy import fields, heads
from gateway.proxy import lines as known_lines
from gateway.proxy import requests as request_side
from gateway.proxy import responses as response_side
from gateway.proxy.requests import RequestParser
from gateway.proxy.responses import ResponseParser
from tests.unit.wire import LIMITS, by_llhttp, head_of, outcome, refusal, requests, response


@pytest.fixture
def forgotten() -> None:
    """No line is known yet."""
    request_side._LINES._known.clear()
    response_side._LINES._known.clear()


#: Where a byte may do harm; ``X-Known`` is an ordinary name by then.
HARM_IN_REQUESTS = (
    b"GET /x%by HTTP/1.1\r\nHost: a\r\nX-Known: c\r\n\r\n",
    b"GET /x?q=%by HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a%bb\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Known: c%bd\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Known: %b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Known:%bc\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Known%b: c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Known: c\r\n%bX-Known: d\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Preview-A%b: c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Real-IP%b: c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive%b\r\n\r\n",
    b"GET / HTTP/1.1%b\nHost: a\r\n\r\n",
)


HARM_IN_RESPONSES = (
    b"HTTP/1.1 200 O%bK\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 20%b OK\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2%b\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nX-Known: a%b\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab%b",
    b"HTTP/1.1 304 None\r\nX-Known: a\r\n\r\n%b",
)


@pytest.mark.parametrize("byte", range(256))
def test_a_simple_head_means_what_llhttp_says_whatever_byte_is_in_it(byte: int) -> None:
    known = b"GET / HTTP/1.1\r\nHost: a\r\nX-Known: c\r\nConnection: keep-alive\r\n\r\n"
    for pattern in HARM_IN_REQUESTS:
        data = pattern % bytes([byte])
        requests(known)
        expected = by_llhttp(RequestParser(**LIMITS), data)
        assert outcome(RequestParser(**LIMITS), data) == expected, data
    for pattern in HARM_IN_RESPONSES:
        data = pattern % bytes([byte])
        outcome(ResponseParser(max_head=1024), response(b"X-Known: a", b"Content-Length: 0"))
        expected = by_llhttp(ResponseParser(max_head=1024), data)
        assert outcome(ResponseParser(max_head=1024), data) == expected, data


@pytest.mark.parametrize(
    "lines",
    [
        (b"Host: a", b"Host: a"),
        (b"Host: a", b"Content-Length: 0"),
        (b"Host: a", b"Transfer-Encoding: chunked"),
        (b"Host: a", b"Authorization: Bearer x"),
        (b"Host: a", b"X_Forwarded_For: 1", b"X-Forwarded-For: 2", b"Forwarded: 3"),
        (b"Host: a", b"Connection: close"),
        (b"Host: a", b"Connection: Close"),
        (b"Host: a", b"Connection: Upgrade", b"Upgrade: websocket"),
        (b"X-Known: c",),
        (b"Host: a", b"X-Known: c", b" folded"),
        (b"Host: a", b"X-Known: " + b"c" * 2000),
        (b"Host: a", b"TE: trailers", b"Keep-Alive: timeout=5"),
    ],
)
def test_simple_and_other_lines_make_the_same_head(lines: tuple[bytes, ...]) -> None:
    data = b"GET / HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
    expected = by_llhttp(RequestParser(**LIMITS), data)
    for _ in range(3):
        assert outcome(RequestParser(**LIMITS), data) == expected


def test_the_fields_of_a_known_head_go_out_as_at_first(forgotten: None) -> None:
    data = b"GET /a HTTP/1.1\r\nHost: a\r\nX-B: c\r\nConnection: keep-alive\r\nX-C: d\r\n\r\n"
    sent = {heads.request_head(head_of(data), host=b"localhost:1") for _ in range(3)}
    assert sent == {b"GET /a HTTP/1.1\r\nHost: localhost:1\r\nX-B: c\r\nX-C: d\r\n\r\n"}


def test_a_known_head_is_held_to_the_limits_of_this_connection() -> None:
    data = b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    assert len(head_of(data).target) == 301
    assert refusal(requests(data, max_head=1024, max_target=256)) == 414
    assert refusal(requests(data, max_head=128)) == 431


@pytest.mark.parametrize("status", [b"200 OK", b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("length", [b"5", b"0", b"6", b""])
def test_content_behind_a_known_head_may_come_in_parts(status: bytes, length: bytes) -> None:
    fields = [b"Content-Length: " + length] if length else []
    data = response(*fields, start=b"HTTP/1.1 " + status) + b"hello"
    for method in (b"GET", b"HEAD"):
        for cut in range(len(data) + 1):
            expected, parser = (ResponseParser(max_head=1024) for _ in range(2))
            for each in (expected, parser):
                each.expect(method)
            assert outcome(parser, data[:cut], data[cut:]) == by_llhttp(expected, data)


def test_what_is_remembered_is_bounded() -> None:
    known = known_lines.KnownLines(fields.REQUEST_NAMES, {b"host": lambda _: True})
    for number in range(known_lines._MAX_LINES + 2):
        special = fields.no_special()
        assert known.sort([b"Host: %d" % number], 0, 1, special) == []
        assert special[fields.HOST] == b"%d" % number
        assert len(known._known) <= known_lines._MAX_LINES
    names = fields.Names({}, {})
    for number in range(fields._MAX_NAMES + 2):
        fields.Fields(names).add(b"X-%d" % number, b"a")
        assert b"X-%d" % number in names.ordinary  # those who made up the others keep none out
        assert len(names.ordinary) <= fields._MAX_NAMES
    fields.Fields(names).add(b"X" * (fields._MAX_NAME_BYTES + 1), b"a")
    assert b"X" * (fields._MAX_NAME_BYTES + 1) not in names.ordinary
    for word in range(response_side._MAX_STATUSES + 2):
        status = b"HTTP/1.1 200 " + bytes(65 + int(digit) for digit in str(word))
        assert response_side._known_status(status) == 200
        assert len(response_side._STATUSES) <= response_side._MAX_STATUSES
    for number in range(response_side._MAX_LENGTHS + 2):
        assert response_side._known_length(b"%d" % number) == number
        assert len(response_side._LENGTHS) <= response_side._MAX_LENGTHS
