"""Heads that go out."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.proxy import fields, heads
from tests.unit.wire import head_of, request, response, responses


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


@pytest.mark.parametrize(("version", "stays"), [(b"1.1", True), (b"1.0", False)])
def test_an_expectation_counts_in_http_1_1_only(version: bytes, stays: bool) -> None:
    data = request(b"Expect: 100-continue", b"Content-Length: 1", start=b"PUT / HTTP/" + version)
    head = head_of(data)
    assert (head.special[fields.EXPECT] is not None) is stays
    assert (b"Expect: 100-continue\r\n" in heads.request_head(head, host=b"h")) is stays
