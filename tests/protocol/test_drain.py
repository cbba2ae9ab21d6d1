"""The end of a replica: no request is lost, and sockets end in a way that brings clients back."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise

import pytest

from tests.protocol.conftest import Start
from tests.protocol.harness import (
    ACCEPTED,
    BASE,
    ID,
    Client,
    Gateway,
    Peer,
    Server,
    eventually,
    never,
)

#: Long enough for some requests, and short enough for a test.
GRACE_SECONDS = 0.4
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def served(client: Client, dev: Server, peer: Peer | None = None) -> tuple[Peer, bool]:
    """One request and its answer; returns the dev server's end, and whether it was the last."""
    client.get()
    peer = peer or await dev.accept()
    await peer.head()
    peer.send(HELLO)
    response = await client.response()
    assert response.body == b"hello"
    return peer, response.closes


async def tunnelled(gateway: Gateway, dev: Server) -> tuple[Client, Peer]:
    client = await gateway.client()
    client.upgrade()
    peer = await dev.accept()
    await peer.head()
    peer.send(ACCEPTED)
    assert (await client.response_head()).status == 101
    return client, peer


def draining(gateway: Gateway, *, grace_seconds: float = GRACE_SECONDS) -> asyncio.Task[None]:
    return asyncio.create_task(gateway.drain(grace_seconds=grace_seconds))


# -- the grace period ----------------------------------------------------------------------------


