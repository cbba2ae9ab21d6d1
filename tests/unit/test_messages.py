"""What is told from a message's fields."""

from __future__ import annotations

import pytest

from gateway.proxy import messages
from tests.unit.wire import head_of, request


@pytest.mark.parametrize(
    ("method", "lines", "person"),
    [
        (b"GET", (b"Sec-Fetch-Mode: navigate",), True),
        (b"HEAD", (b"Sec-Fetch-Mode: navigate",), True),
        (b"POST", (b"Sec-Fetch-Mode: navigate",), False),
        (b"GET", (b"Sec-Fetch-Mode: cors", b"Accept: text/html"), False),
        (b"GET", (b"Accept: application/xml, text/html;q=0.9",), True),
        (b"GET", (b"Accept: */*",), False),
        (b"GET", (), False),
    ],
)
def test_a_person_is_told_from_a_program(
    method: bytes, lines: tuple[bytes, ...], person: bool
) -> None:
    head = head_of(request(*lines, start=method + b" / HTTP/1.1"))
    assert messages.wants_page(head) is person


@pytest.mark.parametrize(
    ("lines", "events"),
    [
        ((b"Accept: text/event-stream",), True),
        ((b"accept: TEXT/Event-Stream",), True),
        ((b"Accept: application/json, text/event-stream;q=0.9",), True),
        ((b"Accept: text/event-stream\t; a=b ,*/*",), True),
        ((b"Accept: application/json", b"Accept: text/event-stream"), True),
        ((b"Accept: text/event-streams",), False),
        ((b"Accept: a/b;c=text/event-stream",), False),
        ((b"Accept: */*",), False),
        ((), False),
    ],
)
def test_who_takes_an_event_stream_is_known(lines: tuple[bytes, ...], events: bool) -> None:
    assert messages.accepts_events(head_of(request(*lines))) is events
