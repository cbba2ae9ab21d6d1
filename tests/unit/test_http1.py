"""The pure core: bytes in, events out, whatever the bytes and however they are split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy import fields, handshake, heads, http1, messages
from gateway.proxy import lines as known_lines
from gateway.proxy import requests as request_side
from gateway.proxy import responses as response_side
from gateway.proxy.http1 import MAX_EMPTY_LINES
from gateway.proxy.messages import END, Malformed, RequestHead, ResponseHead
from gateway.proxy.requests import RequestParser
from gateway.proxy.responses import ResponseParser

LIMITS = {"max_head": 65536, "max_target": 32768}


def requests(*parts: bytes, **limits: int) -> list[Any]:
    """The events of a client's bytes, adjacent content put together."""
    parser = RequestParser(**{**LIMITS, **limits})
    for part in parts:
        parser.feed(part)
    return joined(parser.events)


def responses(*parts: bytes, to: bytes = b"GET", ends: bool = False) -> list[Any]:
    """The events of a dev server's bytes."""
    parser = ResponseParser(max_head=65536)
    parser.expect(to)
    for part in parts:
        parser.feed(part)
    if ends:
        parser.eof()
    return joined(parser.events)


def joined(events: Iterable[Any]) -> list[Any]:
    result: list[Any] = []
    for event in events:
        if isinstance(event, bytes) and result and isinstance(result[-1], bytes):
            result[-1] += event
        else:
            result.append(event)
    return result


