"""Requests beyond what one dev server may have wait their turn, and only for themselves.

The numbers are those of the faults in the reliability notes: 17, a flood of connections, and 18, a
preview that takes all it can get.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.session import State
from tests.protocol.conftest import Start
from tests.protocol.harness import (
    ACCEPTED,
    ID,
    TOKEN,
    Client,
    Gateway,
    Peer,
    Response,
    Server,
    eventually,
    never,
    session,
)

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def busy(gateway: Gateway, requests: int = 1) -> tuple[Server, list[Client], list[Peer]]:
    """A preview with requests under way."""
    dev = await gateway.preview()
    clients = [await gateway.client() for _ in range(requests)]
    for client in clients:
        client.get(b"first")
    peers = [await dev.accept() for _ in range(requests)]
    for peer in peers:
        await peer.head()
    return dev, clients, peers


async def queued(gateway: Gateway, *names: bytes) -> list[Client]:
    """Clients whose requests wait, one behind the other."""
    clients = []
    for name in names:
        clients.append(await gateway.client())
        clients[-1].get(name)
        await eventually(lambda: waiting(gateway) == len(clients))
    return clients


def waiting(gateway: Gateway) -> int:
    return len(gateway.pool()._turns)


async def test_requests_wait_for_a_connection_first_come_first_served(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1)
    dev, (first,), (peer,) = await busy(gateway)
    clients = await queued(gateway, b"1", b"2", b"3")
    for number, client in enumerate([first, *clients]):
        peer.send(HELLO)
        assert (await client.response()).body == b"hello"
        if number < 3:
            assert b"/%d " % (number + 1) in await peer.head()
    assert len(dev.peers) == 1
    first.get(b"again")
    assert b"/again " in await peer.head()  # and then the connection is idle again


async def test_a_place_that_becomes_free_is_a_turn_too(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1)
    dev, (first,), (peer,) = await busy(gateway)
    (second,) = await queued(gateway, b"1")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    await first.response()
    peer = await dev.accept()
    assert b"/1 " in await peer.head()
    peer.send(HELLO)
    assert (await second.response()).status == 200


async def test_a_full_queue_is_503_at_once(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1, max_queue_per_preview=2)
    await busy(gateway)
    await queued(gateway, b"1", b"2")
    client = await gateway.client()
    client.get(b"3")
    response = await client.response()
    assert (response.status, response.json()["code"]) == (503, "upstream_busy")
    assert response.fields["retry-after"] == "1"
    assert "1 requests under way and 2 waiting" in response.json()["detail"]


async def test_nobody_waits_for_ever(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1, queue_seconds=0.2)
    _, (first,), (peer,) = await busy(gateway)
    (second,) = await queued(gateway, b"1")
    response = await second.response()
    assert (response.status, response.json()["code"]) == (503, "upstream_busy")
    assert waiting(gateway) == 0
    peer.send(HELLO)
    assert (await first.response()).status == 200


async def test_the_turn_of_a_client_that_left_is_not_lost(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1)
    _, _, (peer,) = await busy(gateway)
    second, third, fourth = await queued(gateway, b"1", b"2", b"3")
    second.reset()
    await eventually(lambda: waiting(gateway) == 2)
    third.reset()  # about to leave when its turn comes
    peer.send(HELLO)
    head = await peer.head()
    if b"/2 " in head:
        assert await peer.rest() == b""
        peer = await gateway.servers[-1].accept()
        head = await peer.head()
    assert b"/3 " in head
    peer.send(HELLO)
    assert (await fourth.response()).status == 200


async def test_an_upload_waits_with_its_content(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1)
    _, (first,), (peer,) = await busy(gateway)
    client = await gateway.client()
    client.get(b"up", b"Content-Length: 300000", method=b"POST")
    client.send(b"x" * 300_000)
    await eventually(lambda: waiting(gateway) == 1)
    peer.send(HELLO)
    await first.response()
    assert b"/up " in await peer.head()
    assert await peer.exactly(300_000) == b"x" * 300_000


async def test_who_waits_goes_to_the_dev_server_that_comes_next(start: Start) -> None:
    """What belongs to a newer generation is never sent to an older one."""
    gateway = await start(max_connections_per_preview=1)
    _, (first,), (peer,) = await busy(gateway)
    (second,) = await queued(gateway, b"1")
    gateway.waker.on_wake = lambda: True
    newer = await gateway.preview(generation=2)
    second_peer = await newer.accept()
    assert b"/1 " in await second_peer.head()
    second_peer.send(HELLO)
    assert (await second.response()).status == 200
    peer.send(HELLO)
    assert (await first.response()).status == 200  # what was under way ends where it began
    assert await peer.rest() == b""


async def held(gateway: Gateway, count: int) -> list[Client]:
    """Clients whose requests are held while the dev server starts."""
    clients = [await gateway.client() for _ in range(count)]
    for number, client in enumerate(clients):
        client.get(b"%d" % number)
    await eventually(lambda: len(gateway.plane.held) == count)
    return clients


async def refused(gateway: Gateway, *fields: bytes) -> Response:
    """What a request gets that may not even wait."""
    client = await gateway.client()
    client.get(b"more", *fields)
    response = await client.response()
    assert (response.status, response.fields["retry-after"]) == (503, "1")
    return response


async def test_as_many_are_held_for_a_start_as_get_in_after_it(start: Start) -> None:
    gateway = await start(max_connections_per_preview=3, max_queue_per_preview=2)
    gateway.starting()
    clients = await held(gateway, 5)
    response = await refused(gateway)
    assert response.json()["code"] == "upstream_busy"
    assert "5 requests wait for" in response.json()["detail"]
    other = await gateway.preview(session_id="other123")
    client = await gateway.client()
    client.ask(b"/preview/other123/")
    peer = await other.accept()
    await peer.head()
    peer.send(HELLO)
    assert (await client.response()).status == 200  # others are served all the while
    dev = await gateway.preview(version=2)
    peers = [await dev.accept() for _ in range(3)]
    await eventually(lambda: waiting(gateway) == 2)
    assert len(gateway.plane.held) == 0
    for peer in (*peers, *peers[:2]):
        await peer.head()
        peer.send(HELLO)
    for client in clients:
        assert (await client.response()).status == 200


@pytest.mark.parametrize("state", [State.STARTING, State.SLEEPING])
async def test_a_page_is_not_held_and_gets_in_however_many_are(start: Start, state: State) -> None:
    gateway = await start(max_connections_per_preview=1, max_queue_per_preview=0)
    gateway.registry.put(session(state))
    await held(gateway, 1)
    response = await refused(gateway, b"Accept: text/html")
    assert b"<title>Starting " in response.body
    assert len(gateway.waker.woken) == (1 if state is State.SLEEPING else 0)


async def test_who_leaves_is_held_no_longer(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1, max_queue_per_preview=1)
    gateway.starting()
    first, _ = await held(gateway, 2)
    await refused(gateway)
    first.reset()
    await eventually(lambda: len(gateway.plane.held) == 1)
    client = await gateway.client()
    client.get(b"instead")
    await eventually(lambda: len(gateway.plane.held) == 2)


async def test_who_waits_for_an_unknown_session_is_held_too(start: Start) -> None:
    gateway = await start(
        max_connections_per_preview=1, max_queue_per_preview=1, registration_wait_seconds=2
    )
    clients = await held(gateway, 2)
    await refused(gateway)
    dev = await gateway.preview()  # they are answered when it is registered
    peer = await dev.accept()
    for _ in clients:
        await peer.head()
        peer.send(HELLO)
    for client in clients:
        assert (await client.response()).status == 200


async def test_who_may_not_see_a_session_finds_as_many_places_as_for_an_unknown_one(
    start: Start,
) -> None:
    """No more, no less: ids cannot be probed. Nor are they in the way of those who may."""
    gateway = await start(
        max_connections_per_preview=1,
        max_queue_per_preview=1,
        registration_wait_seconds=0.5,
        api_tokens=TOKEN,
    )
    gateway.registry.put(session(State.STARTING, public=False))
    strangers = [await gateway.client() for _ in range(2)]
    for client in strangers:
        client.get(b"x")
    await eventually(lambda: len(gateway.plane.denied) == 2)
    response = await refused(gateway)
    assert response.json()["code"] == "upstream_busy"
    client = await gateway.client()
    client.get(b"x", b"Authorization: Bearer " + TOKEN.encode())
    await eventually(lambda: len(gateway.plane.held) == 1)
    for client in strangers:
        assert (await client.response()).status == 404


async def test_who_is_to_go_to_the_next_dev_server_is_held_for_it(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1, max_queue_per_preview=1)
    gone = await gateway.preview()
    await gone.close()

    def on_wake() -> bool:
        gateway.starting(generation=2)
        return True

    gateway.waker.on_wake = on_wake
    client = (await held(gateway, 1))[0]
    newer = await gateway.preview(generation=2, version=9)
    peer = await newer.accept()
    await peer.head()
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_who_waits_for_a_dev_server_that_is_replaced_goes_to_the_newer_one(
    start: Start,
) -> None:
    gateway = await start(max_connections_per_preview=1)
    await busy(gateway)
    (client,) = await queued(gateway, b"1")
    # The life cycle: nothing is wrong with the newest dev server, only with the one before.
    gateway.waker.on_wake = lambda: gateway.waker.woken == [(ID, 1)]
    newer = await gateway.preview(generation=2, version=2)
    peer = await newer.accept()
    assert b"/1 " in await peer.head()
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_open_sockets_keep_no_request_waiting(start: Start) -> None:
    gateway = await start(max_connections_per_preview=1, max_tunnels_per_preview=2)
    dev = await gateway.preview()
    for _ in range(2):
        client = await gateway.client()
        client.upgrade()
        peer = await dev.accept()
        await peer.head()
        peer.send(ACCEPTED)
        assert (await client.response_head()).status == 101
    client = await gateway.client()
    client.upgrade()
    response = await client.response()
    assert (response.status, response.json()["code"]) == (503, "upstream_busy")
    assert "GATEWAY_MAX_TUNNELS_PER_PREVIEW" in response.json()["detail"]
    client = await gateway.client()
    client.get(b"x")
    peer = await dev.accept()
    await peer.head()
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_a_refused_upgrade_gives_its_place_back(start: Start) -> None:
    gateway = await start(max_tunnels_per_preview=1)
    dev = await gateway.preview()
    for _ in range(3):
        client = await gateway.client()
        client.upgrade()
        peer = await dev.accept()
        await peer.head()
        peer.send(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")
        assert (await client.response()).status == 400
        await eventually(lambda: len(gateway.pool()) == 0)


async def test_fault_18_a_greedy_preview_does_not_hurt_others(start: Start) -> None:
    gateway = await start(max_connections_per_preview=4, max_queue_per_preview=50)
    other = await gateway.preview(session_id="other123")
    client = await gateway.client()
    client.ask(b"/preview/other123/")
    peer = await other.accept()

    async def times(rounds: int, *, greedy: bool) -> list[float]:
        """What requests of the other one take, in order of length."""
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            await peer.head()
            peer.send(HELLO)
            assert (await client.response()).status == 200
            taken.append(time.perf_counter() - began)
            if greedy:  # more of them come and are refused all the while
                more = await gateway.client()
                more.get(b"more")
                assert (await more.response()).status == 503
                await more.close()
            client.ask(b"/preview/other123/")
        return sorted(taken)

    alone = await times(100, greedy=False)
    await busy(gateway, 4)
    await queued(gateway, *[b"%d" % number for number in range(50)])
    beside = await times(200, greedy=True)
    # Beside what this machine takes for it at the moment.
    assert beside[198] < 0.05 + 2 * alone[-1]


async def test_fault_17_a_flood_of_connections_is_refused_and_passes(start: Start) -> None:
    """Some are told, the rest is closed; no more than a few beyond the limit are ever open."""
    gateway = await start(max_connections=20)
    dev = await gateway.preview()
    first = await gateway.client()
    first.get(b"1")
    peer = await dev.accept()
    await peer.head()
    flood = [await gateway.client() for _ in range(200)]
    await eventually(lambda: len(gateway.listener.connections) > 20)
    assert len(gateway.listener.connections) <= 20 + 2 + 64
    told = 0
    for client in flood[19:]:
        try:
            told += (await client.head()).startswith(b"HTTP/1.1 503 ")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            continue
    assert 0 < told <= 2 + 64
    for client in flood:
        await client.close()
    peer.send(HELLO)
    assert (await first.response()).status == 200
    await eventually(lambda: len(gateway.listener.connections) == 1)
    client = await gateway.client()
    client.get(b"2")
    assert b"/2 " in await peer.head()


async def test_a_fresh_connection_needs_no_place_when_an_idle_one_has_it(start: Start) -> None:
    """A retry after a stale connection must not wait behind connections that do nothing."""
    gateway = await start(max_connections_per_preview=2)
    dev, clients, peers = await busy(gateway, 2)
    for client, peer in zip(clients, peers, strict=True):
        peer.send(HELLO)
        await client.response()
    stale = peers[1]
    clients[0].get(b"again")
    await stale.head()
    stale.reset()
    peer = await dev.accept()
    assert b"/again " in await peer.head()
    peer.send(HELLO)
    assert (await clients[0].response()).status == 200
    await never(clients[0].reader.read(1), 0.05)


async def test_hundreds_of_requests_of_one_page_share_a_few_connections(start: Start) -> None:
    gateway = await start(max_connections_per_preview=6)
    dev = await gateway.preview()

    async def serve() -> None:
        while True:
            serving.append(asyncio.create_task(answer(await dev._accepted.get())))

    async def answer(peer: Peer) -> None:
        while True:
            await peer.reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.001)
            peer.send(HELLO)

    async def ask() -> None:
        client = await gateway.client()
        client.get(b"x")
        assert (await client.response()).status == 200

    serving = [asyncio.create_task(serve())]
    await asyncio.gather(*(ask() for _ in range(300)))
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
    assert len(dev.peers) <= 6
