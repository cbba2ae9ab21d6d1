"""The spawner that runs dev servers as processes of this machine.

They get files, a home, an environment and a process group of their own, and are ended with all
that they start. That keeps them apart from each other by accident, not by force: local processes
are no security boundary.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from gateway.errors import SpawnFailed
from gateway.session import SessionId
from gateway.settings import Settings
from gateway.spawner.base import DevServer, Found, Job, Reports, Running
from gateway.spawner.dependencies import Dependencies
from gateway.spawner.leftovers import Tenure
from gateway.spawner.nodejs import Node, find_node
from gateway.spawner.run import Equipment, Run
from gateway.spawner.strays import Mark, end_processes
from gateway.spawner.threads import in_thread
from gateway.spawner.warm_pool import WarmPool
from gateway.telemetry import Sample

log: Final = logging.getLogger(__name__)


class ProcessSpawner:
    """A ``gateway.spawner.base.Spawner`` on local processes."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is touched before ``open``."""
        self._settings = settings
        self._tenure = Tenure(settings.data_dir.resolve())
        self._found: Node | None = None
        self._finding = asyncio.Lock()
        self._runs: dict[tuple[SessionId, int], Run] = {}
        self._closed = True
        #: When each dead spawner was found.
        self._dead: dict[str, float] = {}
        dependencies = Dependencies(settings, spawner=self._tenure.name, node=self._node)
        self._pool = WarmPool(
            settings, spawner=self._tenure.name, dependencies=dependencies, node=self._node
        )
        self._equipment = Equipment(
            settings, self._tenure.name, dependencies, self._node, self._pool
        )

    async def open(self) -> None:
        """Make ready: kill the processes and remove the files of dead spawners, find Node."""
        await in_thread(self._tenure.begin)
        self._closed = False
        await self._clean_up(await in_thread(self._tenure.find_dead))
        with suppress(SpawnFailed):  # told to who needs it: not every session does
            await self._node()
        self._pool.open()

    async def tidy(self, *, grace_seconds: float) -> None:
        """See ``Spawner.tidy``."""
        now = time.monotonic()
        names = await in_thread(self._tenure.find_dead)
        self._dead = {name: self._dead.get(name, now) for name in names}
        await self._clean_up({n for n, since in self._dead.items() if now - since >= grace_seconds})

    def seen(self, *, seconds: float) -> Collection[Running]:
        """See ``Spawner.seen``: processes are seen by the spawner that started them only."""
        return []

    async def _clean_up(self, names: Collection[str]) -> None:
        dead = self._tenure.dead(names)
        while name := await in_thread(next, dead, ""):
            log.info("what the dead spawner %s left behind is removed", name)
            await end_processes(Mark(name), grace_seconds=0)
            await in_thread(self._tenure.clean, name)

    async def close(self) -> None:
        """Stop everything and free it. Idempotent."""
        self._closed = True
        await asyncio.gather(
            *(run.end("the gateway is shutting down") for run in self._runs.values()),
            self._pool.close(),
            self._equipment.dependencies.close(),
        )
        self._runs.clear()
        await in_thread(self._tenure.end)

    async def start(self, job: Job, reports: Reports) -> DevServer:
        """See ``Spawner.start``. A generation is started once; an older one than known never."""
        if self._closed:
            raise SpawnFailed("the spawner is closed")
        older = self._of(job.session_id)
        if any(run.job.generation >= job.generation for run in older):
            raise SpawnFailed(
                f"generation {job.generation} of {job.session_id} is running or outdated already"
            )
        self._forget_ended()
        run = self._runs[job.session_id, job.generation] = Run(job, reports, self._equipment)
        with self._pool.start_under_way():
            return await run.bring_up(older)

    def samples(self) -> Iterator[Sample]:
        """For the metrics."""
        return self._pool.samples()

    @property
    def outlasting(self) -> bool:
        """Processes end with the replica that started them."""
        return False

    async def adopt(self, running: Running, reports: Reports) -> Found:
        """See ``Spawner.adopt``: a process is nobody's but its parent's."""
        raise SpawnFailed("its dev server ended with the replica that ran it")

    async def release(self, session_id: SessionId, *, generation: int) -> None:
        """See ``Spawner.release``."""
        await self.stop(session_id, generation=generation)

    async def write(
        self,
        session_id: SessionId,
        *,
        write: Mapping[str, bytes],
        delete: Sequence[str] = (),
        revision: int = 0,
    ) -> None:
        """See ``Spawner.write``. Raises BadFiles, also for a link put where a folder should be."""
        runs = self._of(session_id)
        if runs:
            newest = max(runs, key=lambda run: run.job.generation)
            await newest.write(write, delete)

    async def read(self, session_id: SessionId, paths: Collection[str]) -> dict[str, bytes]:
        """See ``Spawner.read``. Files that have grown beyond the limit are left out, too."""
        runs = self._of(session_id)
        if not runs:
            return {}
        newest = max(runs, key=lambda run: run.job.generation)
        return await newest.read(paths, longest=self._settings.max_file_bytes)

    async def stop(self, session_id: SessionId, *, generation: int | None = None) -> None:
        """See ``Spawner.stop``. A start under way raises SpawnFailed."""
        chosen = [run for run in self._of(session_id) if generation in {None, run.job.generation}]
        await asyncio.gather(*(run.end() for run in chosen))
        self._forget_ended()

    def _of(self, session_id: SessionId) -> list[Run]:
        return [
            run for (id_, _), run in self._runs.items() if id_ == session_id and not run.is_over
        ]

    def _forget_ended(self) -> None:
        self._runs = {key: run for key, run in self._runs.items() if not run.is_over}

    async def _node(self) -> Node:
        async with self._finding:
            if self._found is None:
                self._found = await find_node()
            return self._found
