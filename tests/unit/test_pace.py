"""Turns at a steady pace."""

from __future__ import annotations

import pytest

from gateway.proxy.pace import Pace


def test_after_a_pause_a_second_s_worth_goes_at_once() -> None:
    pace = Pace(4)
    assert [pace.turn(100.0, within=0) for _ in range(6)] == [0, 0, 0, 0, 0, None]


def test_further_ones_are_told_when_it_is_their_turn() -> None:
    pace = Pace(4)
    delays = [pace.turn(100.0, within=1.0) for _ in range(10)]
    assert delays == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0, None]


def test_who_is_refused_costs_no_turn() -> None:
    pace = Pace(1)
    for _ in range(1000):
        pace.turn(0.0, within=0)
    assert pace.turn(1.0, within=0) == 0


@pytest.mark.parametrize("within", [0.0, 0.5, 3.0])
def test_in_the_long_run_it_is_so_many_a_second(within: float) -> None:
    pace = Pace(10)
    given = 0
    for millisecond in range(20_000):
        given += pace.turn(millisecond / 1000, within=within) is not None
    assert abs(given - 10 * (20 + 1 + within)) <= 2
