"""The responses of an upstream connection: see ``http1``. Pure."""

from __future__ import annotations

import re
from typing import Any, Final, cast

import httptools

from gateway.proxy.fields import CONTENT_LENGTH, RESPONSE_NAMES, UPGRADE, Refusal, no_special
from gateway.proxy.handshake import protocols
from gateway.proxy.http1 import (
    BLANK_LINE,
    MAX_FIELDS,
    VERSIONS,
    MessageParser,
    framing,
    keeps_alive,
)
from gateway.proxy.lines import KnownLines
from gateway.proxy.messages import END, Malformed, ResponseHead

#: Interim responses (RFC 9110 15.2) to one request. Each takes up far more memory than its bytes,
#: and puts the deadline of the final response off.
MAX_INTERIM: Final = 100
TOO_MANY_INTERIM: Final = f"more than {MAX_INTERIM} interim responses to one request"
#: They have no content, whatever their fields say (RFC 9112 6.3).
_EMPTY: Final = (204, 304)
_REASON: Final = re.compile(rb"[\t \x21-\x7e\x80-\xff]*")
_SIMPLE: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) [A-Za-z]+(?: [A-Za-z]+)*")

_LINES: Final = KnownLines(
    RESPONSE_NAMES,
    {
        b"content-length": lambda value: value.isdigit() and len(value) < 16,
        b"connection": lambda value: value.lower() == b"keep-alive",
    },
)

#: Statuses by simple status lines; a dictionary beats the expression, there are only a few.
_STATUSES: Final[dict[bytes, int]] = {}
_MAX_STATUSES: Final = 256


def _known_status(line: bytes) -> int:
    """The status in a status line; -1 if it is not simple."""
    known = _STATUSES.get(line)
    if known is not None:
        return known
    match = _SIMPLE.fullmatch(line)
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


class ResponseParser(MessageParser):
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
        head = cast("ResponseHead", self._head)
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
        text, blank_line, content = data.partition(BLANK_LINE)
        if not text or not blank_line or len(text) > self._max_head - len(BLANK_LINE):
            return None
        lines = text.split(b"\r\n")
        start, end = lines[0], len(lines)
        status = _known_status(start)
        if status < 0 or end > MAX_FIELDS:
            return None
        special = no_special()
        passing = _LINES.sort(lines, 1, end, special)
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
        if version not in VERSIONS:
            raise Refusal(502, f"the dev server answered with HTTP/{version}")
        status = llhttp.get_status_code()
        if status < 100 or not _REASON.fullmatch(self._reason):
            raise Refusal(502, "malformed status line")
        # Not known of a response behind a chunked one in the same read, which nobody asked for.
        if self._start and not self._start.startswith(b"HTTP/"):
            raise Refusal(502, "malformed status line")
        chunked, length = framing(special, version)
        # RFC 9112 6.3: these have no content, whatever their fields say.
        empty = status < 200 or status in _EMPTY
        return ResponseHead(
            start=b"HTTP/1.1 %d %b" % (status, self._reason),
            status=status,
            # Something always follows an interim response.
            keep_alive=status < 200 or keeps_alive(llhttp, special, version),
            lines=self._fields.lines,
            special=special,
            content_length=0 if empty else length,
            chunked=chunked and not empty,
            until_close=not (empty or chunked or length is not None or self._bodyless),
            upgrade=protocols(special[UPGRADE] or b"") if llhttp.should_upgrade() else b"",
        )
