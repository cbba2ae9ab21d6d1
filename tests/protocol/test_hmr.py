"""The browser's HMR socket while its dev server goes and another one comes.

A second passes for a socket with each call of the listener's sweep.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from typing import Final

import pytest
from websockets.frames import Frame, Opcode

from gateway.proxy.frames import PING
from gateway.session import Hmr, State
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
    put_clock_on,
    session,
)

HMR: Final = Hmr("", "vite-hmr")
PROTOCOL: Final = b"Sec-WebSocket-Protocol: vite-hmr"
CONNECTED: Final = b'\x81\x14{"type":"connected"}'
RELOAD: Final = b'\x81\x21{"type":"full-reload","path":"*"}'
UPDATE: Final = b'\x81\x1e{"type":"update","updates":[]}'
VITE_PING: Final = Frame(Opcode.TEXT, b'{"type":"ping"}').serialize(mask=True)
WORD: Final = Frame(Opcode.TEXT, b'{"type":"custom","event":"x"}').serialize(mask=True)
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def opened(gateway: Gateway, *fields: bytes, accepted: bytes = b"") -> tuple[Client, Peer]:
    """A page's HMR socket."""
    dev = await gateway.preview(hmr=HMR)
    client = await gateway.client()
    client.upgrade(b"?token=abc", PROTOCOL, *fields)
    peer = await dev.accept()
    assert b"token=abc" in await peer.head()
    peer.send(ACCEPTED[:-2] + PROTOCOL + b"\r\n" + accepted + b"\r\n" + CONNECTED)
    assert (await client.response_head()).status == 101
    assert await client.exactly(len(CONNECTED)) == CONNECTED
    return client, peer


async def successor(gateway: Gateway, *, version: int = 1, revision: int = 1) -> Server:
    """The session is ready under another generation."""
    dev = await gateway.server()
    gateway.registry.put(
        session(endpoint=dev.endpoint, generation=2, version=version, hmr=HMR, revision=revision)
    )
    return dev


async def greet(dev: Server, *more: bytes) -> Peer:
    """Answer the gateway's own handshake as Vite does."""
    peer = await dev.accept()
    head = await peer.head()
    match = re.search(rb"Sec-WebSocket-Key: (\S+)", head)
    assert match
    digest = hashlib.sha1(match[1] + _GUID, usedforsecurity=False).digest()
    accept = re.sub(rb"(?<=Accept: )\S+", base64.b64encode(digest), ACCEPTED[:-2])
    peer.send(accept + PROTOCOL + b"\r\n\r\n" + b"".join((CONNECTED, *more)))
    return peer


def seconds_pass(gateway: Gateway, seconds: int) -> None:
    for _ in range(seconds):
        gateway.listener.sweep_tunnels()


def asleep(gateway: Gateway, *, version: int = 2, revision: int = 1) -> None:
    gateway.registry.put(session(State.SLEEPING, version=version, hmr=HMR, revision=revision))


def outcomes(gateway: Gateway) -> tuple[int, int]:
    stats = gateway.plane.stats
    return stats.hmr_resumed, stats.hmr_given_up


# -- kept ----------------------------------------------------------------------------------------


async def test_the_socket_goes_on_to_the_next_generation_and_the_page_is_told_to_reload_once(
    gateway: Gateway,
) -> None:
    client, peer = await opened(gateway)
    dev = await successor(gateway)
    assert await peer.rest() == b""
    new = await greet(dev, UPDATE)
    assert await client.exactly(len(RELOAD) + len(UPDATE)) == RELOAD + UPDATE
    client.send(WORD)
    assert await new.exactly(len(WORD)) == WORD
    new.send(UPDATE)
    assert await client.exactly(len(UPDATE)) == UPDATE
    assert outcomes(gateway) == (1, 0)
    assert gateway.plane.stats.tunnels == 1


async def test_the_new_dev_server_is_asked_without_origin_and_token(gateway: Gateway) -> None:
    await opened(gateway, b"Origin: http://localhost")
    dev = await successor(gateway)
    peer = await dev.accept()
    head = await peer.head()
    assert head.startswith(b"GET " + BASE + b" HTTP/1.1\r\nHost: localhost:")
    assert PROTOCOL in head
    assert b"token" not in head
    assert b"Origin" not in head


