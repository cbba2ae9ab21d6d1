"""What other parsers make of bytes that the gateway sends: llhttp, h11, aiohttp's in Python."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import h11
import httptools
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParserPy, HttpResponseParserPy

from tests.fuzz.oracle import Field, Message

_LARGE: Final = 2**20


@dataclass
class Heard:
    """A message, as far as it decides about what follows."""

    #: (method, target) or (status,).
    start: tuple[bytes, ...]
    fields: list[Field] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False

    @classmethod
    def of(cls, message: Message) -> Heard:
        """What the oracle has read."""
        method, target, _ = message.start
        start = (target,) if method.startswith(b"HTTP/") else (method, target)
        fields = [(name.lower(), value) for name, value in message.fields]
        return cls(start, fields, message.body, message.complete)


class _LlhttpEvents:
    def __init__(self, *, of_response: bool, skip_body: bool = False) -> None:
        self.heard: list[Heard] = []
        self._of_response = of_response
        self._skip_body = skip_body
        self._target = b""
        self.parser: Any = (
            httptools.HttpResponseParser(self) if of_response else httptools.HttpRequestParser(self)
        )

    def on_message_begin(self) -> None:
        self.heard.append(Heard(()))
        self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.heard[-1].start:
            self.heard[-1].fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        heard, parser = self.heard[-1], self.parser
        if self._of_response:
            heard.start = (b"%d" % parser.get_status_code(),)
            heard.complete = self._skip_body
        else:
            heard.start = (parser.get_method(), self._target)

    def on_body(self, data: bytes) -> None:
        self.heard[-1].body += data

    def on_message_complete(self) -> None:
        self.heard[-1].complete = True


def llhttp_requests(data: bytes) -> list[Heard]:
    """Requests as llhttp reads them."""
    events = _LlhttpEvents(of_response=False)
    with contextlib.suppress(httptools.HttpParserUpgrade):
        events.parser.feed_data(data)
    return events.heard


def llhttp_response(data: bytes, method: bytes) -> list[Heard]:
    """The response to one request as llhttp reads it, interim ones included."""
    events = _LlhttpEvents(of_response=True, skip_body=method == b"HEAD")
    events.parser.feed_data(data)
    return events.heard


def _h11_message(connection: h11.Connection) -> Heard | None:
    heard: Heard | None = None
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            heard = Heard((event.method, event.target), list(event.headers))
        elif isinstance(event, h11.InformationalResponse):
            return Heard((b"%d" % event.status_code,), list(event.headers), complete=True)
        elif isinstance(event, h11.Response):
            heard = Heard((b"%d" % event.status_code,), list(event.headers))
        elif isinstance(event, h11.Data):
            assert heard is not None
            heard.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert heard is not None
            heard.complete = True
            return heard
        else:
            return heard


def h11_requests(data: bytes) -> list[Heard]:
    """Requests as h11 reads them."""
    heard: list[Heard] = []
    while data:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGE)
        connection.receive_data(data)
        message = _h11_message(connection)
        if message is None:
            break
        heard.append(message)
        if not message.complete:
            break
        data = connection.trailing_data[0]
    return heard


def h11_response(data: bytes, method: bytes) -> list[Heard]:
    """The response to one request as h11 reads it, interim ones included."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGE)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    heard = []
    while (message := _h11_message(connection)) is not None:
        heard.append(message)
        if message.start[0] >= b"200":
            break
    assert not connection.trailing_data[0]
    return heard


def aiohttp_requests(data: bytes) -> list[Heard]:
    """Requests as aiohttp's parser in Python reads them."""
    loop = asyncio.get_running_loop()
    parser = HttpRequestParserPy(BaseProtocol(loop), loop, **_LIMITS)
    messages, _, _ = parser.feed_data(data)
    return [
        _aiohttp_heard((message.method.encode(), message.path.encode()), message, content)
        for message, content in messages
    ]


def aiohttp_response(data: bytes, method: bytes) -> list[Heard]:
    """The response to one request as aiohttp's parser in Python reads it."""
    loop = asyncio.get_running_loop()
    parser = HttpResponseParserPy(
        BaseProtocol(loop),
        loop,
        method=method.decode(),
        response_with_body=method != b"HEAD",
        read_until_eof=True,
        **_LIMITS,
    )
    messages, _, _ = parser.feed_data(data)
    return [
        _aiohttp_heard((b"%d" % message.code,), message, content) for message, content in messages
    ]


_LIMITS: Final[dict[str, Any]] = {
    "limit": 2**16,
    "max_line_size": _LARGE,
    "max_field_size": _LARGE,
    "max_headers": 1024,
    "auto_decompress": False,
}


def _aiohttp_heard(start: tuple[bytes, ...], message: Any, content: Any) -> Heard:
    fields = [(name.lower(), value.strip(b" \t")) for name, value in message.raw_headers]
    body = content.read_nowait(-1) if content.is_eof() or content.total_bytes else b""
    return Heard(start, fields, body, content.is_eof())


REQUESTS: Final[dict[str, Callable[[bytes], list[Heard]]]] = {
    "llhttp": llhttp_requests,
    "h11": h11_requests,
    "aiohttp": aiohttp_requests,
}
RESPONSES: Final[dict[str, Callable[[bytes, bytes], list[Heard]]]] = {
    "llhttp": llhttp_response,
    "h11": h11_response,
    "aiohttp": aiohttp_response,
}
#: What these raise at bytes that they refuse.
REFUSALS: Final = (httptools.HttpParserError, h11.RemoteProtocolError, HttpProcessingError)
