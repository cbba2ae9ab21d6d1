"""A real listener on a loopback socket between raw clients and scripted raw servers.

Only the source of routes is a double (``FakeRegistry``: what ``RouteTable`` asks of a registry).
Tests read as a dialogue::

    client.send(b"GET /preview/... HTTP/1.1\\r\\n...")
    peer = await dev.accept()
    assert await peer.head() == ...
    peer.send(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
    assert (await client.response()).status == 204

Every wait has a limit, so that a test that hangs says where.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

from gateway.errors import RegistryUnavailable
from gateway.proxy.listener import Listener
from gateway.proxy.plane import DataPlane
from gateway.proxy.routes import RouteTable
from gateway.proxy.upstream import Pool
from gateway.registry.base import Registry, Subscriber
from gateway.session import Endpoint, Hmr, Recipe, Session, SessionId, State
from gateway.settings import Settings

LIMIT_SECONDS: Final = 5.0
#: Connections that are over end within this time; those kept for later live longer.
END_SECONDS: Final = 2.0
ID: Final = SessionId("abcdef0123456789")
BASE: Final = b"/preview/" + ID.encode() + b"/"
TOKEN: Final = "0123456789abcdef0123"
REPLICA: Final = "replica-a"
_STREAM_LIMIT: Final = 2**20
#: The size of each kernel buffer here (Linux doubles it), so that back-pressure is soon felt.
_KERNEL_BYTES: Final = 64 * 1024
#: What may be on its way in one direction: 512 KiB in the gateway, and four kernel buffers.
HELD_BYTES: Final = 512 * 1024 + 4 * 2 * _KERNEL_BYTES


async def eventually(condition: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
    """Wait for what nobody announces: the end of a transport, bytes in a kernel's buffer."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)


async def never(awaitable: Awaitable[Any], seconds: float = 0.15) -> None:
    """Check that something does not come to pass."""
    waiting = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait((waiting,), timeout=seconds)
        assert not done, f"came to pass: {waiting}"
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def session(
    state: State = State.READY,
    *,
    session_id: str = ID,
    generation: int = 1,
    version: int = 1,
    endpoint: Endpoint | None = None,
    public: bool = True,
    hmr: Hmr | None = None,
    reason: str = "",
    log_tail: str = "",
    revision: int = 1,
) -> Session:
    """A session as the registry would hold it."""
    return Session(
        id=SessionId(session_id),
        generation=generation,
        version=version,
        state=state,
        owner="replica-b/1",
        digest="",
        recipe=Recipe(),
        base=f"/preview/{session_id}/",
        public=public,
        created_at_ms=0,
        expires_at_ms=0,
        expires_in_ms=0,
        endpoint=endpoint,
        hmr=hmr or Hmr(),
        reason=reason,
        log_tail=log_tail,
        revision=revision,
    )


def _socket() -> socket.socket:
    """A socket with small buffers, which those it accepts inherit."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
    sock.setblocking(False)
    return sock


class FakeRegistry:
    """What a ``RouteTable`` asks of a registry: reads, and pushes of changes."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.reads = 0
        #: Reads fail while this is set.
        self.down = False
        #: Reads wait for this, if there is one.
        self.gate: asyncio.Event | None = None
        self._subscribers: list[Subscriber] = []

    async def session(self, session_id: SessionId) -> Session | None:
        self.reads += 1
        found = self.sessions.get(session_id)
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise RegistryUnavailable("the registry is down")
        return found

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        self._subscribers.append(subscriber)
        subscriber.synced()
        return lambda: self._subscribers.remove(subscriber)

    def put(self, new: Session, *, push: bool = True) -> Session:
        """Store a session and, like the real one, tell everybody."""
        self.sessions[new.id] = new
        if push:
            self.push(new)
        return new

    def push(self, new: Session) -> None:
        for subscriber in self._subscribers:
            subscriber.changed(new.route)

    def resync(self) -> None:
        """The push link was down and is up again."""
        for subscriber in self._subscribers:
            subscriber.lost()
            subscriber.synced()


class FakeWaker:
    """Records who was to be woken; ``on_wake`` decides what comes of it."""

    def __init__(self) -> None:
        self.woken: list[tuple[str, int]] = []
        self.touched: set[str] = set()
        self.on_wake: Callable[[], bool] = lambda: False

    async def touch(self, session_ids: Collection[SessionId]) -> None:
        self.touched.update(session_ids)

    async def wake(self, session_id: SessionId, *, generation: int) -> bool:
        self.woken.append((session_id, generation))
        return self.on_wake()