@pytest.mark.parametrize("cut", range(1, len(CONNECTED)))
async def test_the_greeting_is_not_heard_twice_however_it_is_cut(
    gateway: Gateway, cut: int
) -> None:
    client, _ = await opened(gateway)
    dev = await successor(gateway)
    peer = await dev.accept()
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", await peer.head())
    assert key
    digest = hashlib.sha1(key[1] + _GUID, usedforsecurity=False).digest()
    accept = re.sub(rb"(?<=Accept: )\S+", base64.b64encode(digest), ACCEPTED[:-2])
    peer.send(accept + PROTOCOL + b"\r\n\r\n" + CONNECTED[:cut])
    await never(client.reader.read(1), 0.02)
    peer.send(CONNECTED[cut:] + UPDATE)
    assert await client.exactly(len(RELOAD) + len(UPDATE)) == RELOAD + UPDATE


async def test_who_dies_without_a_word_is_followed_by_the_one_that_its_owner_starts(
    gateway: Gateway,
) -> None:
    """The route still names the dead one: only its silence tells."""
    client, _ = await opened(gateway)
    dev = await gateway.server()

    def restart() -> bool:
        gateway.registry.put(session(State.STARTING, generation=2, hmr=HMR))
        return True

    gateway.waker.on_wake = restart
    await gateway.servers[-2].close()  # and its connections
    await eventually(lambda: bool(gateway.waker.woken))
    gateway.registry.put(session(endpoint=dev.endpoint, generation=2, version=2, hmr=HMR))
    await greet(dev)
    assert await client.exactly(len(RELOAD)) == RELOAD
    assert gateway.waker.woken == [(ID, 1)]


async def test_a_dev_server_that_is_replaced_before_it_answers_is_followed_by_the_newer_one(
    gateway: Gateway,
) -> None:
    client, _ = await opened(gateway)
    between = await successor(gateway)
    peer = await between.accept()
    await peer.head()
    # The life cycle: nothing is wrong with the newest dev server, only with the one before.
    gateway.waker.on_wake = lambda: gateway.waker.woken == [(ID, 2)]
    dev = await gateway.preview(generation=3, version=9, hmr=HMR)
    await peer.close()
    await greet(dev)
    assert await client.exactly(len(RELOAD)) == RELOAD


async def test_a_dev_server_that_let_go_of_its_sockets_is_asked_again(gateway: Gateway) -> None:
    client, peer = await opened(gateway)
    await peer.close()
    await greet(gateway.servers[-1])
    assert await client.exactly(len(RELOAD)) == RELOAD


async def test_what_the_page_says_meanwhile_is_heard_by_the_next_one(gateway: Gateway) -> None:
    client, _ = await opened(gateway)
    gateway.starting(generation=2, hmr=HMR)
    await asyncio.sleep(0.05)
    client.send(VITE_PING)
    await asyncio.sleep(0.05)
    client.send(WORD + VITE_PING + WORD[:7])
    await asyncio.sleep(0.05)
    new = await greet(await successor(gateway, version=3))
    client.send(WORD[7:])
    said = WORD + VITE_PING + WORD
    assert await new.exactly(len(said)) == said
    assert await client.exactly(len(RELOAD)) == RELOAD


# -- asleep --------------------------------------------------------------------------------------


async def test_an_open_page_lets_its_session_sleep(gateway: Gateway) -> None:
    client, peer = await opened(gateway)
    asleep(gateway)
    assert await peer.rest() == b""
    await asyncio.sleep(0.05)
    tasks = len(asyncio.all_tasks())
    for _ in range(5):
        seconds_pass(gateway, 15)
        client.send(VITE_PING)
        await asyncio.sleep(0.01)
    assert gateway.waker.woken == []
    assert len(asyncio.all_tasks()) == tasks, "a sleeper has no task"
    assert gateway.plane.stats.tunnels == 1


async def test_a_silent_page_gets_pings_while_its_session_sleeps_and_is_gone_without_a_pong(
    gateway: Gateway,
) -> None:
    client, peer = await opened(gateway)
    asleep(gateway)
    assert await peer.rest() == b""
    seconds_pass(gateway, 20)
    assert await client.exactly(len(PING)) == PING
    seconds_pass(gateway, 40)
    assert await client.rest() == b""
    await eventually(lambda: not gateway.listener.tunnels)


async def wakes(gateway: Gateway) -> bool:
    """Let a second pass; whether the session is woken for the page, which goes on then."""
    dev = await gateway.server()

    def start() -> bool:
        gateway.registry.put(
            session(endpoint=dev.endpoint, generation=2, version=9, hmr=HMR, revision=2)
        )
        return True

    gateway.waker.on_wake = start
    seconds_pass(gateway, 1)
    await asyncio.sleep(0.1)
    if not gateway.waker.woken:
        return False
    await greet(dev)
    return True


