"""One request and its response: find the route, forward, relay.

The usual case makes no task and awaits nothing: cached route, pooled connection, the rewritten
head in one write, then bytes both ways. Everything that has to wait (a registration under way, a
dev server that is starting, a new connection) is done by one task that the exchange owns.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NoReturn

from gateway.errors import GatewayError, SessionNotFound
from gateway.proxy import answers, deadlines, handshake, heads, hmr, messages, tcp, tunnel
from gateway.proxy.fields import (
    COOKIE,
    EXPECT,
    SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL,
)
from gateway.proxy.messages import END, Malformed, RequestHead, ResponseHead
from gateway.proxy.responses import MAX_INTERIM, TOO_MANY_INTERIM
from gateway.proxy.upstream import Consumer, Pool, UpstreamConnection, UpstreamUnreachable
from gateway.session import ENDED, PENDING, SessionId, State
from gateway.tokens import Caller

if TYPE_CHECKING:
    from gateway.proxy.connection import ClientConnection
    from gateway.proxy.place import Place
    from gateway.proxy.plane import DataPlane
    from gateway.proxy.routes import Entry

log: Final = logging.getLogger(__name__)

#: RFC 9110 9.2.2; only these are ever sent a second time, and only without content.
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


class BadUpstreamResponse(GatewayError):
    """What the dev server sent is no valid HTTP response."""

    status = 502
    code = "bad_upstream_response"
    title = "Bad response from the dev server"


class Exchange(Consumer):
    """A request under way on a client connection."""

    #: How many interim responses have come. Not set before the first: hardly any request has one.
    _interims: int
    #: Whether the client takes event streams. Not set before it matters: hardly any request waits.
    _takes_events: bool

    __slots__ = (
        "_chunked",
        "_early",
        "_fresh",
        "_interims",
        "_keep_alive",
        "_out",
        "_pool",
        "_request_complete",
        "_response",
        "_takes_events",
        "_task",
        "_upstream",
        "answered",
        "caller",
        "client",
        "head",
        "place",
        "plane",
        "upstream_blocked",
    )

    def __init__(
        self, client: ClientConnection, head: RequestHead, place: Place, *, whole: bool = False
    ) -> None:
        self.client = client
        self.plane: DataPlane = client.plane
        self.head = head
        self.place = place
        self.upstream_blocked = False
        #: Whose token of the gateway's own the request carried.
        self.caller: Caller | None = None
        #: The final response has begun.
        self.answered = False
        self._upstream: UpstreamConnection | None = None
        self._pool: Pool | None = None
        self._out = b""
        #: What is to follow the head, of a request that waits for its connection.
        self._early = b""
        #: Only a new connection will do: a pooled one was stale.
        self._fresh = False
        self._task: asyncio.Task[None] | None = None
        self._response: ResponseHead | None = None
        self._request_complete = whole
        self._chunked = False
        self._keep_alive = False

    # -- forward ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Forward at once if route and connection are at hand; else let a task wait for them."""
        session_id, now = self.place.session_id, self.plane.now()
        if session_id is None:
            self._aim_at_control()
        else:
            entry = self.plane.routes.get(session_id, now)
            if entry is not None and self._may_forward(entry):
                self._aim_at(entry)
        upstream = self._pooled(now)
        if upstream is not None:
            self._send(upstream)
        else:
            self._wait()

    def _aim_at(self, entry: Entry) -> None:
        route, active = entry.route, self.plane.active
        if entry.session_id not in active:
            active.add(entry.session_id)
        pool = self._pool = self.plane.pool(entry)
        client = self.client
        self._out = self.plane.profile.request_head(
            self.place,
            self.head,
            pool,
            route,
            peer_host=client.peer_host,
            trusted=client.peer_trusted,
        )

    def _aim_at_control(self) -> None:
        self._pool = self.plane.control
        client = self.client
        self._out = self.place.control_head(
            self.head,
            self.plane.forwarding.for_control(
                self.head, client.peer_host, trusted=client.peer_trusted
            ),
        )

    def _pooled(self, now: float) -> UpstreamConnection | None:
        """A pooled connection. An upgrade gets a new one: nobody can retry it."""
        if self._pool is None or self.head.upgrade or self._fresh:
            return None
        return self._pool.take(now)

    def _may_forward(self, entry: Entry) -> bool:
        return (
            entry.is_ready
            and self.place.reserved is None
            and (entry.is_public or self.may_see(entry))
        )

    def may_see(self, entry: Entry) -> bool:
        """Whether the preview is shown to who asks."""
        if entry.is_public:
            return True
        if self.caller is not None and self.caller.manages(entry.route.creator):
            return True
        cookies = self.head.special[COOKIE]
        return cookies is not None and self.plane.viewers.admits(entry.route, cookies)

    def review(self, entry: Entry) -> None:
        """Who may see the preview has changed: end what was forwarded for others."""
        if self._pool is None or self.may_see(entry):
            return  # without a pool it has not been decided yet
        if self._task is not None:
            self._task.cancel()
        self.fail(SessionNotFound(entry.route.id))

    def _send(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        upstream.send(self, self._out, self.head.method)
        if self._early:
            early, self._early = self._early, b""
            upstream.write(early)
            self.client.unblocked()

    def request_content(self, parts: list[bytes]) -> None:
        """Parts of the request's content have come in; they go on as one piece."""
        if self.head.chunked:
            parts = [heads.chunk(part) for part in parts]
        self._pass_on(parts[0] if len(parts) == 1 else b"".join(parts))

    def request_end(self, trailers: tuple[bytes, ...]) -> None:
        """The request is complete."""
        self._request_complete = True
        if self.head.chunked:
            self._pass_on(heads.last_chunk(trailers) if trailers else heads.LAST_CHUNK)

    def _pass_on(self, data: bytes) -> None:
        if self._upstream is None:
            self._early += data  # the client is paused meanwhile: see `blocked`
        else:
            self._upstream.write(data)

    @property
    def blocked(self) -> bool:
        """Whether the client must not send more content for now."""
        return not self._request_complete and (self.upstream_blocked or bool(self._early))

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection tells the client that the response is complete."""
        response = self._response
        return (
            response is not None
            and (response.chunked or response.until_close)
            and not self._chunked
            and self.head.method != b"HEAD"
        )

    # -- waiting ---------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Let a task find the route and a connection."""
        self._task = asyncio.create_task(
            self._connect_anyhow(), name=f"exchange {self.place.session_id or 'control'}"
        )

    async def _connect_anyhow(self) -> None:
        session_id = self.place.session_id
        try:
            if session_id is None:
                await self._connect()
            else:
                await self._find_route(SessionId(session_id))
        except GatewayError as exc:
            failure = exc
        except Exception:
            log.exception("exchange for %s failed", self.place.session_id)
            failure = GatewayError("the gateway failed; its log says why")
        else:
            return
        # Not in the handlers: the parser, which goes on with the next request, would take the
        # exception that is being handled for the reason why it refuses that one.
        self.fail(failure)

    async def _find_route(self, session_id: SessionId) -> None:
        plane = self.plane
        entry = plane.routes.get(session_id, plane.now())
        if entry is None:
            with plane.held.place(session_id):
                entry = await plane.routes.resolve(session_id)
        answer = self._opened(entry) if self.place.opens_link else None
        if answer is not None:
            self.client.answer(answer)
            return
        if not self.may_see(entry):
            await self._deny(session_id)
        if self.place.reserved is not None:
            self._aim_at_control()
            await self._connect()
            return
        entry = await self._until_ready(session_id, entry)
        if entry is not None:
            await self._connect_ready(session_id, entry)

    def _opened(self, entry: Entry) -> answers.Answer | None:
        """The answer to who follows a signed link; None if it is not good, and would have to be."""
        if self.head.method not in (b"GET", b"HEAD"):
            return None
        plane, place, client = self.plane, self.place, self.client
        scheme = plane.forwarding.scheme(self.head, trusted=client.peer_trusted)
        cookie = plane.viewers.opened(
            entry.route, place.query, base=place.base, secure=scheme == b"https"
        )
        if cookie is None and not entry.is_public:
            return None
        return answers.link_opened(place.base, cookie)

    async def _until_ready(self, session_id: SessionId, entry: Entry) -> Entry | None:
        """Hold the request while the dev server starts; None if it has been answered."""
        plane, route = self.plane, entry.route
        if route.state not in PENDING:
            return self._checked(entry)
        is_page = messages.wants_page(self.head) and not self.head.upgrade
        # A page is not held; and of a session for which so many wait, one of them wakes it.
        if not (is_page and plane.held.is_full(session_id)):
            with plane.held.place(session_id):
                if route.state is State.SLEEPING:
                    await plane.waker.wake(session_id, generation=route.generation)
                if not is_page:
                    seconds = plane.settings.hold_seconds
                    entry = await plane.routes.settled(session_id, entry, seconds=seconds)
        if not is_page:
            return self._checked(entry)
        events_url = self.place.events_url
        self.client.answer(answers.starting_page(route, events_url=events_url))
        return None

    async def _deny(self, session_id: SessionId) -> NoReturn:
        with self.plane.denied.place(session_id):
            await self.plane.routes.deny(session_id)

    def _checked(self, entry: Entry) -> Entry | None:
        """The entry if it can be forwarded to; else the request is answered."""
        if entry.is_ready:
            return entry
        route = entry.route
        if route.state in ENDED or route.state is State.STOPPING:
            self.client.answer(answers.ended(route, self.head))
        else:
            self.client.answer(answers.still_starting(route))
        return None

    async def _connect_ready(self, session_id: SessionId, entry: Entry) -> None:
        """Connect. If the owner may be gone, the request waits until the session runs elsewhere."""
        plane = self.plane
        deadline = plane.now() + plane.settings.hold_seconds
        while True:
            if not self.may_see(entry):
                await self._deny(session_id)
            self._aim_at(entry)
            generation = entry.route.generation  # the entry may hold a newer one after the wait
            try:
                await self._connect()
            except UpstreamUnreachable as exc:
                unreachable = exc
            else:
                return
            if plane.now() > deadline:
                raise unreachable
            with plane.held.place(session_id):
                if not await plane.waker.wake(session_id, generation=generation):
                    raise unreachable
                known = await plane.routes.resolve(session_id)
            again = await self._until_ready(session_id, known)
            if again is None:
                return
            entry = again

    async def _connect(self) -> None:
        assert self._pool is not None  # noqa: S101 - set by every caller
        upstream = self._pooled(self.plane.now())
        if upstream is None:
            upstream = await self._pool.open(upgrade=bool(self.head.upgrade), fresh=self._fresh)
        self._send(upstream)

    # -- the response ----------------------------------------------------------------------------

    def response_begun(self, response: ResponseHead, content: bytes, *, whole: bool) -> None:
        """Relay a final response that has begun simply, as nearly all do; ``whole`` if it is over.

        The same as ``response_events``, without events (``python -m bench.proxy.footprint``).
        """
        self.client.write(self._relayed(response, content))
        if whole:
            self._finish()

    def response_events(self, events: list[Any]) -> None:
        """Relay what the dev server has sent; all of one read goes out in one write."""
        out: list[bytes] = []
        last = heads.LAST_CHUNK
        finished = False
        taken, count = 0, len(events)
        # Not popped one by one: a read may hold 40,000 chunks of one byte, and the list moves up
        # behind each that is taken.
        while taken < count:
            event = events[taken]
            taken += 1
            if event is END:
                if self._response is None:
                    continue  # the end of an interim response
                finished = True
                break  # what follows, nobody asked for: see UpstreamConnection.release
            if type(event) is bytes:
                if event and self.head.method != b"HEAD":
                    out.append(heads.chunk(event) if self._chunked else event)
            elif type(event) is ResponseHead:
                if event.status >= 200:
                    out.append(self._relayed(event))
                elif event.status == 101:
                    self._switch(event, out)
                    return
                elif self._is_interim_too_many():
                    self._write(out)
                    self._broken(Malformed(502, TOO_MANY_INTERIM))
                    return
                else:
                    self._relay_interim(event, out)
            elif type(event) is tuple:
                last = heads.last_chunk(event)
            else:
                self._write(out)
                self._broken(event)
                return
        if taken == count:
            events.clear()
        else:
            del events[:taken]
        if finished and self._chunked and self.head.method != b"HEAD":
            out.append(last)
        self._write(out)
        if finished:
            self._finish()

    def _write(self, out: list[bytes]) -> None:
        if out:
            self.client.write(out[0] if len(out) == 1 else b"".join(out))

    def _is_interim_too_many(self) -> bool:
        try:
            self._interims += 1
        except AttributeError:
            self._interims = 1
        return self._interims > MAX_INTERIM

    def _relay_interim(self, response: ResponseHead, out: list[bytes]) -> None:
        self.client.put_off_deadline()
        # RFC 9110 15.2: interim responses are passed on, but never to a HTTP/1.0 client.
        if not self.head.http10:
            self.plane.profile.put_right(response, self.place, self.head, self._pool)
            out.append(
                heads.response_head(
                    response, extra=self.plane.replica_field, connection=b"", chunked=False
                )
            )

    def _relayed(self, response: ResponseHead, content: bytes = b"") -> bytes:
        """The head of the final response, and ``content`` behind it, as they go to the client."""
        head = self.head
        self.plane.profile.put_right(response, self.place, head, self._pool)
        self._response = response
        self.answered = True
        # The rest of an unfinished upload is not worth its bytes: the connection ends instead.
        self._keep_alive = (
            head.keep_alive
            and not head.upgrade
            and self._request_complete
            and not self.client.is_last
        )
        if response.chunked or response.until_close:
            if head.http10:
                self._keep_alive = self._keep_alive and head.method == b"HEAD"
            else:
                self._chunked = True
        self.plane.stats.count(response.status)
        return heads.response_head(
            response,
            extra=self.plane.replica_field,
            connection=_connection_value(head, keep_alive=self._keep_alive),
            chunked=self._chunked and head.method != b"HEAD",
            to_head=head.method == b"HEAD" and not head.http10,
            content=content,
        )

    def _finish(self) -> None:
        """The response is complete: part from the upstream, and let the client go on."""
        upstream, response = self._upstream, self._response
        self._upstream = None
        if upstream is not None and response is not None:
            upstream.release(
                reusable=response.keep_alive
                and not response.until_close
                and self._request_complete
                and not self.head.upgrade
            )
        self.client.exchange_done(keep_alive=self._keep_alive)

    def _broken(self, malformed: Malformed) -> None:
        """The dev server sent what is no HTTP: nothing of its connection is used again."""
        self.fail(BadUpstreamResponse(f"the dev server's answer is bad: {malformed.message}"))

    def upstream_lost(self, exc: Exception | None) -> None:
        """The connection ended before the response did."""
        upstream, self._upstream = self._upstream, None
        if self.answered:
            # The client must see that the content is incomplete: no last chunk, or too short.
            self.client.abort()
            return
        if (
            upstream is not None
            and upstream.reused
            and not upstream.heard
            and self.head.bodyless
            and self.head.method in _IDEMPOTENT
        ):
            # The pooled connection was closed as the request went out: once more on a new one.
            self._fresh = True
            self._wait()
            return
        why = f" ({exc})" if exc is not None else ""
        self.fail(
            UpstreamUnreachable(f"the dev server closed the connection without an answer{why}")
        )

    def upstream_paused(self) -> None:
        """Stop taking content from the client."""
        self.upstream_blocked = True
        self.client.update_reading()

    def upstream_resumed(self) -> None:
        """Take content from the client again."""
        self.upstream_blocked = False
        self.client.unblocked()

    def client_paused(self) -> None:
        """The client takes no more for now."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def client_resumed(self) -> None:
        """The client takes more again."""
        if self._upstream is not None:
            self._upstream.resume_reading()

    def cancel(self) -> None:
        """The client is gone: end everything that was done for it."""
        if self._task is not None:
            self._task.cancel()
        self._drop_upstream()

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.close()

    # -- once a second ---------------------------------------------------------------------------

    def awaited(self) -> tuple[int, int]:
        """Whose move it is (see ``deadlines``), and a number that changes as that moves on."""
        client, upstream, head = self.client, self._upstream, self.head
        if upstream is None:
            return deadlines.NOBODY, 0  # what the task waits for has limits of its own
        if self.answered:
            if client.writing_paused:
                return deadlines.CLIENT_TAKES, tcp.progress(client.transport)
            return deadlines.NOBODY, 0
        if head.upgrade:
            return deadlines.UPGRADE, 0
        if not (self._request_complete or self.upstream_blocked):
            if head.special[EXPECT] is None or client.content_parts:
                return deadlines.CLIENT_SENDS, client.content_parts
        elif self._may_be_silent():
            # Some servers send the head with the first event, whenever that is.
            return deadlines.NOBODY, 0
        return deadlines.UPSTREAM, tcp.progress(upstream.transport)

    def _may_be_silent(self) -> bool:
        # Asked once a second; what is looked through may be as long as a head.
        try:
            return self._takes_events
        except AttributeError:
            self._takes_events = messages.accepts_events(self.head)
            return self._takes_events

    def time_out(self, awaited: int) -> None:
        """Answer after the deadline of who was to move."""
        pool = self._pool
        name = pool.name if pool is not None else ""
        self.fail(self.plane.limits.error(awaited, name))

    def notices_death(self) -> bool:
        """Whether the dev server died while, for the client's sake, nobody read from it."""
        upstream = self._upstream
        if upstream is None or not tcp.is_dead(upstream.transport):
            return False
        upstream.close()
        self.upstream_lost(ConnectionResetError("connection reset"))
        return True

    # -- upgrades --------------------------------------------------------------------------------

    def _switch(self, response: ResponseHead, out: list[bytes]) -> None:
        """Become a tunnel, if the 101 is the answer to what was asked (RFC 6455 4.1)."""
        upstream = self._upstream
        problem = self._switch_problem(response)
        if problem or upstream is None:
            self._write(out)
            self._broken(Malformed(502, problem))
            return
        self._upstream = None
        self.plane.profile.put_right(response, self.place, self.head, self._pool)
        is_asked = self.head.special[SEC_WEBSOCKET_PROTOCOL] is not None
        protocol = response.special[SEC_WEBSOCKET_PROTOCOL] if is_asked else None
        out.append(
            heads.switching_head(
                response,
                upgrade=response.upgrade,
                protocol=protocol or b"",
                extra=self.plane.replica_field,
            )
        )
        self._write(out)
        self.client.flush()
        self.plane.stats.count(101)
        to_client, to_upstream = upstream.parser.tail, self.client.parser.tail
        session_id = self.place.session_id
        websocket = response.upgrade.lower() == b"websocket"
        side: tunnel.TunnelSide
        keep = self.plane.settings.keep_hmr_sockets and hmr.is_hmr(response)
        if session_id is not None and websocket and keep:
            socket = hmr.HmrSocket(self.client, SessionId(session_id))
            side = socket.join(upstream, to_client=to_client, to_upstream=to_upstream)
        else:
            side = tunnel.join(
                self.client.transport,
                upstream.detach(),
                to_client=to_client,
                to_upstream=to_upstream,
                client_closed=self.client.tunnel_closed,
                upstream_closed=upstream.gone,
                websocket=websocket,
            )
        if self.client.writing_paused:
            side.pause_writing()  # what its transport has said already, it does not say again
        self.client.become_tunnel(side, session_id)

    def _switch_problem(self, response: ResponseHead) -> str:
        head, token = self.head, response.upgrade.lower()
        if not head.upgrade:
            return "101 without a request to upgrade"
        if not token or token not in head.upgrade.lower().split(b", "):
            return "101 to another protocol than the one asked for"
        if token == b"websocket":
            key = head.special[SEC_WEBSOCKET_KEY] or b""
            if response.special[SEC_WEBSOCKET_ACCEPT] != handshake.accept_key(key):
                return "wrong Sec-WebSocket-Accept"
        return ""

    def fail(self, exc: GatewayError) -> None:
        """Answer with an error: a page for a person, problem+json for a program."""
        self._drop_upstream()
        if self.answered:
            self.client.abort()
            return
        self.plane.stats.errors[exc.code] += 1
        self.client.answer(
            answers.error(exc, self.head, of_preview=self.place.session_id is not None)
        )


def _connection_value(head: RequestHead, *, keep_alive: bool) -> bytes:
    if not keep_alive:
        return b"close"
    return b"keep-alive" if head.http10 else b""
