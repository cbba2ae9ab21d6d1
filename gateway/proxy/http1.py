"""HTTP/1.1 messages without any I/O: bytes in, events out, and the rewritten heads.

llhttp (through httptools) does the tokenising: it measured 4.4 us for a browser's request head of
14 fields where regular expressions took 11 us, and it is strict already (bare LF, obs-fold, NUL,
space before colon, CL with TE, differing CL, bad chunk sizes are errors). What it leaves open is
refused here. Sources: RFC 9110 (semantics), RFC 9112 (messages), RFC 6455 (WebSocket).

A parser is fed bytes and leaves events in ``events``, in order:

    RequestHead | ResponseHead     a head is complete
    bytes                          content, without its transfer coding
    tuple                          the lines of trailer fields that pass; END follows at once
    END                            the message is complete
    Malformed                      the bytes are no message; nothing follows

Content of known length that has not arrived together with its head is counted, not parsed: those
bytes pass through untouched. And nearly every head is simple and comes alone, or with its content:
``RequestParser.whole`` and ``ResponseParser.begun`` give such a one without any events.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
from abc import ABC, abstractmethod
from enum import Enum
from functools import lru_cache
from typing import Any, ClassVar, Final

import httptools

from gateway.proxy.fields import (
    ACCEPT,
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    REQUEST_NAMES,
    RESPONSE_NAMES,
    SEC_FETCH_MODE,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING,
    UPGRADE,
    WHITESPACE,
    Fields,
    Names,
    Refusal,
    Special,
    no_special,
)
from gateway.proxy.lines import KnownLines, only
from gateway.proxy.trailers import TrailerFields


class _End(Enum):
    END = "end of message"


END: Final = _End.END


# Plain classes, no dataclasses: what dataclass generates stays interpreted when mypyc compiles this
# file, and a seventh of the time of a request went there (bench/proxies.py, case get-1k).
class RequestHead:
    """A request head. ``lines`` are the end-to-end fields as they go upstream, ``special`` holds
    the values of fields that the gateway acts upon (see ``fields``). ``upgrade`` is the value of
    Upgrade if another protocol is asked for, else empty.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "http10",
        "keep_alive",
        "lines",
        "method",
        "special",
        "start",
        "target",
        "upgrade",
    )

    def __init__(
        self,
        start: bytes,
        method: bytes,
        target: bytes,
        http10: bool,
        keep_alive: bool,
        lines: list[bytes],
        special: Special,
        content_length: int,
        chunked: bool,
        upgrade: bytes,
    ) -> None:
        #: The request line as it goes upstream.
        self.start = start
        self.method = method
        self.target = target
        self.http10 = http10
        self.keep_alive = keep_alive
        self.lines = lines
        self.special = special
        self.content_length = content_length
        self.chunked = chunked
        self.upgrade = upgrade

    def aim_at(self, target: bytes) -> None:
        """Ask for another target than the client has written."""
        self.target = target
        self.start = request_line(self.method, target)

    @property
    def bodyless(self) -> bool:
        """Whether the request has no content."""
        return not self.chunked and not self.content_length