class Peer:
    """One end of a raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Send without waiting."""
        self.writer.write(data)

    async def drain(self) -> None:
        """Wait until what was sent has left for the kernel, as far as its buffers go."""
        async with asyncio.timeout(LIMIT_SECONDS):
            await self.writer.drain()

    async def until(self, end: bytes) -> bytes:
        """Everything up to and with ``end``."""
        async with asyncio.timeout(LIMIT_SECONDS):
            return await self.reader.readuntil(end)

    async def head(self) -> bytes:
        """A message head."""
        return await self.until(b"\r\n\r\n")

    async def exactly(self, size: int) -> bytes:
        """``size`` bytes."""
        async with asyncio.timeout(LIMIT_SECONDS):
            return await self.reader.readexactly(size)

    async def rest(self, seconds: float = END_SECONDS) -> bytes:
        """Everything up to the end of stream, which is not that of an idle connection."""
        async with asyncio.timeout(seconds):
            return await self.reader.read()

    async def accepted(self, data: bytes) -> int:
        """Send ``data``; returns how much of it was taken when nothing moves any more."""
        transport = self.writer.transport
        waiting = transport.get_write_buffer_size()
        self.send(data)
        moved = asyncio.get_running_loop().time()
        left = transport.get_write_buffer_size()
        async with asyncio.timeout(LIMIT_SECONDS):
            while asyncio.get_running_loop().time() - moved < 0.2:
                await asyncio.sleep(0.01)
                if transport.get_write_buffer_size() != left:
                    left = transport.get_write_buffer_size()
                    moved = asyncio.get_running_loop().time()
        return waiting + len(data) - left

    def pause(self) -> None:
        """Read nothing more."""
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    def resume(self) -> None:
        """Read again."""
        cast("asyncio.Transport", self.writer.transport).resume_reading()

    def end(self) -> None:
        """End this side (FIN), go on reading."""
        self.writer.write_eof()

    async def close(self) -> None:
        """Close; the other side sees an end of stream."""
        self.writer.close()
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                await self.writer.wait_closed()
        except (ConnectionError, TimeoutError):
            self.writer.transport.abort()

    def reset(self) -> None:
        """Die at once: the other side sees a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Response:
    """A response as a client understands it."""

    status: int
    head: bytes
    fields: dict[str, str]
    body: bytes = b""
    #: The size of each chunk, in order.
    chunks: list[int] = field(default_factory=list)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def closes(self) -> bool:
        """Whether the connection ends with it."""
        return self.fields.get("connection", "").lower() == "close"


class Client(Peer):
    """A raw client of the gateway, with a reader of responses of its own."""

    async def response_head(self) -> Response:
        """The next response head; content is left unread."""
        head = await self.head()
        lines = head.decode("latin-1").split("\r\n")
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        names = [name.lower() for name, _ in pairs]
        assert len(names) == len(set(names)), f"a field twice: {names}"
        return Response(int(status), head, {name.lower(): value for name, value in pairs})

    async def response(self, *, to: bytes = b"GET") -> Response:
        """The next final response, with its content."""
        response = await self.response_head()
        while response.status < 200:
            response = await self.response_head()
        assert response.fields["x-preview-replica"] == REPLICA
        if to == b"HEAD" or response.status in (204, 304):
            return response
        if "transfer-encoding" in response.fields:
            while (size := int((await self.until(b"\r\n"))[:-2], 16)) > 0:
                response.chunks.append(size)
                response.body += await self.exactly(size)
                assert await self.exactly(2) == b"\r\n"
            assert await self.exactly(2) == b"\r\n"
        elif "content-length" in response.fields:
            response.body = await self.exactly(int(response.fields["content-length"]))
        else:
            response.body = await self.rest()
        return response

    def get(self, rest: bytes = b"", *fields: bytes, method: bytes = b"GET") -> None:
        """Send a request for a path below the preview's base."""
        self.ask(BASE + rest, *fields, method=method)

    def ask(self, target: bytes, *fields: bytes, method: bytes = b"GET") -> None:
        """Send a request head."""
        lines = (method + b" " + target + b" HTTP/1.1", b"Host: localhost", *fields)
        self.send(b"\r\n".join(lines) + b"\r\n\r\n")

    def upgrade(self, rest: bytes = b"", *fields: bytes) -> None:
        """Send a WebSocket handshake."""
        self.get(rest, *HANDSHAKE, *fields)


#: From RFC 6455 1.3, as are the key and its answer.
HANDSHAKE: Final = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
ACCEPTED: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


class Server:
    """A scripted server: hands out its connections one by one."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self._accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self.endpoint = Endpoint("127.0.0.1", 0)

    async def open(self, path: Path | None = None) -> Server:
        """Listen on a free port, or on a Unix socket."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(reader, writer)
            self.peers.append(peer)
            self._accepted.put_nowait(peer)

        if path is None:
            sock = _socket()
            sock.bind(("127.0.0.1", 0))
            self.endpoint = Endpoint(*sock.getsockname())
            self._server = await asyncio.start_server(serve, sock=sock, limit=_STREAM_LIMIT)
        else:
            self._server = await asyncio.start_unix_server(serve, path, limit=_STREAM_LIMIT)
        return self

    async def accept(self) -> Peer:
        """The next connection."""
        async with asyncio.timeout(LIMIT_SECONDS):
            return await self._accepted.get()

    @property
    def untouched(self) -> bool:
        """Whether nobody has connected."""
        return not self.peers

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await asyncio.gather(*(peer.close() for peer in self.peers))
            self._server = None


