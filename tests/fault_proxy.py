"""A TCP proxy in the test's own process that fails as networks do: silently, or with a reset."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

HOST: Final = "127.0.0.1"
_CHUNK: Final = 65536


class Link:
    """One connection through the proxy. ``sent`` is what its client has said so far."""

    def __init__(self, swallows: Callable[[Link], bool]) -> None:
        self.sent = b""
        #: What comes is read and thrown away, as if the other side had vanished without a word.
        self.is_swallowed = False
        self._swallows = swallows
        self._writers: list[asyncio.StreamWriter] = []

    async def run(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
    ) -> None:
        """Relay until both sides have ended."""
        self._writers.append(writer)
        try:
            there, back = await asyncio.open_connection(HOST, port)
            self._writers.append(back)
            await asyncio.gather(self._pass(reader, back, note=True), self._pass(there, writer))
        except OSError:
            pass  # a reset is passed on by the cut
        finally:
            self.cut()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, note: bool = False
    ) -> None:
        while data := await reader.read(_CHUNK):
            if note:
                self.sent += data
                self.is_swallowed = self.is_swallowed or self._swallows(self)
            if not self.is_swallowed:
                writer.write(data)
                await writer.drain()
        if not self.is_swallowed and writer.can_write_eof():
            writer.write_eof()

    def cut(self) -> None:
        """Reset both sides."""
        for writer in self._writers:
            writer.transport.abort()


class FaultProxy:
    """Passes connections on to a port of 127.0.0.1. An async context manager."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: list[Link] = []
        #: Which connections are swallowed from now on, as soon as their clients have said enough.
        self.swallows: Callable[[Link], bool] = lambda _: False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._server.wait_closed()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(lambda link: self.swallows(link))
        self._links.append(link)
        task = asyncio.create_task(link.run(reader, writer, self._target), name="fault proxy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._links.remove(link))

    def swallow(self, chosen: Callable[[Link], bool] = lambda _: True) -> int:
        """Make black holes of the open connections that are chosen; how many these are."""
        found = [link for link in self._links if chosen(link)]
        for link in found:
            link.is_swallowed = True
        return len(found)

    def cut(self, chosen: Callable[[Link], bool] = lambda _: True) -> int:
        """Reset the open connections that are chosen; how many these are."""
        found = [link for link in self._links if chosen(link)]
        for link in found:
            link.cut()
        return len(found)