class ResponseHead:
    """A response head. ``content_length`` is None for chunked content and for content that ends
    with the connection (``until_close``). ``upgrade`` is set in a 101 only.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "keep_alive",
        "lines",
        "special",
        "start",
        "status",
        "until_close",
        "upgrade",
    )

    def __init__(
        self,
        start: bytes,
        status: int,
        keep_alive: bool,
        lines: list[bytes],
        special: Special,
        content_length: int | None,
        chunked: bool,
        until_close: bool,
        upgrade: bytes,
    ) -> None:
        #: The status line as it goes to the client.
        self.start = start
        self.status = status
        self.keep_alive = keep_alive
        self.lines = lines
        self.special = special
        self.content_length = content_length
        self.chunked = chunked
        self.until_close = until_close
        self.upgrade = upgrade


class Malformed:
    """Why the bytes are refused, and with which status."""

    __slots__ = ("message", "status")

    def __init__(
        self,
        status: int,
        message: str,
    ) -> None:
        self.status = status
        self.message = message


_NO_FIELDS: Final = Fields(REQUEST_NAMES)


class _MessageParser(ABC):
    """What requests and responses share: feeding llhttp, limits, content of known length."""

    __slots__ = (
        "_begun",
        "_done",
        "_edge",
        "_empty_lines",
        "_fields",
        "_fields_seen",
        "_head",
        "_left",
        "_llhttp",
        "_max_head",
        "_may_be_long",
        "_ordinary",
        "_overhead",
        "_resuming",
        "_start",
        "_trailers",
        "_upgraded",
        "events",
        "tail",
    )

    _head: RequestHead | ResponseHead | None
    _names: Names
    #: Whether empty lines may come before a message.
    _skips_empty_lines: ClassVar[bool] = False
    events: list[Any]

    def __init__(self, *, max_head: int) -> None:
        self.events = []
        #: Bytes behind a head that asks for, or agrees to, another protocol.
        self.tail = b""
        self._max_head = max_head
        self._left = 0
        self._done = False
        self._upgraded = False
        self._resuming = False
        self._may_be_long = False
        self._ordinary = self._names.ordinary
        #: Made when it is needed, which is rare: it costs as much as a whole short connection.
        self._llhttp: Any = None
        self._begin()

    def _begin(self) -> None:
        self._head = None
        #: Let go of between two messages: an idle connection would hold what may be a long head.
        self._fields = _NO_FIELDS
        self._begun = False
        #: The start line, as far as it has come, to the byte.
        self._start = b""
        self._empty_lines = 0
        #: The last bytes that llhttp had of this message.
        self._edge = b""
        self._overhead = 0
        #: Fields of this message so far, those of the trailer section included.
        self._fields_seen = 0
        self._trailers: TrailerFields | None = None

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._begun or bool(self._start)

    @property
    def content_left(self) -> int:
        """How many of the next bytes are content for certain."""
        return self._left

    @property
    def stopped(self) -> bool:
        """Whether no further message will be read from this connection."""
        return self._done

    def parse(self, data: bytes) -> None:
        """Parse ``data``, whatever it is; what it holds is in ``events`` afterwards."""
        while data and not self._done:
            data = self._count(data) if self._left else self._parse(data)
        if self._upgraded:
            self.tail += data

    def _parse(self, data: bytes) -> bytes:
        """Let llhttp have what of ``data`` may be of one message; returns what is left."""
        begun = bool(self._start)
        end = self._piece_end(data)
        data, rest = data[:end], data[end:]
        # Of a head that came in one piece no longer than the limit, nothing need be counted.
        self._may_be_long = begun or len(data) > self._max_head
        if begun:
            # Content resets this; what is left is a head, or chunk extensions and trailers.
            self._overhead += len(data)
        if self._head is None:
            self._note_start(data)
            if self._done:
                return b""
        if self._llhttp is None:
            self._llhttp = self._new_llhttp()
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._stop_or_resume()
            return data[exc.args[0] :] + rest
        except httptools.HttpParserError as exc:
            self._refuse(exc)
            return b""
        head = self._head
        if head is not None and head.content_length:
            # Content is counted; llhttp's own count is left behind.
            self._left = head.content_length
        elif self._may_be_long and (
            self._overhead > self._max_head or (head is None and self._is_too_long())
        ):
            what = "head" if head is None else "trailer"
            self._fail(Malformed(431, f"{what} larger than {self._max_head} bytes"))
        return rest

    def _piece_end(self, data: bytes) -> int:
        """Up to where ``data`` belongs to the message under way for certain, or ends it."""
        return self._blank_line_end(data) if self._head is None else len(data)

    def _blank_line_end(self, data: bytes) -> int:
        edge, self._edge = self._edge, b""
        if edge:
            found = (edge + data[:3]).find(_BLANK_LINE)
            if found >= 0:
                return found + len(_BLANK_LINE) - len(edge)
        found = data.find(_BLANK_LINE)
        if found >= 0:
            return found + len(_BLANK_LINE)
        self._edge = (edge + data[-3:])[-3:]
        return len(data)

    def _note_start(self, data: bytes) -> None:
        """Keep the start line as it came: llhttp takes more for one than is one."""
        at = 0
        while at < len(data) and not self._start.endswith(b"\n"):
            end = data.find(b"\n", at) + 1 or len(data)
            self._start += data[at:end]
            at = end
            if self._start == b"\r\n" and self._skips_empty_lines:
                self._start = b""
                self._empty_lines += 1
                if self._empty_lines > MAX_EMPTY_LINES:
                    self._fail(Malformed(400, "malformed message: nothing but empty lines"))
                    return
        if self._start.endswith(b"\n") and self._start.startswith((b"\r", b"\n")):
            self._fail(Malformed(400, "malformed message: CR or LF before a start line"))

    def _refuse(self, exc: httptools.HttpParserError) -> None:
        cause = exc.__context__
        if isinstance(exc, httptools.HttpParserCallbackError) and not isinstance(cause, Refusal):
            raise exc
        if self._done:
            return  # what follows a message with `Connection: close` is ignored (RFC 9112 9.6)
        if isinstance(cause, Refusal):
            self._fail(Malformed(cause.status, str(cause)))
        else:
            self._fail(Malformed(400, f"malformed message: {exc}"))

    def _count(self, data: bytes) -> bytes:
        """Take content off ``data``; returns what belongs to the next message."""
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            self.events.append(data)
            return b""
        self._left = 0
        if len(data) == left:
            self.events.append(data)
            rest = b""
        else:
            self.events.append(data[:left])
            rest = data[left:]
        self._end()
        self._llhttp = None  # it has not seen the end of this message
        return rest

    def _end(self) -> None:
        """The message under way is complete."""
        self.events.append(END)
        head = self._head
        self._done = head is not None and not head.keep_alive
        self._begin()

    def _stop_or_resume(self) -> None:
        """llhttp stops at every Upgrade; it is brought back where none is followed."""
        head = self._head
        if not isinstance(head, RequestHead) or head.upgrade:
            self._end()
            self._done = self._upgraded = True
        elif head.chunked:
            self._llhttp = self._new_llhttp()
            self._resuming = True
            self._llhttp.feed_data(_CHUNKED_HEAD)
            self._resuming = False
        elif head.content_length:
            self._left = head.content_length
        else:
            self._end()
            self._llhttp = None

    def _fail(self, malformed: Malformed) -> None:
        self._begin()
        self._done = True
        self.events.append(malformed)

    # -- callbacks of llhttp ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._begun = True
        self._fields = Fields(self._names)

    def on_header(self, name: bytes, value: bytes) -> None:
        head = self._head
        if head is not None:
            if not self._resuming:
                self._count_field()
                self._add_trailer(head, name, value)
            return
        self._count_field()
        # Most fields end here: bench/proxies.py, case get-1k-browser.
        if name in self._ordinary:
            self._fields.lines.append(name + b": " + value)
        else:
            self._fields.add(name, value)

    def _count_field(self) -> None:
        self._fields_seen += 1
        if self._fields_seen > MAX_FIELDS:
            raise Refusal(431, f"more than {MAX_FIELDS} fields")

    def _add_trailer(self, head: RequestHead | ResponseHead, name: bytes, value: bytes) -> None:
        if self._trailers is None:
            self._trailers = TrailerFields(
                self._names,
                connection=head.special[CONNECTION] or b"",
                max_bytes=self._max_head,
            )
        self._trailers.add(name, value)

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        if self._may_be_long:
            self._check_size()
        self._fields.drop_named_in_connection()
        self._head = head = self._new_head()
        self._overhead = 0
        self.events.append(head)

    def on_body(self, data: bytes) -> None:
        self._overhead = 0
        self.events.append(data)

    def on_message_complete(self) -> None:
        head = self._head
        if self._resuming or (head is not None and self._llhttp.should_upgrade()):
            return  # see _stop_or_resume
        if self._trailers is not None and self._trailers.lines:
            self.events.append(tuple(self._trailers.lines))
        self._end()

    def _check_size(self) -> None:
        """Hold a whole head to its limit; ``_overhead`` does for one that is not whole yet."""
        if self._is_too_long():
            raise Refusal(431, f"head larger than {self._max_head} bytes")

    def _is_too_long(self) -> bool:
        return len(self._start) + self._fields.size() > self._max_head

    # -- what differs ----------------------------------------------------------------------------

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Parse ``data``; what it holds is in ``events`` afterwards."""

    @abstractmethod
    def _new_llhttp(self) -> Any:
        """A llhttp that calls this parser back."""

    @abstractmethod
    def _new_head(self) -> RequestHead | ResponseHead:
        """The head that has come in, checked; raises Refusal."""


