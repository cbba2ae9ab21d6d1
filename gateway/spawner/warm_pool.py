"""Processes that wait for projects, for the sets of dependencies that are used.

Off unless ``warm_pool`` is set. A set gets its processes when a project with it has started, and
keeps them while it is among the ``warm_sets`` used last; the sets of ``warm_projects`` have them
from the beginning and for good. So there are at most ``warm_pool * (warm_sets + projects)``.

A process serves one project and is replaced once that has started. Nothing here can fail a start:
who gets none starts a process of his own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.errors import GatewayError
from gateway.session import Recipe
from gateway.settings import Settings
from gateway.spawner.base import Phase
from gateway.spawner.dependencies import Dependencies, Needs
from gateway.spawner.nodejs import Node
from gateway.spawner.prefetch import npm_inputs
from gateway.spawner.recipes import Framework, choose
from gateway.spawner.threads import in_thread
from gateway.spawner.warm_process import WarmProcess, load
from gateway.telemetry import Sample

log: Final = logging.getLogger(__name__)

#: Processes are loaded while nothing else starts, but not put off for longer than this.
_QUIET_SECONDS: Final = 2.0
#: After a process that could not be loaded, or died while it waited, its set pauses: first so
#: long, then twice as long each time, until one is used.
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What processes can stand in for each other: the same framework, the same dependencies."""

    framework: Framework = field(compare=False)
    needs: Needs = field(compare=False)
    name: str
    key: str

    @classmethod
    def of(cls, framework: Framework, needs: Needs) -> Kind:
        """The kind for a project."""
        return cls(framework, needs, framework.name, needs.key)

    def __str__(self) -> str:
        return f"{self.name} {self.key[:12]}"


@dataclass(slots=True)
class _Shelf:
    """The processes of one kind that wait, and until when no new one is tried."""

    kind: Kind
    stays: bool = False
    ready: deque[WarmProcess] = field(default_factory=deque)
    pause_seconds: float = 0.0
    resume_at: float = 0.0

    def suffer(self, now: float) -> None:
        longer = max(2 * self.pause_seconds, _FIRST_PAUSE_SECONDS)
        self.pause_seconds = min(longer, _LONGEST_PAUSE_SECONDS)
        self.resume_at = now + self.pause_seconds


