"""HTTP/1.1 messages without any I/O: bytes in, events out. What requests and responses share. Pure.

llhttp (through httptools) does the tokenising: it measured 4.4 us for a browser's request head of
14 fields where regular expressions took 11 us, and it is strict already (bare LF, obs-fold, NUL,
space before colon, CL with TE, differing CL, bad chunk sizes are errors). What it leaves open is
refused here. Sources: RFC 9110 (semantics), RFC 9112 (messages).

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

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

import httptools

from gateway.proxy.fields import (
    CONNECTION,
    CONTENT_LENGTH,
    REQUEST_NAMES,
    TRANSFER_ENCODING,
    WHITESPACE,
    Fields,
    Names,
    Refusal,
    Special,
)
from gateway.proxy.messages import END, Malformed, RequestHead, ResponseHead
from gateway.proxy.trailers import TrailerFields

#: Fields of one message, those of its trailer section included (nginx takes as many). Each is far
#: more in memory than on the wire, and more work than its bytes.
MAX_FIELDS: Final = 1000
#: Empty lines before a request, of which a server should bear one at least (RFC 9112 2.2).
MAX_EMPTY_LINES: Final = 100
BLANK_LINE: Final = b"\r\n\r\n"
VERSIONS: Final = ("1.1", "1.0")
#: Brings a new llhttp to where it awaits the first chunk.
_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
_NO_FIELDS: Final = Fields(REQUEST_NAMES)


class MessageParser(ABC):
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
            found = (edge + data[:3]).find(BLANK_LINE)
            if found >= 0:
                return found + len(BLANK_LINE) - len(edge)
        found = data.find(BLANK_LINE)
        if found >= 0:
            return found + len(BLANK_LINE)
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


def framing(special: Special, version: str) -> tuple[bool, int | None]:
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


def keeps_alive(llhttp: Any, special: Special, version: str) -> bool:
    """Whether another message may follow. RFC 9112 9.3."""
    keeps: bool = llhttp.should_keep_alive()
    if version == "1.1" or not keeps:
        return keeps
    # Of both options in HTTP/1.0, llhttp heeds keep-alive.
    options = (special[CONNECTION] or b"").lower().split(b",")
    return b"close" not in [option.strip(WHITESPACE) for option in options]
