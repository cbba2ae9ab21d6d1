"""One client connection: its requests in order, its deadlines, the gateway's own answers.

A connection reads requests one at a time; what a client has pipelined waits, and with it the
client. Every wait has a deadline that one sweep a second looks after: a timer per connection
would cost more than the connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from gateway.errors import SessionNotFound
from gateway.proxy import answers, deadlines, heads, tcp, viewers
from gateway.proxy.access import has_session_token
from gateway.proxy.answers import Answer
from gateway.proxy.exchange import Exchange
from gateway.proxy.fields import AUTHORIZATION, COOKIE, HOST, ORIGIN
from gateway.proxy.messages import END, Malformed, RequestHead
from gateway.proxy.outbox import Sender
from gateway.proxy.place import CONTROL, is_internal, own_path
from gateway.proxy.plane import DataPlane
from gateway.proxy.requests import RequestParser
from gateway.proxy.tunnel import TunnelSide
from gateway.session import is_session_id
from gateway.tokens import Caller

if TYPE_CHECKING:
    from gateway.proxy.listener import Listener
    from gateway.proxy.routes import Entry

HIGH_WATER: Final = 256 * 1024
#: What one read holds is parsed in parts of this size, one in a turn of the event loop, and no
#: further than the next request: 10,000 pipelined requests are a read of 256 KiB, but 10 MiB of
#: heads, and if the gateway answers them itself 0.2 s in which nobody else is served.
_PART_BYTES: Final = 32 * 1024
#: After the last answer this much more is read and thrown away, so that a client that is still
#: sending gets to see it (RFC 9112 9.6).
_LINGER_BYTES: Final = 4 * 2**20
#: SO_LINGER on, with no time: closing is a reset.
_RESET: Final = struct.pack("ii", 1, 0)
#: While the gateway ends, who was told before that the connection stays may ask once more in this.
_LAST_REQUEST_SECONDS: Final = 1.0
_FOREVER: Final = float("inf")
#: Nothing is known yet of how much the client has taken.
_UNKNOWN: Final = -1
_UNKNOWN_HOST: Final = (
    "this gateway has no API tokens, so it answers only under localhost, IP addresses and the "
    "hosts of GATEWAY_PUBLIC_URL and GATEWAY_PREVIEW_DOMAIN"
)


class ClientConnection(Sender):
    """One client connection."""

    #: For mypyc: what a tunnel no longer has.
    __deletable__ = ("parser",)
    __slots__ = (
        "_awaited",
        "_backlog",
        "_caller",
        "_cookies",
        "_ended",
        "_goes_on",
        "_head_due",
        "_keepalive_seconds",
        "_lingering",
        "_listener",
        "_place",
        "_progress",
        "_reading_paused",
        "_receiving",
        "_thrown_away",
        "_tunnel",
        "_tunnel_of",
        "closing_soon",
        "content_parts",
        "deadline",
        "exchange",
        "parser",
        "peer_host",
        "peer_trusted",
        "plane",
        "writing_paused",
    )

    def __init__(self, listener: Listener) -> None:
        self.plane: DataPlane = listener.plane
        super().__init__(self.plane.outbox)
        self._listener = listener
        settings = self.plane.settings
        self.parser = RequestParser(
            max_head=settings.max_head_bytes, max_target=settings.max_target_bytes
        )
        self._keepalive_seconds = settings.keepalive_seconds
        self.exchange: Exchange | None = None
        #: No further request is taken after the one under way.
        self.closing_soon = False
        #: When the connection ends if nothing happens before (seconds of the loop's clock).
        self.deadline = _FOREVER
        #: Of the last request; that of the next one is mostly the same.
        self._place = CONTROL
        self.peer_host = b""
        #: The peer is one of GATEWAY_TRUSTED_PROXIES.
        self.peer_trusted = False
        #: Read, but not parsed yet.
        self._backlog = b""
        #: A call of `_go_on` is due.
        self._goes_on = False
        #: The client has ended its side.
        self._ended = False
        #: The deadline is that of a head.
        self._head_due = True
        #: All is said; what the client still sends is thrown away.
        self._lingering = False
        self._thrown_away = 0
        #: The content of the request under way (or of one answered early) is not complete.
        self._receiving = False
        self._reading_paused = False
        self.writing_paused = False
        self._tunnel: TunnelSide | None = None
        self._tunnel_of: str | None = None
        #: By what a tunnel's client may see a private preview: a token, or these cookies.
        self._caller: Caller | None = None
        self._cookies = b""
        #: Reads that held content of the request under way.
        self.content_parts = 0
        #: Whose move it was, and how far it had come, at the sweep that set the deadline.
        self._awaited = deadlines.NOBODY
        self._progress = _UNKNOWN

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer_host = str(peer[0]).encode() if isinstance(peer, tuple) else b"unknown"
        self.peer_trusted = self.plane.forwarding.trusts(self.peer_host)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.closing_soon = self._listener.is_leaving
        if self._listener.is_flooded:
            self.transport.abort()
            return
        full = self._listener.is_full
        self._listener.connections.add(self)
        self.deadline = self.plane.now() + self.plane.settings.head_timeout_seconds
        if full:
            self.closing_soon = self._receiving = True
            self.answer(
                answers.problem(
                    503, "too_many_connections", "Too many connections", "try again", retry_after=1
                )
            )

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._throw_away(len(data))
            return
        if self._backlog or (len(data) > _PART_BYTES and len(data) > self.parser.content_left):
            self._backlog += data
            if self._is_held or self._goes_on:
                return
            data = self._next_part()
        head = self.parser.whole(data) if self._is_idle else None
        if head is None:
            self.parser.parse(data)
        else:
            self._begin(head, whole=True)
            if self.exchange is not None and not self._backlog:
                return  # there is nothing else to look after
        self._advance()

    @property
    def _is_idle(self) -> bool:
        """Whether a request that comes is handled at once."""
        return self.exchange is None and not self.writing_paused

    def eof_received(self) -> bool:
        # A half-closed client may still wait for its answer (RFC 9112 9.6).
        self._ended = True
        exchange = self.exchange
        if exchange is None or exchange.head.upgrade or self._receiving:
            return False
        self._set_deadline(deadlines.HALF_CLOSED)
        self._progress = 0
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.cancel()
        self._listener.gone(self)

    def pause_writing(self) -> None:
        self.writing_paused = True
        if self.exchange is not None:
            self.exchange.client_paused()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self.exchange is not None:
            self.exchange.client_resumed()
        elif not self.transport.is_closing():
            self._advance()

    # -- requests --------------------------------------------------------------------------------

    def _next_part(self) -> bytes:
        part, self._backlog = self._backlog[:_PART_BYTES], self._backlog[_PART_BYTES:]
        return part

    def _advance(self) -> None:
        """Handle what has come in, as far as the order of responses allows."""
        self._handle_events()
        if self._backlog and not self._goes_on and not self.parser.events and not self._is_held:
            self._goes_on = True
            asyncio.get_running_loop().call_soon(self._go_on)
        self._watch_head()
        self.update_reading()

    def _go_on(self) -> None:
        """Take the next part of what has been read."""
        self._goes_on = False
        if self._backlog and not self._is_held and not self.transport.is_closing():
            if not self.parser.events:
                self.parser.feed(self._next_part())
            self._advance()

    @property
    def _is_held(self) -> bool:
        """Whether what has been read waits as it is, and is not even parsed."""
        return self._lingering or (self.exchange is not None and self.exchange.blocked)

    def _handle_events(self) -> None:
        events = self.parser.events
        while events and not self._lingering:
            event, exchange = events[0], self.exchange
            if type(event) is RequestHead:
                if exchange is not None or self.writing_paused:
                    break  # responses go out in order, and no faster than they are taken
                events.pop(0)
                self._begin(event)
            elif isinstance(event, Malformed):
                if exchange is not None and not self._receiving:
                    break
                events.clear()
                self._refuse(event)
            elif type(event) is bytes:
                self._pass_content(exchange)
            else:
                events.pop(0)
                trailers: tuple[bytes, ...] = ()
                if event is not END:
                    trailers = event
                    events.pop(0)  # END
                self._receiving = False
                if exchange is not None:
                    exchange.request_end(trailers)

    def _pass_content(self, exchange: Exchange | None) -> None:
        """Pass on what has come in of the request's content, as one piece.

        Not one by one: a thousand chunks of one byte would wait as a thousand objects.
        """
        events = self.parser.events
        parts: list[bytes] = []
        for event in events:
            if type(event) is not bytes:
                break
            parts.append(event)
        del events[: len(parts)]
        self.content_parts += 1
        if exchange is not None:
            exchange.request_content(parts)

    def _begin(self, head: RequestHead, *, whole: bool = False) -> None:
        """Answer or forward a request; ``whole`` if nothing of it follows."""
        self._receiving = not whole
        self.content_parts = 0
        if not self._ended:
            self.deadline = _FOREVER
        if not head.target.startswith(b"/"):
            # Before a trusted proxy's word: it sends its own Host with the target.
            path = own_path(head.target, head.special[HOST] or b"")
            if path is not None:
                head.aim_at(path)
        if self.peer_trusted:
            self._believe_host(head)
        place = self._place
        if not place.has(head.target):
            place = self._place = self.plane.places.of(head)
        exchange = self.exchange = Exchange(self, head, place, whole=whole)
        if head.special[AUTHORIZATION] is not None:
            caller = exchange.caller = self.plane.access.caller(head)
            is_own = caller is not None or has_session_token(head)
            if is_own and place.session_id is not None and place.reserved is None:
                # The gateway's own tokens are for the gateway only.
                head.special[AUTHORIZATION] = None
        if not self._turned_away(exchange):
            exchange.begin()

    def _believe_host(self, head: RequestHead) -> None:
        """Take the request as one to the host that a trusted proxy names.

        Not if Host itself is refused: a page that reached this address by DNS rebinding, on the
        machine of a trusted proxy, could name what it likes.
        """
        host = self.plane.forwarding.host(head)
        if host and self.plane.access.host_allowed(head.special[HOST] or b"localhost"):
            head.special[HOST] = host

    def _turned_away(self, exchange: Exchange) -> bool:
        """Answer what is refused or redirected before any route is looked up."""
        head, place = exchange.head, exchange.place
        access, target = self.plane.access, head.target
        if (
            place.plain
            and access.host_allowed(head.special[HOST] or b"localhost")
            and (head.special[ORIGIN] is None or access.origin_allowed(head))
        ):
            return False
        if not target.startswith(b"/") or (place is CONTROL and is_internal(target)):
            self.answer(
                answers.problem(400, "bad_target", "Bad request target", "use an absolute path")
            )
        elif not access.host_allowed(head.special[HOST] or b"localhost"):
            self.answer(answers.problem(421, "unknown_host", "Unknown host", _UNKNOWN_HOST))
        elif not access.origin_allowed(head):
            exchange.fail(answers.foreign_origin(head))
        elif place.session_id is None:
            return False
        elif not is_session_id(place.session_id):
            exchange.fail(SessionNotFound(place.session_id[:60]))
        elif (location := self.plane.places.moved(head, place)) is not None:
            self.answer(answers.redirect(location))
        else:
            return False
        return True

    def _refuse(self, malformed: Malformed) -> None:
        """Answer bytes that are no request, and end the connection."""
        exchange = self.exchange
        if exchange is not None and exchange.answered:
            self.abort()
            return
        if exchange is not None:
            exchange.cancel()
            self.exchange = None
        self._receiving = self.closing_soon = True
        self.answer(answers.refused(malformed.status, malformed.message))

    # -- answers ---------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """Send a response of the gateway's own and go on to the next request."""
        exchange = self.exchange
        head = exchange.head if exchange is not None else None
        keep_alive = (
            head is not None
            and head.keep_alive
            and not head.http10
            and not head.upgrade
            and self._is_complete
            and not self.is_last
        )
        fields = [*answer.fields, ("X-Preview-Replica", self.plane.settings.replica)]
        if answer.retry_after is not None:
            fields.append(("Retry-After", str(answer.retry_after)))
        self.plane.stats.count(answer.status)
        self.write(
            heads.simple_response(
                answer.status,
                answer.body,
                content_type=answer.content_type,
                fields=fields,
                keep_alive=keep_alive,
                to_head=head is not None and head.method == b"HEAD",
            )
        )
        self.exchange_done(keep_alive=keep_alive)

    @property
    def _is_complete(self) -> bool:
        """Whether the end of the request under way has come in."""
        return not self._receiving or END in self.parser.events

    @property
    def is_last(self) -> bool:
        """Whether no other request follows the one under way."""
        return self.closing_soon or self._has_no_more

    @property
    def _has_no_more(self) -> bool:
        """Whether the client has ended its side, and nothing of what it sent is left."""
        return self._ended and not self.parser.events and not self._backlog

    def exchange_done(self, *, keep_alive: bool) -> None:
        """The response is complete."""
        self.exchange = None
        # Not `is_last`: who was told that the connection stays may have sent the next request.
        if not keep_alive or self._has_no_more:
            self._finish()
            return
        self._head_due = False
        if self._receiving:
            return  # called by _handle_events, which goes on
        if not self._ended:
            self.deadline = self.plane.now() + self._keepalive_seconds
        if self.parser.events or self._backlog or self.parser.in_message:
            self._advance()
        elif self._reading_paused:
            self.update_reading()

    def _watch_head(self) -> None:
        """Set the deadline of a head that has begun and of the pause before it."""
        if self.exchange is not None or self._head_due or self._lingering or self._ended:
            return
        settings = self.plane.settings
        if self.parser.in_message:
            self._head_due = True
            self.deadline = self.plane.now() + settings.head_timeout_seconds
        elif self.deadline == _FOREVER:
            self.deadline = self.plane.now() + self._keepalive_seconds

    # -- the end ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        """All is said: close, but give a client that is still sending time to see it."""
        self.closing_soon = True
        self.parser.events.clear()
        self._backlog = b""
        self.flush()
        self._end_soon()
        if (self._receiving or self.parser.in_message) and not self._ended:
            # Closing with unread bytes would be a reset, which destroys the answer on its way.
            self._lingering = True
            self.transport.write_eof()
            self.update_reading()
        else:
            self.transport.close()

    def _throw_away(self, size: int) -> None:
        self._thrown_away += size
        if self._thrown_away > _LINGER_BYTES:
            self.transport.close()

    def _end_soon(self) -> None:
        self._set_deadline(deadlines.LINGERING)
        self._progress = _UNKNOWN

    def _expire(self) -> None:
        """The deadline has passed: say so to who can still be told, and close."""
        transport, exchange = self.transport, self.exchange
        if self._lingering or transport.is_closing():
            progress = tcp.progress(transport)
            if transport.get_write_buffer_size() and progress != self._progress:
                # It is all said, and the client takes it, slowly.
                self._progress = progress
                self._set_deadline(deadlines.CLIENT_TAKES)
            else:
                transport.abort()
        elif exchange is not None and not self._ended:
            if self._awaited == deadlines.CLIENT_TAKES:
                self._reset()
            else:
                exchange.time_out(self._awaited)
        elif exchange is None and self.parser.in_message:
            self._receiving = self.closing_soon = True
            self.answer(
                answers.problem(
                    408, "request_timeout", "Request timeout", "the request's head took too long"
                )
            )
        else:
            self.shut()

    def leave(self) -> None:
        """Take no more than the requests under way; between two requests, end now."""
        self.closing_soon = True
        self._keepalive_seconds = _LAST_REQUEST_SECONDS
        if (
            self.exchange is None
            and not self._lingering
            and not self._receiving
            and not self.parser.in_message
            and not self.parser.events
            and not self._backlog
        ):
            self.shut()

    def shut(self) -> None:
        """End the connection now, between two requests."""
        self.closing_soon = True
        self.flush()
        self._end_soon()
        self.transport.close()

    def abort(self) -> None:
        """End a response that cannot be completed, so that the client notices."""
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        exchange.cancel()
        if exchange.ends_with_connection:
            # Without framing only a reset tells the client (RFC 9112 8).
            self._reset()
        else:
            self.shut()

    def _reset(self) -> None:
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    # -- once a second ---------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Once a second: notice who is gone or has stopped, and act on the deadline.

        A request sets no timer: whose move it is, and whether anything has moved, is asked here.
        """
        if self._reading_paused and tcp.is_dead(self.transport):
            self.transport.abort()
            return
        exchange = self.exchange
        if exchange is not None and not self.transport.is_closing():
            if self.writing_paused and exchange.notices_death():
                return
            self._watch_exchange(exchange)
            self._watch_viewer(exchange.place.session_id)
        if self.deadline < now:
            self._expire()

    def _watch_exchange(self, exchange: Exchange) -> None:
        if self._ended:
            awaited = deadlines.HALF_CLOSED
            progress = tcp.progress(self.transport) if exchange.answered else 0
        else:
            awaited, progress = exchange.awaited()
        if (
            awaited != self._awaited
            or progress != self._progress
            or self.deadline == _FOREVER  # another exchange than last time
        ):
            self._progress = progress
            self._set_deadline(awaited)

    def _set_deadline(self, awaited: int) -> None:
        self._awaited = awaited
        self.deadline = self.plane.now() + self.plane.limits.seconds[awaited]

    def put_off_deadline(self) -> None:
        """Something has moved that the sweep cannot see."""
        if not self._ended:
            self.deadline = _FOREVER

    # -- flow ------------------------------------------------------------------------------------

    def unblocked(self) -> None:
        """The upstream takes content again."""
        if self._backlog:
            self._advance()
        else:
            self.update_reading()

    def update_reading(self) -> None:
        """Read from the client only what can be passed on."""
        if self._lingering:
            pause = False
        elif self.exchange is not None:
            pause = (
                self.exchange.blocked
                or bool(self.parser.events)
                or bool(self._backlog)
                or bool(self.parser.tail)
            )
        else:
            pause = self.writing_paused or bool(self._backlog)
        if pause is self._reading_paused or self.transport.is_closing():
            return
        self._reading_paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # -- tunnels ---------------------------------------------------------------------------------

    def become_tunnel(self, side: TunnelSide, session_id: str | None) -> None:
        """The connection speaks another protocol from now on."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            self._caller = exchange.caller
            self._cookies = viewers.own(exchange.head.special[COOKIE] or b"")
        del self.parser  # half the memory of an idle socket pair: bench/proxies.py, case idle
        self._tunnel = side
        self._tunnel_of = session_id
        self._listener.became_tunnel(self)

    def change_tunnel(self, side: TunnelSide) -> None:
        """Another side of a tunnel looks after this client from now on."""
        self._tunnel = side

    @property
    def stays(self) -> bool:
        """Whether a tunnel that has lost its dev server is worth another one."""
        return not self._listener.is_leaving and not self.transport.is_closing()

    def look_after_tunnel(self, active: set[str], ping_seconds: int) -> None:
        """Once a second: add the tunnel's session to ``active`` if it was used, end it if dead."""
        tunnel = self._tunnel
        if tunnel is not None:
            if tunnel.take_activity() and self._tunnel_of:
                active.add(self._tunnel_of)
            tunnel.look_after(ping_seconds)
        if self._cookies:
            self._watch_viewer(self._tunnel_of)

    def review(self, entry: Entry) -> None:
        """End what is under way if its client may not, or no longer, see this preview."""
        exchange, route = self.exchange, entry.route
        if exchange is not None:
            if exchange.place.session_id == route.id:
                exchange.review(entry)
        elif self._tunnel_of == route.id and not (
            entry.is_public
            or (self._caller is not None and self._caller.manages(route.creator))
            or self.plane.viewers.admits(route, self._cookies)
        ):
            self.end_tunnel()

    def _watch_viewer(self, session_id: str | None) -> None:
        """Links and their cookies run out."""
        entry = self.plane.routes.known(session_id) if session_id is not None else None
        if entry is not None and not entry.is_public:
            self.review(entry)

    def end_tunnel(self) -> None:
        """End the tunnel, without a Close frame: a clean close leaves Vite 5's HMR client dead."""
        if self._tunnel is not None:
            self._tunnel.close()

    def tunnel_closed(self) -> None:
        """The tunnel has ended."""
        self._listener.gone(self)
