"""Both parsers: whatever the bytes and however they are split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy import fields, heads, http1
from gateway.proxy.messages import END, Malformed, RequestHead
from gateway.proxy.requests import RequestParser
from gateway.proxy.responses import ResponseParser
from tests.unit.wire import (
    LIMITS,
    by_llhttp,
    comparable,
    joined,
    outcome,
    request,
    requests,
    responses,
)


def test_lengths_are_checked_once_more() -> None:
    """llhttp refuses them already; one parser alone is not trusted with framing."""
    special = fields.no_special()
    special[fields.CONTENT_LENGTH] = b"+1"
    with pytest.raises(fields.Refusal):
        http1.framing(special, "1.1")


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
