"""An event stream's own life: silence, listeners who leave, shutdown, a lost registry."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import pytest
import redis.asyncio
from aiohttp import web

from gateway.api.events import EventStreams
from gateway.api.problems import problem_middleware
from gateway.registry.base import NewSession
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Endpoint, Recipe, SessionId
from gateway.settings import load_settings
from tests.e2e.calls import SESSIONS, fresh_id
from tests.e2e.conftest import Pair, Store
from tests.e2e.listening import listen

#: The registry's channels of single sessions.
CHANNELS: Final = "preview:{*"


async def test_a_replica_that_shuts_down_ends_its_streams_and_the_client_resumes(
    pair: Pair,
) -> None:
    session = await pair.a.create({"files": [], "command": "sleep 1000"})
    async with listen(f"{pair.b.url}{SESSIONS}/{session['id']}/events") as stream:
        first = await stream.next()
        assert first is not None
        assert await pair.b.replica.stop() == 0
        while event := await stream.next():
            assert event.type != "end", "the session goes on elsewhere"
    async with listen(f"{pair.a.url}{SESSIONS}/{session['id']}/events", after=first.id) as stream:
        event = await stream.next()
        assert event is not None
        assert event.id != first.id


@asynccontextmanager
async def streams(
    store: Store, *, heartbeat: float, name: str = ""
) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server of one session's events in this process: its URL, and what shuts it down."""
    registry = RedisRegistry(load_settings(), url=store.url)
    await registry.open()
    session_id = SessionId(name or fresh_id())
    target = Endpoint("127.0.0.1", 9)
    new = NewSession(
        session_id, "digest", Recipe(target=str(target)), {}, "/", 60, 0, endpoint=target
    )
    await registry.register(new, owner="test/1")
    closing = asyncio.Event()
    served = EventStreams(registry, closing=closing, heartbeat_seconds=heartbeat)

    async def events(request: web.Request) -> web.StreamResponse:
        after = request.headers.get("Last-Event-ID", "0")
        return await served.respond(request, session_id, after=after)

    app = web.Application(middlewares=[problem_middleware])
    app.router.add_get("/", events)
    # As the gateway does it; a TestServer would cancel the handler when the client goes.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}/", closing
    finally:
        await runner.cleanup()
        await registry.close()


async def until_subscribers(store: Store, expected: int) -> None:
    """Wait until the registry serves so many channels of sessions; it tells nobody of it."""
    async with asyncio.timeout(10), redis.asyncio.from_url(store.url) as client:
        while len(await client.pubsub_channels(CHANNELS)) != expected:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def test_silence_is_broken_by_a_comment(store: Store) -> None:
    async with streams(store, heartbeat=0.02) as (url, _), listen(url) as stream:
        assert (await stream.next()) is not None
        while stream.text.count(b"\n\n: keep-alive\n\n") < 3:
            stream.text += await stream.response.content.readany()


async def test_a_listener_who_leaves_leaves_nothing_behind(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async with streams(store, heartbeat=0.02) as (url, _):
        before = asyncio.all_tasks()
        async with listen(url) as stream:
            assert (await stream.next()) is not None
            await until_subscribers(store, 1)
            assert len(asyncio.all_tasks()) > len(before)
        await until_subscribers(store, 0)
        if left := asyncio.all_tasks() - before:
            _, pending = await asyncio.wait(left, timeout=10)
            assert not pending
    assert not caplog.records


async def test_a_shutdown_ends_a_silent_stream_at_once(store: Store) -> None:
    async with streams(store, heartbeat=60) as (url, closing), listen(url) as stream:
        assert (await stream.next()) is not None
        closing.set()
        assert await stream.next() is None


class SlowListener:
    """Opens a stream and reads nothing of it until it is asked to."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self.socket.settimeout(20)
        self.socket.connect((parts.hostname, parts.port))
        self.socket.sendall(f"GET / HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())

    def rest(self) -> str:
        """All that comes, up to the end of the response."""
        text = b""
        while not text.endswith(b"\r\n0\r\n\r\n"):
            data = self.socket.recv(2**20)
            assert data, "the response is cut off"
            text += data
        return text.decode()

    def reset(self) -> None:
        """End the connection as a crash does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


async def flood(store: Store, name: str) -> list[str]:
    """Far more than the kernel and the gateway keep for a listener; the ids."""
    registry = RedisRegistry(load_settings(), url=store.url)
    await registry.open()
    try:
        text = {"lines": ["x" * 16_000]}
        return [await registry.append(SessionId(name), "log", text) for _ in range(800)]
    finally:
        await registry.close()


async def test_a_listener_who_takes_less_than_comes_is_dropped_and_can_resume(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    name = fresh_id()
    async with streams(store, heartbeat=60, name=name) as (url, _):
        slow = await asyncio.to_thread(SlowListener, url)
        await until_subscribers(store, 1)
        ids = await flood(store, name)
        text = await asyncio.to_thread(slow.rest)
        slow.socket.close()
        given = [identifier for identifier in re.findall(r"id: (\S+)", text) if identifier in ids]
        assert given == ids[: len(given)]
        assert 0 < len(given) < len(ids)
        assert "event: end" not in text
        await until_subscribers(store, 0)
        async with listen(url, after=given[-1]) as stream:
            events = [await stream.next() for _ in range(len(ids) - len(given))]
        assert [event.id for event in events if event] == ids[len(given) :]
    assert not caplog.records


async def test_a_listener_who_goes_while_it_takes_nothing_leaves_nothing_behind(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    name = fresh_id()
    async with streams(store, heartbeat=60, name=name) as (url, _):
        slow = await asyncio.to_thread(SlowListener, url)
        await until_subscribers(store, 1)
        await flood(store, name)
        slow.reset()
        await until_subscribers(store, 0)
    assert not caplog.records


async def test_a_lost_registry_is_told_and_the_stream_goes_on(store: Store) -> None:
    async with streams(store, heartbeat=60) as (url, _), listen(url) as stream:
        assert (await stream.next()) is not None
        async with redis.asyncio.from_url(store.url) as client:
            await client.client_kill_filter(_type="pubsub")
            assert (await stream.until("degraded"))[-1].data["reason"]
            await until_subscribers(store, 1)
            (channel,) = await client.pubsub_channels(CHANNELS)
            await client.publish(channel, b'["9999999999999-1", "end", "{\\"state\\": \\"x\\"}"]')
        assert (await stream.until("end"))[-1].data == {"state": "x"}
