"""The browser's HMR socket outlives the dev server behind it.

A page of Vite's whose socket is lost loads itself again and all that its user typed is gone; and a
visible page looks for its dev server once a second, so that none could ever sleep. So when the dev
server goes, the browser's side is kept, the session's next dev server is dialled behind it, and the
page is told to reload, once. It has to: the new dev server sends updates only for modules that it
has served itself, and gives every dependency another address (``?v=``), so that a module which the
page loads later would bring a second copy of what the page has.

Kept is a socket only while nothing is cut by it: both streams stand between two messages, and no
extension is negotiated (with permessage-deflate a new sender would not have the old one's window;
Vite's server negotiates none). Otherwise, and if no dev server comes within ``hold_seconds``, the
socket ends without a Close frame, after which the page's client looks for the dev server itself.

While a session sleeps, its sockets have no task: the listener's sweep looks at the route, and an
edit of the files, or a word from the page, wakes it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from gateway.errors import GatewayError
from gateway.proxy import fields, handshake, tunnel
from gateway.proxy.frames import PING, FrameWatch, text_frame
from gateway.proxy.messages import Malformed, ResponseHead
from gateway.proxy.tunnel import TunnelSide
from gateway.proxy.upstream import Consumer, UpstreamConnection, UpstreamUnreachable
from gateway.session import PENDING, Route, SessionId, State

if TYPE_CHECKING:
    from gateway.proxy.connection import ClientConnection
    from gateway.proxy.plane import DataPlane
    from gateway.proxy.routes import Entry

log: Final = logging.getLogger(__name__)

#: The subprotocol of Vite's HMR socket, from 2 to 8.
_PROTOCOL: Final = b"vite-hmr"
_EXTENSIONS: Final = b"sec-websocket-extensions:"
#: What Vite says first; a page that has heard it once, hears it no more: Vite 5 would begin to send
#: its pings twice.
_CONNECTED: Final = text_frame(b'{"type":"connected"}')
_RELOAD: Final = text_frame(b'{"type":"full-reload","path":"*"}')
#: A dev server that lets go of a resumed socket sooner than this would do so again and again.
_SHORTEST_SECONDS: Final = 1.0
#: What a page may say while there is nobody to hear it.
_MAX_SAID: Final = 64 * 1024


def is_hmr(response: ResponseHead) -> bool:
    """Whether a 101 opens an HMR socket that could be kept."""
    return response.special[fields.SEC_WEBSOCKET_PROTOCOL] == _PROTOCOL and not any(
        line[: len(_EXTENSIONS)].lower() == _EXTENSIONS for line in response.lines
    )


class HmrSocket:
    """One browser's HMR socket, over all the dev servers that it gets to see.

    It owns the task that dials the next one; who loses the browser says ``end``.
    """

    __slots__ = ("_client", "_id", "_near", "_plane", "_resumed_at", "_revision", "_task")

    #: The browser's side; `join` makes the first one.
    _near: TunnelSide

    def __init__(self, client: ClientConnection, session_id: SessionId) -> None:
        self._client = client
        self._plane: DataPlane = client.plane
        self._id: Final = session_id
        #: When the gateway itself connected it to a dev server.
        self._resumed_at = float("-inf")
        #: Of the session's files, when the dev server went.
        self._revision = 0
        self._task: asyncio.Task[None] | None = None

    def join(
        self, upstream: UpstreamConnection, *, to_client: bytes, to_upstream: bytes
    ) -> TunnelSide:
        """Make the tunnel to the first dev server; returns the client's side."""
        self._link(
            FrameWatch(), upstream, upstream.detach(), to_client=to_client, to_upstream=to_upstream
        )
        return self._near

    def _link(
        self,
        watch: FrameWatch,
        upstream: UpstreamConnection,
        transport: asyncio.Transport,
        *,
        to_client: bytes,
        to_upstream: bytes,
    ) -> None:
        client = self._client
        self._near = TunnelSide(client.transport, watch, client.tunnel_closed)
        far = DevServerSide(transport, FrameWatch(), upstream, self)
        tunnel.link(self._near, far, to_client=to_client, to_upstream=to_upstream)

    # -- the dev server goes ---------------------------------------------------------------------

    def lost(self, far: TunnelSide) -> bool:
        """The dev server's side has ended; whether the browser's is kept."""
        near, plane = self._near, self._plane
        watch, heard = near.watch, far.watch
        if not (
            type(watch) is FrameWatch
            and type(heard) is FrameWatch
            and watch.at_message_boundary
            and heard.at_message_boundary
            and not near.is_half_closed
            and self._client.stays
            and not near.transport.get_write_buffer_size()
            and plane.now() - self._resumed_at > _SHORTEST_SECONDS
        ):
            return False
        if near.take_activity():
            plane.active.add(self._id)
        waiting = WaitingSide(near.transport, watch, self._client.tunnel_closed, self)
        self._near = waiting
        self._client.change_tunnel(waiting)
        waiting.transport.set_protocol(waiting)
        waiting.transport.resume_reading()
        entry = plane.routes.get(self._id, plane.now())
        self._revision = entry.route.revision if entry is not None else 0
        self._begin()
        return True

    def end(self) -> None:
        """The browser has gone while it waited."""
        if self._task is not None:
            self._task.cancel()

    def look(self) -> None:
        """Once a second, while the browser waits: go on once there is a reason."""
        if self._task is not None:
            return
        plane = self._plane
        entry = plane.routes.get(self._id, plane.now())
        if entry is None or not self._may_sleep(entry.route):
            self._begin()

    def _may_sleep(self, route: Route) -> bool:
        """Whether the session sleeps, and nothing has happened that this page should see."""
        return (
            route.state is State.SLEEPING
            and route.revision == self._revision
            and not self._near.watch.active
        )

    # -- the next one ----------------------------------------------------------------------------

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._go_on(), name=f"HMR socket of {self._id}")

    async def _go_on(self) -> None:
        try:
            await self._find()
        except GatewayError as exc:
            log.info("an HMR socket of %s is given up: %s", self._id, exc)
            self._give_up()
        except Exception:
            log.exception("an HMR socket of %s is given up", self._id)
            self._give_up()
        finally:
            self._task = None

    def _give_up(self) -> None:
        self._plane.stats.hmr_given_up += 1
        self._near.close()

    async def _find(self) -> None:
        """Connect to the session's next dev server, or leave it asleep. Raises GatewayError."""
        plane = self._plane
        entry = plane.routes.get(self._id, plane.now()) or await plane.routes.resolve(self._id)
        if self._may_sleep(entry.route):
            return
        deadline = plane.now() + plane.settings.hold_seconds
        while True:
            entry = await self._until_ready(entry)
            generation = entry.route.generation  # the entry may hold a newer one after the wait
            try:
                await self._connect(entry)
            except UpstreamUnreachable as exc:
                unreachable = exc
            else:
                return
            # As for a request: the owner may be lost, and the session may run elsewhere soon.
            if plane.now() > deadline or not await plane.waker.wake(
                self._id, generation=generation
            ):
                raise unreachable
            entry = await plane.routes.resolve(self._id)

    async def _until_ready(self, entry: Entry) -> Entry:
        plane, route = self._plane, entry.route
        if route.state is State.SLEEPING:
            await plane.waker.wake(self._id, generation=route.generation)
        if route.state in PENDING:
            entry = await plane.routes.settled(self._id, entry, seconds=plane.settings.hold_seconds)
            route = entry.route
        if route.state is not State.READY or route.endpoint is None:
            raise UpstreamUnreachable(f"the session is {route.state}")
        if not route.public:
            # Whether this client may still look is asked when it comes back.
            raise UpstreamUnreachable("the preview is private")
        return entry

    async def _connect(self, entry: Entry) -> None:
        plane = self._plane
        pool = plane.pool(entry)
        upstream = await pool.open(upgrade=True)
        dial = Dial(upstream, entry.route, host=pool.host)
        try:
            async with asyncio.timeout(plane.settings.upgrade_timeout_seconds):
                await dial.greeted
        except TimeoutError as exc:
            dial.close()
            raise UpstreamUnreachable(f"{pool.name} did not open its HMR socket") from exc
        except BaseException:
            dial.close()
            raise
        if dial.transport.is_closing():
            raise UpstreamUnreachable(f"{pool.name} closed its HMR socket")
        # From here on nothing waits: neither side can go in between.
        near = cast("WaitingSide", self._near)
        watch = cast("FrameWatch", near.watch)
        dial.transport.write(near.said)
        self._link(watch, upstream, dial.transport, to_client=_RELOAD + dial.heard, to_upstream=b"")
        self._client.change_tunnel(self._near)
        self._resumed_at = plane.now()
        plane.stats.hmr_resumed += 1