def request(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join((start, host, *lines)) + b"\r\n\r\n"


def response(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((start, *lines)) + b"\r\n\r\n"


def head_of(data: bytes) -> RequestHead:
    head = requests(data)[0]
    assert isinstance(head, RequestHead), head
    return head


def counted(head: RequestHead | ResponseHead) -> dict[int, bytes]:
    """The fields that count, by their places."""
    return {place: value for place, value in enumerate(head.special) if value is not None}


def refusal(events: Sequence[Any]) -> int:
    """The status of the refusal with which the events end."""
    assert isinstance(events[-1], Malformed), events
    return events[-1].status


# -- requests ------------------------------------------------------------------------------------


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


def test_lengths_are_checked_once_more() -> None:
    """llhttp refuses them already; one parser alone is not trusted with framing."""
    special = fields.no_special()
    special[fields.CONTENT_LENGTH] = b"+1"
    with pytest.raises(fields.Refusal):
        http1.framing(special, "1.1")


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


# -- upgrades ------------------------------------------------------------------------------------

WEBSOCKET = (
    b"Connection: keep-alive, Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)


def test_bytes_behind_an_upgrade_are_kept_apart() -> None:
    parser = RequestParser(**LIMITS)
    parser.feed(request(*WEBSOCKET) + b"GET / ")
    parser.feed(b"HTTP/1.1\r\n\r\n")
    head, end = parser.events
    assert head.upgrade == b"websocket"
    assert end is END
    assert parser.tail == b"GET / HTTP/1.1\r\n\r\n"
    assert parser.stopped


@pytest.mark.parametrize(
    ("left_out", "instead"),
    [
        (2, b"Sec-WebSocket-Key: !"),
        (2, b"Sec-WebSocket-Key: YQ=="),
        (2, b"X: y"),
        (3, b"X: y"),
    ],
)
def test_a_handshake_must_be_one(left_out: int, instead: bytes) -> None:
    lines = list(WEBSOCKET)
    lines[left_out] = instead
    assert refusal(requests(request(*lines))) == 400
    assert refusal(requests(request(*WEBSOCKET, start=b"POST / HTTP/1.1"))) == 400


@pytest.mark.parametrize(
    ("upgrade", "version", "content"),
    [
        (b"h2c", b"1.1", b""),
        (b"h2", b"1.1", b"length"),
        (b"h2c, H2", b"1.1", b"chunks"),
        (b"", b"1.1", b""),
        (b"websocket", b"1.0", b"length"),
    ],
)
def test_an_upgrade_that_is_not_followed_changes_nothing(
    upgrade: bytes, version: bytes, content: bytes
) -> None:
    lines = [b"Connection: upgrade, keep-alive", b"Upgrade: " + upgrade]
    body = b""
    if content == b"length":
        lines.append(b"Content-Length: 3")
        body = b"abc"
    if content == b"chunks":
        lines.append(b"Transfer-Encoding: chunked")
        body = b"3\r\nabc\r\n0\r\n\r\n"
    one = request(*lines, start=b"POST /1 HTTP/" + version) + body
    for events in (requests(one + one), requests(one, one), requests(*map(bytes, zip(one + one)))):
        heads = [event for event in events if isinstance(event, RequestHead)]
        assert [head.upgrade for head in heads] == [b"", b""]
        assert events.count(END) == 2
        assert b"".join(e for e in events if isinstance(e, bytes)) == (b"abcabc" if body else b"")


def test_h2c_is_taken_out_of_a_list() -> None:
    head = head_of(request(b"Connection: upgrade", b"Upgrade: h2c, Foo , bar"))
    assert head.upgrade == b"Foo, bar"


def test_websocket_is_found_in_a_list() -> None:
    assert handshake.is_websocket(b"foo, WebSocket")
    assert not handshake.is_websocket(b"websockets")


# -- responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (response(b"Content-Length: 3") + b"abc", b"abc"),
        (response(b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (response(b"Content-Length: 0"), b""),
        (response(start=b"HTTP/1.1 204 No Content"), b""),
        (response(b"Content-Length: 3", start=b"HTTP/1.1 304 Not Modified"), b""),
    ],
)
def test_a_response_ends_where_it_says(data: bytes, content: bytes) -> None:
    for events in (responses(data + data), responses(data, data)):
        assert [event.status for event in events if isinstance(event, ResponseHead)]
        assert events.count(END) == 2
        assert b"".join(e for e in events if isinstance(e, bytes)) == content * 2
    assert not responses(data)[0].until_close


def test_content_may_end_with_the_connection() -> None:
    head, content, end = responses(response() + b"abc", b"def", ends=True)
    assert head.until_close
    assert (content, end) == (b"abcdef", END)
    parser = ResponseParser(max_head=65536)
    parser.feed(response() + b"abc")
    assert parser.eof()
    assert parser.stopped


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 20", response(b"Content-Length: 3") + b"ab"])
def test_other_messages_do_not_end_with_it(data: bytes) -> None:
    parser = ResponseParser(max_head=65536)
    parser.feed(data)
    assert not parser.eof()


def test_an_interim_response_comes_before_the_final_one() -> None:
    early = response(b"Link: a", start=b"HTTP/1.1 103 Early Hints")
    events = responses(early + early, response(b"Content-Length: 1") + b"x")
    assert [event.status for event in events if isinstance(event, ResponseHead)] == [103, 103, 200]


@pytest.mark.parametrize("status", [100, 102, 103, 104, 150, 199])
@pytest.mark.parametrize("line", [b"X: y", b"Content-Length: 3", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("to", [b"GET", b"HEAD"])
def test_no_interim_response_has_content(status: int, line: bytes, to: bytes) -> None:
    early = response(line, start=b"HTTP/1.1 %d Early" % status)
    data = early + response(b"Content-Length: 0")
    for events in (responses(data, to=to), responses(*map(bytes, zip(data)), to=to)):
        assert [e.status for e in events if isinstance(e, ResponseHead)] == [status, 200]
        assert len(events) == 4
    assert refusal(responses(early + b"3\r\nabc\r\n0\r\n\r\n", to=to)) == 400


@pytest.mark.parametrize(
    "lines", [(b"Content-Length: 3",), (b"Transfer-Encoding: chunked",), ()], ids=str
)
def test_an_answer_to_head_has_none_of_its_content(lines: tuple[bytes, ...]) -> None:
    head, end = responses(response(*lines), to=b"HEAD")
    assert (head.status, end) == (200, END)
    assert not head.until_close


@pytest.mark.parametrize(
    ("lines", "content"),
    [((b"Content-Length: 3",), b"abc"), ((b"Transfer-Encoding: chunked",), b"0\r\n\r\n")],
)
def test_content_in_an_answer_to_head_is_malformed(
    lines: tuple[bytes, ...], content: bytes
) -> None:
    for events in (
        responses(response(*lines) + content, to=b"HEAD"),
        responses(response(*lines), content, to=b"HEAD"),
    ):
        assert events[1] is END
        assert refusal(events) in (400, 502)


def test_trailers_in_an_answer_to_head_do_not_become_fields_of_it() -> None:
    chunks = b"0\r\nX-T: 1\r\n\r\n"
    events = responses(response(b"Transfer-Encoding: chunked") + chunks, to=b"HEAD")
    assert events[0].lines == []
    assert refusal(events) == 502


def test_what_follows_the_last_response_is_ignored() -> None:
    last = response(b"Transfer-Encoding: chunked", b"Connection: close") + b"0\r\n\r\n"
    assert responses(last + b"x")[1:] == [END]


def test_after_an_answer_to_head_the_connection_goes_on() -> None:
    parser = ResponseParser(max_head=65536)
    parser.expect(b"HEAD")
    parser.feed(response(b"Content-Length: 3"))
    parser.expect(b"GET")
    parser.feed(response(b"Content-Length: 3") + b"abc")
    assert joined(parser.events)[2:][1:] == [b"abc", END]


def test_interim_responses_are_counted() -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    many = response_side.MAX_INTERIM
    assert END in responses(hint * many + response(b"Content-Length: 0"))
    assert refusal(responses(hint * (many + 1) + response(b"Content-Length: 0"))) == 502


@pytest.mark.parametrize(
    ("value", "protocols"), [(b"foo", b"foo"), (b", Foo/2 ,\t,bar", b"Foo/2, bar"), (b" , ", b"")]
)
def test_a_101_says_which_protocols_follow_and_hands_over_what_does(
    value: bytes, protocols: bytes
) -> None:
    parser = ResponseParser(max_head=65536)
    start = b"HTTP/1.1 101 Switching Protocols"
    parser.feed(response(b"Connection: upgrade", b"Upgrade: " + value, start=start) + b"abc")
    assert parser.events[0].upgrade == protocols
    assert parser.tail == b"abc"


def test_a_101_without_an_upgrade_is_none() -> None:
    events = responses(response(start=b"HTTP/1.1 101 Hm") + b"abc")
    assert events[0].upgrade == b""
    assert refusal(events) == 400


@pytest.mark.parametrize(
    "data",
    [
        response(start=b"HTTP/1.1 099 Hm"),
        response(start=b"HTTP/1.1 200 O\x00K"),
        response(start=b"HTTP/2.0 200 OK"),
        response(start=b"RTSP/1.0 200 OK"),
        b"\r\n" + response(b"Content-Length: 0"),
        response(start=b"HTTP/1.1 103 Early Hints") + b"\r\n" + response(b"Content-Length: 0"),
        response(b"Location: a", b"Location: b"),
        response(b"Content-Length: 1", b"Content-Length: 1"),
        response(b"Transfer-Encoding: gzip"),
        response(b"Transfer-Encoding: chunked\t"),
        response(b"X: " + b"a" * 70_000),
        response(start=b"HTTP/1.1 200 " + b"a" * 70_000),
        b"Unauthorized",
    ],
)
def test_a_bad_response_is_malformed(data: bytes) -> None:
    assert refusal(responses(data)) in (400, 431, 501, 502)


# -- heads that go out ---------------------------------------------------------------------------


def test_a_request_head_goes_out_with_framing_of_our_own() -> None:
    head = head_of(
        request(
            b"X: y",
            b"Content-Length: 3",
            b"Connection: close",
            b"Origin: http://public",
            b"Authorization: a",
            b"Sec-WebSocket-Protocol: p",
            b"Expect: 100-continue",
            start=b"POST /a HTTP/1.1",
        )
    )
    assert heads.request_head(head, host=b"h", origin=b"http://h", extra=(b"E: f",)) == (
        b"POST /a HTTP/1.1\r\nHost: h\r\nX: y\r\nE: f\r\nOrigin: http://h\r\nAuthorization: a\r\n"
        b"Sec-WebSocket-Protocol: p\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert b"Origin" not in heads.request_head(head, host=b"h")
    assert heads.request_head(head, host=b"h", target=b"/b").startswith(b"POST /b HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        ((b"Transfer-Encoding: chunked",), b"Transfer-Encoding: chunked"),
        ((b"Connection: upgrade", b"Upgrade: x"), b"Connection: Upgrade\r\nUpgrade: x"),
        ((), b"Host: h"),
    ],
)
def test_each_framing_has_its_field(lines: tuple[bytes, ...], last: bytes) -> None:
    sent = heads.request_head(head_of(request(*lines)), host=b"h")
    assert sent == b"GET / HTTP/1.1\r\nHost: h\r\n" + (last + b"\r\n" if lines else b"") + b"\r\n"


def sent_response(data: bytes, to: bytes = b"GET", **options: Any) -> bytes:
    head = responses(data, to=to)[0]
    defaults = {"extra": b"E: f\r\n", "connection": b"", "chunked": False}
    return heads.response_head(head, **{**defaults, **options})


def test_a_response_head_goes_out_with_framing_of_our_own() -> None:
    data = response(b"X: y", b"Location: /", b"Content-Length: 3", b"Connection: z")
    assert sent_response(data, connection=b"close") == (
        b"HTTP/1.1 200 OK\r\nX: y\r\nLocation: /\r\nContent-Length: 3\r\nConnection: close\r\n"
        b"E: f\r\n\r\n"
    )
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nE: f\r\n\r\n"
    assert sent_response(response(), chunked=True) == chunked
    data = response(b"Transfer-Encoding: chunked")
    assert sent_response(data, to=b"HEAD", to_head=True) == chunked
    assert sent_response(data, to=b"HEAD") == b"HTTP/1.1 200 OK\r\nE: f\r\n\r\n"
    data = response(b"Content-Length: 3", start=b"HTTP/1.1 204 None")
    assert sent_response(data) == b"HTTP/1.1 204 None\r\nE: f\r\n\r\n"


def test_a_101_goes_out_with_the_subprotocol_if_there_is_one() -> None:
    start = b"HTTP/1.1 101 S"
    head = responses(response(b"Connection: upgrade", b"Upgrade: x", b"A: b", start=start))[0]
    for protocol, line in ((b"", b""), (b"p", b"Sec-WebSocket-Protocol: p\r\n")):
        sent = heads.switching_head(head, upgrade=b"x", protocol=protocol, extra=b"E: f\r\n")
        assert sent == (
            b"HTTP/1.1 101 Switching Protocols\r\nA: b\r\n"
            + line
            + b"Connection: Upgrade\r\nUpgrade: x\r\nE: f\r\n\r\n"
        )


def test_a_simple_response_is_complete() -> None:
    sent = heads.simple_response(
        404, b"no", content_type="text/plain", fields=[("A", "b")], keep_alive=False
    )
    assert sent == (
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n"
        b"Cache-Control: no-store\r\nA: b\r\nConnection: close\r\n\r\nno"
    )
    assert heads.simple_response(200, b"no", content_type="a", to_head=True).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("keep_alive", "options"), [(True, b"Upgrade"), (False, b"Upgrade, close")]
)
def test_who_is_to_upgrade_is_told_so_in_connection(keep_alive: bool, options: bytes) -> None:
    sent = heads.simple_response(426, b"", content_type="a", keep_alive=keep_alive)
    assert b"\r\nConnection: " + options + b"\r\n\r\n" in sent


def test_a_chunk_tells_its_size_in_hexadecimal() -> None:
    assert heads.chunk(b"a" * 26) == b"1a\r\n" + b"a" * 26 + b"\r\n"


def test_the_accept_key_is_that_of_the_rfc() -> None:
    assert handshake.accept_key(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("method", "lines", "person"),
    [
        (b"GET", (b"Sec-Fetch-Mode: navigate",), True),
        (b"HEAD", (b"Sec-Fetch-Mode: navigate",), True),
        (b"POST", (b"Sec-Fetch-Mode: navigate",), False),
        (b"GET", (b"Sec-Fetch-Mode: cors", b"Accept: text/html"), False),
        (b"GET", (b"Accept: application/xml, text/html;q=0.9",), True),
        (b"GET", (b"Accept: */*",), False),
        (b"GET", (), False),
    ],
)
def test_a_person_is_told_from_a_program(
    method: bytes, lines: tuple[bytes, ...], person: bool
) -> None:
    head = head_of(request(*lines, start=method + b" / HTTP/1.1"))
    assert messages.wants_page(head) is person


@pytest.mark.parametrize(
    ("lines", "events"),
    [
        ((b"Accept: text/event-stream",), True),
        ((b"accept: TEXT/Event-Stream",), True),
        ((b"Accept: application/json, text/event-stream;q=0.9",), True),
        ((b"Accept: text/event-stream\t; a=b ,*/*",), True),
        ((b"Accept: application/json", b"Accept: text/event-stream"), True),
        ((b"Accept: text/event-streams",), False),
        ((b"Accept: a/b;c=text/event-stream",), False),
        ((b"Accept: */*",), False),
        ((), False),
    ],
)
def test_who_takes_an_event_stream_is_known(lines: tuple[bytes, ...], events: bool) -> None:
    assert messages.accepts_events(head_of(request(*lines))) is events


@pytest.mark.parametrize(("version", "stays"), [(b"1.1", True), (b"1.0", False)])
def test_an_expectation_counts_in_http_1_1_only(version: bytes, stays: bool) -> None:
    data = request(b"Expect: 100-continue", b"Content-Length: 1", start=b"PUT / HTTP/" + version)
    head = head_of(data)
    assert (head.special[fields.EXPECT] is not None) is stays
    assert (b"Expect: 100-continue\r\n" in heads.request_head(head, host=b"h")) is stays


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ((b"Sec-WebSocket-Version: 8",), 426),
        ((b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 8"), 426),
        ((b"Sec-WebSocket-Version: ",), 400),
        ((), 400),
    ],
)
def test_another_version_of_websocket_is_refused_as_such(
    version: tuple[bytes, ...], status: int
) -> None:
    fields = (b"Connection: upgrade", b"Upgrade: websocket")
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    assert refusal(requests(request(*fields, key, *version))) == status


def test_a_mistake_of_our_own_is_not_taken_for_a_bad_request() -> None:
    head = request(start=b"POST / HTTP/1.1")
    parser = RequestParser(**LIMITS)
    parser.feed(head[:-2])
    special: Any = parser._fields.special
    special[fields.CONTENT_LENGTH] = 5  # no bytes
    with pytest.raises(httptools.HttpParserCallbackError) as raised:
        parser.feed(head[-2:])
    assert isinstance(raised.value.__context__, AttributeError | TypeError)


# -- lines that come again -------------------------------------------------------------------------


def outcome(parser: RequestParser | ResponseParser, *parts: bytes) -> list[Any]:
    """Everything that can be told of a parser after ``parts``."""
    for part in parts:
        parser.feed(part)
    events = comparable(joined(parser.events))
    return [events, parser.tail, parser.stopped, parser.in_message]


def by_llhttp(parser: RequestParser | ResponseParser, data: bytes) -> list[Any]:
    """The same, told by llhttp alone: what comes in pieces is recognised by nobody else."""
    return outcome(parser, *(bytes([byte]) for byte in data))


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


# -- any bytes, any splits -----------------------------------------------------------------------

TOKENS = st.text("abcXYZ-_0129", min_size=1, max_size=12).map(str.encode)
VALUES = st.text('abc ,;=/"\t~', max_size=20).map(lambda text: text.strip().encode())
FIELDS = st.one_of(
    st.builds(lambda name, value: name + b": " + value, TOKENS, VALUES),
    st.sampled_from(
        [
            b"Connection: close",
            b"Connection: keep-alive, abc",
            b"Connection: Upgrade",
            b"Upgrade: h2c",
            b"Upgrade: websocket",
            b"Upgrade: foo",
            b"Expect: 100-continue",
            b"Origin: null",
            b"TE: trailers",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Content-Length: 3",
            b"Content-Length: 03",
            b"Host: b",
            b"A : b",
            b" folded",
        ]
    ),
)
BODIES = st.sampled_from(
    [
        b"",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"1;x\r\na\r\n0\r\nT: u\r\n\r\n",
        b"0\r\n\r\n",
        b"x\r\n",
    ]
)
STARTS = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"POST /a%2Fb?c HTTP/1.1",
        b"HEAD / HTTP/1.0",
        b"OPTIONS * HTTP/1.1",
        b"GET //x HTTP/1.1",
        b"BREW / HTTP/1.1",
        b"GET / HTTP/3.0",
    ]
)
ANSWERS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200",
        b"HTTP/1.1 204 No",
        b"HTTP/1.1 103 Early",
        b"HTTP/1.1 101 Switch",
        b"HTTP/1.1 304 ",
        b"HTTP/1.1 2000 OK",
    ]
)


