"""The byte relay after ``101 Switching Protocols``: two transports, back-pressure, half-close.

Each side is the ``asyncio.Protocol`` of one transport and writes to the other. A side that
cannot take more pauses reading on the other, so that at most the transports' write buffers are
held. An end of stream on one side is passed on as an end of stream; a loss closes the other side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from gateway.proxy.frames import FrameWatch

#: Bytes that may wait in a transport before the other side is paused.
HIGH_WATER: Final = 128 * 1024
#: After one side's end of stream, the other's must follow within this time.
HALF_CLOSED_SECONDS: Final = 30.0
#: When one side is lost, the other gets this long to take what is still on its way.
_FLUSH_SECONDS: Final = 0.5


class Watch(Protocol):
    """Looks at the bytes of one direction as they pass."""

    #: More than keep-alives has passed since this was set to False.
    active: bool

    def see(self, data: bytes) -> None:
        """Look at what passes by."""


class ByteWatch:
    """Of a protocol that is not known, every byte counts."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active = False

    def see(self, data: bytes) -> None:
        """Look at what passes by."""
        self.active = True


class TunnelSide(asyncio.Protocol):
    """One end of a tunnel; ``on_close`` is called once, when its transport is lost."""

    __slots__ = ("_ended", "_on_close", "peer", "transport", "watch")

    peer: TunnelSide

    def __init__(
        self, transport: asyncio.Transport, watch: Watch, on_close: Callable[[], None]
    ) -> None:
        self.transport = transport
        self.watch = watch
        self._ended = False
        self._on_close = on_close

    def data_received(self, data: bytes) -> None:
        self.watch.see(data)
        self.peer.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end of stream on; the tunnel lives until both sides have ended."""
        self._ended = True
        peer = self.peer
        if peer._ended or peer.transport.is_closing() or not peer.transport.can_write_eof():
            peer.close()
            return False
        peer.transport.write_eof()
        asyncio.get_running_loop().call_later(HALF_CLOSED_SECONDS, self.close)
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

    def take_activity(self) -> bool:
        """Whether more than keep-alives has passed, either way, since the last call."""
        active = self.watch.active or self.peer.watch.active
        self.watch.active = self.peer.watch.active = False
        return active

    def pause_writing(self) -> None:
        if not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()


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
    near.peer, far.peer = far, near
    for transport, side in ((client, near), (upstream, far)):
        transport.set_write_buffer_limits(high=HIGH_WATER)
        transport.set_protocol(side)
    if to_client:
        far.data_received(to_client)
    if to_upstream:
        near.data_received(to_upstream)
    for transport in (client, upstream):
        if not transport.is_closing():
            transport.resume_reading()
    return near