class WarmPool:
    """Keeps processes ready and gives each to one start. For one spawner and one event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        spawner: str,
        dependencies: Dependencies,
        node: Callable[[], Awaitable[Node]],
    ) -> None:
        """Nothing happens before ``open``."""
        self._settings = settings
        self._spawner = spawner
        self._dependencies = dependencies
        self._node = node
        #: The kind that was used last is the last.
        self._shelves: dict[Kind, _Shelf] = {}
        self._needed = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._starts = 0
        self._keeper: asyncio.Task[None] | None = None
        self._watches: dict[WarmProcess, asyncio.Task[None]] = {}
        self._drops: set[asyncio.Task[None]] = set()
        self._given = 0
        self._died = 0

    def open(self) -> None:
        """Begin to keep processes, if the settings want any."""
        if self._settings.warm_pool:
            self._keeper = asyncio.create_task(self._keep(), name="warm pool")
            self._keeper.add_done_callback(_log_failure)

    async def close(self) -> None:
        """End all processes that wait. Idempotent."""
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        for kind in tuple(self._shelves):
            self._remove(kind)
        await asyncio.gather(*self._drops, return_exceptions=True)

    # -- for starts

    async def take(self, kind: Kind) -> WarmProcess | None:
        """A process that waits, which is the caller's from now on; None if there is none."""
        if kind not in self._shelves:
            return None
        stamp = await self._dependencies.stamp(kind.key)
        # Nothing is awaited from here on: no two callers get the same one, nor is one lost to a
        # cancellation.
        shelf = self._shelves.get(kind)
        while shelf and shelf.ready:
            process = shelf.ready.popleft()
            if process.stamp == stamp and not process.child.exited.is_set():
                self._watches.pop(process).cancel()
                self._given += 1
                return process
            self._discard(process)
        return None

    @contextlib.contextmanager
    def start_under_way(self) -> Iterator[None]:
        """A start that somebody waits for goes before the loading of processes."""
        self._starts += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._starts -= 1
            if not self._starts:
                self._quiet.set()
                self._needed.set()

    def used(self, kind: Kind) -> None:
        """A project of this kind has started: more of them may come."""
        if self._keeper is None:
            return
        shelf = self._shelves.pop(kind, None) or _Shelf(kind)
        shelf.pause_seconds = shelf.resume_at = 0.0
        self._shelves[kind] = shelf
        leaving = [kind for kind, shelf in self._shelves.items() if not shelf.stays]
        for old in leaving[: -self._settings.warm_sets]:
            self._remove(old)
        self._needed.set()

    def samples(self) -> Iterator[Sample]:
        """For the metrics."""
        waiting = sum(len(shelf.ready) for shelf in self._shelves.values())
        yield ("warm_processes", "Dev servers that wait for a project.", "gauge", [({}, waiting)])
        yield ("warm_starts", "Starts given a process that waited.", "counter", [({}, self._given)])
        died = "Processes that died while they waited, or could not be loaded."
        yield ("warm_failures", died, "counter", [({}, self._died)])

    # -- keeping

    async def _keep(self) -> None:
        for folder in self._settings.warm_projects:
            await self._prefetch(folder)
        while True:
            self._needed.clear()
            now = asyncio.get_running_loop().time()
            lacking = [
                shelf
                for shelf in self._shelves.values()
                if len(shelf.ready) < self._settings.warm_pool
            ]
            shelf = next((shelf for shelf in reversed(lacking) if shelf.resume_at <= now), None)
            if shelf is None:
                resume_at = min((shelf.resume_at for shelf in lacking), default=None)
                await _wait(self._needed, None if resume_at is None else resume_at - now)
            else:
                await _wait(self._quiet, _QUIET_SECONDS)
                await self._add(shelf)

    async def _add(self, shelf: _Shelf) -> None:
        """Load one more process. What goes wrong is logged and makes the set pause."""
        kind, dependencies = shelf.kind, self._dependencies
        try:
            if shelf.stays:
                await dependencies.install(kind.needs, _Quiet())
            elif await dependencies.stamp(kind.key) is None:
                log.info("nothing waits for %s any more: its dependencies were removed", kind)
                self._remove(kind)
                return
            process = await load(
                kind.framework,
                kind.needs,
                settings=self._settings,
                spawner=self._spawner,
                dependencies=dependencies,
                node=await self._node(),
            )
        except (GatewayError, OSError) as exc:
            log.warning("no process could be made to wait for %s: %s", kind, exc)
            self._fail(shelf)
        else:
            watch = self._watch(shelf, process)
            self._watches[process] = asyncio.create_task(watch, name=f"watch {process.name}")
            if self._shelves.get(kind) is shelf:
                shelf.ready.append(process)
            else:
                self._discard(process)

    async def _watch(self, shelf: _Shelf, process: WarmProcess) -> None:
        await process.child.exited.wait()
        log.warning("a process that waited for %s %s", shelf.kind, process.child.ending)
        shelf.ready.remove(process)
        self._fail(shelf)
        self._discard(process)
        self._needed.set()

    def _fail(self, shelf: _Shelf) -> None:
        self._died += 1
        shelf.suffer(asyncio.get_running_loop().time())

    def _remove(self, kind: Kind) -> None:
        shelf = self._shelves.pop(kind, None)
        while shelf and shelf.ready:
            self._discard(shelf.ready.pop())

    def _discard(self, process: WarmProcess) -> None:
        self._watches.pop(process).cancel()
        drop = self._drop(process)
        task = asyncio.create_task(drop, name=f"drop {process.name}")
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)

    async def _drop(self, process: WarmProcess) -> None:
        try:
            await process.drop(grace_seconds=self._settings.stop_grace_seconds)
        except OSError:
            log.exception("%s was not taken down completely", process.name)

    # -- projects that are known ahead

    async def _prefetch(self, folder: Path) -> None:
        try:
            files = await in_thread(npm_inputs, folder, self._settings.max_file_bytes)
            plan = choose(Recipe(), files)
            needs = await self._dependencies.needs(files)
        except (GatewayError, OSError) as exc:
            log.warning("nothing is kept ready for %s: %s", folder, exc)
            return
        if not plan.framework or not plan.can_be_warm or not needs:
            log.warning("nothing is kept ready for %s: it needs no dependencies", folder)
            return
        kind = Kind.of(plan.framework, needs)
        self._shelves[kind] = _Shelf(kind, stays=True)


class _Quiet:
    """Reports that nobody reads."""

    def phase(self, phase: Phase, detail: str = "") -> None:
        """Implements ``Reports``."""

    def log(self, lines: Sequence[str]) -> None:
        """Implements ``Reports``."""

    def exited(self, reason: str, log_tail: str) -> None:
        """Implements ``Reports``."""

    def vanished(self, reason: str) -> None:
        """Implements ``Reports``."""


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("no process is kept ready any more", exc_info=error)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
