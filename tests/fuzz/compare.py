"""Holds the gateway's parsers against the oracle. A difference is an AssertionError."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

from gateway.proxy.messages import END, Malformed, RequestHead, ResponseHead
from gateway.proxy.requests import RequestParser
from gateway.proxy.responses import ResponseParser
from tests.fuzz import oracle
from tests.fuzz.oracle import End, Field, Message, Reading

MAX_HEAD: Final = 2**20
#: Fields that nobody but the two ends cares about: they must pass, unless Connection names them.
PLAIN: Final = frozenset(
    {b"x-a", b"x-b", b"cookie", b"accept-encoding", b"if-none-match", b"range"}
)


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """``data`` in the pieces that ``cuts`` make of it; cuts beyond its end count from its start."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


def check_requests(data: bytes, cuts: Sequence[int] = ()) -> Reading:
    """Both readers say the same of what a client has sent. Returns what the oracle said."""
    parser = RequestParser(max_head=MAX_HEAD, max_target=MAX_HEAD)
    for part in split(data, cuts):
        parser.feed(part)
    reading = oracle.requests(data)
    _check(reading, list(parser.events))
    return reading


def check_responses(
    data: bytes, cuts: Sequence[int] = (), *, method: bytes = b"GET", ended: bool = False
) -> Reading:
    """Both readers say the same of what a server has sent in answer to one request.

    Nobody asked for what follows: all that counts is that the connection is not used again.
    """
    parser = ResponseParser(max_head=MAX_HEAD)
    parser.expect(method)
    for part in split(data, cuts):
        parser.feed(part)
    if ended:
        parser.eof()
    reading = oracle.responses(data, method, ended=ended)
    answer, unasked = _first_answer(list(parser.events))
    _check(reading, answer)
    if reading.end is End.COMPLETE and reading.rest.strip(b"\r\n"):
        assert unasked or parser.in_message or parser.stopped, f"kept in spite of {reading.rest!r}"
    return reading


def _first_answer(events: list[Any]) -> tuple[list[Any], list[Any]]:
    """The events of one final response with what comes before it, and those that follow."""
    final = False
    for number, event in enumerate(events, 1):
        if isinstance(event, ResponseHead):
            final = event.status >= 200
        elif event is END and final:
            return events[:number], events[number:]
    return events, []


def _check(reading: Reading, events: list[Any]) -> None:
    seen, refused = _messages(events)
    expected = reading.messages
    assert len(seen) <= len(expected), f"accepted what is no message ({reading.why}): {seen}"
    for number, (ours, theirs) in enumerate(zip(seen, expected, strict=False)):
        _check_head(ours, theirs)
        last = number == len(seen) - 1
        assert theirs.body.startswith(ours.body), (ours.body, theirs.body)
        if ours.complete:
            assert (ours.body, theirs.complete) == (theirs.body, True), (ours, theirs)
            check_trailers(ours, theirs)
        else:
            assert last
    if reading.end is End.REFUSED:
        assert refused, f"not refused: {reading.why}"
    if not refused:
        assert len(seen) == len(expected), f"not seen: {expected[len(seen) :]}"
        for ours, theirs in zip(seen, expected, strict=True):
            assert (ours.body, ours.complete) == (theirs.body, theirs.complete), (ours, theirs)
    elif reading.end in (End.COMPLETE, End.CLOSED, End.UPGRADED):
        assert any(message.refusable for message in expected), f"refused without need: {refused}"


def _messages(events: list[Any]) -> tuple[list[Message], str]:
    """The gateway's events as messages, and why what follows was refused."""
    seen: list[Message] = []
    for event in events:
        if isinstance(event, Malformed):
            return seen, event.message
        if isinstance(event, RequestHead):
            version = b"HTTP/1.0" if event.http10 else b"HTTP/1.1"
            seen.append(_message((event.method, event.target, version), event))
        elif isinstance(event, ResponseHead):
            if event.status == 101 and not event.upgrade:
                return seen, "a 101 without a protocol, which the exchange refuses"
            version, status, reason = event.start.split(b" ", 2)
            assert (version, status) == (b"HTTP/1.1", b"%d" % event.status)
            seen.append(_message((b"", status, reason), event))
        elif event is END:
            seen[-1].complete = True
        elif isinstance(event, tuple):
            seen[-1].trailers = _fields(event)
        elif isinstance(event, bytes):
            seen[-1].body += event
    return seen, ""


def _message(start: tuple[bytes, bytes, bytes], head: RequestHead | ResponseHead) -> Message:
    message = Message(start, _fields(head.lines), head.keep_alive, chunked=head.chunked)
    protocols = (token.strip() for token in head.upgrade.split(b","))
    message.upgrade = [token for token in protocols if token]
    if isinstance(head, ResponseHead):
        message.until_close = head.until_close
    return message


def _fields(lines: Iterable[bytes]) -> list[Field]:
    parted = (line.partition(b":") for line in lines)
    return [(name, value.strip(b" \t")) for name, _, value in parted]


def _check_head(ours: Message, theirs: Message) -> None:
    """The same head, but for fields that end at the gateway."""
    if ours.start[0]:
        assert ours.start == theirs.start, (ours.start, theirs.start)
    else:
        assert ours.start[1:] == theirs.start[1:], (ours.start, theirs.start)
        assert ours.until_close == theirs.until_close
    unframed_head = theirs.complete and not theirs.chunked and not theirs.values(b"content-length")
    if ours.start[0] or ours.keep_alive or not unframed_head:
        # An answer to HEAD without any framing ends its connection, which costs nothing but that.
        assert ours.keep_alive == theirs.keep_alive, (ours, theirs)
    assert ours.upgrade == theirs.upgrade, (ours.upgrade, theirs.upgrade)
    check_fields(ours.fields, theirs.fields, theirs)


def check_fields(ours: list[Field], theirs: list[Field], message: Message) -> None:
    """Nothing is made up, nothing is out of order, and what concerns nobody passes."""
    _check_order(ours, theirs)
    passing = PLAIN - {token.lower() for token in message.tokens(b"connection")}
    expected = [each for each in theirs if each[0].lower() in passing]
    assert [each for each in ours if each[0].lower() in PLAIN] == expected


def check_trailers(ours: Message, theirs: Message) -> None:
    """The same for trailers; most fields of known meaning do not belong there."""
    _check_order(ours.trailers, theirs.trailers)
    passing = {b"x-t"} - {token.lower() for token in theirs.tokens(b"connection")}
    expected = [each for each in theirs.trailers if each[0].lower() in passing]
    assert [each for each in ours.trailers if each[0].lower() == b"x-t"] == expected


def _check_order(ours: list[Field], theirs: list[Field]) -> None:
    remaining = iter(theirs)
    for each in ours:
        assert each in remaining, f"not in the message, or out of order: {each}"
