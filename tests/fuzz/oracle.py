"""The judge: a slow and strict reader of HTTP/1.1, written from RFC 9110 and RFC 9112 alone.

It shares no code with the gateway and knows no llhttp. It reads whole lines of whole heads, with
one pattern per rule of the grammar, so that each rule can be held against its section.

``requests`` and ``responses`` return the messages that a byte string holds, and how it ended:

    COMPLETE    between two messages
    INCOMPLETE  within a message; the last one is what there is of it so far
    REFUSED     what follows is no message; ``why`` says which rule it breaks
    CLOSED      the last message is the last one of its connection; what follows is ignored
    UPGRADED    another protocol follows

Where the RFCs leave a choice, it refuses whatever two readers could take for two things: each
repetition of a field that decides about framing or routing, each coding but ``chunked``. What the
gateway may refuse although it is plain (``Message.refusable``) is named where it is found. All else
that is accepted here must be accepted by the gateway, and nothing else may be.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

Field = tuple[bytes, bytes]


class End(Enum):
    """How a byte string ended."""

    COMPLETE = auto()
    INCOMPLETE = auto()
    REFUSED = auto()
    CLOSED = auto()
    UPGRADED = auto()


@dataclass(slots=True)
class Message:
    """A message. ``start`` is (method, target, version) or (version, status, reason)."""

    start: tuple[bytes, bytes, bytes]
    fields: list[Field]
    keep_alive: bool
    #: The protocols that are asked for in a request, or agreed upon in a 101.
    upgrade: list[bytes] = field(default_factory=list)
    body: bytes = b""
    trailers: list[Field] = field(default_factory=list)
    complete: bool = False
    chunked: bool = False
    #: Only the end of the connection completes it.
    until_close: bool = False
    #: Why the gateway may refuse it all the same.
    refusable: str = ""

    def values(self, name: bytes) -> list[bytes]:
        """The values of a field, one for each of its lines."""
        return [value for other, value in self.fields if other.lower() == name]

    def tokens(self, name: bytes) -> list[bytes]:
        """The elements of a field that is a list (RFC 9110 5.6.1), without empty ones."""
        elements = b",".join(self.values(name)).split(b",")
        return [element.strip(_OWS) for element in elements if element.strip(_OWS)]


@dataclass(slots=True)
class Reading:
    """What was read."""

    messages: list[Message]
    end: End
    why: str = ""
    #: What was not read: it follows the last message, or is none.
    rest: bytes = b""


_OWS: Final = b" \t"
#: RFC 9110 5.6.2.
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: RFC 9110 5.5: VCHAR, obs-text, and white space between them.
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
#: RFC 9112 3, with one SP in each place. A target is any visible ASCII but "#": browsers send
#: brackets, braces and bars that RFC 3986 does not allow.
_REQUEST_LINE: Final = re.compile(rb"([^ ]+) ([\x21\x22\x24-\x7e]+) (HTTP/1\.[01])")
#: RFC 9112 4; the space before an empty reason may be missing, which nobody can misread.
_STATUS_LINE: Final = re.compile(rb"(HTTP/1\.[01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
#: RFC 9110 7.2 and RFC 3986 3.2.2: a registered name or an IP literal, and a port.
_HOST: Final = re.compile(
    rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*|\[([0-9A-Fa-f:.]+)\])(?::([0-9]*))?"
)
_PLAIN_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._-]{1,250}|\[[^]]{1,50}\])(?::[0-9]{0,5})?")
_CODING_AND_TAB: Final = re.compile(rb"transfer-encoding:.*\t *", re.IGNORECASE)
_DIGITS: Final = re.compile(rb"[0-9]+")
#: RFC 9112 7.1. An extension is to be ignored, and none is passed on, so all that counts is that
#: nothing in it could end the line for others; what is no extension by 7.1.1 may be refused.
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]+)((?:;[\t\x20-\x7e\x80-\xff]*)?)")
_EXTENSIONS: Final = re.compile(
    rb"(?:;[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:=(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+"
    rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"))?)*'
)
#: Fields of which a second one could be read in two ways.
_ONCE: Final = (b"content-length", b"transfer-encoding")
_ONCE_IN_REQUESTS: Final = (*_ONCE, b"host", b"origin", b"authorization", b"sec-websocket-key")
_ONCE_IN_RESPONSES: Final = (*_ONCE, b"location")
#: What llhttp knows of the registry of methods; others the gateway does not forward.
_METHODS: Final = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH "
    b"UNLOCK BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE "
    b"UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK SOURCE QUERY".split()
)
_NO_CONTENT: Final = (b"204", b"304")
#: No byte string of a test is that long.
_LARGE: Final = 2**32


class _RefusedError(Exception):
    """The bytes break a rule."""


class _IncompleteError(Exception):
    """More bytes are needed."""


def requests(data: bytes) -> Reading:
    """Read what a client has sent on one connection."""
    return _Reader(data)._run(_Reader._request)


def responses(data: bytes, *methods: bytes, ended: bool = False) -> Reading:
    """Read the answers that a server has sent to requests with these methods, and no more.

    ``ended`` says that the server has ended the connection.
    """
    return _Reader(data, methods=list(methods), ended=ended)._run(_Reader._response)


class _Reader:
    def __init__(
        self, data: bytes, *, methods: list[bytes] | None = None, ended: bool = False
    ) -> None:
        self._data = data
        self._at = 0
        self._methods = methods
        self._ended = ended
        self._messages: list[Message] = []

    def _run(self, read: Callable[[_Reader], End]) -> Reading:
        end, why = End.COMPLETE, ""
        try:
            while end is End.COMPLETE and self._at < len(self._data) and self._methods != []:
                end = read(self)
        except _IncompleteError:
            end = End.INCOMPLETE
        except _RefusedError as exc:
            end, why = End.REFUSED, str(exc)
        return Reading(self._messages, end, why, self._data[self._at :])

    # -- heads -----------------------------------------------------------------------------------

    def _request(self) -> End:
        # RFC 9112 2.2: empty lines before a request line are ignored; here, not without an end.
        first = self._at
        while self._data.startswith(b"\r\n", self._at):
            self._at += 2
        if self._at - first > 2 * 100:
            raise _RefusedError("nothing but empty lines")
        if self._at == len(self._data):
            return End.COMPLETE
        line, *lines = self._section()
        start = _REQUEST_LINE.fullmatch(line)
        if start is None:
            raise _RefusedError(f"not a request line: {line!r}")
        method, target, version = start.groups()
        if not _TOKEN.fullmatch(method) or method == b"CONNECT":
            raise _RefusedError(f"not a method that a gateway takes: {method!r}")
        message = self._begin((method, target, version), lines, _ONCE_IN_REQUESTS)
        if method not in _METHODS:
            message.refusable = "an unknown method"
        if not target.startswith((b"/", b"http://", b"https://")) and (method, target) != (
            b"OPTIONS",
            b"*",
        ):
            message.refusable = "a target that is neither a path nor an address"
        _check_host(message)
        chunked, length = _framing(message, version)
        self._messages.append(message)
        if _asks_for_upgrade(message, version):
            if chunked or length:
                raise _RefusedError("an upgrade with content")
            _check_handshake(message)
            message.complete = True
            return End.UPGRADED
        self._content(message, chunked, length or 0)
        return self._next(message)

    def _response(self) -> End:
        assert self._methods
        self._no_empty_line()
        line, *lines = self._section()
        start = _STATUS_LINE.fullmatch(line)
        if start is None:
            raise _RefusedError(f"not a status line: {line!r}")
        version, status, reason = start[1], start[2], start[3] or b""
        message = self._begin((version, status, reason), lines, _ONCE_IN_RESPONSES)
        chunked, length = _framing(message, version)
        if status.startswith(b"1"):
            if not message.keep_alive:
                message.refusable = "an interim response that is the last one"
            message.keep_alive = True  # something always follows
        if status == b"101":
            message.upgrade = message.tokens(b"upgrade")
            if b"upgrade" not in _lower(message.tokens(b"connection")) or not message.upgrade:
                raise _RefusedError("a 101 that does not say to which protocol")
            message.complete = True
            self._messages.append(message)
            return End.UPGRADED
        self._messages.append(message)
        # RFC 9112 6.3, 1: these have no content, whatever their fields say.
        if status.startswith(b"1"):
            message.complete = True
            return End.COMPLETE
        method = self._methods.pop(0)
        if status in _NO_CONTENT or method == b"HEAD":
            message.complete = True
        elif chunked or length is not None:
            self._content(message, chunked, length or 0)
        else:
            self._until_close(message)
        return self._next(message)

    def _no_empty_line(self) -> None:
        """Unlike a request line, a status line may follow none."""
        if self._data.startswith(b"\r\n", self._at):
            raise _RefusedError("an empty line before a status line")

    def _until_close(self, message: Message) -> None:
        # RFC 9112 6.3, 8.
        message.keep_alive, message.until_close = False, True
        message.body, self._at = self._data[self._at :], len(self._data)
        if not self._ended:
            raise _IncompleteError
        message.complete = True

    def _next(self, message: Message) -> End:
        return End.COMPLETE if message.keep_alive else End.CLOSED

    def _begin(
        self, start: tuple[bytes, bytes, bytes], lines: list[bytes], once: tuple[bytes, ...]
    ) -> Message:
        message = Message(start, [_field(line) for line in lines], keep_alive=False)
        if any(_CODING_AND_TAB.fullmatch(line) for line in lines):
            message.refusable = "a tab behind a transfer coding"
        for name in once:
            if len(message.values(name)) > 1:
                raise _RefusedError(f"more than one {name.decode()}")
        # RFC 9112 9.3.
        connection = _lower(message.tokens(b"connection"))
        wanted = b"HTTP/1.1" in start or b"keep-alive" in connection
        message.keep_alive = wanted and b"close" not in connection
        return message

    def _section(self) -> list[bytes]:
        """The lines up to the next empty one."""
        end = self._data.find(b"\r\n\r\n", self._at)
        if end < 0:
            raise _IncompleteError
        lines = self._data[self._at : end].split(b"\r\n")
        self._at = end + 4
        # RFC 9112 2.2: a bare CR is invalid; a bare LF could end a line for others.
        if any(b"\r" in line or b"\n" in line for line in lines):
            raise _RefusedError("a bare CR or LF")
        return lines

    # -- content ---------------------------------------------------------------------------------

    def _content(self, message: Message, chunked: bool, length: int) -> None:
        message.chunked = chunked
        if chunked:
            while size := self._chunk_size():
                self._take(message, size)
                self._line_end()
            if self._data.startswith(b"\r\n", self._at):
                self._at += 2
            else:
                message.trailers = [_field(line) for line in self._section()]
                _check_trailers(message)
        else:
            self._take(message, length)
        message.complete = True

    def _chunk_size(self) -> int:
        end = self._data.find(b"\r\n", self._at)
        if end < 0:
            raise _IncompleteError
        line = self._data[self._at : end]
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise _RefusedError(f"not a chunk size: {line!r}")
        if not _EXTENSIONS.fullmatch(match[2]):
            self._messages[-1].refusable = "a chunk extension that is none"
        self._at = end + 2
        size = int(match[1], 16)
        if size >= _LARGE:
            self._messages[-1].refusable = "a chunk beyond all bounds"
        return size

    def _take(self, message: Message, size: int) -> None:
        message.body += self._data[self._at : self._at + size]
        self._at += size
        if self._at > len(self._data):
            raise _IncompleteError

    def _line_end(self) -> None:
        if len(self._data) < self._at + 2:
            raise _IncompleteError
        if not self._data.startswith(b"\r\n", self._at):
            raise _RefusedError("a chunk that is longer than its size")
        self._at += 2


def _lower(values: list[bytes]) -> list[bytes]:
    return [value.lower() for value in values]


def _field(line: bytes) -> Field:
    """A field line (RFC 9112 5): no white space before the colon, no folding."""
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name):
        raise _RefusedError(f"not a field line: {line!r}")
    if not _VALUE.fullmatch(value):
        raise _RefusedError(f"a control character in a field value: {line!r}")
    return name, value.strip(_OWS)


def _check_host(message: Message) -> None:
    """RFC 9112 3.2: one Host in HTTP/1.1, at most one in HTTP/1.0, and a valid one."""
    values = message.values(b"host")
    if not values:
        if message.start[2] == b"HTTP/1.1":
            raise _RefusedError("no Host")
        return
    host = _HOST.fullmatch(values[0])
    if host is None:
        raise _RefusedError(f"not a host: {values[0]!r}")
    if host[1] is not None:
        try:
            ipaddress.IPv6Address(host[1].decode())
        except ValueError as exc:
            raise _RefusedError(f"not an address: {values[0]!r}") from exc
    # RFC 1034 3.1: of the labels of a name only the last, the root's, is empty.
    if host[1] is None and (b".." in values[0] or values[0].startswith(b".")):
        raise _RefusedError(f"an empty label: {values[0]!r}")
    port = (host[2] or b"").lstrip(b"0")
    if len(port) > 5 or int(port or b"0") > 65535:
        raise _RefusedError(f"not a port: {values[0]!r}")
    if not _PLAIN_HOST.fullmatch(values[0]):
        message.refusable = "a Host that no DNS name is like"


def _framing(message: Message, version: bytes) -> tuple[bool, int | None]:
    """(chunked, content length), of which one at most is given (RFC 9112 6.1 to 6.3)."""
    codings, lengths = message.values(b"transfer-encoding"), message.values(b"content-length")
    if codings:
        if codings[0].lower() != b"chunked":
            raise _RefusedError("a transfer coding other than chunked")
        if lengths:
            raise _RefusedError("Content-Length with Transfer-Encoding")
        if version != b"HTTP/1.1":
            raise _RefusedError("Transfer-Encoding in HTTP/1.0")
        return True, None
    if not lengths:
        return False, None
    if not _DIGITS.fullmatch(lengths[0]):
        raise _RefusedError(f"not a length: {lengths[0]!r}")
    if len(lengths[0]) > 4000 or int(lengths[0]) >= _LARGE:
        message.refusable = "a length beyond all bounds"
        return False, _LARGE
    return False, int(lengths[0])


def _asks_for_upgrade(message: Message, version: bytes) -> bool:
    """RFC 9110 7.8. Upgrades to HTTP/2 are ignored, which a server may do with any."""
    if version != b"HTTP/1.1" or b"upgrade" not in _lower(message.tokens(b"connection")):
        return False
    wanted = message.tokens(b"upgrade")
    message.upgrade = [token for token in wanted if token.lower() not in (b"h2", b"h2c")]
    return bool(message.upgrade)


def _check_handshake(message: Message) -> None:
    """RFC 6455 4.2.1, for requests that ask for WebSocket."""
    if b"websocket" not in _lower(message.upgrade):
        return
    keys = message.values(b"sec-websocket-key")
    try:
        key = base64.b64decode(keys[0] if keys else b"", validate=True)
    except binascii.Error:
        key = b""
    if message.start[0] != b"GET" or len(key) != 16:
        raise _RefusedError("no WebSocket handshake")
    if message.values(b"sec-websocket-version") != [b"13"]:
        raise _RefusedError("another version of WebSocket")


def _check_trailers(message: Message) -> None:
    """RFC 9110 6.5.1: some fields never belong here; a recipient may ignore or refuse them."""
    names = {name.lower() for name, _ in message.trailers}
    if names & {b"content-length", b"transfer-encoding", b"host", b"connection", b"upgrade"}:
        message.refusable = "a trailer that decides about framing or routing"