class RequestParser(_MessageParser):
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
            or not data.endswith(_BLANK_LINE)
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
        passing = _REQUEST_LINES.sort(lines, 1, end, special)
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
        if version not in _VERSIONS:
            raise Refusal(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        method = llhttp.get_method()
        if method == b"CONNECT":
            raise Refusal(405, "CONNECT is not offered")
        if not _REQUEST_LINE.fullmatch(self._start):
            raise Refusal(400, "malformed request line")
        if b"#" in self._target:
            raise Refusal(400, "a request target has no fragment (RFC 9112 3.2)")
        host = special[HOST]
        if host is None:
            if version == "1.1":
                raise Refusal(400, "no Host field (RFC 9112 3.2)")
        elif not is_host(host):
            raise Refusal(400, "the Host field is no host name with an optional port")
        chunked, length = _framing(special, version)
        if version == "1.0":
            special[EXPECT] = None  # to be ignored (RFC 9110 10.1.1)
        upgrade = b""
        # RFC 9110 7.8: an Upgrade from a HTTP/1.0 client is ignored.
        if version == "1.1" and llhttp.should_upgrade():
            upgrade = _followed(special[UPGRADE] or b"")
        if upgrade:
            if chunked or length:
                raise Refusal(400, "an upgrade request with content is refused")
            if is_websocket(upgrade):
                _check_handshake(method, special)
        return RequestHead(
            start=request_line(method, self._target),
            method=method,
            target=self._target,
            http10=version == "1.0",
            keep_alive=_keeps_alive(llhttp, special, version),
            lines=self._fields.lines,
            special=special,
            content_length=length or 0,
            chunked=chunked,
            upgrade=upgrade,
        )


class ResponseParser(_MessageParser):
    """The responses of one upstream connection."""

    __slots__ = ("_bodyless", "_reason", "_skipped")

    _names = RESPONSE_NAMES

    def __init__(self, *, max_head: int) -> None:
        self._bodyless = False
        #: The last head, if llhttp waits for content behind it that there is none of.
        self._skipped: ResponseHead | None = None
        super().__init__(max_head=max_head)

    def expect(self, method: bytes) -> None:
        """Say which request the next response answers: that to HEAD has no content."""
        self._bodyless = method == b"HEAD"

    def eof(self) -> bool:
        """The connection has ended. True if that completes the message under way."""
        head = self._head
        if isinstance(head, ResponseHead) and head.until_close:
            self._end()
            self._done = True
            return True
        return False

    def feed(self, data: bytes) -> None:
        """Parse ``data``; what it holds is in ``events`` afterwards."""
        begun = self.begun(data)
        if begun is None:
            self.parse(data)
            return
        head, content = begun
        self.events.append(head)
        if content:
            self.events.append(content)
        if not self._begun:
            self.events.append(END)

    def _parse(self, data: bytes) -> bytes:
        rest = super()._parse(data)
        skipped, self._skipped = self._skipped, None
        if skipped is not None:
            self._llhttp = None
            if rest and skipped.status >= 200 and not self._done:
                self._fail(Malformed(502, "content in an answer to HEAD"))
                return b""
        return rest

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        head = self._head
        if not isinstance(head, ResponseHead):
            return
        # An answer to HEAD announces content and has none, and no interim response has any
        # (RFC 9112 6.3); of these llhttp knows 100 to 103.
        if head.status < 200:
            # What was read together with it is interim responses, too, each with its end.
            if len(self.events) > 2 * MAX_INTERIM:
                raise Refusal(502, TOO_MANY_INTERIM)
            is_skipped = head.status > 103
        else:
            is_skipped = self._bodyless and head.content_length != 0
        if is_skipped:
            self._skipped = head
            self._end()

    def on_message_complete(self) -> None:
        if self._skipped is None:
            super().on_message_complete()

    def _begin(self) -> None:
        super()._begin()
        self._reason = b""

    def begun(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """(head, content that has come with it), if ``data`` begins with a simple head.

        More content is to come if the parser is ``in_message`` then. None: it is to be parsed.
        """
        if self._begun or self._start or self._done or self._bodyless or self.events:
            return None
        text, blank_line, content = data.partition(_BLANK_LINE)
        if not text or not blank_line or len(text) > self._max_head - len(_BLANK_LINE):
            return None
        lines = text.split(b"\r\n")
        start, end = lines[0], len(lines)
        status = _known_status(start)
        if status < 0 or end > MAX_FIELDS:
            return None
        special = no_special()
        passing = _RESPONSE_LINES.sort(lines, 1, end, special)
        if passing is None:
            return None
        length = 0 if status in _EMPTY else _known_length(special[CONTENT_LENGTH])
        left = length - len(content)
        if left < 0:
            return None  # no length, or more than was announced: llhttp says what that means
        head = ResponseHead(start, status, True, passing, special, length, False, False, b"")
        if left:
            self._begun, self._head, self._left = True, head, left
        return head, content

    def _new_llhttp(self) -> Any:
        return httptools.HttpResponseParser(self)

    def _new_head(self) -> ResponseHead:
        llhttp, special = self._llhttp, self._fields.special
        version = llhttp.get_http_version()
        if version not in _VERSIONS:
            raise Refusal(502, f"the dev server answered with HTTP/{version}")
        status = llhttp.get_status_code()
        if status < 100 or not _REASON.fullmatch(self._reason):
            raise Refusal(502, "malformed status line")
        # Not known of a response behind a chunked one in the same read, which nobody asked for.
        if self._start and not self._start.startswith(b"HTTP/"):
            raise Refusal(502, "malformed status line")
        chunked, length = _framing(special, version)
        # RFC 9112 6.3: these have no content, whatever their fields say.
        empty = status < 200 or status in _EMPTY
        return ResponseHead(
            start=b"HTTP/1.1 %d %b" % (status, self._reason),
            status=status,
            # Something always follows an interim response.
            keep_alive=status < 200 or _keeps_alive(llhttp, special, version),
            lines=self._fields.lines,
            special=special,
            content_length=0 if empty else length,
            chunked=chunked and not empty,
            until_close=not (empty or chunked or length is not None or self._bodyless),
            upgrade=(special[UPGRADE] or b"") if llhttp.should_upgrade() else b"",
        )


#: Fields of one message, those of its trailer section included (nginx takes as many). Each is far
#: more in memory than on the wire, and more work than its bytes.
MAX_FIELDS: Final = 1000
#: Empty lines before a request, of which a server should bear one at least (RFC 9112 2.2).
MAX_EMPTY_LINES: Final = 100
#: Interim responses (RFC 9110 15.2) to one request. Each takes up far more memory than its bytes,
#: and puts the deadline of the final response off.
MAX_INTERIM: Final = 100
TOO_MANY_INTERIM: Final = f"more than {MAX_INTERIM} interim responses to one request"
_VERSIONS: Final = ("1.1", "1.0")
_BLANK_LINE: Final = b"\r\n\r\n"
_EMPTY: Final = (204, 304)
#: What llhttp lets through besides: CR and LF in front, more spaces, RTSP and ICE.
_REQUEST_LINE: Final = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.[01]\r\n")
_VERSION_11: Final = b" HTTP/1.1"
#: What a target may be made of: all that is visible, without a fragment.
_IN_TARGET: Final = only({*range(0x21, 0x7F)} - {ord("#")})
_SIMPLE_RESPONSE: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) [A-Za-z]+(?: [A-Za-z]+)*")


#: Statuses by simple status lines; a dictionary beats the expression, there are only a few.
_STATUSES: Final[dict[bytes, int]] = {}
_MAX_STATUSES: Final = 256


def _known_status(line: bytes) -> int:
    """The status in a status line; -1 if it is not simple."""
    known = _STATUSES.get(line)
    if known is not None:
        return known
    match = _SIMPLE_RESPONSE.fullmatch(line)
    if match is None:
        return -1
    status = int(match[1])
    if len(_STATUSES) < _MAX_STATUSES:
        _STATUSES[line] = status
    return status


#: Lengths by the digits that they come as, which is quicker than to read a number.
_LENGTHS: Final[dict[bytes, int]] = {}
_MAX_LENGTHS: Final = 8192


def _known_length(digits: bytes | None) -> int:
    """The value of a Content-Length; -1 without one."""
    if digits is None:
        return -1
    known = _LENGTHS.get(digits)
    if known is None:
        known = int(digits)
        if len(_LENGTHS) >= _MAX_LENGTHS:
            _LENGTHS.clear()
        _LENGTHS[digits] = known
    return known


def request_line(method: bytes, target: bytes) -> bytes:
    """A start line as it goes upstream."""
    return b"%b %b HTTP/1.1" % (method, target)


def _framing(special: Special, version: str) -> tuple[bool, int | None]:
    """(chunked, content length) of a message. RFC 9112 6.1, 6.3."""
    coding, length = special[TRANSFER_ENCODING], special[CONTENT_LENGTH]
    if coding is not None:
        if coding.lower() != b"chunked":
            raise Refusal(501, "the only transfer coding spoken here is chunked")
        if version == "1.0" or length is not None:
            raise Refusal(400, "ambiguous framing: Transfer-Encoding with other framing")
        return True, None
    if length is None:
        return False, None
    if not length.isdigit():
        raise Refusal(400, "Content-Length is no number")
    return False, int(length)


def _keeps_alive(llhttp: Any, special: Special, version: str) -> bool:
    """Whether another message may follow. RFC 9112 9.3."""
    keeps: bool = llhttp.should_keep_alive()
    if version == "1.1" or not keeps:
        return keeps
    # Of both options in HTTP/1.0, llhttp heeds keep-alive.
    options = (special[CONNECTION] or b"").lower().split(b",")
    return b"close" not in [option.strip(WHITESPACE) for option in options]


#: A host name or an IP literal, and a port (RFC 9110 7.2; without RFC 3986's exotic characters).
#: Of the labels of a name only the last, the root's, may be empty.
_HOST: Final = re.compile(
    rb"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?"
)
_MAX_PORT: Final = 65535
_MAX_HOST: Final = 262  # 255 of a name, 6 of a port
_REASON: Final = re.compile(rb"[\t \x21-\x7e\x80-\xff]*")
#: Brings a new llhttp to where it awaits the first chunk.
_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def is_host(value: bytes) -> bool:
    """Whether a Host field may have this value: a name or an IP literal, perhaps with a port."""
    # The length comes first: what is remembered would be as long as a head may be.
    return len(value) <= _MAX_HOST and _is_authority(value)


@lru_cache(maxsize=1024)
def _is_authority(value: bytes) -> bool:
    host = _HOST.fullmatch(value)
    if host is None or int(host[2] or b"0") > _MAX_PORT:
        return False
    return not host[1] or _is_ipv6(host[1].decode())


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _followed(value: bytes) -> bytes:
    """The protocols of an Upgrade field without h2c, which would bypass all that is done here."""
    tokens = (token.strip(WHITESPACE) for token in value.split(b","))
    return b", ".join(token for token in tokens if token and token.lower() not in (b"h2c", b"h2"))


def _check_handshake(method: bytes, special: Special) -> None:
    """Refuse what is no opening handshake of RFC 6455 4.2.1."""
    try:
        key = base64.b64decode(special[SEC_WEBSOCKET_KEY] or b"", validate=True)
    except binascii.Error:
        key = b""
    if method != b"GET" or len(key) != 16:
        raise Refusal(400, "a WebSocket handshake is a GET with a Sec-WebSocket-Key of 16 bytes")
    version = special[SEC_WEBSOCKET_VERSION]
    if version != b"13":
        # A client of another version can try again with this one; one without any is no client.
        status = 426 if version else 400
        raise Refusal(status, "the only Sec-WebSocket-Version spoken here is 13 (RFC 6455)")


def is_websocket(upgrade: bytes) -> bool:
    """Whether WebSocket is among the protocols of an Upgrade field."""
    return any(token.strip().lower() == b"websocket" for token in upgrade.split(b","))


_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_key(key: bytes) -> bytes:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())


def wants_page(head: RequestHead) -> bool:
    """Whether a person looks at the answer: a navigation (Fetch Metadata), or, from clients
    without Fetch Metadata, a GET that accepts HTML.
    """
    if head.method not in (b"GET", b"HEAD"):
        return False
    mode = head.special[SEC_FETCH_MODE]
    if mode is not None:
        return mode == b"navigate"
    return b"text/html" in (head.special[ACCEPT] or b"")


_EVENT_STREAM: Final = re.compile(rb"(?:^|,)[ \t]*text/event-stream[ \t]*(?:[;,]|$)", re.IGNORECASE)


def accepts_events(head: RequestHead) -> bool:
    """Whether an event stream is among what the client takes, in whichever words."""
    return _EVENT_STREAM.search(head.special[ACCEPT] or b"") is not None


def _anything(_: bytes) -> bool:
    return True


_REQUEST_LINES: Final = KnownLines(
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
_RESPONSE_LINES: Final = KnownLines(
    RESPONSE_NAMES,
    {
        b"content-length": lambda value: value.isdigit() and len(value) < 16,
        b"connection": lambda value: value.lower() == b"keep-alive",
    },
)