def message(start: bytes, fields: list[bytes], body: bytes) -> bytes:
    host = [] if start.startswith(b"HTTP/") else [b"Host: a"]
    return b"\r\n".join([start, *host, *fields]) + b"\r\n\r\n" + body


REQUESTS = st.lists(
    st.builds(message, STARTS, st.lists(FIELDS, max_size=4), BODIES), min_size=1, max_size=3
).map(b"".join)
RESPONSES = st.lists(
    st.builds(message, ANSWERS, st.lists(FIELDS, max_size=3), BODIES), min_size=1, max_size=2
).map(b"".join)


@st.composite
def split(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    data = draw(messages)
    cuts = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=8))})
    return data, [data[start:end] for start, end in pairwise(cuts)]


def comparable(events: list[Any]) -> list[Any]:
    """Values instead of heads; without the words of a refusal, which depend on where llhttp was."""
    return [_value(event) for event in events]


def _value(event: Any) -> Any:
    if isinstance(event, Malformed):
        return Malformed
    if isinstance(event, RequestHead | ResponseHead):
        # mypyc's own account of what would be the slots of a class that it has compiled.
        names = getattr(event, "__mypyc_attrs__", None) or type(event).__slots__
        assert {"lines", "special", "keep_alive"} <= set(names)
        return type(event), {name: getattr(event, name) for name in names}
    return event


