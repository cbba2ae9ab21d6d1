"""What clients send: bytes in, events out."""

from __future__ import annotations

from typing import Any

import httptools
import pytest

from gateway.proxy import fields, heads, http1
from gateway.proxy.http1 import MAX_EMPTY_LINES
from gateway.proxy.messages import END, RequestHead
from gateway.proxy.requests import RequestParser
from tests.unit.wire import LIMITS, counted, head_of, refusal, request, requests


def test_a_request_head_is_sorted_into_what_passes_and_what_is_acted_upon() -> None:
    head = head_of(
        request(
            b"X-One: 1",
            b"Accept: text/html",
            b"Content-Length:  3 ",
            b"Connection: keep-alive, X-Two",
            b"X-Two: 2",
            b"Cookie: a=b",
            start=b"POST /p%20q?r HTTP/1.1",
        )
        + b"abc"
    )
    assert (head.method, head.target, head.http10) == (b"POST", b"/p%20q?r", False)
    assert head.lines == [b"X-One: 1", b"Accept: text/html", b"Cookie: a=b"]
    assert counted(head) == {
        fields.HOST: b"a",
        fields.ACCEPT: b"text/html",
        fields.CONTENT_LENGTH: b"3",
        fields.CONNECTION: b"keep-alive, X-Two",
        fields.COOKIE: b"a=b",
    }
    assert (head.content_length, head.chunked, head.bodyless) == (3, False, False)
    assert head.keep_alive


def test_pipelined_requests_come_one_after_the_other() -> None:
    chunked = request(b"Transfer-Encoding: chunked", start=b"PUT /2 HTTP/1.1")
    events = requests(
        request(b"Content-Length: 3", start=b"POST /1 HTTP/1.1")
        + b"abc"
        + chunked
        + b"1\r\nd\r\n2;x=y\r\nef\r\n0\r\nTrailer: z\r\n\r\n"
        + request(start=b"GET /3 HTTP/1.1")
    )
    heads = [event.target for event in events if isinstance(event, RequestHead)]
    assert heads == [b"/1", b"/2", b"/3"]
    assert events[1:3] == [b"abc", END]
    assert events[4:6] == [b"def", END]
    assert events[7:] == [END]


@pytest.mark.parametrize(
    ("connection", "version", "keeps"),
    [
        (b"X: y", b"1.1", True),
        (b"Connection: close", b"1.1", False),
        (b"Connection: foo, Close", b"1.1", False),
        (b"X: y", b"1.0", False),
        (b"Connection: keep-alive", b"1.0", True),
        (b"Connection: keep-alive, Close", b"1.0", False),
        (b"Connection: keep-alive, closed", b"1.0", True),
    ],
)
def test_what_follows_the_last_request_is_ignored(
    connection: bytes, version: bytes, keeps: bool
) -> None:
    data = request(connection, start=b"GET / HTTP/" + version)
    for events in (requests(data + request()), requests(data, request())):
        assert len(events) == (4 if keeps else 2)
        assert events[0].keep_alive is keeps
    data = request(connection, b"Content-Length: 1", start=b"GET / HTTP/" + version)
    for events in (requests(data + b"x" + request()), requests(data, b"x" + request())):
        assert len(events) == (5 if keeps else 3)