class Gateway:
    """A listener and everything it needs, with servers and clients to go with it."""

    def __init__(self, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "replica_id": REPLICA,
            "registration_wait_seconds": 0.3,
            "hold_seconds": 2.0,
            "drain_seconds": 1.0,
        }
        self.settings = Settings(**{**defaults, **settings})
        self.registry = FakeRegistry()
        self.waker = FakeWaker()
        self.control = Server()
        # Not pytest's tmp_path: the path of a socket may have 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="gateway-")
        self._control_path = Path(self._folder.name) / "control.sock"
        self.servers = [self.control]
        self._clients: list[Client] = []
        self._address = ("", 0)

    async def open(self) -> Gateway:
        loop = asyncio.get_running_loop()
        await self.control.open(self._control_path)
        self.routes = RouteTable(
            cast("Registry", self.registry),
            wait_seconds=self.settings.registration_wait_seconds,
            max_age_seconds=self.settings.route_max_age_seconds,
            clock=loop.time,
        )
        self.routes.open()
        self.plane = DataPlane(
            self.settings,
            routes=self.routes,
            waker=self.waker,
            control_socket=str(self._control_path),
        )
        sock = _socket()
        sock.bind(("127.0.0.1", 0))
        self._address = sock.getsockname()
        self.listener = Listener(self.plane)
        await self.listener.open(sock)
        return self

    async def client(self) -> Client:
        """A new connection to the gateway."""
        sock = _socket()
        async with asyncio.timeout(LIMIT_SECONDS):
            try:
                await asyncio.get_running_loop().sock_connect(sock, self._address)
            except BaseException:
                sock.close()
                raise
            client = Client(*await asyncio.open_connection(sock=sock, limit=_STREAM_LIMIT))
        self._clients.append(client)
        return client

    async def server(self) -> Server:
        """A new dev server that nobody knows of yet."""
        server = await Server().open()
        self.servers.append(server)
        return server

    async def preview(self, **changes: Any) -> Server:
        """The dev server of a preview that is ready."""
        server = await self.server()
        self.registry.put(session(endpoint=server.endpoint, **changes))
        return server

    def starting(self, **changes: Any) -> None:
        """Make the preview one that is not ready yet."""
        version = self.registry.sessions[ID].version + 1 if ID in self.registry.sessions else 1
        self.registry.put(session(State.STARTING, **{"version": version, **changes}))

    def pool(self, session_id: str = ID) -> Pool:
        """The pool of a preview that was used."""
        entry = self.routes.get(session_id, self.plane.now())
        assert entry is not None
        return self.plane.pool(entry)

    @property
    def held(self) -> int:
        """Bytes that wait in the gateway's transports, kernel not included."""
        clients = chain(self.listener.connections, self.listener.tunnels)
        servers = chain.from_iterable(pool.connections() for pool in self.plane.pools)
        transports = [c.transport for c in clients] + [c.transport for c in servers]
        return sum(transport.get_write_buffer_size() for transport in transports)

    async def fill(self, sender: Peer, part: bytes = b"x" * 10_000) -> int:
        """Let ``sender`` send until something stays in the gateway; returns how many parts."""
        parts = 0
        while True:
            if self.held:
                # What has just been written is on its way to the kernel for a moment.
                await asyncio.sleep(0.03)
                if self.held:
                    return parts
            sender.send(part)
            await sender.drain()
            await asyncio.sleep(0)
            parts += 1

    async def drain(self, *, grace_seconds: float = 0.0) -> None:
        """Close the listener as SIGTERM does; without a grace period, as SIGINT does."""
        await self.listener.close(
            grace_seconds=grace_seconds, drain_seconds=self.settings.drain_seconds
        )

    async def close(self) -> None:
        """Close everything, and check that nothing is left of it."""
        # Clients first: a drain lets those that were turned away read why.
        await asyncio.gather(*(client.close() for client in self._clients))
        await self.drain()
        await self.routes.close()
        await asyncio.gather(*(server.close() for server in self.servers))
        self._folder.cleanup()
        pools = (self.plane.control, *self.plane.pools)
        await eventually(lambda: not any(len(pool) for pool in pools))
        assert not self.listener.connections
        assert not self.listener.tunnels
        assert self.plane.stats.tunnels == 0


def put_clock_on(gateway: Gateway, seconds: float) -> None:
    """Let the data plane's clock jump; its next sweep, within a second, sees what is over."""
    now = gateway.plane.now
    gateway.plane.now = lambda: now() + seconds


def descriptors() -> set[str]:
    """The sockets of this process, but for the pair that uvloop makes anew for each run."""
    return {
        f"{name} {connection}"
        for name in os.listdir("/proc/self/fd")
        if (connection := _addresses(int(name)))
    }


def _addresses(descriptor: int) -> str:
    try:
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
            return ""
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            own = sock.getsockname()
            with contextlib.suppress(OSError):
                return f"{own} {sock.getpeername()}" if own or sock.getpeername() else ""
            return str(own)
    except OSError:
        return ""  # closed meanwhile
