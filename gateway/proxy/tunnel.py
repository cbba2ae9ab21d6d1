"""The byte relay after ``101 Switching Protocols``: two transports, back-pressure, half-close.

Each side is the ``asyncio.Protocol`` of one transport and writes to the other. A side that
cannot take more pauses reading on the other, so that at most the transports' write buffers are
held. An end of stream on one side is passed on as an end of stream; a loss closes the other side.

Nothing here has a timer: the listener's sweep calls ``look_after`` once a second. It finds the side
that died while nobody read from it, and sends a ping to a WebSocket side that says nothing: what is
between here and there may forget a connection that nobody uses, and may keep one whose other end is
gone. The pong travels on to the other side, where an unasked one means nothing (RFC 6455 5.5.3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from gateway.proxy import tcp
from gateway.proxy.frames import MASKED_PING, PING, FrameWatch

#: Bytes that may wait in a transport before the other side is paused.
HIGH_WATER: Final = 128 * 1024
#: After one side's end of stream, the other's must follow within this time.
HALF_CLOSED_SECONDS: Final = 30
#: When one side is lost, the other gets this long to take what is still on its way.
_FLUSH_SECONDS: Final = 0.5
#: A client is dead that says nothing for so many times the time after which it gets a ping, ...
CLIENT_PATIENCE: Final = 3
#: ... and a dev server after this: one that compiles may not answer for a minute, and one that is
#: gone with its pod is found by the kernel.
_UPSTREAM_PATIENCE: Final = 15
#: Instead of a time of silence: nobody reads what the side says.
_PAUSED: Final = -1


class Watch(Protocol):
    """Looks at the bytes of one direction as they pass."""

    #: More than keep-alives has passed since this was set to False.
    active: bool

    @property
    def at_boundary(self) -> bool:
        """Whether a WebSocket control frame may follow what has passed."""

    def see(self, data: bytes) -> None:
        """Look at what passes by."""


class ByteWatch:
    """Of a protocol that is not known, every byte counts."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active = False

    @property
    def at_boundary(self) -> bool:
        """Never: there are no frames."""
        return False

    def see(self, data: bytes) -> None:
        """Look at what passes by."""
        self.active = True


class TunnelSide(asyncio.Protocol):
    """One end of a tunnel; ``on_close`` is called once, when its transport is lost."""

    __slots__ = ("_half_closed", "_on_close", "_silent", "peer", "transport", "watch")

    peer: TunnelSide

    def __init__(
        self, transport: asyncio.Transport, watch: Watch, on_close: Callable[[], None]
    ) -> None:
        self.transport = transport
        self.watch = watch
        self._on_close = on_close
        #: Seconds since something was heard of this side, or _PAUSED.
        self._silent = 0
        #: Seconds since this side has ended its stream, counted from 1; 0: it has not.
        self._half_closed = 0

    def data_received(self, data: bytes) -> None:
        self._silent = 0
        self.watch.see(data)
        self.peer.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end of stream on; the tunnel lives until both sides have ended."""
        self._half_closed = 1
        peer = self.peer
        if peer._half_closed or peer.transport.is_closing() or not peer.transport.can_write_eof():
            peer.close()
            return False
        peer.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.peer.close()
        self._on_close()

    def close(self) -> None:
        """End this side once it has taken what was sent to it; soon in any case. Idempotent."""
        transport = self.transport
        transport.close()
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, transport.abort)

    @property
    def is_half_closed(self) -> bool:
        """Whether this side has ended its stream."""
        return self._half_closed > 0

    def take_activity(self) -> bool:
        """Whether more than keep-alives has passed, either way, since the last call."""
        active = self.watch.active or self.peer.watch.active
        self.watch.active = self.peer.watch.active = False
        return active

    def pause_writing(self) -> None:
        peer = self.peer
        if not peer.transport.is_closing():
            peer._silent = _PAUSED
            peer.transport.pause_reading()

    def resume_writing(self) -> None:
        peer = self.peer
        if not peer.transport.is_closing():
            peer._silent = 0
            peer.transport.resume_reading()

    # -- once a second ---------------------------------------------------------------------------

    def look_after(self, ping_seconds: int) -> None:
        """On the client's side, once a second: end what is dead, ping what is silent.

        A side is silent after ``ping_seconds``; 0: never.
        """
        far = self.peer
        if self._is_half_closed_too_long() or far._is_half_closed_too_long():
            self.close()
        elif self._is_dead(ping_seconds, PING, CLIENT_PATIENCE):
            self.transport.abort()
        elif far._is_dead(ping_seconds, MASKED_PING, _UPSTREAM_PATIENCE):
            far.transport.abort()

    def _is_half_closed_too_long(self) -> bool:
        if self._half_closed:
            self._half_closed += 1
        return self._half_closed > HALF_CLOSED_SECONDS

    def _is_dead(self, ping_seconds: int, ping: bytes, patience: int) -> bool:
        """One more second has passed: whether this side is no more."""
        silent = self._silent
        if silent == _PAUSED:
            return tcp.is_dead(self.transport)
        if not ping_seconds or self._half_closed:
            return False
        silent += 1
        if silent < ping_seconds:
            self._silent = silent
        elif silent == ping_seconds:
            if not self._takes_ping:
                # Asked again in a second. What is written already may tell in place of a ping.
                return tcp.is_unanswered(self.transport)
            self._silent = silent
            self.transport.write(ping)
        elif silent < ping_seconds * patience:
            self._silent = silent
        elif tcp.is_delivering(self.transport):
            self._silent = ping_seconds  # the ping may have waited behind what was sent before it
        else:
            return True
        return False

    @property
    def _takes_ping(self) -> bool:
        """Whether a frame may be put into the stream towards this side, and goes out at once."""
        return (
            self.peer.watch.at_boundary
            and not self.peer._half_closed
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        )


def join(
    client: asyncio.Transport,
    upstream: asyncio.Transport,
    *,
    to_client: bytes,
    to_upstream: bytes,
    client_closed: Callable[[], None],
    upstream_closed: Callable[[], None],
    websocket: bool,
) -> TunnelSide:
    """Make a tunnel of two transports; each callback is called once, when its side is lost.

    ``to_client`` and ``to_upstream`` are what has arrived already behind the two heads. Returns
    the client's side.
    """
    make_watch: Callable[[], Watch] = FrameWatch if websocket else ByteWatch
    near = TunnelSide(client, make_watch(), client_closed)
    far = TunnelSide(upstream, make_watch(), upstream_closed)
    link(near, far, to_client=to_client, to_upstream=to_upstream)
    return near


def link(near: TunnelSide, far: TunnelSide, *, to_client: bytes, to_upstream: bytes) -> None:
    """Let two sides be one tunnel, beginning with what has arrived already."""
    near.peer, far.peer = far, near
    tcp.probe(far.transport.get_extra_info("socket"))  # near has it from the listening socket
    for side in (near, far):
        side.transport.set_protocol(side)
        # After it: what waits from before may be too much already, which is said once, and here.
        side.transport.set_write_buffer_limits(high=HIGH_WATER)
    for side, data in ((far, to_client), (near, to_upstream)):
        if data:  # not by data_received, after which the side would pass for one that is read from
            side.watch.see(data)
            side.peer.transport.write(data)
    for side in (near, far):
        if side._silent != _PAUSED and not side.transport.is_closing():
            side.transport.resume_reading()