def test_a_request_under_way_is_noticed() -> None:
    parser = RequestParser(**LIMITS)
    seen = []
    for part in (
        b"",
        b"GE",
        b"T / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na",
        b"bc",
        b"nonsense",
    ):
        parser.feed(part)
        seen.append((parser.in_message, parser.content_left, parser.stopped))
    assert seen == [
        (False, 0, False),
        (True, 0, False),
        (True, 2, False),
        (False, 0, False),
        (False, 0, True),
    ]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # not one field, in one piece
        (request(b"Host: b"), 400),
        (request(host=b"Host: a b"), 400),
        (request(host=b"Host: a/b"), 400),
        (request(host=b"Host: " + b"a" * 300), 400),
        (request(start=b"GET /#f HTTP/1.1"), 400),
        (request(start=b"CONNECT a:1 HTTP/1.1"), 405),
        (request(start=b"GET  / HTTP/1.1"), 400),
        (request(start=b"GET /  HTTP/1.1"), 400),
        (request(start=b"GET / RTSP/1.1"), 400),
        (request(start=b"SOURCE / ICE/1.0"), 400),
        (b"\n" + request(), 400),
        (b"\r\r\n" + request(), 400),
        (request(host=b"Host: a:65536"), 400),
        (request(host=b"Host: a:99999"), 400),
        (request(host=b"Host: [::1]:65536"), 400),
        (request(host=b"Host: a..b"), 400),
        (request(host=b"Host: .a"), 400),
        (request(host=b"Host: a.."), 400),
        (request(host=b"Host: ."), 400),
        (request(host=b"Host: .:80"), 400),
        (request(host=b"Host: :80"), 400),
        (request(host=b"Host: [:::]"), 400),
        (request(host=b"Host: [1]:80"), 400),
        (request(start=b"GET / HTTP/2.0"), 505),
        (request(b"Transfer-Encoding: gzip, chunked"), 501),
        (request(b"Transfer-Encoding: identity"), 501),
        (request(b"Transfer-Encoding: chunked\t"), 501),
        (request(b"Transfer-Encoding: chunked", start=b"GET / HTTP/1.0"), 400),
        (request(b"Content-Length: 1", b"Transfer-Encoding: chunked"), 400),
        (request(b"Content-Length:"), 400),
        (request(b"Content-Length: 1", b"Connection: upgrade", b"Upgrade: a"), 400),
        (request(b"Origin: http://a", b"Origin: http://b"), 400),
        (request(b"Authorization: a", b"Authorization: b"), 400),
        (request(b"Connection: upgrade", b"Upgrade: websocket"), 400),
    ],
)
def test_a_bad_request_ends_everything(data: bytes, status: int) -> None:
    events = requests(data + request())
    assert refusal(events) == status
    assert len(events) == 1


@pytest.mark.parametrize(
    "start", [b"GET  / HTTP/1.1", b"GET / RTSP/1.1", b"\nGET / HTTP/1.1", b"\r\nGET / HTTP/1.1"]
)
@pytest.mark.parametrize(
    "before",
    [
        request(start=b"GET /1 HTTP/1.1"),
        request(b"Content-Length: 3", start=b"POST /1 HTTP/1.1") + b"a\r\n",
        request(b"Transfer-Encoding: chunked", start=b"POST /1 HTTP/1.1")
        + b"8\r\n\r\n\r\n\r\n\r\n\r\n0\r\nT: a\r\n\r\n",
    ],
    ids=["behind a head", "behind content", "behind chunks"],
)
def test_a_start_line_is_read_to_the_byte_wherever_it_begins(before: bytes, start: bytes) -> None:
    """llhttp skips CR and LF before it, takes any number of spaces, and other protocols."""
    data = before + request(start=start)
    for cut in range(len(data)):
        events = requests(data[:cut], data[cut:])
        assert events[0].target == b"/1"
        if start.startswith(b"\r\n"):  # RFC 9112 2.2
            assert events.count(END) == 2
        else:
            assert refusal(events) == 400
            assert events.count(END) == 1


