"""What the gateway sends, either way, is one message for every parser, and the one it was sent.

Raw clients and raw dev servers on both sides of a real listener; the bytes in between come from
hypothesis. Whatever they are: what leaves the gateway is read by the oracle, llhttp, h11 and
aiohttp, which must agree with each other, and with what the oracle read before the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import messages, oracle
from tests.fuzz.compare import check_fields, check_trailers
from tests.fuzz.oracle import End, Message
from tests.fuzz.stage import (
    Stage,
    check_answer,
    check_answers,
    end,
    forward,
    heard_upstream,
    send,
)
from tests.fuzz.test_parsers import bounded
from tests.protocol.harness import BASE, LIMIT_SECONDS, Client, Peer

some = settings(bounded, max_examples=150)
#: What the gateway writes itself.
OWN: Final = frozenset(
    b"host origin connection upgrade transfer-encoding content-length date cache-control "
    b"x-forwarded-for x-forwarded-host x-forwarded-proto x-preview-replica".split()
)


# -- requests ------------------------------------------------------------------------------------


def check_forwarded(stage: Stage, data: bytes, received: bytes) -> None:
    """What went upstream, and what came back, is what the client meant."""
    reading = oracle.requests(data)
    unfinished = not reading.messages or not reading.messages[-1].complete
    for sent in heard_upstream(stage):
        if sent.end is End.INCOMPLETE:
            assert unfinished or any(message.refusable for message in reading.messages), sent
    for server in (stage.dev, stage.control):
        meant = iter(reading.messages)
        for asked in server.asked:
            theirs = next((message for message in meant if _same(message, asked)), None)
            assert theirs is not None, f"nobody asked for {asked}"
            ours = [each for each in asked.fields if each[0].lower() not in OWN]
            check_fields(ours, theirs.fields, theirs)
            check_trailers(asked, theirs)
    finals = check_answers(received, [message.start[0] for message in reading.messages])
    assert finals or not any(message.complete for message in reading.messages)


def _same(meant: Message, asked: Message) -> bool:
    return meant.complete and (meant.start[:2], meant.body) == (asked.start[:2], asked.body)


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
    left: list[Peer] = []

    async def answer_first(peer: Peer) -> None:
        await send(peer, data, cuts)
        if ended:
            left.append(peer)
            end(peer)

    def answer(message: Message, peer: Peer) -> None:
        if message.start[1].endswith(b"first"):
            stage.answering = asyncio.create_task(answer_first(peer), name="first answer")
        elif peer not in left:  # else it never heard of it
            peer.send(SECOND)

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
        check_answer(first, method, ours)
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