async def test_who_is_connected_is_told_to_leave_by_the_next_answer(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    peer, closes = await served(client, dev)
    assert not closes
    drain = draining(gateway)
    await asyncio.sleep(0)
    _, closes = await served(client, dev, peer)
    assert closes
    assert await client.rest() == b""
    await drain


async def test_who_connects_meanwhile_is_served(gateway: Gateway) -> None:
    dev = await gateway.preview()
    drain = draining(gateway)
    await asyncio.sleep(0)
    peer: Peer | None = None
    for _ in range(3):
        client = await gateway.client()
        peer, closes = await served(client, dev, peer)
        assert closes
        assert await client.rest() == b""
    assert not drain.done()
    await drain
    with pytest.raises(ConnectionRefusedError):
        await gateway.client()


async def test_the_control_plane_answers_meanwhile(gateway: Gateway) -> None:
    drain = draining(gateway)
    await asyncio.sleep(0)
    client = await gateway.client()
    client.ask(b"/readyz")
    peer = await gateway.control.accept()
    await peer.head()
    peer.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    response = await client.response()
    assert (response.status, response.closes) == (503, True)
    await drain


async def test_an_idle_connection_is_closed_at_the_end_of_the_grace_period_and_not_before(
    gateway: Gateway,
) -> None:
    dev = await gateway.preview()
    used, unused = await gateway.client(), await gateway.client()
    await served(used, dev)
    drain = draining(gateway)
    await asyncio.gather(*(never(client.reader.read(1), 0.3) for client in (used, unused)))
    assert await used.rest(0.5) == b""
    assert await unused.rest(0.5) == b""
    async with asyncio.timeout(0.3):
        await drain


async def test_who_was_told_that_the_connection_stays_may_use_it_once_more(start: Start) -> None:
    """The response has begun before the drain and ends after the grace period."""
    gateway = await start(drain_seconds=5.0)
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    peer = await dev.accept()
    await peer.head()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
    response = await client.response_head()
    assert not response.closes
    drain = draining(gateway, grace_seconds=0)
    await eventually(lambda: gateway.listener._server is None)
    peer.send(b"lo")
    assert await client.exactly(5) == b"hello"
    _, closes = await served(client, dev, peer)
    assert closes
    assert await client.rest() == b""
    async with asyncio.timeout(0.5):
        await drain


async def test_who_does_not_use_it_once_more_is_not_waited_for(start: Start) -> None:
    gateway = await start(drain_seconds=30.0)
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    peer = await dev.accept()
    await peer.head()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
    await client.response_head()
    drain = draining(gateway, grace_seconds=0)
    await eventually(lambda: gateway.listener._server is None)
    peer.send(b"lo")
    assert await client.rest(4) == b"hello"
    await drain


async def test_a_request_that_has_begun_to_arrive_is_answered(start: Start) -> None:
    gateway = await start(drain_seconds=5.0)
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(b"GET " + BASE + b" HTTP/1.1\r\nHost: loc")
    await eventually(lambda: any(c.parser.in_message for c in gateway.listener.connections))
    drain = draining(gateway, grace_seconds=0)
    await eventually(lambda: gateway.listener._server is None)
    client.send(b"alhost\r\n\r\n")
    peer = await dev.accept()
    await peer.head()
    peer.send(HELLO)
    response = await client.response()
    assert (response.body, response.closes) == (b"hello", True)
    await drain


async def test_every_client_that_goes_when_it_is_told_to_loses_nothing(start: Start) -> None:
    """Under load, with two replicas, and without a single retry."""
    leaving, staying = await start(drain_seconds=5.0), await start()
    dev = await leaving.preview()
    staying.registry.put(leaving.registry.sessions[ID])

    async def answer(peer: Peer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # the gateway let go of it
            while True:
                head = await peer.reader.readuntil(b"\r\n\r\n")
                peer.send(HELLO[:-5] + head[4 + len(BASE) : 9 + len(BASE)])

    async def answer_all() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(answer(await dev.accept()))

    answering = asyncio.create_task(answer_all())
    answers = {leaving: 0, staying: 0}
    over = asyncio.Event()

    async def work(number: int) -> None:
        client, replica = None, leaving
        count = 0
        while not over.is_set():
            if client is None:
                # As a Service does it: some are still sent to the old one for a while.
                forgotten = leaving.listener.is_leaving and (number + count) % 2
                replica = staying if forgotten or leaving.listener._server is None else leaving
                client = await replica.client()
            client.get(b"%05d" % count)
            response = await client.response()
            assert (response.status, response.body) == (200, b"%05d" % count)
            answers[replica] += 1
            count += 1
            if response.closes:
                assert await client.rest() == b""
                client = None

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(work(number))
        await eventually(lambda: answers[leaving] > 200)
        before = answers[leaving]
        async with asyncio.timeout(3):
            await leaving.drain(grace_seconds=GRACE_SECONDS)
        assert answers[leaving] > before, "new connections were still served"
        after = answers[staying]
        await eventually(lambda: answers[staying] > after + 200)
        over.set()
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)


# -- tunnels -------------------------------------------------------------------------------------


async def test_tunnels_stay_during_the_grace_period(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway, await gateway.preview())
    drain = draining(gateway)
    await never(client.reader.read(1), 0.3)
    assert await client.rest(0.5) == b""
    assert await peer.rest(0.5) == b""
    await drain


async def test_tunnels_end_one_by_one_without_a_close_frame(start: Start) -> None:
    """Each end is a page that loads again somewhere else."""
    gateway = await start(drain_seconds=2.0)
    dev = await gateway.preview()
    pairs = [await tunnelled(gateway, dev) for _ in range(40)]
    clock = asyncio.get_running_loop().time
    begin = clock()

    async def end(peer: Peer) -> float:
        assert await peer.rest() == b""
        return clock() - begin

    ends = [asyncio.create_task(end(client)) for client, _ in pairs]
    far = [asyncio.create_task(end(peer)) for _, peer in pairs]
    await draining(gateway, grace_seconds=0)
    took = clock() - begin
    assert took < 2.0, "within the budget, and without a log line that some were cut off"
    times = sorted([await task for task in ends])
    assert max(later - earlier for earlier, later in pairwise(times)) < 0.6
    for fifth in range(1, 7):
        # 40 in 1.6 s: about five in a fifth of a second; never a crowd.
        assert sum(fifth / 5 <= at < (fifth + 1) / 5 for at in times) <= 15
    assert times[-1] > 1.2
    await asyncio.gather(*far)


async def test_a_tunnel_that_comes_about_during_the_drain_is_ended(start: Start) -> None:
    """Its client has its 101, and comes back; a refusal would leave Vite's client dead for good."""
    gateway = await start(drain_seconds=5.0)
    dev = await gateway.preview()
    client = await gateway.client()
    client.upgrade()
    peer = await dev.accept()
    await peer.head()
    drain = draining(gateway, grace_seconds=0)
    await eventually(lambda: gateway.listener._server is None)
    peer.send(ACCEPTED)
    assert (await client.response_head()).status == 101
    assert await client.rest() == b""
    assert await peer.rest() == b""
    async with asyncio.timeout(0.5):
        await drain


# -- the end of patience -------------------------------------------------------------------------


@pytest.mark.parametrize("grace_seconds", [0.0, 60.0], ids=["while finishing", "in the grace"])
async def test_a_second_signal_ends_everything_at_once(start: Start, grace_seconds: float) -> None:
    gateway = await start(drain_seconds=60.0)
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    peer = await dev.accept()
    await peer.head()
    socket, far = await tunnelled(gateway, dev)
    drain = draining(gateway, grace_seconds=grace_seconds)
    await asyncio.sleep(0.02)
    drain.cancel()
    async with asyncio.timeout(0.5):
        await asyncio.gather(drain, return_exceptions=True)
        for end in (client, peer, socket, far):
            assert await end.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        await gateway.client()


async def test_stragglers_are_cut_off_at_the_end_of_the_budget(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start(drain_seconds=0.2)
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    peer = await dev.accept()
    await peer.head()
    async with asyncio.timeout(1):
        await gateway.drain()
    assert await peer.rest() == b""
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.response()
    assert "cut off after 0.2 s" in caplog.text
