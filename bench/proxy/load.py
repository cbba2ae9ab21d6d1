"""The traffic that wrk cannot make. ``python -m bench.proxy.load KIND PORT PATH ...``

Each kind prints one JSON object. Anything but the expected answers is an error, never a figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final, cast

import uvloop

from bench.proxy.figures import percentile
from bench.proxy.frames import frame, split_frames

_BLOCK: Final = bytes(256 * 1024)
_TIMEOUT: Final = 60.0
_KEY: Final = b"AAAAAAAAAAAAAAAAAAAAAA=="
#: The source addresses that sockets are spread over, so that ports do not run out. The first one is
#: left to the proxies, whose connections to the upstream wait in TIME_WAIT when they are over.
_SOURCES: Final = tuple(f"127.0.0.{number}" for number in range(2, 7))
_CONNECTING: Final = 64


def request(path: str, port: int, *fields: str, method: str = "GET") -> bytes:
    """A request head."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *fields]
    return "\r\n".join([*lines, "\r\n"]).encode()


def handshake(path: str, port: int) -> bytes:
    """A WebSocket opening handshake."""
    return request(
        path,
        port,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {_KEY.decode()}",
    )


# -- transfers: blocking sockets, the cheapest there is --------------------------------------------


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """The response head, and what came behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise ConnectionError(f"closed after {data!r}")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    if b" 200" not in head[:16]:
        raise ConnectionError(f"answered {head[:60]!r}")
    return head, rest


def download(options: argparse.Namespace) -> dict[str, Any]:
    """Fetch ``count`` times; every byte must come."""
    buffer = bytearray(256 * 1024)
    with socket.create_connection(("127.0.0.1", options.port), timeout=_TIMEOUT) as sock:
        started = time.perf_counter()
        for _ in range(options.count):
            sock.sendall(request(options.path, options.port))
            head, rest = read_head(sock)
            if b"content-length:" not in head.lower():
                raise ConnectionError("answered without Content-Length")
            left = options.size - len(rest)
            while left > 0:
                received = sock.recv_into(buffer, min(left, len(buffer)))
                if not received:
                    raise ConnectionError(f"closed {left} bytes early")
                left -= received
        seconds = time.perf_counter() - started
    return {"bytes": options.size * options.count, "seconds": seconds}


def upload(options: argparse.Namespace) -> dict[str, Any]:
    """Send ``count`` times; each must be answered."""
    with socket.create_connection(("127.0.0.1", options.port), timeout=_TIMEOUT) as sock:
        started = time.perf_counter()
        for _ in range(options.count):
            length = f"Content-Length: {options.size}"
            sock.sendall(request(options.path, options.port, length, method="POST"))
            left = options.size
            while left > 0:
                sock.sendall(_BLOCK if left >= len(_BLOCK) else _BLOCK[:left])
                left -= len(_BLOCK)
            read_head(sock)
        seconds = time.perf_counter() - started
    return {"bytes": options.size * options.count, "seconds": seconds}


# -- a fixed rate ----------------------------------------------------------------------------------


class Timed(asyncio.Protocol):
    """A keep-alive connection that times one request at a time."""

    def __init__(self, done: Callable[[Timed, int], None]) -> None:
        self.transport: asyncio.WriteTransport = cast("asyncio.WriteTransport", None)
        self._done = done
        self._sent_ns = 0
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def send(self, data: bytes) -> None:
        """Begin a request."""
        self._sent_ns = time.perf_counter_ns()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not complete(self._received):
            return
        taken = time.perf_counter_ns() - self._sent_ns
        good = self._received.startswith(b"HTTP/1.1 200")
        self._received = b""
        self._done(self, taken if good else -1)


def complete(received: bytes) -> bool:
    """Whether the whole of an answer with 1 KiB of ``x`` is there, in whatever framing."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"HTTP/1.1 200"):
        return bool(end)
    chunked = b"chunked" in head.lower()
    return body.count(b"x") == 1024 and (not chunked or body.endswith(b"\r\n0\r\n\r\n"))


