"""What the registry keeps of accounts and one-use names: the same on Redis and on Valkey."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.errors import LimitReached
from gateway.registry.base import Charge, Limits
from gateway.registry.redis_store import RedisRegistry
from gateway.session import SessionId
from tests.contract.conftest import ID, new_session

#: Keys of several sessions are touched by one call.
STORES = ("valkey", "cluster")
NAME = "builder"


def charge(number: int, *, files: int = 1, size: int = 10, creates: bool = True) -> Charge:
    return Charge(SessionId(f"session-{number:02}"), files=files, bytes=size, creates=creates)


async def refused(registry: RedisRegistry, one: Charge, limits: Limits) -> LimitReached:
    with pytest.raises(LimitReached) as caught:
        await registry.charge(NAME, one, limits)
    return caught.value


async def register(registry: RedisRegistry, one: Charge, creator: str = NAME) -> None:
    await registry.register(replace(new_session(one.session_id), creator=creator), owner="a/1")


async def test_what_is_kept_is_recalled_once(registry: RedisRegistry) -> None:
    await registry.remember("ticket", "its value", seconds=60)
    got = await asyncio.gather(*(registry.recall("ticket") for _ in range(20)))
    assert sorted(filter(None, got)) == ["its value"]
    assert await registry.recall("ticket") is None
    assert await registry.recall("never") is None


async def test_creates_are_limited_by_the_minute(registry: RedisRegistry) -> None:
    limits = Limits(creates_per_minute=3)
    for _ in range(3):
        await registry.charge(NAME, charge(1), limits)
    error = await refused(registry, charge(1), limits)
    assert error.kind == "creates"
    assert error.retry_after in (19, 20)
    await registry.charge(NAME, charge(1, creates=False), limits)
    await registry.charge("somebody-else", charge(1), limits)


async def test_sessions_that_are_there_count(registry: RedisRegistry) -> None:
    limits = Limits(sessions=2)
    for number in range(2):
        await registry.charge(NAME, charge(number), limits)
        await register(registry, charge(number))
    assert (await refused(registry, charge(2), limits)).kind == "sessions"
    await registry.charge(NAME, charge(1), limits)
    await registry.charge("somebody-else", charge(2), limits)


@pytest.mark.parametrize("how", ["ended", "never registered", "of somebody else"])
async def test_sessions_that_are_not_there_stop_to_count(registry: RedisRegistry, how: str) -> None:
    limits = Limits(sessions=1)
    await registry.charge(NAME, charge(1), limits)
    if how == "ended":
        await register(registry, charge(1))
        await registry.request_stop(charge(1).session_id, reason="enough")
    elif how == "of somebody else":
        await register(registry, charge(1), creator="somebody-else")
    await registry.charge(NAME, charge(2), limits)


async def test_files_and_bytes_of_all_sessions_count_with_edits(registry: RedisRegistry) -> None:
    limits = Limits(files=5, bytes=100)
    for number in range(2):
        await registry.charge(NAME, charge(number, files=2, size=40), limits)
        await register(registry, charge(number))
    grown = charge(1, files=4, size=40, creates=False)
    assert (await refused(registry, grown, limits)).kind == "files"
    await asyncio.sleep(0)
    larger = charge(1, files=2, size=61, creates=False)
    assert (await refused(registry, larger, limits)).kind == "bytes"
    await registry.charge(NAME, charge(1, files=3, size=60, creates=False), limits)
    # What is too much already may shrink.
    tight = Limits(files=1, bytes=1)
    await registry.charge(NAME, charge(1, files=2, size=50, creates=False), tight)


async def test_an_account_is_charged_alike_by_many_at_once(registry: RedisRegistry) -> None:
    limits = Limits(sessions=5)
    for number in range(20):
        await register(registry, charge(number))
    tries = await asyncio.gather(
        *(registry.charge(NAME, charge(number), limits) for number in range(20)),
        return_exceptions=True,
    )
    assert [one for one in tries if one is None] == [None] * 5
    assert all(one is None or isinstance(one, LimitReached) for one in tries)


async def test_access_changes_with_a_revocation_and_with_a_new_session_only(
    registry: RedisRegistry,
) -> None:
    made = (await registry.register(new_session(), owner="a/1")).session
    assert made.access > 0
    patched = await registry.patch(ID, public=False)
    assert patched.access == made.access
    revoked = await registry.patch(ID, revoke=True)
    assert revoked.access > made.access
    await registry.request_stop(ID, reason="enough")
    stopping = await registry.session(ID)
    assert stopping is not None
    assert stopping.access == revoked.access == stopping.route.access