class DevServerSide(TunnelSide):
    """The dev server's side: its end need not be the browser's."""

    __slots__ = ("_socket",)

    def __init__(
        self,
        transport: asyncio.Transport,
        watch: FrameWatch,
        upstream: UpstreamConnection,
        socket: HmrSocket,
    ) -> None:
        super().__init__(transport, watch, upstream.gone)
        self._socket = socket

    def eof_received(self) -> bool:
        """WebSocket servers do not half-close: nothing more will come."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_close()
        if not self._socket.lost(self):
            self.peer.close()


class WaitingSide(TunnelSide):
    """The browser's side while there is no dev server. It keeps what the page says, but pings."""

    __slots__ = ("_socket", "said")

    def __init__(
        self,
        transport: asyncio.Transport,
        watch: FrameWatch,
        on_close: Callable[[], None],
        socket: HmrSocket,
    ) -> None:
        super().__init__(transport, watch, on_close)
        self._socket = socket
        #: What the next dev server gets to hear first.
        self.said = b""

    def data_received(self, data: bytes) -> None:
        self._silent = 0
        watch = cast("FrameWatch", self.watch)
        watch.see(data)
        if watch.is_closed or len(self.said) + len(data) > _MAX_SAID:
            self.close()
        elif watch.active or not watch.at_message_boundary:
            self.said += data
        else:
            self.said = b""

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._socket.end()
        self._on_close()

    def take_activity(self) -> bool:
        """Never: what the page says counts once somebody hears it."""
        return False

    def pause_writing(self) -> None:
        """There is nobody to pause."""

    def resume_writing(self) -> None:
        """See ``pause_writing``."""

    def look_after(self, ping_seconds: int) -> None:
        """See ``TunnelSide``; there is only this side."""
        if self._is_dead(ping_seconds, PING, tunnel.CLIENT_PATIENCE):
            self.transport.abort()
        else:
            self._socket.look()

    @property
    def _takes_ping(self) -> bool:
        return not self.transport.is_closing() and not self.transport.get_write_buffer_size()


