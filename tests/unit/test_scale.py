"""The pure parts of the calculation of scale."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.scale import Costs, Load, calculate, fit, line, table

COSTS = Costs(
    create=100,
    start=200,
    read=10,
    touch=20,
    change=150,
    push=2,
    heard=30,
    session_bytes=1024,
    route_bytes=512,
    points={8: 166, 108: 366},
)
LOAD = Load(replicas=10, sessions=864_000)


def values(load: Load) -> dict[str, float]:
    return {title: value for title, value, _ in calculate(load, COSTS)}


def test_points_on_a_line_give_the_line() -> None:
    assert line({8: 166, 58: 266, 108: 366}) == pytest.approx((150, 2))


def test_a_point_beside_the_line_is_said_to_be() -> None:
    words = fit(replace(COSTS, points={8: 332}))
    assert "(+100 %)" in words[-1]


def test_each_change_is_pushed_to_each_replica() -> None:
    found = values(LOAD)
    changes = 8640 / 60 + 4 * 10
    assert found["changes"] == pytest.approx(changes)
    assert found["pushes to all replicas"] == pytest.approx(changes * 10)
    assert found["CPU: pushes"] == pytest.approx(changes * 10 * 2 / 10_000)


def test_notes_of_traffic_grow_with_the_replicas_that_serve_a_session() -> None:
    one, four = values(replace(LOAD, spread=1)), values(LOAD)
    assert four["CPU: notes of traffic"] == pytest.approx(4 * one["CPU: notes of traffic"])


def test_the_whole_is_the_sum_of_its_parts() -> None:
    found = values(LOAD)
    parts = [value for title, value in found.items() if title.startswith("CPU: ")]
    assert found["CPU of the primary"] == pytest.approx(sum(parts))


def test_each_replica_hears_every_change() -> None:
    found = values(LOAD)
    heard = found["CPU of each replica: changes it hears"]
    assert heard == pytest.approx(found["changes"] * 30 / 10_000)
    assert values(replace(LOAD, replicas=20))["CPU of each replica: changes it hears"] == heard


def test_the_table_has_a_column_for_each_load() -> None:
    head, *_ = table([LOAD, replace(LOAD, replicas=20)], COSTS).splitlines()
    assert head == "| | 10 replicas, 864,000 sessions | 20 replicas, 864,000 sessions |"
