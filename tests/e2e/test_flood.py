"""Fault 17 of the reliability notes: a flood of connections, and a gateway that is still asked."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.e2e.conftest import Store
from tests.e2e.replicas import Api, ReplicaProcess
from tests.e2e.test_access import free_port


async def is_served(api: Api) -> bool:
    try:
        return (await api.ask("GET", "/livez")).status == 200
    except aiohttp.ClientConnectionError:
        return False


async def test_fault_17_the_admin_port_answers_while_the_public_one_is_flooded(
    store: Store, data_dir: Path, http: aiohttp.ClientSession
) -> None:
    admin_port = free_port()
    environ = {
        "GATEWAY_REDIS_URL": store.url,
        "GATEWAY_MAX_CONNECTIONS": "20",
        "GATEWAY_ADMIN_PORT": str(admin_port),
    }
    async with (
        ReplicaProcess(host="127.0.0.2", data_dir=data_dir, environ=environ) as replica,
        contextlib.AsyncExitStack() as stack,
    ):
        api, address = Api(http, replica), urlsplit(replica.url)

        async def flood(connections: int) -> None:
            for _ in range(connections):
                _, writer = await asyncio.open_connection(address.hostname, address.port)
                stack.callback(writer.close)

        await flood(30)
        refused = await api.ask("GET", "/livez")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        await flood(300)
        with pytest.raises(aiohttp.ClientConnectionError):
            await api.ask("GET", "/livez")
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await api.ask("GET", path, port=admin_port, seconds=2)).status == 200
        await stack.aclose()
        async with asyncio.timeout(10):
            while not await is_served(api):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.1)
