"""What the parsers make of bytes, for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.proxy.messages import Malformed, RequestHead, ResponseHead
from gateway.proxy.requests import RequestParser
from gateway.proxy.responses import ResponseParser

LIMITS = {"max_head": 65536, "max_target": 32768}


def requests(*parts: bytes, **limits: int) -> list[Any]:
    """The events of a client's bytes, adjacent content put together."""
    parser = RequestParser(**{**LIMITS, **limits})
    for part in parts:
        parser.feed(part)
    return joined(parser.events)


def responses(*parts: bytes, to: bytes = b"GET", ends: bool = False) -> list[Any]:
    """The events of a dev server's bytes."""
    parser = ResponseParser(max_head=65536)
    parser.expect(to)
    for part in parts:
        parser.feed(part)
    if ends:
        parser.eof()
    return joined(parser.events)


def joined(events: Iterable[Any]) -> list[Any]:
    """The events with adjacent content put together."""
    result: list[Any] = []
    for event in events:
        if isinstance(event, bytes) and result and isinstance(result[-1], bytes):
            result[-1] += event
        else:
            result.append(event)
    return result


def request(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    """A request's head."""
    return b"\r\n".join((start, host, *lines)) + b"\r\n\r\n"


def response(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """A response's head."""
    return b"\r\n".join((start, *lines)) + b"\r\n\r\n"


def head_of(data: bytes) -> RequestHead:
    """The head of a request that is good."""
    head = requests(data)[0]
    assert isinstance(head, RequestHead), head
    return head


def counted(head: RequestHead | ResponseHead) -> dict[int, bytes]:
    """The fields that count, by their places."""
    return {place: value for place, value in enumerate(head.special) if value is not None}


def refusal(events: Sequence[Any]) -> int:
    """The status of the refusal with which the events end."""
    assert isinstance(events[-1], Malformed), events
    return events[-1].status


def outcome(parser: RequestParser | ResponseParser, *parts: bytes) -> list[Any]:
    """Everything that can be told of a parser after ``parts``."""
    for part in parts:
        parser.feed(part)
    events = comparable(joined(parser.events))
    return [events, parser.tail, parser.stopped, parser.in_message]


def by_llhttp(parser: RequestParser | ResponseParser, data: bytes) -> list[Any]:
    """The same, told by llhttp alone: what comes in pieces is recognised by nobody else."""
    return outcome(parser, *(bytes([byte]) for byte in data))


def comparable(events: list[Any]) -> list[Any]:
    """Values instead of heads; without the words of a refusal, which depend on where llhttp was."""
    return [_value(event) for event in events]


def _value(event: Any) -> Any:
    if isinstance(event, Malformed):
        return Malformed
    if isinstance(event, RequestHead | ResponseHead):
        # mypyc's own account of what would be the slots of a class that it has compiled.
        names = getattr(event, "__mypyc_attrs__", None) or type(event).__slots__
        assert {"lines", "special", "keep_alive"} <= set(names)
        return type(event), {name: getattr(event, name) for name in names}
    return event
