"""A dev server of the soak test: ``python -m tests.soak.server WHO``; prints its port.

The end of a path says what is answered, so that it works below any base:

``plain/SEED/SIZE``, ``chunked/SEED/SIZE``   content, with its length or in chunks
``upload``                                   a receipt for the request's content
``events/COUNT``                             an event stream
``echo``, ``echo/COUNT``                     WebSocket; it is reset after COUNT messages
``refuse``, ``silence``                      an upgrade is refused, or never answered
``cut/SIZE``, ``garbage``, ``hang``          half of a content, no HTTP, no answer at all
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from bench.proxy.frames import frame, split_frames
from tests.soak.content import accept_key, content, receipt

_READ_BYTES: Final = 256 * 1024
_EVENT_SECONDS: Final = 0.02
Answer = Callable[["Connection", list[str]], Awaitable[bool]]


class Connection:
    """One connection; messages one after the other."""

    def __init__(
        self, who: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.who = who
        self.reader = reader
        self.writer = writer
        self.method = ""
        self.fields: dict[str, str] = {}

    async def serve(self) -> None:
        """Answer until one side has enough."""
        try:
            while await self._serve_one():
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the gateway's clients leave as they like
        finally:
            self.writer.close()

    async def _serve_one(self) -> bool:
        """Answer a request; whether another may follow."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        self.method, target, _ = first.split(" ")
        pairs = (line.split(": ", 1) for line in lines)
        self.fields = {name.lower(): value for name, value in pairs}
        parts = target.partition("?")[0].split("/")[3:]  # /preview/ID/...
        return await ANSWERS.get(parts[0], not_found)(self, parts[1:])

    async def send(self, data: bytes) -> None:
        """Send, at the speed of who reads."""
        self.writer.write(data)
        await self.writer.drain()

    async def respond(self, body: bytes, *, status: str = "200 OK") -> bool:
        """A response with its length."""
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nX-Who: {self.who}\r\n\r\n"
        await self.send(head.encode() + (b"" if self.method == "HEAD" else body))
        return True

    async def body(self) -> tuple[int, str]:
        """Size and SHA-256 of the request's content."""
        digest = hashlib.sha256()
        if self.fields.get("transfer-encoding") == "chunked":
            total = 0
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                digest.update(await self.reader.readexactly(size))
                await self.reader.readexactly(2)
                total += size
            await self.reader.readexactly(2)
            return total, digest.hexdigest()
        total = left = int(self.fields.get("content-length", "0"))
        while left:
            data = await self.reader.read(min(left, _READ_BYTES))
            if not data:
                raise ConnectionError("the content has no end")
            digest.update(data)
            left -= len(data)
        return total, digest.hexdigest()


async def plain(connection: Connection, parts: list[str]) -> bool:
    seed, size = map(int, parts)
    return await connection.respond(content(connection.who, seed, size))


async def chunked(connection: Connection, parts: list[str]) -> bool:
    seed, size = map(int, parts)
    left = content(connection.who, seed, size)
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while left:
        count = 1 + (seed * 7919 + len(left)) % 70_000  # chunks of all sizes
        part, left = left[:count], left[count:]
        await connection.send(b"%x\r\n%b\r\n" % (len(part), part))
    await connection.send(b"0\r\n\r\n")
    return True


async def upload(connection: Connection, parts: list[str]) -> bool:
    size, digest = await connection.body()
    return await connection.respond(receipt(connection.who, size, digest))


async def events(connection: Connection, parts: list[str]) -> bool:
    await connection.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    )
    for number in range(int(parts[0])):
        await connection.send(f"id: {number}\ndata: {connection.who}\n\n".encode())
        await asyncio.sleep(_EVENT_SECONDS)
    return False


async def echo(connection: Connection, parts: list[str]) -> bool:
    accept = accept_key(connection.fields["sec-websocket-key"])
    await connection.send(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )
    last = int(parts[0]) if parts else sys.maxsize
    echoed, rest = 0, b""
    while data := await connection.reader.read(_READ_BYTES):
        messages, rest = split_frames(rest + data)
        for opcode, payload in messages:
            if opcode == 9:
                await connection.send(frame(payload, opcode=10))
            elif opcode == 8:
                await connection.send(frame(payload, opcode=8))
                return False
            elif opcode == 2:
                await connection.send(frame(payload))
                echoed += 1
            if echoed == last:
                return reset(connection)
    return False


async def refuse(connection: Connection, parts: list[str]) -> bool:
    return await connection.respond(b"no sockets here", status="403 Forbidden")


async def silence(connection: Connection, parts: list[str]) -> bool:
    await connection.reader.read()
    return False


async def cut(connection: Connection, parts: list[str]) -> bool:
    size = int(parts[0])
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    await connection.send(head + content(connection.who, 0, size // 2))
    return False


async def garbage(connection: Connection, parts: list[str]) -> bool:
    await connection.send(b"220 mail.example ESMTP\r\n\r\n")
    return False


async def not_found(connection: Connection, parts: list[str]) -> bool:
    await connection.body()
    return await connection.respond(b"no such file", status="404 Not Found")


def reset(connection: Connection) -> bool:
    """Die: the other side sees a reset."""
    sock = connection.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.writer.transport.abort()
    return False


ANSWERS: Final[dict[str, Answer]] = {
    "plain": plain,
    "chunked": chunked,
    "upload": upload,
    "events": events,
    "echo": echo,
    "refuse": refuse,
    "silence": silence,
    "hang": silence,
    "cut": cut,
    "garbage": garbage,
}


async def main(who: str) -> None:
    """Serve until this process is ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(who, reader, writer).serve()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - whoever started it reads it
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
