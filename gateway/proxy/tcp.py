"""What the kernel knows about a TCP connection and the event loop does not say.

While reading is paused the loop watches nothing of a connection, so that a reset goes unnoticed;
and a peer that is gone without a word is only noticed by asking. On a system without these options,
or for another kind of socket, nothing is known, and nothing is claimed.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from typing import Any, Final, cast

#: Linux only (``struct tcp_info`` of linux/tcp.h); the module is imported on other systems too.
_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)
_CLOSE: Final = 7
#: The first bytes of ``struct tcp_info``: state, congestion state, retransmissions, probes.
_HEAD: Final = struct.Struct("=BBBB")
#: Far behind: bytes that the peer has acknowledged (since Linux 4.1).
_ACKNOWLEDGED: Final = struct.Struct("=120xQ")
_QUEUED: Final = struct.Struct("=i")

#: A silent connection is probed after this time, ...
_IDLE_SECONDS: Final = 30
#: ... this often again, ...
_INTERVAL_SECONDS: Final = 10
#: ... and is dead when so many probes in a row were not answered: after a minute in all.
_PROBES: Final = 3

#: So many retransmissions, or probes of a full window, in a row: more than ten seconds of silence.
#: It is more than ``_PROBES``, at which the kernel itself gives up on an idle connection.
_UNANSWERED: Final = 6


def is_dead(transport: asyncio.BaseTransport) -> bool:
    """Whether the connection has ended, though the transport does not know: reset, or timed out.

    An end of stream is no death: what came before it is still to be read. For who is paused; a
    transport that reads finds out by itself. Costs one system call.
    """
    return _head(transport)[0] == _CLOSE


def is_unanswered(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer's kernel has been asked again and again, and says nothing."""
    _, _, retransmissions, probes = _head(transport)
    return max(retransmissions, probes) >= _UNANSWERED


def is_delivering(transport: asyncio.BaseTransport) -> bool:
    """Whether something is still on its way to a peer that takes it, though slowly."""
    state, _, retransmissions, probes = _head(transport)
    if not state or max(retransmissions, probes) >= _UNANSWERED:
        return False
    fileno = transport.get_extra_info("socket").fileno()
    queued = fcntl.ioctl(fileno, termios.TIOCOUTQ, bytes(_QUEUED.size))
    return bool(_QUEUED.unpack(queued)[0])


def progress(transport: asyncio.BaseTransport) -> int:
    """A number that changes as the peer takes what was written; it says nothing by itself.

    It is what the peer's kernel has acknowledged: the transport's buffer does not shrink for
    minutes while a slow peer empties the kernel's. Where that is not known the buffer must do.
    """
    sock = transport.get_extra_info("socket")
    if _TCP_INFO is not None and sock is not None:
        try:
            known = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKNOWLEDGED.size)
            return int(_ACKNOWLEDGED.unpack(known)[0])
        except (OSError, struct.error):  # no TCP, or closed meanwhile
            pass
    return cast("asyncio.WriteTransport", transport).get_write_buffer_size()


def probe(sock: Any) -> None:
    """Let the kernel find out when the peer is gone; a listening socket passes this on.

    ``sock`` is a socket, or what a transport shows of one.

    There is deliberately no TCP_USER_TIMEOUT: it would also end a peer that is alive and takes
    nothing for a while (RFC 9293 3.8.6.1 wants such a connection kept).
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE_SECONDS),
        ("TCP_KEEPINTVL", _INTERVAL_SECONDS),
        ("TCP_KEEPCNT", _PROBES),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _head(transport: asyncio.BaseTransport) -> tuple[int, int, int, int]:
    """The first bytes of the kernel's account of the connection; zeros if there is none."""
    sock = transport.get_extra_info("socket")
    if _TCP_INFO is None or sock is None:
        return 0, 0, 0, 0
    try:
        state, congestion, retransmissions, probes = _HEAD.unpack(
            sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _HEAD.size)
        )
    except (OSError, ValueError):  # no TCP, or closed meanwhile
        return 0, 0, 0, 0
    return state, congestion, retransmissions, probes
