"""The fake kubelet, and scheduler: runs the pods of a fake API server as processes."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.kube import failures, podstatus
from tests.kube.failures import Failures
from tests.kube.node import Node
from tests.kube.podrun import PodRun
from tests.kube.store import Change, Pod, Store

_log = logging.getLogger(__name__)
_CLOSE_SECONDS: Final = 10.0


class Kubelet:
    """One node with room for every pod. ``images`` are paths that images hold, by their folders.

    A pod that is to fail is named before it is created (``failures``); one that runs can be made
    to fail with the calls here. Each has a name, and fails as on a real node.
    """

    def __init__(
        self,
        store: Store,
        *,
        images: Mapping[str, Path] | None = None,
        schedule_seconds: float = 0.0,
        probe_seconds: float = 0.1,
    ) -> None:
        self.failures = Failures()
        self._store = store
        self._images = dict(images or {})
        self._schedule_seconds = schedule_seconds
        self._probe_seconds = probe_seconds
        self._runs: dict[str, PodRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Run what there is, and what comes."""
        self._folder = tempfile.TemporaryDirectory(prefix="kubelet-", ignore_cleanup_errors=True)
        self._node = Node(
            store=self._store,
            http=aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)),
            folder=Path(self._folder.name).resolve(),
            images=self._images,
            schedule_seconds=self._schedule_seconds,
            probe_seconds=self._probe_seconds,
        )
        self._store.listeners.append(self._heard)
        for pod in self._store.all():
            self._begin(pod)

    async def stop(self) -> None:
        """End all processes, and leave nothing behind."""
        self._store.listeners.remove(self._heard)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
        for run in self._runs.values():
            await run.remove()
        await self._node.http.close()
        self._folder.cleanup()

    # -- what is done to pods ------------------------------------------------------------------

    def oom_kill(self, name: str) -> None:
        """Kill the first container of a pod for its memory."""
        self._run(name).kill_main(reason="OOMKilled")

    def crash(self, name: str) -> None:
        """Kill the first container of a pod, for no reason that is told."""
        self._run(name).kill_main(reason="Error")

    async def evict(self, name: str, message: str = failures.EVICTED) -> None:
        """End a pod because its node is short of something."""
        condition = podstatus.disruption("TerminationByKubelet", message)
        await self._run(name).give_up("Evicted", message, condition)

    async def lose_node(self, name: str) -> None:
        """Let a pod's node be lost: first the pod is not ready, and stays listed."""
        run = self._run(name)
        await run.lose()
        self._store.update(run.namespace, name, _not_ready, uid=run.uid)

    def evict_lost(self, name: str) -> None:
        """Five minutes later: the pod of a lost node is marked, and nobody is there to end it."""
        run = self._run(name)
        self._store.delete(run.namespace, name, grace=30, uid=run.uid)

        def mark(pod: Pod) -> None:
            status = pod["status"]
            message = "Taint manager: deleting due to NoExecute taint"
            condition = podstatus.disruption("DeletionByTaintManager", message)
            status["conditions"] = podstatus.conditions(status, [condition])
            status["reason"] = "NodeLost"
            status["message"] = (
                f"Node {self._node.name} which was running pod {name} is unresponsive"
            )

        self._store.update(run.namespace, name, mark, uid=run.uid)

    def folder(self, name: str) -> Path:
        """Where the volumes and logs of a pod are."""
        return self._run(name).folder

    def log(self, name: str) -> str:
        """What a pod has printed."""
        return self._run(name).log()

    def _run(self, name: str) -> PodRun:
        return next(run for run in reversed(self._runs.values()) if run.name == name)

    # -- what the API server tells -------------------------------------------------------------

    def _heard(self, change: Change) -> None:
        pod = change.after
        run = self._runs.get(pod["metadata"]["uid"])
        if change.deleted:
            if run is not None:
                self._do(self._removed(run), f"remove pod {run.name}")
        elif run is None:
            self._begin(pod)
        elif pod["metadata"].get("deletionTimestamp") and not run.lost:
            grace = pod["metadata"]["deletionGracePeriodSeconds"]
            before = (change.before or pod)["metadata"].get("deletionGracePeriodSeconds")
            if grace != before:
                self._do(run.stop(grace), f"stop pod {run.name}")

    def _begin(self, pod: Pod) -> None:
        run = PodRun(self._node, pod, self.failures.take(pod["metadata"]["name"]))
        self._runs[run.uid] = run
        run.start()

    async def _removed(self, run: PodRun) -> None:
        await run.remove()
        self._runs.pop(run.uid, None)

    def _do(self, work: Coroutine[Any, Any, None], name: str) -> None:
        async def logged() -> None:
            try:
                await work
            except Exception:
                _log.exception("%s failed", name)

        task = asyncio.create_task(logged(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _not_ready(pod: Pod) -> None:
    pod["status"] = podstatus.not_ready(pod["status"])
