"""Who takes what: the same answer on every replica, and an even one."""

from __future__ import annotations

from collections import Counter

from gateway.registry.base import Replica
from gateway.takeover import order, spawning

OWNERS = [f"replica-{number}/1" for number in range(5)]


def first(name: str, owners: list[str]) -> str:
    places = order(name, owners)
    return min(places, key=places.__getitem__)


def test_every_replica_finds_the_same_order_whatever_it_heard_first() -> None:
    assert order("session-1", OWNERS) == order("session-1", list(reversed(OWNERS)))
    assert sorted(order("session-1", OWNERS).values()) == [0, 1, 2, 3, 4]


def test_sessions_are_spread_evenly() -> None:
    counts = Counter(first(f"session-{number}", OWNERS) for number in range(1000))
    assert set(counts) == set(OWNERS)
    assert min(counts.values()) > 140


def test_a_replica_less_moves_only_what_it_would_have_taken() -> None:
    left = OWNERS[1:]
    for number in range(200):
        before = first(f"session-{number}", OWNERS)
        if before != OWNERS[0]:
            assert first(f"session-{number}", left) == before


def test_only_replicas_that_start_dev_servers_are_asked() -> None:
    replicas = [
        Replica("a", "1", info={"spawns": "yes"}),
        Replica("b", "1"),
        Replica("c", "2", info={"spawns": "yes"}),
    ]
    assert spawning(replicas) == ["a/1", "c/2"]
