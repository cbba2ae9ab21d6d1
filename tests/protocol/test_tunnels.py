"""Tunnels that are quiet, half open, or dead: pings between frames, and the end of what is gone.

A second passes for a tunnel with each call of the listener's sweep, so that tests need not wait.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
from websockets.frames import Frame, Opcode

from gateway.proxy import tcp
from gateway.proxy.frames import MASKED_PING, PING
from tests.protocol.conftest import Start
from tests.protocol.harness import ACCEPTED, Client, Gateway, Peer, eventually, never

PING_SECONDS = 20
CLIENT_SECONDS = 3 * PING_SECONDS
UPSTREAM_SECONDS = 15 * PING_SECONDS
VITE_PING = b'{"type":"ping"}'


def frame(data: bytes, *, opcode: Opcode = Opcode.TEXT, mask: bool, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=mask)


PONG = frame(b"", opcode=Opcode.PONG, mask=True)
DEV_PONG = frame(b"", opcode=Opcode.PONG, mask=False)


async def tunnelled(gateway: Gateway, *, token: bytes = b"websocket") -> tuple[Client, Peer]:
    dev = gateway.servers[-1] if gateway.registry.sessions else await gateway.preview()
    client = await gateway.client()
    if token == b"websocket":
        client.upgrade()
    else:
        client.get(b"", b"Connection: Upgrade", b"Upgrade: " + token)
    peer = await dev.accept()
    await peer.head()
    peer.send(ACCEPTED.replace(b"websocket", token))
    assert (await client.response_head()).status == 101
    return client, peer


def seconds_pass(gateway: Gateway, seconds: int) -> None:
    for _ in range(seconds):
        gateway.listener.sweep_tunnels()


# -- pings ---------------------------------------------------------------------------------------


async def test_both_sides_of_a_quiet_socket_get_a_ping(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    await never(asyncio.gather(client.reader.read(1), peer.reader.read(1)), 0.05)
    seconds_pass(gateway, PING_SECONDS)
    assert await client.exactly(2) == PING
    assert await peer.exactly(6) == MASKED_PING


async def test_a_side_that_says_something_gets_no_ping(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    for _ in range(4):
        seconds_pass(gateway, PING_SECONDS - 5)
        said = frame(VITE_PING, mask=True)
        client.send(said)
        assert (await peer.until(said[-8:])).endswith(said)
    seconds_pass(gateway, 5)
    await never(client.reader.read(1), 0.05)


async def test_pongs_reach_the_other_side_and_count_as_life_but_not_as_activity(
    gateway: Gateway,
) -> None:
    client, peer = await tunnelled(gateway)
    for _ in range(2 * UPSTREAM_SECONDS // PING_SECONDS):
        seconds_pass(gateway, PING_SECONDS)
        assert await client.exactly(2) == PING
        assert await peer.exactly(6) == MASKED_PING
        client.send(PONG)
        peer.send(DEV_PONG)
        assert await peer.exactly(6) == PONG
        assert await client.exactly(2) == DEV_PONG
    assert len(gateway.listener.tunnels) == 1
    gateway.plane.active.clear()
    seconds_pass(gateway, 1)
    assert not gateway.plane.active


async def test_a_ping_never_gets_into_a_frame(gateway: Gateway) -> None:
    """Cut anywhere, the ping waits for the end of the frame that is on its way to its side."""
    up = frame(b"x" * 200, mask=True)
    down = frame(b"y" * 200, mask=False)
    for cut in (1, 2, 3, 5, 8, 100, 203):
        client, peer = await tunnelled(gateway)
        client.send(up[:cut])
        peer.send(down[:cut])
        assert await peer.exactly(cut) == up[:cut]
        assert await client.exactly(cut) == down[:cut]
        seconds_pass(gateway, PING_SECONDS + 5)
        await never(asyncio.gather(client.reader.read(1), peer.reader.read(1)), 0.02)
        client.send(up[cut:])
        peer.send(down[cut:])
        assert await peer.exactly(len(up) - cut) == up[cut:]
        assert await client.exactly(len(down) - cut) == down[cut:]
        seconds_pass(gateway, PING_SECONDS)
        assert await client.exactly(2) == PING
        assert await peer.exactly(6) == MASKED_PING


async def test_a_ping_may_come_between_the_fragments_of_a_message(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    client.send(frame(b"hel", mask=True, fin=False))
    await peer.exactly(9)
    seconds_pass(gateway, PING_SECONDS)
    assert await peer.exactly(6) == MASKED_PING
    rest = frame(b"lo", opcode=Opcode.CONT, mask=True)
    client.send(rest)
    assert await peer.exactly(len(rest)) == rest


async def test_a_ping_does_not_queue_behind_what_waits_already(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    client.pause()
    await gateway.fill(peer, frame(b"x" * 10_000, mask=False))
    held = gateway.held
    seconds_pass(gateway, UPSTREAM_SECONDS - 1)
    assert gateway.held == held
    assert gateway.listener.tunnels


async def test_after_a_close_nothing_is_put_in(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    close = frame(b"\x03\xe8", opcode=Opcode.CLOSE, mask=True)
    client.send(close)
    assert await peer.exactly(len(close)) == close
    seconds_pass(gateway, PING_SECONDS)
    await never(peer.reader.read(1), 0.05)
    answer = frame(b"\x03\xe8", opcode=Opcode.CLOSE, mask=False)
    peer.send(answer)
    assert await client.exactly(2 + len(answer)) == PING + answer


async def test_what_speaks_no_websocket_gets_no_ping(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway, token=b"foo")
    seconds_pass(gateway, UPSTREAM_SECONDS * 2)
    await never(asyncio.gather(client.reader.read(1), peer.reader.read(1)), 0.05)
    assert len(gateway.listener.tunnels) == 1


async def test_pings_can_be_turned_off(start: Start) -> None:
    gateway = await start(ping_seconds=0)
    client, peer = await tunnelled(gateway)
    seconds_pass(gateway, UPSTREAM_SECONDS * 2)
    await never(asyncio.gather(client.reader.read(1), peer.reader.read(1)), 0.05)
    assert len(gateway.listener.tunnels) == 1


async def test_a_half_closed_side_gets_no_ping(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    client.end()
    assert await peer.rest() == b""
    seconds_pass(gateway, PING_SECONDS)
    await never(client.reader.read(1), 0.05)


async def test_the_sweep_itself_sends_the_ping(start: Start) -> None:
    gateway = await start(ping_seconds=1)
    client, _ = await tunnelled(gateway)
    assert await client.exactly(2) == PING


# -- sides that are gone -------------------------------------------------------------------------


async def test_a_client_that_answers_no_ping_is_gone(gateway: Gateway) -> None:
    client, peer = await tunnelled(gateway)
    seconds_pass(gateway, CLIENT_SECONDS - 1)
    assert gateway.listener.tunnels
    seconds_pass(gateway, 1)
    assert await client.rest() == PING
    assert await peer.rest() == MASKED_PING  # the dev server sees a FIN: a reset would raise
    await eventually(lambda: not gateway.listener.tunnels)


async def test_a_dev_server_may_take_its_time(gateway: Gateway) -> None:
    """One that compiles does not answer; ending the socket would only cost the page its state."""
    client, peer = await tunnelled(gateway)

    (upstream,) = gateway.pool().connections()
    for _ in range(UPSTREAM_SECONDS // PING_SECONDS - 1):
        seconds_pass(gateway, PING_SECONDS)
        assert await client.exactly(2) == PING
        client.send(PONG)
        await peer.until(PONG)
        await eventually(lambda: not tcp.is_delivering(upstream.transport))
    assert gateway.listener.tunnels
    seconds_pass(gateway, PING_SECONDS)
    assert await peer.rest() == b""
    assert await client.rest() in (b"", PING)
    await eventually(lambda: not gateway.listener.tunnels)


async def test_a_client_that_takes_slowly_is_not_gone(gateway: Gateway) -> None:
    """Nothing is heard of it, but what it gets is more than its kernel's buffer holds."""
    client, peer = await tunnelled(gateway)
    client.pause()
    content = frame(b"x" * 5_000_000, opcode=Opcode.BINARY, mask=False)
    await peer.accepted(content)
    seconds_pass(gateway, CLIENT_SECONDS * 3)
    client.resume()
    assert await client.exactly(len(content)) == content
    assert gateway.listener.tunnels


