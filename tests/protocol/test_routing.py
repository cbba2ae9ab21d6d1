"""Which answer a preview's address gives, in every state of its session."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from gateway.session import Endpoint, State
from tests.protocol.conftest import Start
from tests.protocol.harness import (
    ACCEPTED,
    BASE,
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

NAVIGATION = (b"Accept: text/html", b"Sec-Fetch-Mode: navigate")
BEARER = b"Authorization: Bearer " + TOKEN.encode()
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def get(gateway: Gateway, *fields: bytes, target: bytes = BASE) -> Response:
    """The answer to a request on a connection of its own."""
    client = await gateway.client()
    client.ask(target, *fields)
    return await client.response()


async def answered(dev: Server, client: Client) -> Peer:
    """Let the dev server answer one request on a new connection."""
    peer = await dev.accept()
    await peer.head()
    peer.send(HELLO)
    response = await client.response()
    assert (response.status, response.body) == (200, b"hello")
    return peer


def is_page(response: Response) -> bool:
    return response.fields["content-type"].startswith("text/html")


# -- registration under way ----------------------------------------------------------------------


async def test_a_request_may_come_before_its_registration(gateway: Gateway) -> None:
    dev = await gateway.server()
    client = await gateway.client()
    client.get()
    await eventually(lambda: gateway.registry.reads == 1)
    await never(client.reader.read(1), 0.1)
    gateway.registry.put(session(endpoint=dev.endpoint))
    await answered(dev, client)
    assert gateway.registry.reads == 1  # no polling


async def test_a_registration_whose_push_is_lost_is_found_all_the_same(gateway: Gateway) -> None:
    dev = await gateway.server()
    client = await gateway.client()
    client.get()
    await eventually(lambda: gateway.registry.reads == 1)
    gateway.registry.put(session(endpoint=dev.endpoint), push=False)
    await answered(dev, client)


async def test_a_registration_missed_while_the_link_was_down_is_found_at_once(
    start: Start,
) -> None:
    gateway = await start(registration_wait_seconds=60)
    dev = await gateway.server()
    client = await gateway.client()
    client.get()
    await eventually(lambda: gateway.registry.reads == 1)
    gateway.registry.put(session(endpoint=dev.endpoint), push=False)
    gateway.registry.resync()
    await answered(dev, client)


async def test_a_push_during_the_read_is_not_missed(gateway: Gateway) -> None:
    """Also by a request that joins the read after the push."""
    dev = await gateway.server()
    gateway.registry.gate = asyncio.Event()
    first = await gateway.client()
    first.get()
    await eventually(lambda: gateway.registry.reads == 1)
    first.reset()
    await eventually(lambda: not gateway.listener.connections)
    gateway.registry.put(session(endpoint=dev.endpoint))
    client = await gateway.client()
    client.get()
    await answered(dev, client)
    gateway.registry.gate.set()


async def test_an_unknown_id_is_404_after_the_wait(gateway: Gateway) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    response = await get(gateway)
    assert loop.time() - began > gateway.settings.registration_wait_seconds - 0.01
    assert response.status == 404
    assert response.fields["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "session_not_found"
    # The shape that callers of older gateways look for.
    assert problem["success"] is False
    assert problem["error"] == "Preview session not found"
    assert problem["sessionId"] == ID


@pytest.mark.parametrize("target", [BASE, b"/preview/no_id/"])
@pytest.mark.parametrize("fields", [NAVIGATION, (b"Accept: text/html,*/*;q=0.8",)])
async def test_a_person_gets_a_page_instead(
    gateway: Gateway, target: bytes, fields: tuple[bytes, ...]
) -> None:
    response = await get(gateway, *fields, target=target)
    assert response.status == 404
    assert is_page(response)
    assert response.fields["cache-control"] == "no-store"


async def test_what_is_no_id_is_404_at_once(gateway: Gateway) -> None:
    response = await get(gateway, target=b"/preview/Not_An_Id/x")
    assert (response.status, response.json()["sessionId"]) == (404, "Not_An_Id")
    assert gateway.registry.reads == 0


async def test_head_on_an_own_page_has_no_content(gateway: Gateway) -> None:
    client = await gateway.client()
    client.ask(b"/preview/no_id/", *NAVIGATION, method=b"HEAD")
    response = await client.response(to=b"HEAD")
    assert int(response.fields["content-length"]) > 100
    client.ask(b"/preview/no_id/", *NAVIGATION)
    assert len((await client.response()).body) == int(response.fields["content-length"])


async def test_a_hundred_requests_for_one_unknown_id_are_one_read(gateway: Gateway) -> None:
    gateway.registry.gate = asyncio.Event()
    clients = [await gateway.client() for _ in range(100)]
    for client in clients:
        client.get()
    await eventually(lambda: len(gateway.listener.connections) == 100)
    await eventually(lambda: sum(c.exchange is not None for c in gateway.listener.connections) > 99)
    for client in clients[:50]:  # those who go do not end it for the others
        client.reset()
    await eventually(lambda: len(gateway.listener.connections) == 50)
    gateway.registry.gate.set()
    for client in clients[50:]:
        assert (await client.response()).status == 404
    assert gateway.registry.reads < 10


async def test_a_read_that_fails_when_all_have_gone_is_no_drama(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.registry.gate = asyncio.Event()
    client = await gateway.client()
    client.get()
    await eventually(lambda: gateway.registry.reads == 1)
    client.reset()
    await eventually(lambda: not gateway.listener.connections)
    gateway.registry.down = True
    gateway.registry.gate.set()
    await eventually(lambda: "the registry is down" in caplog.text)


# -- the registry is away ------------------------------------------------------------------------


async def test_an_unknown_id_is_503_while_the_registry_is_down(gateway: Gateway) -> None:
    gateway.registry.down = True
    response = await get(gateway)
    assert (response.status, response.json()["code"]) == (503, "registry_unavailable")
    assert response.fields["retry-after"] == "1"
    page = await get(gateway, *NAVIGATION)
    assert page.status == 503
    assert is_page(page)


async def test_a_known_preview_goes_on_while_the_registry_is_down(start: Start) -> None:
    gateway = await start(route_max_age_seconds=0.05)
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    peer = await answered(dev, client)
    gateway.registry.down = True
    await asyncio.sleep(0.1)  # the route gets old
    reads = gateway.registry.reads
    for _ in range(10):
        client.get()
        await peer.head()
        peer.send(HELLO)
        assert (await client.response()).status == 200
    assert gateway.routes.stats.stale > 0
    assert gateway.registry.reads == reads + 1  # not every request waits for it


async def test_an_old_route_is_read_again(start: Start) -> None:
    gateway = await start(route_max_age_seconds=0.05)
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    await answered(dev, client)
    moved = await gateway.server()
    gateway.registry.put(session(generation=2, endpoint=moved.endpoint), push=False)
    await asyncio.sleep(0.1)
    client.get()
    await answered(moved, client)


async def test_what_was_missed_while_the_link_was_down_is_read_again(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    await answered(dev, client)
    gateway.registry.put(session(State.STOPPED, version=2), push=False)
    gateway.registry.resync()
    client.get()
    assert (await client.response()).status == 410


# -- starting, sleeping --------------------------------------------------------------------------


async def test_a_navigation_gets_the_starting_page(gateway: Gateway) -> None:
    gateway.starting()
    response = await get(gateway, *NAVIGATION)
    assert response.status == 503
    assert is_page(response)
    assert response.fields["cache-control"] == "no-store"
    assert response.fields["retry-after"] == "1"
    assert BASE + b".preview/events" in response.body


async def test_other_requests_are_held_until_it_is_ready(gateway: Gateway) -> None:
    gateway.starting()
    dev = await gateway.server()
    asset, upload, socket = [await gateway.client() for _ in range(3)]
    asset.get(b"main.js", b"Sec-Fetch-Mode: no-cors")
    upload.get(b"api", b"Content-Length: 3", method=b"POST")
    upload.send(b"abc")
    socket.upgrade()
    for client in (asset, upload, socket):
        await never(client.reader.read(1), 0.05)
    gateway.registry.put(session(version=2, endpoint=dev.endpoint))
    for _ in range(3):
        peer = await dev.accept()
        head = await peer.head()
        if b"POST" in head:
            assert await peer.exactly(3) == b"abc"
        peer.send(HELLO)
    for client in (asset, upload, socket):
        assert (await client.response()).body == b"hello"


async def test_the_hold_has_an_end(start: Start) -> None:
    gateway = await start(hold_seconds=0.1)
    gateway.starting()
    response = await get(gateway)
    assert (response.status, response.json()["code"]) == (503, "preview_starting")
    assert response.fields["retry-after"] == "1"


async def test_a_held_request_hears_of_the_failure(gateway: Gateway) -> None:
    gateway.starting()
    client = await gateway.client()
    client.get()
    await never(client.reader.read(1), 0.05)
    gateway.registry.put(session(State.FAILED, version=2, reason="npm says no"))
    response = await client.response()
    assert (response.status, response.json()["reason"]) == (410, "npm says no")


async def test_a_ready_push_that_is_lost_is_noticed(start: Start) -> None:
    gateway = await start(route_max_age_seconds=0.1)
    gateway.starting()
    dev = await gateway.server()
    client = await gateway.client()
    client.get()
    await never(client.reader.read(1), 0.05)
    gateway.registry.put(session(version=2, endpoint=dev.endpoint), push=False)
    await answered(dev, client)


async def test_a_sleeping_preview_is_woken(gateway: Gateway) -> None:
    dev = await gateway.server()
    gateway.registry.put(session(State.SLEEPING, generation=3))

    def wake() -> bool:
        gateway.registry.put(session(generation=4, endpoint=dev.endpoint))
        return True

    gateway.waker.on_wake = wake
    client = await gateway.client()
    client.get()
    await answered(dev, client)
    assert gateway.waker.woken == [(ID, 3)]


async def test_a_navigation_wakes_a_sleeping_preview_and_gets_the_page(gateway: Gateway) -> None:
    gateway.registry.put(session(State.SLEEPING))
    response = await get(gateway, *NAVIGATION)
    assert response.status == 503
    assert b"Waking" in response.body
    assert gateway.waker.woken == [(ID, 1)]


async def test_the_events_of_the_starting_page_come_from_the_control_plane(
    gateway: Gateway,
) -> None:
    gateway.starting()
    client = await gateway.client()
    client.get(b".preview/events?after=1", b"Accept: text/event-stream")
    peer = await gateway.control.accept()
    head = await peer.head()
    assert head.startswith(b"GET /-/previews/" + ID.encode() + b"/events?after=1 HTTP/1.1\r\n")
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"
    client.get(b".preview/events")  # over the same connection
    await peer.head()
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"
    assert len(gateway.control.peers) == 1


# -- ended ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.STOPPING, State.STOPPED, State.EXPIRED, State.FAILED])
async def test_an_ended_preview_is_410_with_the_reason(gateway: Gateway, state: State) -> None:
    gateway.registry.put(session(state, reason="asked to", log_tail="last words"))
    response = await get(gateway)
    assert response.status == 410
    problem = response.json()
    assert problem["code"] == "session_ended"
    assert (problem["state"], problem["reason"]) == (state, "asked to")
    page = await get(gateway, *NAVIGATION)
    assert page.status == 410
    assert is_page(page)
    assert b"asked to" in page.body
    assert (b"last words" in page.body) == (state is State.FAILED)


async def test_a_preview_that_ends_is_gone_at_once(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    await answered(dev, client)
    gateway.registry.put(session(State.STOPPED, version=2))
    client.get()
    assert (await client.response()).status == 410


# -- generations ---------------------------------------------------------------------------------


async def test_a_newer_generation_takes_over_and_shares_nothing(gateway: Gateway) -> None:
    """Not even with the same address: fault 23."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    old = await answered(dev, client)
    gateway.registry.put(session(generation=2, endpoint=dev.endpoint))
    assert await old.rest() == b""
    client.get()
    await answered(dev, client)
    assert len(dev.peers) == 2


