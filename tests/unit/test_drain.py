"""The times at which tunnels are closed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.drain import TUNNELS_PER_SECOND, closing_times


def test_without_tunnels_nothing_is_closed() -> None:
    assert closing_times(0, budget_seconds=10) == []


def test_a_few_tunnels_do_not_take_the_whole_budget() -> None:
    assert closing_times(3, budget_seconds=10)[-1] <= 3 / TUNNELS_PER_SECOND


def test_many_tunnels_are_spread_over_most_of_the_budget() -> None:
    times = closing_times(10_000, budget_seconds=10)
    assert 7.9 < times[-1] < 8
    for second in range(8):
        assert sum(second <= time < second + 1 for time in times) == pytest.approx(1250, abs=2)


def test_each_moment_is_random_within_its_own_part() -> None:
    draws = iter([0.5, 0.0, 0.9])
    times = closing_times(3, budget_seconds=10, draw=lambda: next(draws))
    assert times == pytest.approx([0.025, 0.05, 0.145])


def test_without_a_budget_all_are_closed_at_once() -> None:
    assert closing_times(5, budget_seconds=0) == [0, 0, 0, 0, 0]


@given(st.integers(0, 500), st.floats(0, 100))
def test_all_are_closed_in_order_and_within_the_budget(count: int, budget: float) -> None:
    times = closing_times(count, budget_seconds=budget)
    assert len(times) == count
    assert all(first <= second for first, second in pairwise(times))
    assert all(0 <= time <= budget for time in times)
    # Never more at once than there is a part of the time for.
    gap = 2 * min(1 / TUNNELS_PER_SECOND, budget * 0.8 / max(count, 1))
    assert all(third - first <= 2 * gap for first, third in zip(times, times[2:], strict=False))
