"""A pool never counts a connection that is not there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.proxy.outbox import Outbox
from gateway.proxy.upstream import Pool, PoolLimits, UpstreamConnection
from tests.protocol.harness import Server, eventually


class CancelsOnceMade(asyncio.Protocol):
    """Stands before a connection; cancels the task that waits for it as soon as it is made."""

    def __init__(self, connection: UpstreamConnection, waiting: asyncio.Task[Any]) -> None:
        self._connection = connection
        self._waiting = waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(transport)
        self._waiting.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)


async def test_a_request_that_is_cancelled_as_its_connection_is_made_leaves_no_place_taken() -> (
    None
):
    loop = asyncio.get_running_loop()
    server = await Server().open()

    async def connect(factory: Callable[[], UpstreamConnection]) -> None:
        waiting = asyncio.current_task()
        assert waiting is not None
        await loop.create_connection(
            lambda: CancelsOnceMade(factory(), waiting), server.endpoint.host, server.endpoint.port
        )

    limits = PoolLimits(requests=1, tunnels=1, queue=0, queue_seconds=0)
    pool = Pool(
        connect,
        name="it",
        connect_timeout_seconds=5,
        limits=limits,
        max_head=1024,
        outbox=Outbox(loop.call_soon, loop.time),
    )
    for _ in range(3):  # the second one would find no place
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(pool.open())
        assert len(pool) == 0
    for _ in range(3):
        peer = await server.accept()
        assert await peer.rest() == b"", "the dev server is told"
    await eventually(lambda: not pool.connections())
    await server.close()