@pytest.mark.parametrize("junk", [b"\r", b"\n", b"\r\n"])
@pytest.mark.parametrize("at_once", [1, 3000])
def test_what_is_skipped_before_a_request_is_bounded(junk: bytes, at_once: int) -> None:
    parser = RequestParser(**{**LIMITS, "max_head": 1024})
    for _ in range(3000 // at_once):
        parser.feed(junk * at_once)
    assert refusal(parser.events) == (431 if junk == b"\r" else 400)


def test_as_many_empty_lines_as_are_skipped_come_before_each_request() -> None:
    again = (b"\r\n" * MAX_EMPTY_LINES + request()) * 2
    assert requests(again).count(END) == 2


@pytest.mark.parametrize(
    "host",
    [
        *(b"a", b"a:80", b"a:", b"a:0", b"a:65535", b"a:00080", b"a.b.", b"a.:80", b"1.2.3.4:80"),
        *(b"[::1]", b"[::1]:8080", b"[::1]:65535", b"a_b.c-d.example", b"-a.b-"),
    ],
)
def test_good_hosts_pass(host: bytes) -> None:
    assert head_of(request(host=b"Host: " + host)).special[fields.HOST] == host


def test_an_old_request_needs_no_host() -> None:
    head = head_of(b"GET / HTTP/1.0\r\n\r\n")
    assert head.http10
    assert not head.keep_alive


def test_heads_and_targets_have_limits() -> None:
    assert (
        refusal(requests(request(start=b"GET /" + b"a" * 100 + b" HTTP/1.1"), max_target=100))
        == 414
    )
    assert isinstance(requests(request(), max_head=60)[0], RequestHead)
    long = b"X: " + b"0" * 40
    assert refusal(requests(request(long), max_head=60)) == 431
    assert refusal(requests(*(bytes([byte]) for byte in request(long)), max_head=60)) == 431
    assert refusal(requests(b"GET / HTTP/1.1\r\nX: ", b"a" * 61, max_head=60)) == 431
    assert refusal(requests(b"GET / HTTP/1.1\r\nX:", *[b" "] * 61, max_head=60)) == 431


def test_trailers_and_extensions_have_limits() -> None:
    chunked = request(b"Transfer-Encoding: chunked")
    assert refusal(requests(chunked, b"0\r\nX: ", *[b"a" * 20] * 5, max_head=80)) == 431
    assert refusal(requests(chunked, b"1;x=", *[b"a" * 20] * 5, max_head=80)) == 431
    many = [b"1\r\na\r\n"] * 100
    assert requests(chunked, *many, b"0\r\n\r\n", max_head=80)[1:] == [b"a" * 100, END]


@pytest.mark.parametrize(
    "name", [b"X_Forwarded_For", b"x-forwarded_for", b"HOST_", b"Content_Length", b"Sec-Fetch_Mode"]
)
def test_aliases_of_fields_that_count_are_dropped(name: bytes) -> None:
    lines = head_of(request(name + b": 1", b"X_Y: 2")).lines
    assert lines == ([b"HOST_: 1"] if name == b"HOST_" else []) + [b"X_Y: 2"]


def test_repeated_fields_that_are_lists_are_one() -> None:
    head = head_of(request(b"Connection: a", b"Connection: b", b"A: 1", b"B: 2", b"C: 3"))
    assert head.special[fields.CONNECTION] == b"a, b"
    assert head.lines == [b"C: 3"]


def test_what_connection_names_ends_here() -> None:
    head = head_of(request(b"Authorization: a", b"A: b", b"Connection: authorization, a, host"))
    assert head.lines == []
    assert set(counted(head)) == {fields.HOST, fields.CONNECTION}


def test_another_target_makes_another_request_line() -> None:
    head = head_of(request(start=b"GET http://a/b HTTP/1.1"))
    head.aim_at(b"/b")
    assert (head.target, head.start) == (b"/b", b"GET /b HTTP/1.1")


def test_fields_are_counted_those_behind_the_content_too() -> None:
    fields_ = [b"X: %d" % number for number in range(http1.MAX_FIELDS - 3)]
    head = request(*fields_, b"Transfer-Encoding: chunked")
    assert refusal(requests(head + b"0\r\nA: 1\r\nB: 2\r\n\r\n")) == 431
    *_, trailers, end = requests(head + b"0\r\nA: 1\r\n\r\n")
    assert (trailers, end) == ((b"A: 1",), END)
    assert heads.last_chunk(trailers) == b"0\r\nA: 1\r\n\r\n"
    assert heads.last_chunk(()) == heads.LAST_CHUNK
    assert refusal(requests(request(*fields_, *fields_))) == 431


def test_more_than_one_trailer_field_passes() -> None:
    head = request(b"Transfer-Encoding: chunked")
    assert (b"A: 1", b"B: 2") in requests(head + b"0\r\nA: 1\r\nB: 2\r\n\r\n")


def test_a_mistake_of_our_own_is_not_taken_for_a_bad_request() -> None:
    head = request(start=b"POST / HTTP/1.1")
    parser = RequestParser(**LIMITS)
    parser.feed(head[:-2])
    special: Any = parser._fields.special
    special[fields.CONTENT_LENGTH] = 5  # no bytes
    with pytest.raises(httptools.HttpParserCallbackError) as raised:
        parser.feed(head[-2:])
    assert isinstance(raised.value.__context__, AttributeError | TypeError)
