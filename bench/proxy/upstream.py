"""The server behind every proxy: as little work per request as Python allows.

What is served depends on the end of the path, so that it works below any prefix:
``1k``, ``100k``, ``big`` (a download), ``sink`` (an upload), ``echo`` (WebSocket), ``/`` (a page
of many modules). Run with ``python -m bench.proxy.upstream``; prints its port.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
from typing import Final, cast

import uvloop

from bench.proxy.frames import frame, split_frames

BIG_BYTES: Final = 200_000_000
MODULES: Final = 1000
_BLOCK: Final = bytes(256 * 1024)
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: A dev server's usual fields; the date stands still, since nothing here looks at it.
_FIELDS: Final = (
    b"HTTP/1.1 200 OK\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"Content-Type: %b\r\n"
    b"Cache-Control: no-cache\r\n"
    b'ETag: W/"%b-Zm9vYmFyYmF6"\r\n'
    b"Content-Length: %d\r\n"
)
_ETAG: Final = b"{etag}"


def response(body: bytes, content_type: bytes = b"text/javascript") -> tuple[bytes, bytes]:
    """A whole response but for its ETag, which goes between the two parts.

    Each response has another ETag, as the modules of a page do: a proxy that remembers whole heads
    is to gain by it no more than in life.
    """
    whole = _FIELDS % (content_type, _ETAG, len(body)) + b"\r\n" + body
    before, _, after = whole.partition(_ETAG)
    return before, after


_etags = itertools.count(4096)


def page() -> bytes:
    """A document whose one module imports all the others; it says when they have run."""
    return (
        b"<!doctype html><title>modules</title>"
        b'<link rel="icon" href="data:,"><script type="module" src="main.js"></script>'
    )


def main_module(modules: int = MODULES) -> bytes:
    """The module that imports the others and notes the time."""
    imports = "".join(f'import m{n} from "./m{n}.js";\n' for n in range(modules))
    names = ",".join(f"m{n}" for n in range(modules))
    end = f"window.sum = [{names}].reduce((a, b) => a + b, 0);\nwindow.loaded = performance.now();"
    return (imports + end).encode()


#: By the last segment of the path.
FIXED: Final = {
    b"1k": response(b"x" * 1024),
    b"100k": response(b"x" * 102400),
    b"": response(page(), b"text/html"),
    b"main.js": response(main_module()),
}
_SUNK: Final = response(b"ok", b"text/plain")


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.transport: asyncio.WriteTransport = cast("asyncio.WriteTransport", None)
        self._buffer = b""
        self._close = False
        #: Content still to come: a number of bytes, or None while chunks come.
        self._expected: int | None = 0
        self._tail = b""
        self._to_send = 0
        self._paused = False
        self._websocket = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if self._websocket:
            self._echo(data)
        elif self._expected != 0:
            self._sink(data)
        else:
            self._buffer = self._buffer + data if self._buffer else data
            self._requests()

    def _requests(self) -> None:
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        fields = head.lower()
        self._close = b"\r\nconnection: close" in fields
        path = head[: head.index(b" HTTP/")].partition(b" ")[2]
        name = path.partition(b"?")[0].rpartition(b"/")[2]
        if (fixed := FIXED.get(name)) is not None:
            self._finish(fixed)
        elif name == b"big":
            self.transport.write(_FIELDS % (b"application/octet-stream", b"0", BIG_BYTES) + b"\r\n")
            self._to_send = BIG_BYTES
            self._stream()
        elif name == b"sink":
            length = _field(fields, b"content-length")
            self._expected = int(length) if length else None
            body, self._buffer = self._buffer, b""
            self._sink(body)
        elif name == b"echo":
            self._upgrade(head)
        else:
            number = name[1:].partition(b".")[0]
            self._finish(response(b"export default %b;" % (number if number.isdigit() else b"0")))

    def _finish(self, parts: tuple[bytes, bytes]) -> None:
        before, after = parts
        if self._close:
            # RFC 9112 9.6: who closes says so, else Node's agent tries the connection again.
            after = after.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        self.transport.write(b"%b%x%b" % (before, next(_etags), after))
        if self._close:
            self.transport.close()

    # -- transfers -------------------------------------------------------------------------------

    def _sink(self, data: bytes) -> None:
        if self._expected is None:
            # The load is nothing but zero bytes, so this ends it and nothing else.
            self._tail = (self._tail + data)[-5:]
            if self._tail != b"0\r\n\r\n":
                return
            self._expected, self._tail = 0, b""
        else:
            self._expected -= len(data)
        if self._expected <= 0:
            self._expected = 0
            self._finish(_SUNK)

    def _stream(self) -> None:
        while self._to_send and not self._paused:
            size = min(self._to_send, len(_BLOCK))
            self._to_send -= size
            self.transport.write(_BLOCK if size == len(_BLOCK) else _BLOCK[:size])

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._stream()

    # -- WebSocket -------------------------------------------------------------------------------

    def _upgrade(self, head: bytes) -> None:
        key = _field(head, b"sec-websocket-key")
        accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self._websocket = True
        rest, self._buffer = self._buffer, b""
        if rest:
            self._echo(rest)

    def _echo(self, data: bytes) -> None:
        frames, self._buffer = split_frames(self._buffer + data if self._buffer else data)
        out = []
        for opcode, payload in frames:
            if opcode == 9:
                out.append(frame(payload, opcode=10))
            elif opcode == 8:
                out.append(frame(payload, opcode=8))
            elif opcode in (1, 2):
                out.append(frame(payload, opcode=opcode))
        if out:
            self.transport.write(b"".join(out))
        if frames and frames[-1][0] == 8:
            self.transport.close()


def _field(head: bytes, name: bytes) -> bytes:
    """The value of a field, empty if there is none."""
    for line in head.split(b"\r\n")[1:]:
        if line[: len(name)].lower() == name and line[len(name) : len(name) + 1] == b":":
            return line[len(name) + 1 :].strip()
    return b""


async def serve() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