async def test_a_request_under_way_finishes_in_its_generation(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    old = await dev.accept()
    await old.head()
    new = await gateway.server()
    gateway.registry.put(session(generation=2, endpoint=new.endpoint))
    old.send(HELLO)
    assert (await client.response()).body == b"hello"
    assert await old.rest() == b""
    client.get()
    await answered(new, client)


async def test_a_tunnel_ends_with_its_generation(gateway: Gateway) -> None:
    """A dev server that was replaced never serves another byte."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.upgrade()
    old = await dev.accept()
    await old.head()
    old.send(ACCEPTED)
    await client.response_head()
    new = await gateway.server()
    gateway.registry.put(session(generation=2, endpoint=new.endpoint))
    assert await client.rest() == b""
    assert await old.rest() == b""


@pytest.mark.parametrize(("generation", "version"), [(1, 9), (2, 1), (2, 2)])
async def test_an_older_push_changes_nothing(
    gateway: Gateway, generation: int, version: int
) -> None:
    dev = await gateway.preview(generation=2, version=2)
    client = await gateway.client()
    client.get()
    peer = await answered(dev, client)
    gateway.registry.push(session(State.STOPPED, generation=generation, version=version))
    client.get()
    await peer.head()
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_ids_that_nobody_asks_for_here_take_no_memory(gateway: Gateway) -> None:
    for number in range(100):
        gateway.registry.put(session(session_id=f"session-{number}"))
    assert len(gateway.routes) == 0


# -- a dev server that is not there --------------------------------------------------------------


async def refusing(gateway: Gateway, **changes: Any) -> None:
    """Make the preview's address one at which nothing listens."""
    dead = await gateway.server()
    await dead.close()
    gateway.registry.put(session(endpoint=dead.endpoint, **changes))


@pytest.mark.parametrize("known", [False, True])
async def test_an_address_that_refuses_calls_the_waker(gateway: Gateway, known: bool) -> None:
    if known:
        dev = await gateway.preview()
        client = await gateway.client()
        client.get()
        await answered(dev, client)
    await refusing(gateway, version=2)
    new = await gateway.server()

    def wake() -> bool:
        gateway.registry.put(session(State.STARTING, generation=2))
        return True

    gateway.waker.on_wake = wake
    client = await gateway.client()
    client.get()
    await eventually(lambda: gateway.waker.woken == [(ID, 1)])
    await never(client.reader.read(1), 0.05)
    gateway.registry.put(session(generation=2, version=2, endpoint=new.endpoint))
    await answered(new, client)
    assert gateway.waker.woken == [(ID, 1)]


async def test_it_is_502_if_there_is_nothing_to_wake(gateway: Gateway) -> None:
    await refusing(gateway)
    response = await get(gateway)
    assert (response.status, response.json()["code"]) == (502, "upstream_unreachable")
    page = await get(gateway, *NAVIGATION)
    assert page.status == 502
    assert is_page(page)


async def test_a_dev_server_that_died_between_two_requests_is_woken(gateway: Gateway) -> None:
    """The pooled connection is stale, the retry is refused, the next one waits."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    peer = await answered(dev, client)
    client.get(b"next")
    await peer.head()
    await dev.close()
    response = await client.response()
    assert response.status == 502
    assert gateway.waker.woken == [(ID, 1)]


async def test_a_dev_server_that_does_not_accept_is_502_in_time(start: Start) -> None:
    gateway = await start(connect_timeout_seconds=0.1)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # a full backlog takes no further connection
            filler.setblocking(False)
            filler.connect_ex(address)
        gateway.registry.put(session(endpoint=Endpoint(*address)))
        response = await get(gateway)
        assert (response.status, response.json()["code"]) == (502, "upstream_unreachable")
        for filler in fillers:
            filler.close()


async def test_a_mistake_of_our_own_is_500_and_logged(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> bool:
        raise ZeroDivisionError

    gateway.waker.on_wake = fail
    gateway.registry.put(session(State.SLEEPING))
    response = await get(gateway)
    assert (response.status, response.json()["code"]) == (500, "internal_error")
    assert "ZeroDivisionError" in caplog.text


# -- addresses and access ------------------------------------------------------------------------


@pytest.mark.parametrize("query", [b"", b"?a=b&c=%2F/"])
async def test_a_missing_slash_is_put_right_and_the_query_kept(
    gateway: Gateway, query: bytes
) -> None:
    response = await get(gateway, target=BASE[:-1] + query)
    assert response.status == 308
    assert response.fields["location"].encode() == BASE + query
    assert gateway.registry.reads == 0


async def test_everything_else_is_for_the_control_plane(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.ask(b"/api/v1/sessions?x=%2F", b"Authorization: Bearer t", b"X-Forwarded-For: 9.9.9.9")
    peer = await gateway.control.accept()
    head = await peer.head()
    assert head.startswith(b"GET /api/v1/sessions?x=%2F HTTP/1.1\r\nHost: localhost\r\n")
    assert b"\r\nAuthorization: Bearer t\r\n" in head
    assert head.count(b"X-Forwarded-For: ") == 1
    assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in head
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"
    client.get()  # one connection may mix both
    await answered(dev, client)


async def test_subdomain_mode(start: Start) -> None:
    gateway = await start(preview_domain="preview.example")
    dev = await gateway.preview()
    client = await gateway.client()
    host = b"GET /a//b?c HTTP/1.1\r\nHost: %b.Preview.example:8080\r\n" % ID.encode()
    client.send(host + b"\r\n")
    peer = await dev.accept()
    assert (await peer.head()).startswith(b"GET /a//b?c HTTP/1.1\r\nHost: localhost:")
    peer.send(HELLO)
    await client.response()
    client.ask(BASE + b"x?y")
    response = await client.response()
    assert response.status == 308
    assert response.fields["location"] == f"//{ID}.preview.example/x?y"


@pytest.mark.parametrize("host", [b"evil.example", b"localhost.evil.example", b"preview.example"])
async def test_an_unknown_host_is_421_without_tokens(gateway: Gateway, host: bytes) -> None:
    """DNS rebinding: with no tokens asked for, the name is what keeps web pages out."""
    dev = await gateway.preview()
    client = await gateway.client()
    for target in (BASE, b"/api/v1/sessions"):
        client.send(b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        response = await client.response()
        assert (response.status, response.json()["code"]) == (421, "unknown_host")
    assert dev.untouched
    assert gateway.control.untouched


async def test_with_tokens_any_host_is_served(start: Start) -> None:
    gateway = await start(api_tokens=[TOKEN])
    dev = await gateway.preview()
    client = await gateway.client()
    client.send(b"GET " + BASE + b" HTTP/1.1\r\nHost: any.example\r\n\r\n")
    await answered(dev, client)


@pytest.mark.parametrize("state", [State.READY, State.STARTING, State.STOPPED, State.SLEEPING])
@pytest.mark.parametrize("rest", [b"", b".preview/events"])
async def test_a_private_preview_is_404_like_an_unknown_one(
    start: Start, state: State, rest: bytes
) -> None:
    """The same words after the same wait."""
    gateway = await start(api_tokens=[TOKEN])
    dev = await gateway.server()
    gateway.registry.put(session(state, endpoint=dev.endpoint, public=False))
    loop = asyncio.get_running_loop()
    began = loop.time()
    private = await get(gateway, target=BASE + rest)
    took = loop.time() - began
    unknown = await get(gateway, target=b"/preview/unknown-0123456/" + rest)
    assert (private.status, unknown.status) == (404, 404)
    assert private.body.replace(ID.encode(), b"?") == unknown.body.replace(b"unknown-0123456", b"?")
    # The loop counts whole milliseconds.
    assert took > gateway.settings.registration_wait_seconds - 0.01
    assert dev.untouched
    assert not gateway.waker.woken


async def test_a_private_preview_opens_with_a_token(start: Start) -> None:
    gateway = await start(api_tokens=[TOKEN])
    dev = await gateway.preview(public=False)
    client = await gateway.client()
    client.get(b"", BEARER)
    peer = await answered(dev, client)
    client.get(b"", b"Authorization: Bearer wrong-token-wrong-token")
    assert (await client.response()).status == 404
    client.get(b"", BEARER)
    await peer.head()
    peer.send(HELLO)
    assert (await client.response()).status == 200


async def test_routes_in_use_are_not_evicted(gateway: Gateway) -> None:
    gateway.routes._max_routes = 2
    dev = await gateway.preview()
    client = await gateway.client()
    client.get()
    peer = await dev.accept()
    await peer.head()
    for number in range(10):
        gateway.registry.put(session(State.STOPPED, session_id=f"session-{number}"))
        response = await get(gateway, target=b"/preview/session-%d/" % number)
        assert response.status == 410
    assert len(gateway.routes) == 2
    assert gateway.routes.get(ID, 0) is not None
    peer.send(HELLO)
    assert (await client.response()).body == b"hello"
