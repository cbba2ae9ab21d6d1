"""Whether a dev server answers yet."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from gateway.session import Endpoint

_ATTEMPT_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 0.5
#: A refused connection to this machine costs about 0.1 ms.
_INTERVAL_SECONDS: Final = 0.01


def ping_request(*, port: int, base: str, accept: str) -> bytes:
    """The request that asks a dev server whether it is up; its Host is the one it trusts."""
    return (
        f"GET {base} HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: {accept}\r\n"
        "Connection: close\r\n\r\n"
    ).encode("latin-1")


async def until_it_answers(
    endpoint: Endpoint, request: bytes, *, silence_will_do: bool = False
) -> None:
    """Return once the endpoint answers ``request`` with any HTTP status.

    With ``silence_will_do`` a connection that stays open without an answer is enough: a server
    that is busy with its first page, or speaks something else. No limit of its own: cancel it.
    """
    # Nothing tells when another process begins to listen.
    while not await _answers(endpoint, request, silence_will_do):  # noqa: ASYNC110
        await asyncio.sleep(_INTERVAL_SECONDS)


async def _answers(endpoint: Endpoint, request: bytes, silence_will_do: bool) -> bool:
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_ATTEMPT_SECONDS):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
            return False  # TCP can connect a port to itself when nobody listens
        writer.write(request)
        # A connection alone says little: Vite 8 first listens on other addresses to see whether
        # the port is free, and resets what came in.
        try:
            async with asyncio.timeout(_SILENCE_SECONDS if silence_will_do else _ATTEMPT_SECONDS):
                return bool(await reader.read(1))
        except TimeoutError:
            return silence_will_do
    except (OSError, TimeoutError):
        return False
    finally:
        if writer:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
