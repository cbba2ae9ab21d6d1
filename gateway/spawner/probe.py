"""Whether a dev server answers yet."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from gateway.session import Endpoint

_ATTEMPT_SECONDS: Final = 10.0
#: A refused connection to this machine costs about 0.1 ms.
_INTERVAL_SECONDS: Final = 0.01


def ping_request(*, port: int, base: str, accept: str) -> bytes:
    """The request that asks a dev server whether it is up; its Host is the one it trusts."""
    return (
        f"GET {base} HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: {accept}\r\n"
        "Connection: close\r\n\r\n"
    ).encode("latin-1")


async def until_it_answers(endpoint: Endpoint, request: bytes = b"") -> None:
    """Return once the endpoint answers ``request`` with any HTTP status.

    Without a request an accepted connection is enough. No limit of its own: cancel it.
    """
    # Nothing tells when another process begins to listen.
    while not await _answers(endpoint, request):  # noqa: ASYNC110
        await asyncio.sleep(_INTERVAL_SECONDS)


async def _answers(endpoint: Endpoint, request: bytes) -> bool:
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_ATTEMPT_SECONDS):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
                return False  # TCP can connect a port to itself when nobody listens
            if not request:
                return True
            writer.write(request)
            # Vite 8 first listens on other addresses to see whether the port is free, and then
            # resets what came in: only the answer counts.
            return (await reader.readline()).startswith(b"HTTP/")
    except (OSError, TimeoutError, ValueError):
        return False
    finally:
        if writer:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
