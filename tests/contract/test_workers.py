"""The supervisor of workers alone, with real ones: starts that fail, and crashes in a row."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Final

import psutil
import pytest

from gateway.session import SessionId
from gateway.settings import load_settings
from gateway.workers.supervisor import WorkerFailed, Workers

_SECONDS: Final = 20.0
#: No Python starts with this in its environment.
_POISON: Final = ("PYTHONHASHSEED", "no number")


class Nobody:
    """A life cycle without sessions."""

    async def touch(self, session_ids: Collection[SessionId]) -> None:
        raise AssertionError(session_ids)

    async def wake(self, session_id: SessionId, *, generation: int) -> bool:
        raise AssertionError(session_id)


@pytest.fixture
def port() -> socket.socket:
    """A bound socket."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


@pytest.fixture
async def workers(tmp_path: Path, port: socket.socket) -> AsyncIterator[Workers]:
    """Two workers, not started yet, whose registry and control plane are away for good."""
    settings = load_settings(
        {
            "workers": 2,
            "redis_url": f"unix://{tmp_path}/none",
            "registry_timeout_seconds": 0.2,
            "data_dir": tmp_path,
        }
    )
    workers = Workers(settings, Nobody(), control_socket=str(tmp_path / "none"))
    yield workers
    await workers.close(drain_seconds=0)
    port.close()
    assert children() == []


def children() -> list[psutil.Process]:
    """The workers that run now."""
    found = psutil.Process().children()
    return [child for child in found if "gateway.workers.main" in " ".join(child.cmdline())]


def samples(workers: Workers) -> dict[str, float]:
    return {
        f"{name} {labels.get('worker', '')}".strip(): value
        for name, _, _, pairs in workers.samples()
        for labels, value in pairs
    }


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SECONDS):
        while not condition():  # noqa: ASYNC110 - other processes announce nothing
            await asyncio.sleep(0.02)


async def answer(address: tuple[str, int]) -> bytes:
    """The first line of an answer to a request for no preview."""
    async with asyncio.timeout(_SECONDS):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
    return line


async def test_a_worker_that_cannot_start_fails_the_start(
    workers: Workers, port: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*_POISON)
    with pytest.raises(WorkerFailed, match=r"worker \d \(process \d+\) exited with status 1"):
        await workers.open(port)


async def test_a_worker_that_keeps_crashing_is_tried_again_until_it_serves(
    workers: Workers, port: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await workers.open(port)
    address = port.getsockname()
    assert samples(workers)["worker_up 0"] == samples(workers)["worker_up 1"] == 1
    monkeypatch.setenv(*_POISON)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for child in children():
        child.kill()
    await until(lambda: samples(workers)["worker_restarts 0"] >= 4)
    # At once, and then after 0.25, 0.5 and 1 s, each time with the time that a start takes.
    assert loop.time() - started > 0.75
    assert samples(workers)["worker_up 0"] == 0
    waiting = asyncio.create_task(answer(address))
    monkeypatch.delenv(_POISON[0])
    await until(lambda: samples(workers)["worker_up 0"] == samples(workers)["worker_up 1"] == 1)
    assert (await waiting).startswith(b"HTTP/1.1 502"), "accepted meanwhile, answered now"


async def test_what_has_been_closed_can_be_closed_again_and_the_port_is_free(
    workers: Workers, port: socket.socket
) -> None:
    await workers.open(port)
    address = port.getsockname()
    await workers.close(drain_seconds=0)
    await workers.close(drain_seconds=0)
    with socket.socket() as other:
        other.bind(address)
        other.listen()
