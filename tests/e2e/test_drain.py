"""A real replica that leaves: readiness, grace, requests, event streams, signals."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.e2e.conftest import Pair
from tests.e2e.listening import listen
from tests.e2e.replicas import Api

SESSIONS: Final = "/api/v1/sessions"
GRACE_SECONDS: Final = 1.5
_LIMIT_SECONDS: Final = 10.0


@pytest.fixture
def environ(request: pytest.FixtureRequest) -> dict[str, str]:
    return {
        "GATEWAY_SPAWNER": "none",
        "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
        "GATEWAY_DRAIN_GRACE_SECONDS": str(getattr(request, "param", GRACE_SECONDS)),
        "GATEWAY_DRAIN_SECONDS": "5",
    }


class Connection:
    """A raw keep-alive connection: what is lost on it is lost, nothing asks a second time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        #: The last answer said that no other follows.
        self.over: bool = False

    @classmethod
    async def to(cls, api: Api) -> Connection:
        port = int(api.url.rpartition(":")[2])
        return cls(*await asyncio.open_connection(api.replica.host, port))

    async def get(self, path: str) -> tuple[int, str]:
        """The status and body of an answer."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(_LIMIT_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in head[1:-2])
            body = await self._reader.readexactly(int(fields["content-length"]))
        self.over = fields.get("connection") == "close"
        return int(head[0].split()[1]), body.decode()

    async def ended(self) -> bool:
        """Whether it ends, with FIN, and without another byte."""
        async with asyncio.timeout(_LIMIT_SECONDS):
            return await self._reader.read() == b""

    def close(self) -> None:
        self._writer.close()


@dataclass
class Preview:
    """A preview of a server that answers with the path; ``/slow`` waits until it may."""

    id: str
    path: str
    asked: asyncio.Event
    release: asyncio.Event


@pytest.fixture
async def preview(pair: Pair) -> AsyncIterator[Preview]:
    asked, release = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/slow"):
            asked.set()
            await release.wait()
        return web.Response(text=request.path)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        body: dict[str, Any] = {
            "id": f"drain-{secrets.token_hex(4)}",
            "target": f"127.0.0.1:{server.port}",
        }
        status, session = await pair.a.call("POST", SESSIONS, body)
        assert status == 201, session
        yield Preview(body["id"], f"/preview/{body['id']}", asked, release)


async def test_fault_25_no_request_is_lost_when_one_of_two_replicas_leaves_under_load(
    pair: Pair, preview: Preview
) -> None:
    leaving, over = asyncio.Event(), asyncio.Event()
    forgotten = asyncio.Event()
    answers = {pair.a: 0, pair.b: 0}

    async def work() -> None:
        """One client that keeps its connection until it is told to go."""
        connection: Connection | None = None
        replica = pair.a
        number = 0
        while not over.is_set():
            if connection is None:
                replica = pair.b if forgotten.is_set() else pair.a
                connection = await Connection.to(replica)
            number += 1
            path = f"{preview.path}/{number}"
            assert await connection.get(path) == (200, path)
            answers[replica] += 1
            await asyncio.sleep(0.005)
            if connection.over:
                assert leaving.is_set()
                assert await connection.ended()
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(work())
        await asyncio.sleep(0.5)
        slow = await Connection.to(pair.a)
        waiting = group.create_task(slow.get(f"{preview.path}/slow"))
        await preview.asked.wait()
        leaving.set()
        pair.a.replica.kill(signal.SIGTERM)
        # Some time before the end of the grace period, nobody is sent there any more.
        await asyncio.sleep(GRACE_SECONDS * 0.6)
        forgotten.set()
        before = answers[pair.b]
        await asyncio.sleep(GRACE_SECONDS * 0.6)
        preview.release.set()
        assert await waiting == (200, f"{preview.path}/slow"), "begun before, done after the grace"
        assert slow.over
        slow.close()
        assert await pair.a.replica.exited() == 0
        assert answers[pair.b] > before
        over.set()
    assert answers[pair.a] > 100


async def test_a_replica_that_leaves_is_not_ready_at_once_and_still_serves(
    pair: Pair, preview: Preview
) -> None:
    kept = await Connection.to(pair.a)
    assert await kept.get("/readyz") == (200, '{"status": "ready"}')
    begin = time.monotonic()
    pair.a.replica.kill(signal.SIGTERM)
    status = 200
    while status == 200:
        fresh = await Connection.to(pair.a)
        status, body = await fresh.get("/readyz")
        fresh.close()
    assert (status, body) == (503, '{"status": "draining"}')
    assert time.monotonic() - begin < 0.5
    new = await Connection.to(pair.a)
    assert await new.get(preview.path + "/") == (200, preview.path + "/")
    assert new.over
    idle = await Connection.to(pair.a)
    assert await kept.get(preview.path + "/") == (200, preview.path + "/")
    assert kept.over
    assert await idle.ended()
    assert GRACE_SECONDS - 0.2 < time.monotonic() - begin < GRACE_SECONDS + 1
    for connection in (kept, new, idle):
        connection.close()
    assert await pair.a.replica.exited() == 0
    assert time.monotonic() - begin < GRACE_SECONDS + 3, "nothing was left to wait for"


async def test_event_streams_go_on_through_the_grace_period_and_end_properly(
    pair: Pair, preview: Preview
) -> None:
    async with listen(f"{pair.a.url}{SESSIONS}/{preview.id}/events") as stream:
        begin = time.monotonic()
        pair.a.replica.kill(signal.SIGTERM)
        async with asyncio.timeout(_LIMIT_SECONDS):
            while await stream.next() is not None:  # a body that is cut off would raise
                pass
        assert GRACE_SECONDS - 0.2 < time.monotonic() - begin < GRACE_SECONDS + 1
    assert await pair.a.replica.exited() == 0


@pytest.mark.parametrize("environ", [60], indirect=True, ids=["grace of 60 s"])
@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]]
)
async def test_a_person_does_not_wait_for_the_grace_period(
    pair: Pair, preview: Preview, signals: list[signal.Signals]
) -> None:
    connection = await Connection.to(pair.a)
    assert (await connection.get(preview.path + "/"))[0] == 200
    first, *more = signals
    pair.a.replica.kill(first)
    for number in more:
        ready = 200
        while ready == 200:  # until the first one has been heard
            ready, _ = await connection.get("/readyz")
            if connection.over:
                connection.close()
                connection = await Connection.to(pair.a)
        pair.a.replica.kill(number)
    begin = time.monotonic()
    assert await connection.ended()
    await pair.a.replica.exited()
    assert time.monotonic() - begin < 5
    connection.close()
    pair.b.replica.kill(signal.SIGINT)
    await pair.b.replica.exited()
