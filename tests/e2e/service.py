"""What stands in front of replicas: one address, behind which it is now this one, now that."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

_CHUNK: Final = 65536


class Service:
    """Passes connections on to ``target``, a replica's URL. An async context manager.

    What cannot be passed on is closed, and ``failed`` is set.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self.failed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer), name="service: connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = urlsplit(self.target)
        try:
            far_reader, far_writer = await asyncio.open_connection(there.hostname, there.port)
        except OSError:
            self.failed.set()
            writer.transport.abort()
            return
        ways = [
            asyncio.create_task(_pass(reader, far_writer), name="service: there"),
            asyncio.create_task(_pass(far_reader, writer), name="service: back"),
        ]
        try:
            # No half-open connections: HTTP needs none, and a lost replica is to be noticed.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            far_writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