async def latency(options: argparse.Namespace) -> dict[str, Any]:
    """Send at a fixed rate whatever the answers do (an open loop); microseconds per answer."""
    loop = asyncio.get_running_loop()
    taken: list[int] = []
    idle: list[Timed] = []
    all_sent = False
    all_done: asyncio.Future[None] = loop.create_future()

    def done(connection: Timed, nanoseconds: int) -> None:
        taken.append(nanoseconds)
        idle.append(connection)
        if all_sent and len(idle) == options.connections:
            all_done.set_result(None)

    async def connect() -> Timed:
        _, connection = await loop.create_connection(lambda: Timed(done), "127.0.0.1", options.port)
        return connection

    idle += [await connect() for _ in range(options.connections)]
    sent = late = 0
    started = loop.time()
    while (now := loop.time() - started) < options.seconds:
        while sent < now * options.rate:
            sent += 1
            if idle:
                idle.pop().send(request(f"{options.path}?{sent}", options.port))
            else:
                late += 1
        # The pace itself is what is waited for.
        await asyncio.sleep(1 / options.rate)
    all_sent = True
    if len(idle) < options.connections:
        async with asyncio.timeout(_TIMEOUT):
            await all_done
    if min(taken) < 0:
        raise ConnectionError(f"{sum(t < 0 for t in taken)} answers were not 200")
    micros = [t / 1000 for t in taken[len(taken) // 10 :]]  # the first tenth warms up
    return {
        "requests": sent,
        "late": late,
        "p50": percentile(micros, 50),
        "p99": percentile(micros, 99),
    }


# -- WebSocket -------------------------------------------------------------------------------------


class Socket(asyncio.Protocol):
    """A WebSocket client that counts what comes back and, if told so, answers it."""

    def __init__(self) -> None:
        self.transport: asyncio.WriteTransport = cast("asyncio.WriteTransport", None)
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.echoed: asyncio.Future[None] | None = None
        self.messages = 0
        self.data = b""
        self.going = False
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.open.done():
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            self._buffer = rest
            if head.startswith(b"HTTP/1.1 101"):
                self.open.set_result(None)
            else:
                self.open.set_exception(ConnectionError(f"answered {head[:60]!r}"))
            return
        frames, self._buffer = split_frames(self._buffer)
        for opcode, _ in frames:
            if opcode == 2:
                self.messages += 1
                if self.going:
                    self.transport.write(self.data)
                if self.echoed is not None and not self.echoed.done():
                    self.echoed.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.going = False
        for future in (self.open, self.echoed):
            if future is not None and not future.done():
                future.set_exception(ConnectionError(f"lost ({exc})"))


async def open_socket(path: str, port: int, source: int) -> Socket:
    """Open a WebSocket from one of several addresses."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        Socket, "127.0.0.1", port, local_addr=(_SOURCES[source % len(_SOURCES)], 0)
    )
    client.transport.write(handshake(path, port))
    async with asyncio.timeout(_TIMEOUT):
        await client.open
    return client


async def echo(options: argparse.Namespace) -> dict[str, Any]:
    """Keep one message under way on each of ``connections`` sockets."""
    clients = [await open_socket(options.path, options.port, n) for n in range(options.connections)]
    data = frame(bytes(options.size), masked=True)
    for client in clients:
        client.data, client.going = data, True
        client.transport.write(data)
    await asyncio.sleep(options.seconds)
    if not all(client.going for client in clients):
        raise ConnectionError("sockets were lost on the way")
    return {"messages": sum(client.messages for client in clients)}


async def idle(options: argparse.Namespace) -> dict[str, Any]:
    """Open sockets, say so in a line, hold them until a line comes in, and try every tenth."""
    connecting = asyncio.Semaphore(_CONNECTING)

    async def opened(number: int) -> Socket:
        async with connecting:
            return await open_socket(options.path, options.port, number)

    clients = await asyncio.gather(*map(opened, range(options.connections)))
    print(json.dumps({"opened": len(clients)}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    tried = clients[::10]
    for client in tried:
        client.echoed = asyncio.get_running_loop().create_future()
        client.transport.write(frame(b"still there?", masked=True))
    async with asyncio.timeout(_TIMEOUT):
        await asyncio.gather(*(client.echoed for client in tried if client.echoed is not None))
    return {"tried": len(tried)}


KINDS: Final[dict[str, Callable[[argparse.Namespace], Any]]] = {
    "download": download,
    "upload": upload,
    "latency": latency,
    "echo": echo,
    "idle": idle,
}


def main() -> None:
    """Make the traffic that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--count", type=int, default=1)
    options = parser.parse_args()
    kind = KINDS[options.kind]
    if asyncio.iscoroutinefunction(kind):
        print(json.dumps(uvloop.run(kind(options))))
    else:
        print(json.dumps(kind(options)))


if __name__ == "__main__":
    main()
