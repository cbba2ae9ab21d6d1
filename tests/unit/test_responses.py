"""What dev servers answer: bytes in, events out."""

from __future__ import annotations

import pytest

from gateway.proxy import responses as response_side
from gateway.proxy.messages import END, ResponseHead
from gateway.proxy.responses import ResponseParser
from tests.unit.wire import joined, refusal, response, responses


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
