"""What the gateway sends, either way, is one message for every parser, and the one it was sent.

Raw clients and raw dev servers on both sides of a real listener; the bytes in between come from
hypothesis. Whatever they are: what leaves the gateway is read by the oracle, llhttp, h11 and
aiohttp, which must agree with each other, and with what the oracle read before the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import messages, oracle, readers
from tests.fuzz.compare import check_fields, split
from tests.fuzz.oracle import End, Message
from tests.fuzz.readers import Heard
from tests.fuzz.test_parsers import bounded
from tests.protocol.harness import (
    BASE,
    LIMIT_SECONDS,
    Client,
    Gateway,
    Peer,
    Server,
    eventually,
    session,
)

some = settings(bounded, max_examples=150)
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#: What the gateway writes itself.
OWN: Final = frozenset(
    b"host origin connection upgrade transfer-encoding content-length date cache-control "
    b"x-forwarded-for x-forwarded-host x-forwarded-proto x-preview-replica".split()
)


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
            await client.close()
        self.gateway._clients.clear()
        await self.dev.forget(self.gateway)
        await self.control.forget(self.gateway)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    stage.runner.run(stage.open())
    yield stage
    stage.runner.run(stage.forget())
    stage.runner.run(stage.gateway.close())
    stage.runner.close()


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


# -- requests ------------------------------------------------------------------------------------


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


def check_forwarded(stage: Stage, data: bytes, received: bytes) -> None:
    """What went upstream, and what came back, is what the client meant."""
    reading = oracle.requests(data)
    upstream = [bytes(heard) for server in (stage.dev, stage.control) for heard in server.heard]
    for heard in upstream:
        sent = oracle.requests(heard)
        assert sent.end in (End.COMPLETE, End.INCOMPLETE, End.UPGRADED), (sent, heard)
        _all_agree(heard, [Heard.of(message) for message in sent.messages])
        if sent.end is End.INCOMPLETE:
            assert not reading.messages[-1].complete, f"never completed: {heard!r}"
    for server in (stage.dev, stage.control):
        meant = iter(reading.messages)
        for asked in server.asked:
            theirs = next((message for message in meant if _same(message, asked)), None)
            assert theirs is not None, f"nobody asked for {asked}"
            ours = [each for each in asked.fields if each[0].lower() not in OWN]
            check_fields(ours, theirs.fields, theirs)
            check_fields(asked.trailers, theirs.trailers, theirs)
    _check_answers(received, [message.start[0] for message in reading.messages], reading.end)


def _same(meant: Message, asked: Message) -> bool:
    return meant.complete and (meant.start[:2], meant.body) == (asked.start[:2], asked.body)


def _all_agree(data: bytes, expected: list[Heard]) -> None:
    for name, read in readers.REQUESTS.items():
        assert _comparable(read(data)) == _comparable(expected), name


def _comparable(heard: list[Heard]) -> list[Heard]:
    """Without a head that is not there yet, and without content that is not complete."""
    return [
        each if each.complete else Heard(each.start, each.fields) for each in heard if each.start
    ]


def _check_answers(received: bytes, methods: list[bytes], end: End) -> None:
    """Each request got one answer, the last one perhaps none, and a refusal at most one more."""
    rest = received
    for method in [*methods, b"GET"]:
        if not rest:
            break
        reading = oracle.responses(rest, method, ended=True)
        assert reading.end in (End.COMPLETE, End.CLOSED), (reading, rest)
        answer, rest = rest[: len(rest) - len(reading.rest)], reading.rest
        _check_answer(answer, method, reading.messages)
        if reading.end is End.CLOSED:
            break
    assert not rest, f"an answer that nobody asked for: {rest!r}"
    assert received or not methods, "no answer at all"


def _check_answer(data: bytes, method: bytes, expected: list[Message]) -> None:
    final = Heard.of(expected[-1])
    for name, read in readers.RESPONSES.items():
        heard = read(data, method)
        assert heard[-1:] == [final], name


@some
@given(messages.requests(host=b"localhost", base=BASE), messages.CUTS)
def test_valid_requests_reach_the_dev_server_as_they_were_meant(
    stage: Stage, data: bytes, cuts: Sequence[int]
) -> None:
    async def play() -> None:
        received = await forward(stage, data, cuts)
        check_forwarded(stage, data, received)
        reading = oracle.requests(data)
        assert len(stage.dev.asked) == len(reading.messages)
        finals = oracle.responses(received, *(m.start[0] for m in reading.messages), ended=True)
        assert [m.start[1] for m in finals.messages] == [b"200"] * len(reading.messages)

    stage.runner.run(play())


@some
@given(messages.damaged(messages.requests(host=b"localhost", base=BASE)), messages.CUTS)
def test_of_damaged_requests_nothing_reaches_a_server_that_was_not_meant(
    stage: Stage, data: bytes, cuts: Sequence[int]
) -> None:
    async def play() -> None:
        received = await forward(stage, data, cuts)
        check_forwarded(stage, data, received)

    stage.runner.run(play())


# -- responses -----------------------------------------------------------------------------------

SECOND: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"


async def one_answer(client: Client, method: bytes) -> tuple[bytes, bool]:
    """The bytes up to the end of the next answer, and whether the connection ended with them."""
    received = b""
    async with asyncio.timeout(LIMIT_SECONDS):
        while oracle.responses(received, method).end in (End.INCOMPLETE, End.COMPLETE):
            reading = oracle.responses(received, method)
            if (
                reading.messages
                and reading.messages[-1].start[1] >= b"200"
                and reading.messages[-1].complete
            ):
                return received, False
            try:
                data = await client.reader.read(2**16)
            except ConnectionError:
                data = b""
            if not data:
                return received, True
            received += data
    return received, True


async def answered(
    stage: Stage, data: bytes, method: bytes, cuts: Sequence[int], *, ended: bool
) -> tuple[bytes, bytes]:
    """What a client gets for a request that is answered by ``data``, and for one after it."""
    await stage.forget()
    script = [data, SECOND]

    def answer(_: Message, peer: Peer) -> None:
        task = asyncio.ensure_future(send(peer, script.pop(0), cuts if len(script) else ()))
        if ended and script == [SECOND]:
            task.add_done_callback(lambda _: end(peer))

    stage.dev.answer = answer
    client = await stage.client()
    client.get(b"first", method=method)
    first, over = await one_answer(client, method)
    if over or b"Connection: close" in first:
        client = await stage.client()
    client.get(b"second")
    second, _ = await one_answer(client, b"GET")
    return first, second


def check_answered(data: bytes, method: bytes, first: bytes, second: bytes, *, ended: bool) -> None:
    """The client got what the dev server said, or a 502, or sees that something is missing."""
    said = oracle.responses(data, method, ended=ended)
    got = oracle.responses(first, method, ended=True)
    theirs = said.messages[-1] if said.messages else None
    whole = theirs is not None and theirs.complete and theirs.start[1] >= b"200"
    if got.end in (End.COMPLETE, End.CLOSED) and got.messages:
        ours = got.messages[-1]
        _check_answer(first, method, got.messages)
        if ours.values(b"content-type") == [b"application/problem+json"]:
            assert ours.start[1] == b"502"
            # What the dev server said is not whole, or need not be taken.
            assert not whole or any(message.refusable for message in said.messages)
        else:
            assert theirs is not None
            assert whole
            assert (ours.start[1], ours.body) == (theirs.start[1], theirs.body)
            fields = [each for each in ours.fields if each[0].lower() not in OWN]
            check_fields(fields, theirs.fields, theirs)
    else:
        assert not whole, f"cut short: {first!r}"
    assert second.endswith(b"\r\n\r\nsecond"), second


@some
@given(st.data(), st.sampled_from([b"GET", b"HEAD", b"POST"]), messages.CUTS)
def test_valid_responses_reach_the_client_as_they_were_meant(
    stage: Stage, data: st.DataObject, method: bytes, cuts: Sequence[int]
) -> None:
    answer = data.draw(messages.response(to_head=method == b"HEAD"))
    ended = oracle.responses(answer, method).end is End.INCOMPLETE

    async def play() -> None:
        first, second = await answered(stage, answer, method, cuts, ended=ended)
        assert b"application/problem+json" not in first
        check_answered(answer, method, first, second, ended=ended)

    stage.runner.run(play())


@some
@given(
    messages.damaged(messages.response()),
    st.sampled_from([b"GET", b"HEAD", b"POST"]),
    messages.CUTS,
    st.booleans(),
)
def test_of_damaged_responses_nothing_reaches_a_client_that_was_not_meant(
    stage: Stage, data: bytes, method: bytes, cuts: Sequence[int], ended: bool
) -> None:
    reading = oracle.responses(data, method)
    # Of what is not complete, the dev server must end the connection, or everybody waits.
    ended = ended or reading.end is End.INCOMPLETE or not _is_final(reading.messages)

    async def play() -> None:
        first, second = await answered(stage, data, method, cuts, ended=ended)
        check_answered(data, method, first, second, ended=ended)

    stage.runner.run(play())


def _is_final(messages: list[Message]) -> bool:
    return bool(messages) and messages[-1].start[1] >= b"200"
