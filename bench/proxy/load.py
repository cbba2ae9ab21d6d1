"""The traffic that wrk cannot make. ``python -m bench.proxy.load KIND PORT/PATH ...``

Each kind prints one line of JSON. Anything but the expected answers is an error, never a figure.
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


#: How long one of several targets is asked before the next one is: less than what disturbs a shared
#: machine lasts, so that it disturbs all of them.
_TURN_SECONDS: Final = 0.25
#: The part of a turn that does not count: it warms up.
_WARMING: Final = 0.1


class Timed(asyncio.Protocol):
    """A keep-alive connection that times one request at a time."""

    def __init__(self, done: Callable[[Timed, int], None]) -> None:
        self.transport: asyncio.WriteTransport = cast("asyncio.WriteTransport", None)
        self._done = done
        #: When the request under way was sent; 0 if there is none.
        self._sent_ns = 0
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def send(self, data: bytes) -> None:
        """Begin a request."""
        self._sent_ns = time.perf_counter_ns()
        if self.transport.is_closing():
            self._end(-1)
        else:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if complete(self._received):
            taken = time.perf_counter_ns() - self._sent_ns
            self._end(taken if self._received.startswith(b"HTTP/1.1 200") else -1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sent_ns:
            self._end(-1)

    def _end(self, nanoseconds: int) -> None:
        self._received, self._sent_ns = b"", 0
        self._done(self, nanoseconds)


def complete(received: bytes) -> bool:
    """Whether the whole of an answer with 1 KiB of ``x`` is there, in whatever framing."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"HTTP/1.1 200"):
        return bool(end)
    chunked = b"chunked" in head.lower()
    return body.count(b"x") == 1024 and (not chunked or body.endswith(b"\r\n0\r\n\r\n"))


class Paced:
    """Requests to one target at a fixed rate, whatever the answers do (an open loop)."""

    def __init__(self, port: int, path: str, options: argparse.Namespace) -> None:
        self._port = port
        self._path = path
        self._options = options
        self._idle: list[Timed] = []
        self._sent = 0
        self._taken_ns: list[int] = []
        self._counted_ns: list[int] = []
        self._all_done: asyncio.Future[None] | None = None
        self._error = ""

    async def turn(self) -> None:
        """Send, and wait for all answers; once it has failed, do nothing."""
        if self._error:
            return
        try:
            await self._connect()
            await self._send_all()
        except (OSError, TimeoutError) as exc:
            self._error = f"{type(exc).__name__}: {exc}"

    def result(self) -> dict[str, Any]:
        """Microseconds per answer, or an ``error``."""
        if self._error:
            return {"error": self._error}
        micros = [taken / 1000 for taken in self._counted_ns]
        return {"p50": percentile(micros, 50), "p99": percentile(micros, 99)}

    async def _connect(self) -> None:
        """Open all connections; later, those that were closed while others had their turn."""
        loop = asyncio.get_running_loop()
        self._idle = [timed for timed in self._idle if not timed.transport.is_closing()]
        while len(self._idle) < self._options.connections:
            _, timed = await loop.create_connection(
                lambda: Timed(self._done), "127.0.0.1", self._port
            )
            self._idle.append(timed)

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        rate = self._options.rate
        started, due = loop.time(), 0
        while not self._error and (now := loop.time() - started) < _TURN_SECONDS:
            while due < now * rate:
                due += 1
                self._send()
            # The pace itself is what is waited for.
            await asyncio.sleep(1 / rate)
        if len(self._idle) < self._options.connections:
            # Who is late is not to be so in the turns of others.
            self._all_done = loop.create_future()
            async with asyncio.timeout(_TIMEOUT):
                await self._all_done
        taken, self._taken_ns = self._taken_ns, []
        if bad := sum(nanoseconds < 0 for nanoseconds in taken):
            raise ConnectionError(f"{bad} answers were not 200")
        self._counted_ns += taken[round(len(taken) * _WARMING) :]

    def _send(self) -> None:
        if not self._idle:
            most = self._options.connections
            self._error = f"{most} requests were under way: the rate is too high"
            return
        self._sent += 1
        self._idle.pop().send(request(f"{self._path}?{self._sent}", self._port))

    def _done(self, connection: Timed, nanoseconds: int) -> None:
        self._taken_ns.append(nanoseconds)
        self._idle.append(connection)
        if self._all_done is not None and len(self._idle) == self._options.connections:
            self._all_done.set_result(None)
            self._all_done = None


async def latency(options: argparse.Namespace) -> list[dict[str, Any]]:
    """``seconds`` of each target, in turns."""
    targets = [Paced(port, path, options) for port, path in options.targets]
    for number in range(max(1, round(options.seconds / _TURN_SECONDS))):
        for target in targets if number % 2 == 0 else targets[::-1]:
            await target.turn()
    return [target.result() for target in targets]


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


def target(text: str) -> tuple[int, str]:
    """A port of this machine and the path there, from ``8080/path``."""
    port, slash, path = text.partition("/")
    return int(port), slash + path


def main() -> None:
    """Make the traffic that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("targets", nargs="+", type=target, metavar="PORT/PATH")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--count", type=int, default=1)
    options = parser.parse_args()
    options.port, options.path = options.targets[0]
    kind = KINDS[options.kind]
    if asyncio.iscoroutinefunction(kind):
        print(json.dumps(uvloop.run(kind(options))))
    else:
        print(json.dumps(kind(options)))


if __name__ == "__main__":
    main()
