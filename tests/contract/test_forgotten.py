"""What is left of a session that somebody has deleted."""

from __future__ import annotations

from typing import Final

import pytest

from gateway.errors import SessionEnded
from gateway.registry.redis_store import RedisRegistry
from gateway.session import State
from tests.contract.conftest import ID, new_session

A: Final = "replica-a/1"


async def test_what_is_deleted_says_so_takes_no_event_and_can_begin_anew(
    registry: RedisRegistry,
) -> None:
    session = (await registry.register(new_session(), owner=A)).session
    await registry.request_stop(ID, reason="deleted by request")
    await registry.move(ID, State.STOPPED, owner=A, generation=session.generation)
    await registry.forget(ID)
    left = await registry.session(ID)
    assert left is not None
    assert (left.state, left.forgotten) == (State.STOPPED, True)
    with pytest.raises(SessionEnded):
        await registry.note(ID, {}, late_seconds=60)
    assert await registry.recent_events(ID, count=5) == []
    again = await registry.register(new_session(), owner=A)
    assert not again.session.forgotten
