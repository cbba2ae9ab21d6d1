"""Small writes of one turn of the event loop, made together at its end, where that pays.

A write to a peer that sleeps wakes it, which costs more than the write. One after the other at the
end of a turn, most find a peer that the one before has woken: under load a tenth of the CPU of a
small request (bench/proxies.py, case get-1k). What is written twice in a turn goes out as one.

Where little is under way there is nothing to put together, and the way to the end of the turn
itself is what a request waits for: then everything is written at once (case latency).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

#: Longer ones are worth a system call of their own, and copying them would cost more than that.
_SMALL_BYTES: Final = 8192
_INSTANT_SECONDS: Final = 0.001
#: With more writes in an instant the loop is busy, in the next one, too. Under load there are 40 or
#: more.
_CALM_WRITES: Final = 8


class Outbox:
    """The connections of one event loop that have something to send. ``clock`` has seconds."""

    __slots__ = ("_clock", "_instant", "_senders", "_soon", "_was_busy", "_writes")

    def __init__(
        self, call_soon: Callable[[Callable[[], None]], Any], clock: Callable[[], float]
    ) -> None:
        self._soon = call_soon
        self._clock = clock
        self._senders: list[Sender] = []
        self._instant = clock()
        self._writes = 0
        self._was_busy = False

    def takes(self, sender: Sender) -> bool:
        """Whether ``sender`` is flushed at the end of this turn; else it is to write at once."""
        now = self._clock()
        if now - self._instant >= _INSTANT_SECONDS:
            self._was_busy = self._writes > _CALM_WRITES
            self._instant, self._writes = now, 0
        self._writes += 1
        if self._writes <= _CALM_WRITES and not self._was_busy:
            return False
        if not self._senders:
            self._soon(self.flush)
        self._senders.append(sender)
        return True

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
        """Send ``data`` behind what was written before: soon if it is little and others write."""
        if len(self._unsent) + len(data) > _SMALL_BYTES:
            self.flush()
            self._send(data)
        elif self._unsent:
            self._unsent += data
        elif self._outbox.takes(self):
            self._unsent = data
        else:
            self._send(data)

    def flush(self) -> None:
        """Hand what waits to the transport."""
        unsent, self._unsent = self._unsent, b""
        if unsent:
            self._send(unsent)

    def _send(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)