@given(split(REQUESTS))
def test_requests_mean_the_same_however_they_are_split(case: tuple[bytes, list[bytes]]) -> None:
    data, parts = case
    whole, split_, single = (
        RequestParser(**LIMITS),
        RequestParser(**LIMITS),
        RequestParser(**LIMITS),
    )
    whole.feed(data)
    for part in parts:
        split_.feed(part)
    for byte in data:
        single.feed(bytes([byte]))
    expected = comparable(joined(whole.events))
    assert comparable(joined(split_.events)) == expected
    assert comparable(joined(single.events)) == expected
    assert whole.tail == split_.tail == single.tail
    assert whole.stopped == split_.stopped == single.stopped


@given(split(RESPONSES))
def test_responses_mean_the_same_however_they_are_split(case: tuple[bytes, list[bytes]]) -> None:
    data, parts = case
    expected = comparable(responses(data, ends=True))
    assert comparable(responses(*parts, ends=True)) == expected
    assert comparable(responses(*(bytes([byte]) for byte in data), ends=True)) == expected


@given(st.lists(st.binary(max_size=200), max_size=5), st.sampled_from([b"", b"GET / HTTP/1.1\r\n"]))
def test_no_bytes_make_a_parser_raise(parts: list[bytes], start: bytes) -> None:
    for events in (requests(start, *parts), responses(b"HTTP/1.1 200 OK\r\n", *parts, ends=True)):
        assert [event for event in events[:-1] if isinstance(event, Malformed)] == []


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=5), st.booleans())
def test_content_arrives_whole(chunks: list[bytes], chunked: bool) -> None:
    content = b"".join(chunks)
    if chunked:
        data = request(b"Transfer-Encoding: chunked") + b"".join(map(heads.chunk, chunks))
        data += heads.LAST_CHUNK
    else:
        data = request(b"Content-Length: %d" % len(content)) + content
    head, *body, end = requests(data)
    assert isinstance(head, RequestHead)
    assert b"".join(body) == content
    assert end is END


@given(REQUESTS)
def test_what_goes_out_reads_as_what_came_in(data: bytes) -> None:
    """And never as anything that is refused, or that ends elsewhere."""
    for event in requests(data):
        if isinstance(event, RequestHead):
            (again, *_) = requests(heads.request_head(event, host=b"a"))
            assert isinstance(again, RequestHead)
            assert (again.method, again.target) == (event.method, event.target)
            assert (again.content_length, again.chunked) == (event.content_length, event.chunked)
            assert again.lines == event.lines
            assert again.upgrade == event.upgrade


@given(st.lists(REQUESTS, min_size=1, max_size=4))
def test_requests_mean_the_same_when_they_come_again(messages: list[bytes]) -> None:
    expected = by_llhttp(RequestParser(**LIMITS), b"".join(messages))
    for _ in range(3):
        assert outcome(RequestParser(**LIMITS), *messages) == expected


@given(st.lists(RESPONSES, min_size=1, max_size=4))
def test_responses_mean_the_same_when_they_come_again(messages: list[bytes]) -> None:
    expected = by_llhttp(ResponseParser(max_head=65536), b"".join(messages))
    for _ in range(3):
        assert outcome(ResponseParser(max_head=65536), *messages) == expected
