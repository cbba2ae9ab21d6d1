"""The gateway's side of the agent: over connections that break, and against whoever took its place.

Code of the preview may end the agent and listen on its port.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import aiohttp
import pytest

from gateway.errors import AgentRefused, AgentUnreachable, NoAgent
from gateway.spawner.kube.agent import Agent
from gateway.spawner.kube.agent_wire import GapEvent
from tests.agent.pods import Pod, listening, order, push

HOST = "127.1.77.77"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[Agent]:
    """A client of a server whose connections are handled so."""

    handled: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        handled.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has had enough
        finally:
            writer.close()
            handled.discard(task)

    server = await asyncio.start_server(handle, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    async with server, aiohttp.ClientSession() as http:
        yield Agent(http, HOST, port, "token")
        for task in handled:
            task.cancel()
        await asyncio.gather(*handled, return_exceptions=True)


def answering(*parts: bytes) -> Handler:
    """Reads a request head, and answers each with these bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()

    return handle


def answer(body: bytes, *fields: str, status: int = 200) -> bytes:
    head = [f"HTTP/1.1 {status} So", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (b"\x00\xff garbage\r\n\r\n",),
        (answer(b"not json"),),
        (answer(b"[1]"),),
        (answer(b'{"state": 1}'),),
        (answer(b"[" * 200_000),),
        (answer(b"", "Location: http://127.0.0.1:1/", status=307),),
        (answer(gzip.compress(b"{}"), "Content-Encoding: gzip"),),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{",),
        (ENDLESS, *[b" " * 2**20] * 20),
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 2**20 + b"\r\n\r\n",),
        (),
    ],
)
async def test_whoever_is_no_agent_counts_as_none(parts: tuple[bytes, ...]) -> None:
    async with served(answering(*parts)) as agent:
        with pytest.raises((AgentUnreachable, NoAgent)):
            await agent.state()
        assert not await agent.healthy()


@pytest.mark.parametrize(
    "parts",
    [
        (ENDLESS, b"garbage\n"),
        (ENDLESS, b'{"n": 0, "type": "log", "generation": 1, "lines": []}\n'),
        (ENDLESS, *[b"x" * 2**20] * 4),
        (answer(b"", "Location: http://127.0.0.1:1/", status=302),),
    ],
)
async def test_events_of_whoever_is_no_agent_end(parts: tuple[bytes, ...]) -> None:
    async with served(answering(*parts)) as agent:
        with pytest.raises(NoAgent):
            async with asyncio.timeout(20):
                await anext(agent.events(unreachable_seconds=60))


async def test_who_does_not_answer_is_unreachable_in_time() -> None:
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.read()

    async with served(hold) as agent:
        async with asyncio.timeout(10):
            assert not await agent.healthy()
        assert held


async def test_where_nobody_listens_the_agent_is_unreachable() -> None:
    async with served(answering()) as agent:
        pass
    async with aiohttp.ClientSession() as http:
        gone = Agent(http, HOST, agent.endpoint.port, "token")
        with pytest.raises(AgentUnreachable, match=f"{HOST}:{agent.endpoint.port}"):
            await gone.state()


async def test_a_call_whose_connection_broke_is_made_once_more() -> None:
    count = 0
    state = {"sessionId": "", "generation": 0, "revision": 0, "state": "idle", "lastEvent": 0}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        await reader.readuntil(b"\r\n\r\n")
        count += 1
        if count > 1:
            writer.write(answer(json.dumps(state).encode()))

    async with served(handle) as agent:
        assert (await agent.stop(grace_seconds=0)).state == "idle"
    assert count == 2


async def test_events_go_on_after_every_lost_connection_and_none_is_lost(pod: Pod) -> None:
    script = b"""
    let number = 0
    process.stdin.resume()
    setInterval(() => number < 100 && console.log('line ' + number++), 5)
    """
    connections = 0

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Cut off after every so many bytes, in the middle of a line or not."""
        nonlocal connections
        connections += 1
        there, back = await asyncio.open_connection(pod.host, pod.port)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            back.write(head.replace(b"Bearer token", f"Bearer {pod.token}".encode()))
            left = 1000 + 7 * connections
            while left > 0 and (data := await there.read(left)):
                writer.write(data)
                await writer.drain()
                left -= len(data)
        finally:
            back.close()
            writer.transport.abort()

    await push(pod, {"script.mjs": script})
    async with served(relay) as agent, listening(agent) as heard:
        await pod.agent.start(order(pod, "node", "script.mjs"))
        await heard.until(lambda: "line 99" in heard.lines)
    assert connections > 3
    assert heard.lines == [f"line {number}" for number in range(100)]
    assert not any(isinstance(event, GapEvent) for event in heard.events)


async def test_a_refusal_ends_the_events_at_once() -> None:
    body = json.dumps({"code": "busy", "detail": "16 readers are served already"}).encode()
    async with served(answering(answer(body, status=503))) as agent:
        with pytest.raises(AgentRefused, match="16 readers") as refused:
            async with aclosing(agent.events(unreachable_seconds=60)) as events:
                await anext(events)
    assert refused.value.reason == "busy"
