"""Small writes of one turn of the event loop, made together at its end.

A write to a peer that sleeps wakes it, which costs more than the write. One after the other at the
end of a turn, most find a peer that the one before has woken: under load a tenth of the CPU of a
small request (bench/proxies.py, case get-1k). What is written twice in a turn goes out as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

#: Longer ones are worth a system call of their own, and copying them would cost more than that.
_SMALL_BYTES: Final = 8192


class Outbox:
    """The connections of one event loop that have something to send."""

    __slots__ = ("_senders", "_soon")

    def __init__(self, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._soon = call_soon
        self._senders: list[Sender] = []

    def add(self, sender: Sender) -> None:
        """Let ``sender`` flush at the end of this turn."""
        if not self._senders:
            self._soon(self.flush)
        self._senders.append(sender)

    def flush(self) -> None:
        """Send everything now."""
        senders, self._senders = self._senders, []
        for sender in senders:
            sender.flush()


class Sender(asyncio.Protocol):
    """A connection that writes through an outbox.

    Who closes its transport in good order flushes first; an abort needs no flush.
    """

    __slots__ = ("_outbox", "_unsent", "transport")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._unsent = b""
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)

    def write(self, data: bytes) -> None:
        """Send ``data`` behind what was written before: now if it is much, else soon."""
        if len(self._unsent) + len(data) > _SMALL_BYTES:
            self.flush()
            self.transport.write(data)
        elif self._unsent:
            self._unsent += data
        else:
            self._unsent = data
            self._outbox.add(self)

    def flush(self) -> None:
        """Hand what waits to the transport."""
        unsent, self._unsent = self._unsent, b""
        if unsent and not self.transport.is_closing():
            self.transport.write(unsent)
