"""The requests of a client connection: see ``http1``. Pure."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import httptools

from gateway.proxy.authority import is_host
from gateway.proxy.fields import (
    CONNECTION,
    EXPECT,
    HOST,
    REQUEST_NAMES,
    UPGRADE,
    Refusal,
    no_special,
)
from gateway.proxy.handshake import check_handshake, followed, is_websocket
from gateway.proxy.http1 import (
    BLANK_LINE,
    MAX_FIELDS,
    VERSIONS,
    MessageParser,
    framing,
    keeps_alive,
)
from gateway.proxy.lines import KnownLines, only
from gateway.proxy.messages import END, RequestHead, request_line

#: What llhttp lets through besides: CR and LF in front, more spaces, RTSP and ICE.
_START_LINE: Final = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.[01]\r\n")
_VERSION_11: Final = b" HTTP/1.1"
#: What a target may be made of: all that is visible, without a fragment.
_IN_TARGET: Final = only({*range(0x21, 0x7F)} - {ord("#")})


def _anything(_: bytes) -> bool:
    return True


_LINES: Final = KnownLines(
    REQUEST_NAMES,
    {
        b"host": is_host,
        b"connection": lambda value: value.lower() in (b"keep-alive", b"close"),
        b"accept": _anything,
        b"cookie": _anything,
        b"sec-fetch-mode": _anything,
        b"x-forwarded-for": _anything,
        b"x-forwarded-host": _anything,
        b"x-forwarded-proto": _anything,
    },
)


class RequestParser(MessageParser):
    """The requests of one client connection. ``max_head`` and ``max_target`` are bytes."""

    __slots__ = ("_max_target", "_target")

    _names = REQUEST_NAMES
    _skips_empty_lines: ClassVar[bool] = True  # RFC 9112 2.2

    def __init__(self, *, max_head: int, max_target: int) -> None:
        self._max_target = max_target
        super().__init__(max_head=max_head)

    def on_url(self, url: bytes) -> None:
        if self._resuming:
            return
        self._target += url
        if len(self._target) > self._max_target:
            raise Refusal(414, f"request target longer than {self._max_target} bytes")

    def _begin(self) -> None:
        super()._begin()
        self._target = b""

    def feed(self, data: bytes) -> None:
        """Parse ``data``; what it holds is in ``events`` afterwards."""
        head = self.whole(data)
        if head is not None:
            self.events += (head, END)
        else:
            self.parse(data)

    def _piece_end(self, data: bytes) -> int:
        head = self._head
        # A blank line may be within content; but only with one can a chunked message end.
        return self._blank_line_end(data) if head is None or head.chunked else len(data)

    def whole(self, data: bytes) -> RequestHead | None:
        """The head, if ``data`` is a simple one and nothing else; None: it is to be parsed."""
        if (
            self._begun
            or self._start
            or self._done
            or self.events
            or len(data) > self._max_head
            or not data.endswith(BLANK_LINE)
        ):
            return None
        # No regular expression: it is more code than all of this, and code that nobody has run for
        # two milliseconds is what costs (docs/performance.md).
        lines = data.split(b"\r\n")
        start, end = lines[0], len(lines) - 2
        if end > MAX_FIELDS or not (start.startswith(b"GET /") and start.endswith(_VERSION_11)):
            return None
        target = start[len(b"GET ") : -len(_VERSION_11)]
        if len(target) > self._max_target or target.translate(_IN_TARGET) != target:
            return None
        special = no_special()
        passing = _LINES.sort(lines, 1, end, special)
        if passing is None or special[HOST] is None:
            return None
        connection = special[CONNECTION]
        keep_alive = connection is None or connection.lower() != b"close"
        self._done = not keep_alive
        return RequestHead(
            start, b"GET", target, False, keep_alive, passing, special, 0, False, b""
        )

    def _new_llhttp(self) -> Any:
        return httptools.HttpRequestParser(self)

    def _new_head(self) -> RequestHead:
        llhttp, special = self._llhttp, self._fields.special
        version = llhttp.get_http_version()
        if version not in VERSIONS:
            raise Refusal(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        method = llhttp.get_method()
        if method == b"CONNECT":
            raise Refusal(405, "CONNECT is not offered")
        if not _START_LINE.fullmatch(self._start):
            raise Refusal(400, "malformed request line")
        if b"#" in self._target:
            raise Refusal(400, "a request target has no fragment (RFC 9112 3.2)")
        host = special[HOST]
        if host is None:
            if version == "1.1":
                raise Refusal(400, "no Host field (RFC 9112 3.2)")
        elif not is_host(host):
            raise Refusal(400, "the Host field is no host name with an optional port")
        chunked, length = framing(special, version)
        if version == "1.0":
            special[EXPECT] = None  # to be ignored (RFC 9110 10.1.1)
        upgrade = b""
        # RFC 9110 7.8: an Upgrade from a HTTP/1.0 client is ignored.
        if version == "1.1" and llhttp.should_upgrade():
            upgrade = followed(special[UPGRADE] or b"")
        if upgrade:
            if chunked or length:
                raise Refusal(400, "an upgrade request with content is refused")
            if is_websocket(upgrade):
                check_handshake(method, special)
        return RequestHead(
            start=request_line(method, self._target),
            method=method,
            target=self._target,
            http10=version == "1.0",
            keep_alive=keeps_alive(llhttp, special, version),
            lines=self._fields.lines,
            special=special,
            content_length=length or 0,
            chunked=chunked,
            upgrade=upgrade,
        )
