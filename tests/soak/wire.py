"""A raw client connection of the soak test: strict, and with a limit on every wait."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

from bench.proxy.frames import frame, split_frames
from tests.soak.content import accept_key

#: A machine that is busy with everything at once may be slow; one that hangs is noticed.
LIMIT_SECONDS: Final = 30.0
_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
_HANDSHAKE: Final = (
    "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {_KEY}\r\n\r\n"
)
_READ_BYTES: Final = 256 * 1024
#: Takes the status of each 5xx that the caller has provoked.
Note = Callable[[int], None]


class WrongAnswer(AssertionError):
    """What came is not what had to come."""


@dataclass
class Response:
    """A response as it arrived."""

    status: int
    fields: dict[str, str]
    body: bytes = b""


class Wire:
    """One connection to the gateway."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Note
    ) -> None:
        self.reader = reader
        self.writer = writer
        self._note = note
        self._frames: list[tuple[int, bytes]] = []
        self._rest = b""

    @classmethod
    async def open(cls, address: tuple[str, int], note: Note) -> Self:
        """A new connection."""
        async with asyncio.timeout(LIMIT_SECONDS):
            return cls(*await asyncio.open_connection(*address, limit=2**20), note)

    # -- HTTP

    async def send(self, data: bytes) -> None:
        """Send, at the speed at which it is taken."""
        self.writer.write(data)
        async with asyncio.timeout(LIMIT_SECONDS):
            await self.writer.drain()

    async def head(self) -> Response:
        """The next response head."""
        async with asyncio.timeout(LIMIT_SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        version, status, _ = first.split(" ", 2)
        if version != "HTTP/1.1":
            raise WrongAnswer(first)
        pairs = (line.split(": ", 1) for line in lines)
        return Response(int(status), {name.lower(): value for name, value in pairs})

    async def response(
        self, *, to: str = "GET", allowed: Collection[int] = (200,), provoked: bool = False
    ) -> Response:
        """The next whole response. Its status is ``allowed``; a 5xx has to be ``provoked``, too."""
        response = await self.head()
        if response.status >= 500 and provoked:
            self._note(response.status)
        async with asyncio.timeout(LIMIT_SECONDS):
            if to != "HEAD" and response.status not in (204, 304):
                response.body = await self._body(response.fields)
        if response.status not in allowed or (response.status >= 500 and not provoked):
            raise WrongAnswer(f"{response.status} {response.body[:200]!r}, allowed: {allowed}")
        return response

    async def _body(self, fields: dict[str, str]) -> bytes:
        if "content-length" in fields:
            return await self.reader.readexactly(int(fields["content-length"]))
        if fields.get("transfer-encoding") != "chunked":
            return await self.reader.read()
        parts = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            parts.append(await self.reader.readexactly(size))
            if await self.reader.readexactly(2) != b"\r\n":
                raise WrongAnswer("a chunk does not end where it should")
        if await self.reader.readexactly(2) != b"\r\n":
            raise WrongAnswer("trailers that nobody sent")
        return b"".join(parts)

    async def at_end(self) -> bytes:
        """What is left until the other side closes or resets."""
        rest = b""
        async with asyncio.timeout(LIMIT_SECONDS):
            try:
                while data := await self.reader.read(_READ_BYTES):
                    rest += data
            except ConnectionError:
                pass
        return rest

    # -- WebSocket

    async def upgrade(self, target: str) -> Response:
        """Ask for a WebSocket; the head of what was answered. Any 5xx counts as provoked."""
        await self.send((f"GET {target} HTTP/1.1\r\n" + _HANDSHAKE).encode())
        response = await self.head()
        if response.status == 101 and response.fields["sec-websocket-accept"] != accept_key(_KEY):
            raise WrongAnswer("the handshake is another one's")
        if response.status >= 500:
            self._note(response.status)
        return response

    async def message(self) -> tuple[int, bytes]:
        """The next frame, as (opcode, payload); pings are answered. Ends with ConnectionError."""
        while True:
            while not self._frames:
                async with asyncio.timeout(LIMIT_SECONDS):
                    data = await self.reader.read(_READ_BYTES)
                if not data:
                    raise ConnectionResetError("the socket has ended")
                self._frames, self._rest = split_frames(self._rest + data)
            opcode, payload = self._frames.pop(0)
            if opcode != 9:
                return opcode, payload
            await self.send(frame(payload, opcode=10, masked=True))

    # -- ends

    def reset(self) -> None:
        """Die at once: the gateway sees a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close; harmless when it has ended before."""
        self.writer.close()
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                await self.writer.wait_closed()
        except (ConnectionError, BrokenPipeError):
            pass


@asynccontextmanager
async def connected(address: tuple[str, int], note: Note) -> AsyncIterator[Wire]:
    """A connection that is closed in the end."""
    wire = await Wire.open(address, note)
    try:
        yield wire
    finally:
        await wire.close()