async def test_an_edit_wakes_a_session_that_has_a_page_open(gateway: Gateway) -> None:
    client, _ = await opened(gateway)
    asleep(gateway)
    await asyncio.sleep(0.05)
    assert not await wakes(gateway)
    asleep(gateway, version=3)
    assert not await wakes(gateway), "metadata is nothing to look at"
    asleep(gateway, version=4, revision=2)
    assert await wakes(gateway)
    assert await client.exactly(len(RELOAD)) == RELOAD


async def test_a_word_of_the_page_wakes_its_session(gateway: Gateway) -> None:
    client, _ = await opened(gateway)
    asleep(gateway)
    await asyncio.sleep(0.05)
    client.send(WORD)
    await asyncio.sleep(0.05)
    assert await wakes(gateway)
    assert await client.exactly(len(RELOAD)) == RELOAD


async def test_a_session_that_others_wake_takes_its_page_along(gateway: Gateway) -> None:
    client, _ = await opened(gateway)
    asleep(gateway)
    await asyncio.sleep(0.05)
    dev = await successor(gateway)
    seconds_pass(gateway, 1)
    await greet(dev)
    assert await client.exactly(len(RELOAD)) == RELOAD
    assert gateway.waker.woken == []


async def test_a_push_that_was_lost_is_made_up_for_at_the_route_s_maximal_age(
    gateway: Gateway,
) -> None:
    client, _ = await opened(gateway)
    asleep(gateway)
    await asyncio.sleep(0.05)
    dev = await gateway.server()
    gateway.registry.put(session(endpoint=dev.endpoint, generation=2, hmr=HMR), push=False)
    seconds_pass(gateway, 1)
    put_clock_on(gateway, gateway.settings.route_max_age_seconds + 1)
    seconds_pass(gateway, 1)
    await greet(dev)
    assert await client.exactly(len(RELOAD)) == RELOAD


# -- not kept ------------------------------------------------------------------------------------


async def test_a_socket_is_dropped_in_the_middle_of_a_message(gateway: Gateway) -> None:
    client, peer = await opened(gateway)
    peer.send(UPDATE[:-3])
    assert await client.exactly(len(UPDATE) - 3) == UPDATE[:-3]
    await successor(gateway)
    assert await client.rest() == b"", "no Close frame: the page's client comes back by itself"


async def test_a_socket_is_dropped_between_the_fragments_of_a_message(gateway: Gateway) -> None:
    client, _ = await opened(gateway)
    fragment = Frame(Opcode.TEXT, b"{", fin=False).serialize(mask=True)
    client.send(fragment)
    await asyncio.sleep(0.05)
    await successor(gateway)
    assert await client.rest() == b""


async def test_a_socket_is_dropped_after_a_close(gateway: Gateway) -> None:
    client, peer = await opened(gateway)
    close = Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=False)
    peer.send(close)
    await peer.close()
    assert await client.rest() == close


@pytest.mark.parametrize("state", [State.FAILED, State.STOPPED, State.STOPPING])
async def test_a_socket_ends_with_its_session(gateway: Gateway, state: State) -> None:
    client, _ = await opened(gateway)
    gateway.registry.put(session(state, version=2, hmr=HMR))
    assert await client.rest() == b""
    assert outcomes(gateway) == (0, 1)


async def test_a_socket_is_dropped_when_nobody_starts_its_session(gateway: Gateway) -> None:
    client, _ = await opened(gateway)
    await gateway.servers[-1].close()
    assert await client.rest() == b""
    assert gateway.waker.woken == [(ID, 1)]


async def test_a_socket_is_dropped_when_the_start_takes_too_long(start: Start) -> None:
    gateway = await start(hold_seconds=0.2)
    client, _ = await opened(gateway)
    gateway.starting(generation=2, hmr=HMR)
    assert await client.rest() == b""
    assert outcomes(gateway) == (0, 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        ACCEPTED[:-2] + PROTOCOL + b"\r\n\r\n",
    ],
    ids=["refused", "no HTTP", "wrong accept"],
)
async def test_a_socket_is_dropped_when_the_new_dev_server_does_not_take_it(
    gateway: Gateway, answer: bytes
) -> None:
    client, _ = await opened(gateway)
    dev = await successor(gateway)
    peer = await dev.accept()
    await peer.head()
    peer.send(answer)
    assert await client.rest() == b""


