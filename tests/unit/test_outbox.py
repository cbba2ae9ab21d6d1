"""Small writes wait for the end of the turn, in order; what is large does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.proxy.outbox import Outbox, Sender


class Transport(asyncio.Transport):
    """Notes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing


class Turn:
    """What runs at the end of a turn of the loop."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def end(self) -> None:
        soon, self.soon = self.soon, []
        for call in soon:
            call()


@pytest.fixture
def turn() -> Turn:
    return Turn()


@pytest.fixture
def outbox(turn: Turn) -> Outbox:
    return Outbox(lambda call: turn.soon.append(call))


def sender(outbox: Outbox) -> tuple[Sender, Transport]:
    made, transport = Sender(outbox), Transport()
    made.transport = transport
    return made, transport


def test_small_writes_of_a_turn_go_out_as_one_at_its_end(turn: Turn, outbox: Outbox) -> None:
    one, transport = sender(outbox)
    one.write(b"a")
    one.write(b"b")
    assert transport.written == []
    turn.end()
    assert transport.written == [b"ab"]


def test_a_turn_is_ended_once_for_all_connections(turn: Turn, outbox: Outbox) -> None:
    one, near = sender(outbox)
    two, far = sender(outbox)
    one.write(b"a")
    two.write(b"b")
    assert len(turn.soon) == 1
    turn.end()
    assert (near.written, far.written) == ([b"a"], [b"b"])
    one.write(b"c")
    assert len(turn.soon) == 1


def test_a_large_write_goes_out_at_once_behind_what_waits(turn: Turn, outbox: Outbox) -> None:
    one, transport = sender(outbox)
    one.write(b"a")
    one.write(bytes(100_000))
    assert transport.written == [b"a", bytes(100_000)]
    turn.end()
    assert len(transport.written) == 2


def test_small_writes_that_are_much_together_do_not_wait(outbox: Outbox) -> None:
    one, transport = sender(outbox)
    for _ in range(100):
        one.write(bytes(1000))
    assert len(b"".join(transport.written)) > 90_000


def test_a_flush_sends_what_waits_once(turn: Turn, outbox: Outbox) -> None:
    one, transport = sender(outbox)
    one.write(b"a")
    one.flush()
    one.flush()
    turn.end()
    assert transport.written == [b"a"]


def test_nothing_is_written_to_a_transport_that_closes(turn: Turn, outbox: Outbox) -> None:
    one, transport = sender(outbox)
    one.write(b"a")
    transport.closing = True
    turn.end()
    assert transport.written == []
