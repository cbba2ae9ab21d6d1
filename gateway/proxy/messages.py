"""What the parsers make of HTTP/1.1 messages, and what is asked of it. Pure."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from gateway.proxy.fields import ACCEPT, SEC_FETCH_MODE, Special


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


def request_line(method: bytes, target: bytes) -> bytes:
    """A start line as it goes upstream."""
    return b"%b %b HTTP/1.1" % (method, target)


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