class Dial(Consumer):
    """Opens the HMR socket of a dev server and hears its greeting: an asyncio.Protocol, then.

    ``greeted`` is done once it is heard; what follows it is in ``heard``, or waits unread.
    """

    __slots__ = ("_key", "_upstream", "greeted", "heard", "transport")

    def __init__(self, upstream: UpstreamConnection, route: Route, *, host: bytes) -> None:
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard = b""
        self.transport: asyncio.Transport = upstream.transport
        self._upstream = upstream
        self._key = base64.b64encode(os.urandom(16))
        # Without an Origin Vite asks for no token, and this one would not be the page's anyway.
        lines = (
            b"GET " + (route.base + route.hmr.path).encode() + b" HTTP/1.1",
            b"Host: " + host,
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: " + self._key,
            b"Sec-WebSocket-Protocol: " + _PROTOCOL,
        )
        upstream.send(self, b"\r\n".join(lines) + b"\r\n\r\n", b"GET")

    def response_begun(self, response: ResponseHead, content: bytes, *, whole: bool) -> None:
        """Take an answer that is no 101."""
        self._fail(f"it answered {response.status}")

    def response_events(self, events: list[Any]) -> None:
        """Take the answer to the handshake."""
        taken = events[:]
        events.clear()
        for event in taken:
            if type(event) is ResponseHead and event.status == 101:
                self._switched(event)
                return
            if type(event) is ResponseHead and event.status > 101:
                self._fail(f"it answered {event.status}")
                return
            if type(event) is Malformed:
                self._fail(event.message)
                return

    def _switched(self, response: ResponseHead) -> None:
        accept = response.special[fields.SEC_WEBSOCKET_ACCEPT]
        if accept != handshake.accept_key(self._key) or not is_hmr(response):
            self._fail("its handshake is bad")
            return
        tail = self._upstream.parser.tail
        self._upstream.detach()
        # Compiled, a class has one base that is more than an interface.
        self.transport.set_protocol(cast("asyncio.Protocol", self))
        self.data_received(tail)

    def upstream_lost(self, exc: Exception | None) -> None:
        """The dev server has gone before it answered."""
        self._fail("it closed the connection")

    def upstream_paused(self) -> None:
        """A handshake is no more than one write."""

    def upstream_resumed(self) -> None:
        """See ``upstream_paused``."""

    # -- asyncio.Protocol, after the handshake

    def pause_writing(self) -> None:
        """Nothing more is written."""

    def resume_writing(self) -> None:
        """See ``pause_writing``."""

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if self.greeted.done():
            return
        if self.heard.startswith(_CONNECTED):
            self.heard = self.heard[len(_CONNECTED) :]
        elif _CONNECTED.startswith(self.heard):
            return
        self.transport.pause_reading()
        self.greeted.set_result(None)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.gone()
        self._fail("it closed the socket")

    def close(self) -> None:
        """Let go of the dev server."""
        self.greeted.cancel()
        self._upstream.close()

    def _fail(self, why: str) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(
                UpstreamUnreachable(f"the dev server opened no HMR socket: {why}")
            )
