"""Message heads that go out: rewritten, or of the gateway's own. Pure.

Fields that concern one connection were taken out by the parser (``http1``); what each connection
needs is put in here, so that no framing is ever passed on from one side to the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from gateway.proxy.fields import (
    AUTHORIZATION,
    CONTENT_LENGTH,
    EXPECT,
    ORIGIN,
    SEC_WEBSOCKET_PROTOCOL,
    TRANSFER_ENCODING,
)
from gateway.proxy.messages import RequestHead, ResponseHead, request_line


def request_head(
    head: RequestHead,
    *,
    host: bytes,
    origin: bytes | None = None,
    target: bytes | None = None,
    extra: tuple[bytes, ...] = (),
) -> bytes:
    """The head as it goes upstream, with our own framing and connection fields.

    ``origin`` replaces the value of Origin where one was sent; None leaves it out. ``extra`` are
    further field lines. ``target`` replaces the request target.
    """
    start = head.start if target is None else request_line(head.method, target)
    lines = [start, b"Host: " + host]
    lines += head.lines
    if extra:
        lines += extra
    special = head.special
    if origin is not None and special[ORIGIN] is not None:
        lines.append(b"Origin: " + origin)
    if (authorization := special[AUTHORIZATION]) is not None:
        lines.append(b"Authorization: " + authorization)
    if (protocol := special[SEC_WEBSOCKET_PROTOCOL]) is not None:
        lines.append(b"Sec-WebSocket-Protocol: " + protocol)
    if (expect := special[EXPECT]) is not None:
        lines.append(b"Expect: " + expect)
    if head.upgrade:
        lines.append(b"Connection: Upgrade\r\nUpgrade: " + head.upgrade)
    elif head.chunked:
        lines.append(b"Transfer-Encoding: chunked")
    elif special[CONTENT_LENGTH] is not None:
        lines.append(b"Content-Length: %d" % head.content_length)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def response_head(
    head: ResponseHead,
    *,
    extra: bytes,
    connection: bytes,
    chunked: bool,
    to_head: bool = False,
    content: bytes = b"",
) -> bytes:
    """The head as it goes to the client. ``extra`` are complete field lines (with CRLF).

    ``connection`` is the value of Connection, if any. ``chunked`` says that content is sent in
    chunks; ``to_head`` that the request was HEAD in HTTP/1.1, whose answer announces what it has
    not. ``content`` goes behind the head, as it is.
    """
    lines = [head.start]
    lines += head.lines
    special = head.special
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    elif (length := special[CONTENT_LENGTH]) is not None and _tells_length(head.status):
        lines.append(b"Content-Length: " + length)
    elif to_head and special[TRANSFER_ENCODING] is not None:
        # An answer to HEAD has the fields that one to GET would have had (RFC 9110 9.3.2).
        lines.append(b"Transfer-Encoding: chunked")
    if connection:
        lines.append(b"Connection: " + connection)
    lines.append(extra)
    lines.append(content)
    return b"\r\n".join(lines)


def _tells_length(status: int) -> bool:
    """Whether such a response may have a Content-Length (RFC 9110 8.6)."""
    return status >= 200 and status != 204


def switching_head(head: ResponseHead, *, upgrade: bytes, protocol: bytes, extra: bytes) -> bytes:
    """The 101 that goes to the client; ``protocol`` is the subprotocol, empty for none."""
    lines = [b"HTTP/1.1 101 Switching Protocols", *head.lines]
    if protocol:
        lines.append(b"Sec-WebSocket-Protocol: " + protocol)
    lines.append(b"Connection: Upgrade")
    lines.append(b"Upgrade: " + upgrade)
    lines.append(extra)
    lines.append(b"")
    return b"\r\n".join(lines)


def simple_response(
    status: int,
    body: bytes,
    *,
    content_type: str,
    fields: Iterable[tuple[str, str]] = (),
    keep_alive: bool = True,
    to_head: bool = False,
) -> bytes:
    """A whole response of the gateway's own."""
    phrase = HTTPStatus(status).phrase
    options = ["Upgrade"] if status == 426 else []  # RFC 9110 7.8, 15.5.22
    if not keep_alive:
        options.append("close")
    lines = [
        f"HTTP/1.1 {status} {phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        *(f"{name}: {value}" for name, value in fields),
    ]
    if options:
        lines.append("Connection: " + ", ".join(options))
    head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
    return head if to_head else head + body


def chunk(data: bytes) -> bytes:
    """``data`` as one chunk (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"


def last_chunk(trailers: tuple[bytes, ...]) -> bytes:
    """The last chunk, with the lines of trailer fields behind it (RFC 9112 7.1.2)."""
    return b"\r\n".join((b"0", *trailers, b"", b""))
