"""The public port: client connections, their messages in order, their deadlines.

A connection reads requests one at a time; what a client has pipelined waits, and with it the
client. Every wait has a deadline that one sweep a second looks after: a timer per connection
would cost more than the connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterable
from typing import Any, Final, cast

from gateway.proxy import http1
from gateway.proxy.exchange import Exchange, forbidden_origin
from gateway.proxy.http1 import END, Malformed, RequestHead, RequestParser
from gateway.proxy.place import INTERNAL, Place
from gateway.proxy.plane import DataPlane
from gateway.proxy.tunnel import TunnelSide
from gateway.session import is_session_id

log: Final = logging.getLogger(__name__)

HIGH_WATER: Final = 256 * 1024
#: After an answer to an unfinished upload, this much more is read and thrown away, so that the
#: client gets to see the answer (RFC 9112 9.6); then the connection is closed.
_DISCARD_BYTES: Final = 4 * 2**20
_DISCARD_SECONDS: Final = 10.0
_SWEEP_SECONDS: Final = 1.0
_FOREVER: Final = float("inf")
_UNKNOWN_HOST: Final = (
    "this gateway has no API tokens, so it answers only under localhost, IP addresses and the "
    "hosts of GATEWAY_PUBLIC_URL and GATEWAY_PREVIEW_DOMAIN"
)


class ClientConnection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_discarded",
        "_listener",
        "_paused",
        "_receiving",
        "_tunnel",
        "closing_soon",
        "deadline",
        "exchange",
        "parser",
        "peer_host",
        "plane",
        "transport",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.plane: DataPlane = listener.plane
        settings = self.plane.settings
        self.parser = RequestParser(
            max_head=settings.max_head_bytes, max_target=settings.max_target_bytes
        )
        self.exchange: Exchange | None = None
        #: No further request is taken after the one under way.
        self.closing_soon = False
        #: When the connection ends if nothing happens before (seconds of the loop's clock).
        self.deadline = _FOREVER
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.peer_host = b""
        self._receiving = False
        self._discarded = 0
        self._paused = False
        self._tunnel: TunnelSide | None = None

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer_host = str(peer[0]).encode() if isinstance(peer, tuple) else b"unknown"
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        listener = self._listener
        if len(listener.connections) >= self.plane.settings.max_connections:
            listener.connections.add(self)
            self.closing_soon = True
            self.answer_problem(
                503, "too_many_connections", "Too many connections", "try again", retry_after=1
            )
            return
        listener.connections.add(self)
        self.deadline = self.plane.now() + self.plane.settings.head_timeout_seconds

    def data_received(self, data: bytes) -> None:
        if self.closing_soon and self.exchange is None and not self._receiving:
            return  # nothing more is read from this client
        self.parser.feed(data)
        self._advance()

    def eof_received(self) -> bool:
        # A half-closed client may still wait for its answer (RFC 9112 9.6).
        self.closing_soon = True
        return self.exchange is not None and not self._receiving

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connections.discard(self)
        self.deadline = _FOREVER
        if self.exchange is not None:
            self.exchange.cancel()
            self.exchange = None
        self._listener.note_idle()

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client_paused()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client_resumed()

    # -- requests --------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Handle what has been parsed, as far as the order of responses allows."""
        events = self.parser.events
        while events:
            event = events[0]
            exchange = self.exchange
            if type(event) is RequestHead:
                if exchange is not None or self.closing_soon:
                    break
                events.popleft()
                self._begin(event)
                continue
            if isinstance(event, Malformed):
                if exchange is None or self._receiving:
                    events.clear()
                    self._refuse(event)
                break
            events.popleft()
            if event is END:
                self._receiving = False
                if exchange is not None:
                    exchange.request_end()
                elif self.closing_soon:
                    self.transport.close()
            elif exchange is not None:
                exchange.request_content(cast("bytes", event))
            else:
                self._discard(len(cast("bytes", event)))
        if self.exchange is None and not events and not self.closing_soon:
            self._set_idle_deadline()
        self.update_reading()

    def _begin(self, head: RequestHead) -> None:
        self._receiving = True
        self.deadline = _FOREVER
        place = self.plane.places.of(head)
        exchange = self.exchange = Exchange(self, head, place)
        if b"authorization" in head.special and self.plane.access.carries_token(head):
            exchange.authorized = True
            if place.session_id is not None and place.reserved is None:
                # The gateway's own tokens are for the gateway only.
                del head.special[b"authorization"]
        if not self._turned_away(head, place):
            exchange.begin()

    def _turned_away(self, head: RequestHead, place: Place) -> bool:
        """Answer what is refused or redirected before any route is looked up."""
        access, target = self.plane.access, head.target
        if not target.startswith(b"/") or target.startswith(INTERNAL):
            self.answer_problem(400, "bad_target", "Bad request target", "use an absolute path")
        elif not access.host_allowed(head.special.get(b"host", b"localhost")):
            self.answer_problem(421, "unknown_host", "Unknown host", _UNKNOWN_HOST)
        elif not access.origin_allowed(head):
            error = forbidden_origin(head)
            self.answer_problem(error.status, error.code, error.title, str(error))
        elif place.session_id is None:
            return False
        elif not is_session_id(place.session_id):
            self.answer_problem(
                404,
                "session_not_found",
                "Session not found",
                "this is no session id",
                extra={
                    "success": False,
                    "error": "Preview session not found",
                    "sessionId": place.session_id[:60],
                },
            )
        elif (location := self.plane.places.moved(head, place)) is not None:
            self.answer(308, b"", content_type="text/plain", fields=[("Location", location)])
        else:
            return False
        return True

    def _refuse(self, malformed: Malformed) -> None:
        """Answer bytes that are no request, and end the connection."""
        if self.exchange is not None:
            if self.exchange.answered:
                self.abort()
                return
            self.exchange.cancel()
            self.exchange = None
        self._receiving = False
        self.closing_soon = True
        self.answer_problem(
            malformed.status, "malformed_request", "Malformed request", malformed.message
        )

    # -- answers ---------------------------------------------------------------------------------

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str,
        fields: Iterable[tuple[str, str]] = (),
        retry_after: int | None = None,
    ) -> None:
        """Send a response of the gateway's own and go on to the next request."""
        exchange = self.exchange
        head = exchange.head if exchange is not None else None
        keep_alive = (
            head is not None
            and head.keep_alive
            and not head.http10
            and not head.upgrade
            and not self.closing_soon
        )
        all_fields = [*fields, ("X-Preview-Replica", self.plane.settings.replica)]
        if retry_after is not None:
            all_fields.append(("Retry-After", str(retry_after)))
        self.plane.stats.count(status)
        self.transport.write(
            http1.simple_response(
                status,
                body,
                content_type=content_type,
                fields=all_fields,
                keep_alive=keep_alive,
                to_head=head is not None and head.method == b"HEAD",
            )
        )
        self.exchange_done(keep_alive=keep_alive)

    def answer_problem(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        *,
        retry_after: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Send ``application/problem+json`` (RFC 9457)."""
        problem = {"title": title, "status": status, "code": code, "detail": detail}
        self.answer(
            status,
            json.dumps({**problem, **(extra or {})}).encode(),
            content_type="application/problem+json",
            retry_after=retry_after,
        )

    def exchange_done(self, *, keep_alive: bool) -> None:
        """The response is complete."""
        self.exchange = None
        self._listener.note_idle()
        if not keep_alive or self.parser.stopped:
            self.closing_soon = True
        if self._receiving:
            self._discarded = 0
            self.deadline = self.plane.now() + _DISCARD_SECONDS
            self.update_reading()
        elif self.closing_soon:
            self.transport.close()
        elif self.parser.events:
            self._advance()
        else:
            self._set_idle_deadline()
            self.update_reading()

    def _discard(self, size: int) -> None:
        """Content of a request that has been answered already."""
        self._discarded += size
        if self._discarded > _DISCARD_BYTES:
            self.transport.close()

    def _set_idle_deadline(self) -> None:
        settings = self.plane.settings
        if self.parser.in_message:
            if self.deadline == _FOREVER:
                self.deadline = self.plane.now() + settings.head_timeout_seconds
        else:
            self.deadline = self.plane.now() + settings.keepalive_seconds

    def expire(self) -> None:
        """The deadline has passed: say so if a head is under way, and close."""
        self.deadline = _FOREVER
        self.closing_soon = True
        if self.exchange is None and self.parser.in_message and not self._receiving:
            self.answer_problem(
                408, "request_timeout", "Request timeout", "the request's head took too long"
            )
        else:
            self.transport.close()

    def abort(self) -> None:
        """End a response that cannot be completed, so that the client notices."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.cancel()
        self._listener.note_idle()
        self.transport.abort()

    # -- flow ------------------------------------------------------------------------------------

    def update_reading(self) -> None:
        """Read from the client only what can be passed on."""
        exchange = self.exchange
        pause = exchange is not None and (exchange.blocked or bool(self.parser.events))
        if pause is self._paused or self.transport.is_closing():
            return
        self._paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # -- tunnels ---------------------------------------------------------------------------------

    def become_tunnel(self, tunnel: TunnelSide) -> None:
        """The connection speaks another protocol from now on."""
        self._tunnel = tunnel
        self.exchange = None
        self.deadline = _FOREVER
        self.plane.stats.tunnels += 1

    def tunnel_closed(self) -> None:
        """The tunnel has ended."""
        self.plane.stats.tunnels -= 1
        self._listener.connections.discard(self)

    @property
    def is_tunnel(self) -> bool:
        """Whether the connection speaks another protocol by now."""
        return self._tunnel is not None


class Listener:
    """The listening socket and its connections."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.connections: set[ClientConnection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._idle: asyncio.Event | None = None

    def note_idle(self) -> None:
        """A request has ended: while draining, see whether it was the last one."""
        if self._idle is not None and not any(c.exchange for c in self.connections):
            self._idle.set()

    async def open(self, sock: socket.socket) -> None:
        """Accept connections from ``sock``, which is bound."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self), sock=sock, backlog=4096
        )
        self._sweeper = asyncio.create_task(self._sweep(), name="deadline sweep")

    async def close(self, *, drain_seconds: float) -> None:
        """Stop accepting, let requests under way finish, close the rest. Idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for connection in tuple(self.connections):
            connection.closing_soon = True
            if connection.exchange is None and not connection.is_tunnel:
                connection.transport.close()
        self._idle = asyncio.Event()
        self.note_idle()
        try:
            async with asyncio.timeout(drain_seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("requests under way were cut off after %g s", drain_seconds)
        for connection in tuple(self.connections):
            # Without a Close frame: a clean close leaves the HMR client of Vite 5 and older dead.
            connection.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for pool in tuple(self.plane.pools):
            pool.retire()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = self.plane.now()
            for connection in tuple(self.connections):
                if connection.deadline < now:
                    connection.expire()
            self.plane.sweep_pools()


__all__ = ["ClientConnection", "Listener"]
