"""The proxy that is written first: an aiohttp handler and a ClientSession, on uvloop.

``python -m bench.proxy.aiohttp_proxy PORT UPSTREAM_PORT``
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop
from aiohttp import ClientSession, TCPConnector, WSMsgType, web

_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer"}


def end_to_end(headers: Any) -> list[tuple[str, str]]:
    """The fields that go through."""
    return [(name, value) for name, value in headers.items() if name.lower() not in _HOP]


async def relay(source: Any, sink: Any) -> None:
    """Pass messages on until one side closes."""
    async for message in source:
        if message.type is WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        elif message.type is WSMsgType.TEXT:
            await sink.send_str(message.data)
    await sink.close()


async def serve(port: int, upstream: int) -> None:
    """Serve until killed."""
    connector = TCPConnector(limit=0, force_close=False)
    async with ClientSession(connector=connector, auto_decompress=False) as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            url = f"http://127.0.0.1:{upstream}{request.raw_path}"
            if request.headers.get("Upgrade", "").lower() == "websocket":
                async with session.ws_connect(url) as far:
                    near = web.WebSocketResponse()
                    await near.prepare(request)
                    await asyncio.gather(relay(near, far), relay(far, near))
                return near
            body = request.content if request.body_exists else None
            headers = end_to_end(request.headers)
            async with session.request(request.method, url, headers=headers, data=body) as answer:
                response = web.StreamResponse(
                    status=answer.status, headers=dict(end_to_end(answer.headers))
                )
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response

        app = web.Application(client_max_size=2**40)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
