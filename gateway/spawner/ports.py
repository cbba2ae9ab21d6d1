"""Ports for dev servers, without races.

A port is held by a socket that is bound with SO_REUSEADDR and never listens. While it is held,
Linux gives the port to no other socket that asks for *any* port, neither to bind nor to connect,
and still lets a server that sets SO_REUSEADDR itself (libuv, asyncio, Go, ... all do) bind that
very port and listen. So there is no moment between choosing a port and using it in which somebody
else could get it. Elsewhere, and for servers that do not set the option, the port is let go right
before the dev server starts.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any, Final

#: Whether a server can listen on a port that is held.
HOLDS: Final = sys.platform == "linux"


class Port:
    """A port of an address that nobody else is given until ``release``."""

    def __init__(self, family: int, address: tuple[Any, ...]) -> None:
        """Take a free port of ``address``, whose own port is 0. Raises OSError."""
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
            self.number: int = self._socket.getsockname()[1]
        except BaseException:
            self._socket.close()
            raise

    def release(self) -> None:
        """Let the port go. Idempotent."""
        self._socket.close()


async def take_port(host: str) -> Port:
    """A free port of ``host``. Raises OSError if that is no address of this machine."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    return Port(found[0][0], found[0][4])
