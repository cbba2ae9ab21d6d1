"""The client's parts that need no gateway."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.client import ApiError, Client, Event, EventParser, Unreachable, encoded_files

STREAM = (
    b': connected\n\nid: 1-0\nevent: state\ndata: {"state":"ready"}\n\n: keep-alive\n\n'
    b'id: 2-0\r\nevent: log\r\ndata: {"lines":["\xc3\xa4"]}\r\n\r\nevent: end\ndata: {}\n\n'
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_found_however_the_bytes_are_cut(size: int) -> None:
    parser = EventParser()
    events: list[Event] = []
    for start in range(0, len(STREAM), size):
        events += parser.feed(STREAM[start : start + size])
    assert events == [
        Event("1-0", "state", {"state": "ready"}),
        Event("2-0", "log", {"lines": ["ä"]}),
        Event("", "end", {}),
    ]


def test_files_that_are_no_text_go_as_base64() -> None:
    assert encoded_files({"a": "ä".encode(), "b": b"\xff"}) == [
        {"path": "a", "content": "ä"},
        {"path": "b", "content": "/w==", "encoding": "base64"},
    ]


async def test_a_lost_stream_is_resumed_after_the_last_event() -> None:
    asked: list[str] = []

    async def events(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["Last-Event-ID"])
        match len(asked):
            case 1:
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(b'id: 1-0\nevent: log\ndata: {"lines":[]}\n\nid: 2')
                assert request.transport is not None
                request.transport.abort()
                return response
            case 2:
                return web.json_response({"detail": "the registry is away"}, status=503)
            case _:
                return web.Response(body=b"id: 2-0\nevent: end\ndata: {}\n\n")

    app = web.Application()
    app.router.add_get("/api/v1/sessions/some-id-1/events", events)
    async with TestServer(app) as server, Client(str(server.make_url("/"))) as client:
        found = [event.id async for event in client.events("some-id-1")]
    assert found == ["1-0", "2-0"]
    assert asked == ["0", "1-0", "1-0"]


async def test_what_is_no_gateway_is_said_to_be_none() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<h1>hello</h1>", content_type="text/html")

    async def wrong(_: web.Request) -> web.Response:
        return web.Response(text="<h1>no</h1>", status=404, content_type="text/html")

    app = web.Application()
    app.router.add_get("/livez", page)
    app.router.add_get("/api/v1/sessions/some-id-1", page)
    app.router.add_get("/api/v1/sessions/some-id-2", wrong)
    async with TestServer(app) as server, Client(str(server.make_url("/"))) as client:
        assert not await client.alive()
        with pytest.raises(Unreachable, match="is no preview gateway"):
            await client.session("some-id-1")
        with pytest.raises(ApiError, match="<h1>no</h1>") as refused:
            await client.session("some-id-2")
        assert refused.value.http_status == 404
