"""A look at the servers of a registry from outside, for ``doctor``."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from redis import exceptions

from gateway.errors import RegistryUnavailable
from gateway.findings import Server
from gateway.registry.node import Node
from gateway.registry.redis_client import make_topology
from gateway.registry.redis_errors import explain
from gateway.registry.valkey_process import ValkeyProcess

_PINGS: Final = 5


def embedded_url(data_dir: Path) -> str:
    """The URL of the Valkey that gateways run in ``data_dir``; empty if none does."""
    socket = ValkeyProcess(data_dir / "valkey").socket()
    return f"unix://{quote(str(socket))}" if socket is not None and socket.exists() else ""


async def examine(url: str, *, limit_seconds: float) -> list[Server]:
    """Every server that takes writes. Raises RegistryUnavailable, SettingsError."""
    topology = make_topology(url, limit_seconds=limit_seconds)
    try:
        async with asyncio.timeout(3 * limit_seconds):
            await topology.node(None)
            return [await _look_at(node, limit_seconds) for node in await topology.nodes()]
    except (exceptions.RedisError, OSError, TimeoutError) as exc:
        raise RegistryUnavailable(explain(exc, limit_seconds)) from exc
    finally:
        await topology.close()


async def _look_at(node: Node, limit_seconds: float) -> Server:
    times = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        await node.ask(("PING",), limit_seconds=limit_seconds)
        times.append(time.perf_counter() - began)
    try:
        (told,) = await node.ask(("INFO",), limit_seconds=limit_seconds)
    except exceptions.NoPermissionError:
        told = b""
    return Server(str(node), sorted(times)[_PINGS // 2] * 1000, _fields(told))


def _fields(told: Any) -> dict[str, str]:
    text = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}
