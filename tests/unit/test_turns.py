"""Turns come in order, and none is lost."""

from __future__ import annotations

import asyncio

import pytest

from gateway.proxy.turns import Crowd, Turns


def never_unused() -> Turns[int]:
    unused: list[int] = []
    return Turns(unused=unused.append)


async def waiting(turns: Turns[int], count: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(turns.wait(seconds=5)) for _ in range(count)]
    await asyncio.sleep(0)
    assert len(turns) == count
    return tasks


async def test_turns_are_given_in_order() -> None:
    turns = never_unused()
    tasks = await waiting(turns, 3)
    assert all(turns.give(number) for number in range(3))
    assert not turns.give(3)
    assert await asyncio.gather(*tasks) == [0, 1, 2]


async def test_a_wait_has_a_limit() -> None:
    turns = never_unused()
    with pytest.raises(TimeoutError):
        await turns.wait(seconds=0.01)
    assert len(turns) == 0


async def test_who_is_leaving_is_passed_over() -> None:
    unused: list[int] = []
    turns: Turns[int] = Turns(unused=unused.append)
    first, second = await waiting(turns, 2)
    first.cancel()
    assert turns.give(1)  # before the first one could say that it leaves
    assert await second == 1
    await asyncio.gather(first, return_exceptions=True)
    assert unused == []


async def test_the_turn_of_who_has_just_left_comes_back() -> None:
    unused: list[int] = []
    turns: Turns[int] = Turns(unused=unused.append)
    (task,) = await waiting(turns, 1)
    assert turns.give(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert unused == [1]


async def test_all_can_be_sent_away() -> None:
    unused: list[int] = []
    turns: Turns[int] = Turns(unused=unused.append)
    leaving, staying = await waiting(turns, 2)
    leaving.cancel()
    turns.refuse(lambda: ValueError("over"))
    assert len(turns) == 0
    with pytest.raises(ValueError, match="over"):
        await staying
    await asyncio.gather(leaving, return_exceptions=True)
    assert unused == []


def test_a_crowd_has_so_many_places_for_each() -> None:
    crowd = Crowd(2, full=lambda name, most: ValueError(f"{most} for {name}"))
    with crowd.place("a"), crowd.place("a"), crowd.place("b"):
        assert (crowd.is_full("a"), crowd.is_full("b"), len(crowd)) == (True, False, 3)
        with pytest.raises(ValueError, match="2 for a"), crowd.place("a"):
            pass
        assert len(crowd) == 3
    assert (crowd.is_full("a"), len(crowd)) == (False, 0)
