"""A gateway between raw clients and scripted servers, for byte strings of any kind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import uvloop

from tests.fuzz import oracle, readers
from tests.fuzz.compare import split
from tests.fuzz.oracle import End, Message, Reading
from tests.fuzz.readers import Heard
from tests.protocol.harness import (
    LIMIT_SECONDS,
    Client,
    Gateway,
    Peer,
    Server,
    eventually,
    session,
)

OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Scripted(Server):
    """A server that answers each complete request at once, and keeps what it heard."""

    def __init__(self) -> None:
        super().__init__()
        #: The bytes of each connection.
        self.heard: list[bytearray] = []
        #: The requests of all connections, in the order in which they became complete.
        self.asked: list[Message] = []
        self.open_connections = 0
        self.answer: Callable[[Message, Peer], None] = _answer_ok

    async def open(self, path: Path | None = None) -> Scripted:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._serve, path)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.endpoint = type(self.endpoint)(*self._server.sockets[0].getsockname())
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, heard, answered = Peer(reader, writer), bytearray(), 0
        self.heard.append(heard)
        self.open_connections += 1
        try:
            while data := await reader.read(2**16):
                heard += data
                complete = [m for m in oracle.requests(bytes(heard)).messages if m.complete]
                for message in complete[answered:]:
                    self.asked.append(message)
                    self.answer(message, peer)
                answered = len(complete)
        except ConnectionError:
            pass  # the gateway ends a connection with an unfinished upload
        finally:
            self.open_connections -= 1
            writer.close()

    async def forget(self, gateway: Gateway) -> None:
        """Begin anew: no connection, nothing heard."""
        for pool in tuple(gateway.plane.pools):
            for connection in tuple(pool._idle):
                connection.close()
        await eventually(lambda: not self.open_connections)
        self.heard, self.asked, self.answer = [], [], _answer_ok


def _answer_ok(message: Message, peer: Peer) -> None:
    peer.send(OK if message.start[0] != b"HEAD" else OK[:-2])


class Stage:
    """One gateway for all examples, with its dev server and its control plane."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.dev, self.control = Scripted(), Scripted()
        self.answering: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self.gateway = Gateway()
        self.gateway.control = self.control
        self.gateway.servers = [self.control, await self.dev.open()]
        await self.gateway.open()
        self.gateway.registry.put(session(endpoint=self.dev.endpoint))

    async def client(self) -> Client:
        return await self.gateway.client()

    async def forget(self) -> None:
        for client in self.gateway._clients:
            client.writer.transport.abort()
        self.gateway._clients.clear()
        await self.dev.forget(self.gateway)
        await self.control.forget(self.gateway)


async def send(peer: Peer, data: bytes, cuts: Sequence[int]) -> None:
    """Send in parts, each of them a packet of its own as far as that can be had."""
    for part in split(data, cuts):
        if peer.writer.is_closing():
            return
        peer.send(part)
        for _ in range(2):
            await asyncio.sleep(0)


def end(peer: Peer) -> None:
    """End this side, if the connection still stands."""
    if not peer.writer.is_closing():
        peer.end()


async def forward(stage: Stage, data: bytes, cuts: Sequence[int]) -> bytes:
    """What a client gets that sends ``data`` and then ends its side."""
    await stage.forget()
    client = await stage.client()
    receiving = asyncio.create_task(everything(client), name="receiving")
    await send(client, data, cuts)
    end(client)
    return await receiving


async def everything(client: Client) -> bytes:
    """What comes in until the connection ends, in whatever way."""
    received = b""
    async with asyncio.timeout(LIMIT_SECONDS):
        with contextlib.suppress(ConnectionError):
            while data := await client.reader.read(2**16):
                received += data
    return received


def heard_upstream(stage: Stage) -> list[Reading]:
    """What each server's connection carried; four parsers agree about every one of them."""
    readings = []
    for server in (stage.dev, stage.control):
        for heard in map(bytes, server.heard):
            reading = oracle.requests(heard)
            assert reading.end in (End.COMPLETE, End.INCOMPLETE, End.UPGRADED), (reading, heard)
            expected = [Heard.of(message) for message in reading.messages]
            for name, read in readers.REQUESTS.items():
                assert _comparable(read(heard)) == _comparable(expected), name
            readings.append(reading)
    return readings


def _comparable(heard: list[Heard]) -> list[Heard]:
    """Without a head that is not there yet, and without content that is not complete."""
    return [
        each if each.complete else Heard(each.start, each.fields) for each in heard if each.start
    ]


def check_answers(received: bytes, methods: list[bytes]) -> list[Message]:
    """The final answers. Each request got one, the last one perhaps none, a refusal one more."""
    rest, finals = received, []
    for method in [*methods, b"GET"]:
        if not rest:
            break
        reading = oracle.responses(rest, method, ended=True)
        assert reading.end in (End.COMPLETE, End.CLOSED), (reading, rest)
        answer, rest = rest[: len(rest) - len(reading.rest)], reading.rest
        check_answer(answer, method, reading.messages[-1])
        finals.append(reading.messages[-1])
        if reading.end is End.CLOSED:
            break
    assert not rest, f"an answer that nobody asked for: {rest!r}"
    return finals


def check_answer(data: bytes, method: bytes, final: Message) -> None:
    """Four parsers read the same final response."""
    for name, read in readers.RESPONSES.items():
        assert read(data, method)[-1:] == [Heard.of(final)], name