async def test_a_dev_server_that_never_greets_is_not_waited_for(start: Start) -> None:
    gateway = await start(upgrade_timeout_seconds=0.2)
    client, _ = await opened(gateway)
    dev = await successor(gateway)
    await (await dev.accept()).head()
    assert await client.rest() == b""


async def test_a_dev_server_that_dies_before_it_greets_is_no_end(gateway: Gateway) -> None:
    client, _ = await opened(gateway)
    gateway.waker.on_wake = lambda: True
    dev = await successor(gateway)
    await (await dev.accept()).close()
    await greet(dev)
    assert await client.exactly(len(RELOAD)) == RELOAD


async def test_a_dev_server_that_lets_go_at_once_is_not_asked_again_and_again(
    gateway: Gateway,
) -> None:
    client, _ = await opened(gateway)
    dev = await successor(gateway)
    await (await greet(dev)).close()
    assert await client.rest() == RELOAD
    assert len(dev.peers) == 1


async def test_a_resumed_socket_can_be_resumed_again(gateway: Gateway) -> None:
    client, _ = await opened(gateway)
    await greet(await successor(gateway))
    assert await client.exactly(len(RELOAD)) == RELOAD
    put_clock_on(gateway, 2.0)
    dev = await gateway.server()
    gateway.registry.put(session(endpoint=dev.endpoint, generation=3, hmr=HMR))
    await greet(dev)
    assert await client.exactly(len(RELOAD)) == RELOAD


async def test_a_private_preview_s_socket_is_dropped(gateway: Gateway) -> None:
    """Whether its client may still look is asked when it comes back."""
    client, _ = await opened(gateway)
    dev = await gateway.server()
    gateway.registry.put(session(endpoint=dev.endpoint, generation=2, hmr=HMR, public=False))
    assert await client.rest() == b""
    assert dev.untouched


async def test_a_page_that_says_too_much_meanwhile_is_dropped(start: Start) -> None:
    gateway = await start(hold_seconds=30)
    client, _ = await opened(gateway)
    gateway.starting(generation=2, hmr=HMR)
    await asyncio.sleep(0.05)
    client.send(Frame(Opcode.TEXT, b"x" * 70_000).serialize(mask=True))
    await eventually(lambda: not gateway.listener.tunnels, 2.0)


@pytest.mark.parametrize("how", ["end", "reset", "close frame"])
async def test_a_page_that_leaves_meanwhile_leaves_nothing(gateway: Gateway, how: str) -> None:
    """Tasks and descriptors are counted by the fixture."""
    client, _ = await opened(gateway)
    gateway.starting(generation=2, hmr=HMR)
    await asyncio.sleep(0.05)
    if how == "close frame":
        client.send(Frame(Opcode.CLOSE, b"\x03\xe9").serialize(mask=True))
    elif how == "end":
        client.end()
    else:
        client.reset()
    await eventually(lambda: not gateway.listener.tunnels, 1.0)
    await eventually(lambda: not [t for t in asyncio.all_tasks() if "HMR" in t.get_name()], 1.0)


@pytest.mark.parametrize("kind", ["another protocol", "an extension", "turned off"])
async def test_other_sockets_are_dropped_with_their_dev_server(start: Start, kind: str) -> None:
    gateway = await start(keep_hmr_sockets=kind != "turned off")
    if kind == "another protocol":
        dev = await gateway.preview(hmr=HMR)
        client = await gateway.client()
        client.upgrade(b"", b"Sec-WebSocket-Protocol: graphql-ws")
        peer = await dev.accept()
        await peer.head()
        peer.send(ACCEPTED[:-2] + b"Sec-WebSocket-Protocol: graphql-ws\r\n\r\n")
        assert (await client.response_head()).status == 101
    else:
        extension = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
        accepted = extension if kind == "an extension" else b""
        client, _ = await opened(gateway, extension[:-2], accepted=accepted)
    await successor(gateway)
    assert await client.rest() == b""


async def test_a_replica_that_leaves_keeps_no_socket(gateway: Gateway) -> None:
    client, _ = await opened(gateway)
    gateway.starting(generation=2, hmr=HMR)
    await asyncio.sleep(0.05)
    await gateway.drain()
    assert await client.rest() == b""


async def test_a_socket_lost_while_its_replica_leaves_is_not_dialled_anew(
    gateway: Gateway,
) -> None:
    client, _ = await opened(gateway)
    leaving = asyncio.create_task(gateway.drain(grace_seconds=0.5))
    await asyncio.sleep(0.05)
    dev = await successor(gateway)
    assert await client.rest() == b""
    assert dev.untouched
    await leaving
