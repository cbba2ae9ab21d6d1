"""The client on a bad day: what it tries again, what it does not, and for how long."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.client import ApiError, Client, Event, PreviewEnded, Unreachable, WaitTimeout

Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
SESSION: Final = {"id": "some-id-1", "state": "ready", "reason": ""}


@dataclass
class Asked:
    """The requests that came."""

    url: str
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)

    def fields(self, name: str) -> list[str]:
        return [request.headers.get(name, "") for request in self.requests]


@asynccontextmanager
async def serving(*answers: Answer) -> AsyncIterator[Asked]:
    """A server whose n-th request gets the n-th answer, and all later ones the last."""
    asked = Asked("")

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.requests.append(request)
        asked.bodies.append(await request.text())
        return await answers[min(len(asked.requests), len(answers)) - 1](request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        asked.url = str(server.make_url("/"))
        yield asked


def says(status: int, body: dict[str, Any], **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=status, headers=named)

    return answer


def streams(text: str, *, then_cut: bool = False, then_silent: bool = False) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(text.encode())
        if then_silent:
            await asyncio.sleep(30)
        if then_cut:
            await cut_off(request)
        return response

    return answer


async def cut_off(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def nowhere() -> str:
    """An address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


async def collect(client: Client, **options: Any) -> list[Event]:
    async with aclosing(client.events("some-id-1", **options)) as events:
        return [event async for event in events]


async def test_a_create_whose_answer_is_lost_is_repeated_under_the_same_key() -> None:
    away = says(503, {"code": "registry_unavailable"}, Retry_After="0")
    async with serving(cut_off, away, says(201, SESSION)) as asked, Client(asked.url) as client:
        session = await client.create({"a": b"b"})
    assert session["id"] == "some-id-1"
    assert len(asked.requests) == 3
    assert len(set(asked.fields("Idempotency-Key"))) == 1
    assert len(set(asked.bodies)) == 1


async def test_retry_after_is_waited_for() -> None:
    limited = says(429, {"code": "limit_reached"}, Retry_After="1")
    async with serving(limited, says(200, SESSION)) as asked, Client(asked.url) as client:
        began = time.monotonic()
        await client.session("some-id-1")
        assert time.monotonic() - began >= 1


async def test_a_retry_after_beyond_ones_patience_is_told_at_once() -> None:
    limited = says(429, {"code": "limit_reached"}, Retry_After="40")
    async with serving(limited) as asked, Client(asked.url) as client:
        with pytest.raises(ApiError) as refused:
            await client.session("some-id-1")
    assert (refused.value.problem_code, refused.value.retry_after) == ("limit_reached", 40)
    assert len(asked.requests) == 1


async def test_a_refusal_has_its_document_and_is_not_tried_again() -> None:
    missing = says(404, {"code": "session_not_found", "detail": "none", "waitedSeconds": 5})
    async with serving(missing) as asked, Client(asked.url) as client:
        with pytest.raises(ApiError, match="none") as refused:
            await client.session("some-id-1")
    assert refused.value.problem["waitedSeconds"] == 5
    assert len(asked.requests) == 1


async def test_where_nothing_listens_it_is_unreachable_when_patience_is_at_its_end() -> None:
    async with Client(nowhere(), patience_seconds=0.5) as client:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            await client.session("some-id-1")
        assert 0.1 < time.monotonic() - began < 5
        assert not await client.alive()


async def test_what_may_not_be_done_twice_is_not_repeated_when_its_answer_is_lost() -> None:
    async with serving(cut_off) as asked, Client(asked.url) as client:
        with pytest.raises(Unreachable):
            await client.edit("some-id-1", write={"a": b""}, base_revision=3)
        with pytest.raises(Unreachable):
            await client.post_event("some-id-1", "a", once=True)
    assert len(asked.requests) == 2


async def test_what_was_refused_unread_is_repeated_also_if_it_may_not_be_done_twice() -> None:
    busy = says(503, {"code": "overloaded"}, Retry_After="0")
    async with serving(busy, says(201, {"id": "1-0"})) as asked, Client(asked.url) as client:
        await client.post_event("some-id-1", "a", once=True)
    assert len(asked.requests) == 2


async def test_the_end_of_a_stream_that_is_cut_off_behind_it_comes_once() -> None:
    async with (
        serving(
            streams("id: 2-0\nevent: end\ndata: {}\n\n", then_cut=True),
            streams("event: end\ndata: {}\n\n"),
        ) as asked,
        Client(asked.url) as client,
    ):
        assert await collect(client) == [Event("2-0", "end", {})]
    assert asked.fields("Last-Event-ID") == ["0", "2-0"]


async def test_a_stream_without_its_heartbeat_is_opened_anew() -> None:
    async with (
        serving(streams(": connected\n\n", then_silent=True), says(410, {"code": "x"})) as asked,
        Client(asked.url, silence_seconds=0.1) as client,
    ):
        with pytest.raises(ApiError):
            await collect(client, after="7-0")
    assert asked.fields("Last-Event-ID") == ["7-0", "7-0"]


async def test_a_stream_that_was_connected_is_looked_for_longer_than_one_that_never_was() -> None:
    async with Client(nowhere(), patience_seconds=0) as client:
        with pytest.raises(Unreachable):
            await collect(client)
    ends = streams("id: 1-0\nevent: end\ndata: {}\n\n")
    async with (
        serving(streams(": connected\n\n", then_cut=True), cut_off, ends) as asked,
        Client(asked.url, patience_seconds=0) as client,
    ):
        assert len(await collect(client)) == 1


async def test_waiting_ends_with_the_session_its_end_or_a_time_out() -> None:
    states = ("starting", "ready", "failed", "starting")
    answers = [says(200, {**SESSION, "state": state, "reason": "no module"}) for state in states]
    async with serving(*answers) as asked, Client(asked.url) as client:
        assert (await client.wait("some-id-1"))["state"] == "ready"
        with pytest.raises(PreviewEnded, match="failed: no module"):
            await client.wait("some-id-1")
        with pytest.raises(WaitTimeout):
            await client.wait("some-id-1", timeout_seconds=0)
    assert asked.requests[0].query["wait"] == "ready"


async def test_a_token_may_change_between_calls_and_goes_into_no_address() -> None:
    tokens = iter(["first", "second"])
    async with (
        serving(says(200, SESSION)) as asked,
        Client(asked.url, token=lambda: next(tokens)) as client,
    ):
        await client.session("some-id-1")
        await client.session("some-id-1")
    assert asked.fields("Authorization") == ["Bearer first", "Bearer second"]
    assert {request.path_qs for request in asked.requests} == {"/api/v1/sessions/some-id-1"}
