"""Messages between the control process and a worker: JSON objects, one a line, over a socket pair.

====================  =========================================================================
to the worker         meaning
====================  =========================================================================
``start``             the first message: settings, log level, path of the control socket
``answer``            to the call of this number: ``result``, or ``error`` and ``message``
``drain``             serve no longer; holds the arguments of ``Serving.close``
--------------------  -------------------------------------------------------------------------
to the control process
--------------------  -------------------------------------------------------------------------
``ready``             the worker accepts connections
``report``            its samples, about once a second and at the end; silence means that it hangs
``call``              a call of this number to the life cycle: ``do`` and its arguments
====================  =========================================================================
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any, Final, cast

from pydantic import SecretStr

from gateway.errors import GatewayError, RegistryUnavailable, SessionNotFound
from gateway.settings import Settings
from gateway.telemetry import Sample

_LONGEST_MESSAGE: Final = 16 * 2**20

Message = dict[str, Any]


class Link:
    """One end of the pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Link:
        """A link over a connected socket, which belongs to it from now on."""
        sock.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=_LONGEST_MESSAGE))

    def send(self, message: Mapping[str, Any]) -> None:
        """Send without waiting; to an end that is gone, nothing is sent."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> Message | None:
        """The next message; None when the other end is gone."""
        try:
            line = await self._reader.readline()
        except OSError:
            return None
        # A process that was killed may leave half a line.
        return cast("Message", json.loads(line)) if line.endswith(b"\n") else None

    @property
    def unsent(self) -> int:
        """Bytes that the other end has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    async def flushed(self) -> None:
        """Everything sent has been taken by the kernel; a socket pair keeps it for its reader."""
        self._writer.transport.set_write_buffer_limits(high=0)
        await self._writer.drain()

    def close(self) -> None:
        """End it at once. Idempotent."""
        self._writer.transport.abort()


# -- what is sent ----------------------------------------------------------------------------------


def pack_settings(settings: Settings) -> Message:
    """Settings with their secrets: the link is the one place where they may pass."""
    return cast("Message", json.loads(json.dumps(settings.model_dump(), default=_plain)))


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def unpack_settings(packed: Message) -> Settings:
    """The same settings again."""
    return Settings(**packed)


def unpack_samples(packed: list[Any]) -> list[Sample]:
    """Samples as they were before JSON made lists of tuples."""
    return [
        (name, text, kind, [(labels, value) for labels, value in values])
        for name, text, kind, values in packed
    ]


class ControlUnavailable(RegistryUnavailable):
    """The control process did not answer. Like a registry that is away it says nothing about
    whether a session exists, and whoever can wait for the registry can wait for this.
    """

    code = "control_unavailable"
    title = "Control process unavailable"


def pack_error(exc: GatewayError) -> Message:
    """An error of a call, for the other side to raise: of its class where that matters there."""
    kinds = (SessionNotFound, RegistryUnavailable)
    kind = next((kind for kind in kinds if isinstance(exc, kind)), GatewayError)
    return {"error": kind.code, "message": str(exc)}


def unpack_error(answer: Message, *, session_id: str) -> GatewayError:
    """The error that an answer holds."""
    if answer["error"] == SessionNotFound.code:
        return SessionNotFound(session_id)
    if answer["error"] == RegistryUnavailable.code:
        return RegistryUnavailable(answer["message"])
    return GatewayError(answer["message"])
