"""What a spawner tells of one dev server, on its way into the session's event stream."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from gateway.errors import Fenced, GatewayError, RegistryUnavailable, SessionNotFound
from gateway.registry.base import EventType, Registry
from gateway.session import SessionId
from gateway.spawner.base import Phase

log: Final = logging.getLogger(__name__)

#: Lines that may wait for the registry; older ones are dropped, and the stream says so.
MAX_PENDING_LINES: Final = 2000
#: Lines in one entry of the stream.
MAX_ENTRY_LINES: Final = 200
#: Output is gathered this long, so that a chatty dev server costs few entries.
_GATHER_SECONDS: Final = 0.05


class StreamReports:
    """Implements ``spawner.base.Reports``: appends to the session's event stream, in order.

    Calls return at once; one task writes. What the registry cannot take is kept up to
    MAX_PENDING_LINES. A fenced generation writes nothing more.
    """

    def __init__(
        self,
        registry: Registry,
        session_id: SessionId,
        generation: int,
        *,
        on_exit: Callable[[str, str], None],
        on_vanish: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._id = session_id
        self._generation = generation
        self._on_exit = on_exit
        self._on_vanish = on_vanish
        self._pending: deque[tuple[EventType, dict[str, Any]]] = deque()
        self._lines = 0
        self._dropped = 0
        #: The session went on without this generation: nobody wants to hear of it any more.
        self._over = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        #: Somebody waits: nothing is gathered any longer.
        self._hurry = asyncio.Event()
        self._task = asyncio.create_task(self._write(), name=f"reports {session_id}")

    def phase(self, phase: Phase, detail: str = "") -> None:
        """The start has entered a phase."""
        data: dict[str, Any] = {"type": "phase", "phase": phase}
        if detail:
            data["detail"] = detail
        self._add("event", data)

    def log(self, lines: Sequence[str]) -> None:
        """Lines of output."""
        if self._over:
            return
        for start in range(0, len(lines), MAX_ENTRY_LINES):
            part = list(lines[start : start + MAX_ENTRY_LINES])
            last = self._pending[-1] if self._pending else None
            if last is not None and last[0] == "log":
                room = MAX_ENTRY_LINES - len(last[1]["lines"])
                last[1]["lines"].extend(part[:room])
                part = part[room:]
            if part:
                self._add("log", {"lines": part})
        self._lines += len(lines)
        self._shed()

    def exited(self, reason: str, log_tail: str) -> None:
        """The dev server, once ready, has ended by itself."""
        self._on_exit(reason, log_tail)

    def vanished(self, reason: str) -> None:
        """The dev server, once ready, was taken away by no fault of its own."""
        self._on_vanish(reason)

    async def flush(self, *, seconds: float) -> None:
        """Wait until everything said so far is in the stream, or ``seconds`` are over."""
        self._hurry.set()
        try:
            async with asyncio.timeout(seconds):
                await self._drained.wait()
        except TimeoutError:
            log.warning("log of %s is behind: the registry is slow or away", self._id)
        finally:
            self._hurry.clear()

    async def close(self, *, seconds: float) -> None:
        """Flush, then end the task. Idempotent."""
        await self.flush(seconds=seconds)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _add(self, kind: EventType, data: dict[str, Any]) -> None:
        if self._over:
            return
        self._pending.append((kind, data))
        self._drained.clear()
        self._filled.set()

    def _shed(self) -> None:
        """Drop the oldest lines that are too many; phases are few, and stay."""
        if self._lines <= MAX_PENDING_LINES:
            return
        kept: deque[tuple[EventType, dict[str, Any]]] = deque()
        for kind, data in self._pending:
            if kind == "log" and self._lines > MAX_PENDING_LINES:
                self._lines -= len(data["lines"])
                self._dropped += len(data["lines"])
            else:
                kept.append((kind, data))
        self._pending = kept

    async def _write(self) -> None:
        pause = _GATHER_SECONDS
        while True:
            await self._filled.wait()
            while self._pending:
                kind, data = self._pending.popleft()
                if kind == "log":
                    self._lines -= len(data["lines"])
                    if self._dropped:
                        data["lines"].insert(0, f"... {self._dropped} lines dropped ...")
                        self._dropped = 0
                try:
                    await self._registry.append(self._id, kind, data, generation=self._generation)
                    pause = _GATHER_SECONDS
                except (Fenced, SessionNotFound):
                    self._over = True
                    self._pending.clear()
                    self._drained.set()
                    return
                except RegistryUnavailable:
                    self._pending.appendleft((kind, data))
                    if kind == "log":
                        self._lines += len(data["lines"])
                    pause = min(pause * 2, 2.0)
                    break
                except GatewayError:
                    log.exception("an entry of the log of %s is lost", self._id)
            if self._pending:  # what the registry did not take
                await asyncio.sleep(pause)
            else:
                self._filled.clear()
                self._drained.set()
                await self._gather()

    async def _gather(self) -> None:
        """Bounds how many entries a chatty log makes, unless somebody waits for them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GATHER_SECONDS):
                await self._hurry.wait()
