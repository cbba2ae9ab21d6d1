"""What is asked for by Upgrade, and the WebSocket handshake."""

from __future__ import annotations

import pytest

from gateway.proxy import handshake
from gateway.proxy.messages import END, RequestHead
from gateway.proxy.requests import RequestParser
from tests.unit.wire import LIMITS, head_of, refusal, request, requests

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


def test_the_accept_key_is_that_of_the_rfc() -> None:
    assert handshake.accept_key(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


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
