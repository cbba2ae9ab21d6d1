"""The listening sockets of all workers: one each, on one port."""

from __future__ import annotations

import os
import socket
from typing import Final

from gateway.errors import SettingsError

_BACKLOG: Final = 4096


def listening_sockets(first: socket.socket, count: int) -> list[socket.socket]:
    """Listen with ``first`` (bound, without SO_REUSEPORT) and with ``count - 1`` more beside it.

    The kernel spreads new connections over them. SO_REUSEPORT would let any other process of this
    user in, too: a second gateway on the same port would start and take half of the traffic.
    Therefore the first one listens before it allows others beside it, which fails if anybody
    listens there; and so does whoever comes later without asking for SO_REUSEPORT.

    Raises SettingsError. The caller closes what is returned, and ``first`` in any case.
    """
    sockets = [first]
    try:
        first.listen(_BACKLOG)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(count - 1):
            sock = socket.socket(first.family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(first.getsockname())
            sock.listen(_BACKLOG)
    except OSError as exc:
        for sock in sockets[1:]:
            sock.close()
        raise SettingsError(
            f"cannot listen for {count} workers on one port ({os.strerror(exc.errno or 0)}): set "
            "GATEWAY_PORT to a port that is free, or GATEWAY_WORKERS to 0"
        ) from exc
    return sockets