async def test_a_client_that_takes_its_ping_slowly_is_not_gone(gateway: Gateway) -> None:
    """All that waits, the ping too, is in the kernel's buffers already."""
    client, peer = await tunnelled(gateway)
    client.pause()
    content = frame(b"x" * 40_000, opcode=Opcode.BINARY, mask=False)
    (connection,) = gateway.listener.tunnels
    sent = 0
    while not tcp.is_delivering(connection.transport):
        assert not gateway.held
        peer.send(content)
        sent += len(content)
        await peer.drain()
        await asyncio.sleep(0.01)
    assert not gateway.held
    seconds_pass(gateway, UPSTREAM_SECONDS - 10)
    client.resume()
    await client.exactly(sent)
    assert await client.exactly(2) == PING
    seconds_pass(gateway, 5)
    client.send(PONG)
    assert await peer.exactly(12) == MASKED_PING + PONG
    assert gateway.listener.tunnels


async def test_the_kernel_watches_both_sides(gateway: Gateway) -> None:
    await tunnelled(gateway)
    (connection,) = gateway.listener.tunnels
    (upstream,) = gateway.pool().connections()
    for transport in (connection.transport, upstream.transport):
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


@pytest.mark.parametrize("dies", ["client", "dev server"])
async def test_fault_14_a_reset_is_noticed_while_nobody_reads(gateway: Gateway, dies: str) -> None:
    """Back-pressure has paused the side that dies, and the other takes nothing: nobody is told."""
    client, peer = await tunnelled(gateway)
    dead, left = (client, peer) if dies == "client" else (peer, client)
    left.pause()
    await gateway.fill(dead)
    dead.send(b"x" * 1_000_000)  # more than pauses it
    await eventually(lambda: any(not t.is_reading() for t in transports(gateway)))
    dead.reset()
    await eventually(lambda: not gateway.listener.tunnels, 2.0)
    await eventually(lambda: len(gateway.pool()) == 0, 1.0)


def transports(gateway: Gateway) -> list[asyncio.Transport]:
    near = [connection.transport for connection in gateway.listener.tunnels]
    return near + [connection.transport for connection in gateway.pool().connections()]


@pytest.mark.parametrize("end", [Peer.end, Peer.reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("dies", ["client", "dev server"])
async def test_fault_14_the_end_of_many_tunnels_leaves_nothing(
    gateway: Gateway, dies: str, end: Callable[[Peer], None]
) -> None:
    """Tasks and descriptors are counted by the fixture."""
    pairs = [await tunnelled(gateway) for _ in range(20)]
    tasks = len(asyncio.all_tasks())
    for client, peer in pairs:
        end(client if dies == "client" else peer)
    for client, peer in pairs:
        left = peer if dies == "client" else client
        assert await left.rest(1.0) == b""  # FIN, not RST
        left.end()
    await eventually(lambda: not gateway.listener.tunnels, 1.0)
    await eventually(lambda: len(gateway.pool()) == 0, 1.0)
    assert len(asyncio.all_tasks()) <= tasks
