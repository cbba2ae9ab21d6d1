"""Listeners to one event stream, in a process of their own: real sockets, as many as are asked for.

Reads commands from stdin and answers on stdout, JSON by the line; times are CLOCK_MONOTONIC, which
all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any, cast

import uvloop

#: Begins the data of an event; comments have none.
DATA = b"\ndata: "
#: Listeners of one source address: far fewer than it has ports.
PER_ADDRESS = 5000
AT_A_TIME = 50


class Listener(asyncio.Protocol):
    """Counts the events that come."""

    __slots__ = ("crowd", "events", "opened", "tail", "transport")

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.events = 0
        self.tail = b""
        self.opened: asyncio.Future[None] = crowd.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.crowd.request)

    def data_received(self, data: bytes) -> None:
        data = self.tail + data
        if not self.opened.done() and b": connected" in data:
            self.opened.set_result(None)
        for _ in range(data.count(DATA)):
            self.crowd.heard(self.events)
            self.events += 1
        self.tail = data[1 - len(DATA) :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.lost += 1
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionResetError("closed"))


class Crowd:
    """All listeners."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nLast-Event-ID: 0\r\n\r\n".encode()
        )
        self.address = (host, port)
        self.listeners: list[Listener] = []
        self.lost = 0
        #: By event: how many have it, when the first and the last got it.
        self.counts: list[int] = []
        self.first: list[float] = []
        self.last: list[float] = []
        self.news = asyncio.Event()

    def heard(self, number: int) -> None:
        if number == len(self.counts):
            self.counts.append(0)
            self.first.append(time.monotonic())
            self.last.append(0.0)
        self.counts[number] += 1
        if self.counts[number] == len(self.listeners):
            self.last[number] = time.monotonic()
            self.news.set()

    async def open(self, count: int) -> int:
        """So many more; returns how many there are once each stream has begun."""
        turns = asyncio.Semaphore(AT_A_TIME)

        async def connect(number: int) -> None:
            async with turns:
                source = f"127.0.1.{1 + number // PER_ADDRESS}"
                _, listener = await self.loop.create_connection(
                    lambda: Listener(self), *self.address, local_addr=(source, 0)
                )
                self.listeners.append(listener)
                async with asyncio.timeout(60):
                    await listener.opened

        there = len(self.listeners)
        await asyncio.gather(*(connect(there + number) for number in range(count)))
        return len(self.listeners) - self.lost

    async def until(self, number: int) -> dict[str, Any]:
        """When the first and the last listener had an event."""
        async with asyncio.timeout(60):
            while number >= len(self.last) or not self.last[number]:
                self.news.clear()
                await self.news.wait()
        return {"first": self.first[number], "last": self.last[number], "lost": self.lost}

    async def settled(self) -> int:
        """The number of events, once all listeners have as many and no more come."""
        async with asyncio.timeout(60):
            while True:
                before = [listener.events for listener in self.listeners]
                await asyncio.sleep(0.5)
                after = [listener.events for listener in self.listeners]
                if before == after and len(set(after)) == 1:
                    return after[0]


async def main(host: str, port: int, path: str) -> None:
    crowd = Crowd(host, port, path)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps("ready"), flush=True)
    while line := await reader.readline():
        command, *arguments = json.loads(line)
        print(json.dumps(await getattr(crowd, command)(*arguments)), flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
