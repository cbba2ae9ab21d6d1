"""Protocol tests run on uvloop, as production does, and leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import uvloop

from tests.protocol.harness import Gateway, descriptors, eventually

Start = Callable[..., Awaitable[Gateway]]


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name == "test_plain_asyncio.py":
        return {"asyncio": asyncio.SelectorEventLoop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts gateways with given settings; afterwards no task and no socket may be left."""
    before = descriptors()
    gateways: list[Gateway] = []

    async def start(**settings: Any) -> Gateway:
        gateway = await Gateway(**settings).open()
        gateways.append(gateway)
        return gateway

    yield start
    for gateway in gateways:
        await gateway.close()
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    await eventually(lambda: descriptors() <= before)


@pytest.fixture
async def gateway(start: Start) -> Gateway:
    """A gateway with the usual settings."""
    return await start()
