"""While much is written, small writes wait for the end of the turn, in order."""

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
    """What runs at the end of a turn of the loop; and the loop's clock."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.now = 0.0

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
def calm_outbox(turn: Turn) -> Outbox:
    return Outbox(turn.call_soon, lambda: turn.now)


@pytest.fixture
def outbox(calm_outbox: Outbox) -> Outbox:
    """One that is busy: as much as may be written at once in this instant has been."""
    keep_busy(calm_outbox)
    return calm_outbox


def sender(outbox: Outbox) -> tuple[Sender, Transport]:
    made, transport = Sender(outbox), Transport()
    made.transport = transport
    return made, transport


def keep_busy(outbox: Outbox) -> None:
    one, transport = sender(outbox)
    for number in range(100):
        one.write(b"x")
        if len(transport.written) == number:
            one.flush()
            return
    raise AssertionError("nothing ever waits")


def test_what_little_is_written_in_an_instant_goes_out_at_once(
    turn: Turn, calm_outbox: Outbox
) -> None:
    one, transport = sender(calm_outbox)
    for number in range(5):
        turn.now += 0.002
        one.write(b"head")
        one.write(b"content")
        assert len(transport.written) == 2 * number + 2
    assert not turn.soon


def test_once_it_is_much_all_waits_until_an_instant_with_little(turn: Turn, outbox: Outbox) -> None:
    one, transport = sender(outbox)
    turn.end()
    for text in (b"a", b"b"):
        one.write(text)
        assert transport.written == []
        turn.end()
        turn.now += 0.002
        transport.written.clear()
    one.write(b"c")
    assert transport.written == [b"c"]


def test_what_waits_stays_in_front_when_the_clock_moves(turn: Turn, outbox: Outbox) -> None:
    one, transport = sender(outbox)
    one.write(b"a")
    turn.now += 0.002
    one.write(b"b")
    turn.end()
    assert transport.written == [b"ab"]


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
    turn.end()
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
    one.write(bytes(100_000))
    turn.end()
    assert transport.written == []
