"""Pods that wait for a session: scheduled, image pulled, agent up, perhaps dependencies loaded.

The pool belongs to no replica. A pod that waits has a place in the pool as its label, and its name
is made of the place and a number that grows, so of several replicas that want to fill a place the
API server lets one. A session takes a pod by giving it its labels, compared with the pod's version:
again the API server decides. Nothing here can fail a start: who gets none makes a pod of his own.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from gateway.errors import GatewayError, KubeAlreadyExists, KubeConflict, KubeNotFound
from gateway.session import Recipe
from gateway.spawner.kube.equipment import Equipment
from gateway.spawner.kube.manifest import SLOT_LABEL, SPEC_LABEL, Pod, Purpose, bound
from gateway.spawner.kube.orders import RESERVED, make_warm_order
from gateway.spawner.kube.pods import address_of, is_going, session_of, trouble_of
from gateway.spawner.prefetch import npm_inputs
from gateway.spawner.recipes import choose
from gateway.spawner.threads import in_thread
from gateway.telemetry import Sample

log = logging.getLogger(__name__)

#: The pool is looked at after each change, and from time to time.
_LOOK_SECONDS: Final = 10.0
#: Replicas do not all act at the same moment.
_SPREAD_SECONDS: Final = 0.5
#: A place whose pod could not be made, or died, is left alone: first so long, then twice as long.
_FIRST_PAUSE_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 300.0
#: A pod of another version waits for the replicas of that version, until they are surely gone.
_STALE_SECONDS: Final = 600.0


class WarmPods:
    """Keeps ``warm_pods`` pods waiting, together with the other replicas."""

    def __init__(self, equipment: Equipment) -> None:
        """Nothing happens before ``open``."""
        self._equipment = equipment
        settings = equipment.settings
        self._wanted = settings.warm_pods
        self._projects: tuple[Path, ...] = tuple(settings.warm_projects)
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._loading: dict[str, asyncio.Task[None]] = {}
        #: Pods that this replica has loaded dependencies into, or need none.
        self._pause_seconds = 0.0
        self._seen_at: dict[str, float] = {}
        self._given = 0
        self._failed = 0

    def open(self) -> None:
        """Begin to keep pods, if the settings want any."""
        if self._wanted and self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="warm pods")

    async def close(self) -> None:
        """Keep no more. The pods stay: they are the other replicas', too."""
        tasks = [*self._loading.values(), *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def samples(self) -> Iterator[Sample]:
        """For the metrics."""
        waiting = sum(self._waits(pod) for pod in self._equipment.reflector.all())
        yield ("warm_pods", "Pods that wait for a session.", "gauge", [({}, waiting)])
        yield ("warm_pod_starts", "Sessions that got one.", "counter", [({}, self._given)])
        yield ("warm_pod_failures", "Such pods that failed.", "counter", [({}, self._failed)])

    # -- taking ----------------------------------------------------------------------------------

    async def take(self, purpose: Purpose, files: Mapping[str, bytes]) -> Pod | None:
        """A pod that waits, which is the session's from now on; None if there is none."""
        if not self._wanted:
            return None
        for pod in self._candidates():
            name = pod["metadata"]["name"]
            try:
                taken = await self._equipment.api.patch(name, bound(purpose, pod))
            except (KubeConflict, KubeNotFound):
                continue  # somebody was faster, or it is gone
            except GatewayError as exc:
                log.warning("no waiting pod can be taken: %s", exc)
                return None
            self._given += 1
            self._changed.set()
            return taken
        return None

    def _candidates(self) -> list[Pod]:
        pods = [
            pod
            for pod in self._equipment.reflector.all()
            if self._waits(pod) and address_of(pod) and trouble_of(pod) is None
        ]
        # Each replica begins elsewhere, so that few compete for one.
        random.shuffle(pods)
        return pods

    def _waits(self, pod: Pod) -> bool:
        labels = pod["metadata"].get("labels", {})
        return (
            SLOT_LABEL in labels
            and not session_of(pod)
            and not is_going(pod)
            and labels.get(SPEC_LABEL) == self._equipment.manifests.spec_label
        )

    # -- keeping ---------------------------------------------------------------------------------

    async def _keep(self) -> None:
        await self._equipment.reflector.synced.wait()
        while True:
            self._changed.clear()
            try:
                await self._fill()
                await self._clear()
                self._pause_seconds = 0.0
            except GatewayError as exc:
                self._failed += 1
                longer = max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS)
                self._pause_seconds = min(longer, _LONGEST_PAUSE_SECONDS)
                log.warning("no pod can be made to wait: %s", exc)
                await asyncio.sleep(self._pause_seconds)
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _fill(self) -> None:
        """Make the pods that are missing."""
        for slot in range(self._wanted):
            if self._next(slot) is not None:
                await asyncio.sleep(random.uniform(0, _SPREAD_SECONDS))  # noqa: S311
            number = self._next(slot)
            if number is None:
                continue
            purpose = Purpose(f"warm-{slot}-{number}", slot=slot)
            try:
                pod = await self._equipment.api.create(self._equipment.manifests.pod(purpose))
            except KubeAlreadyExists:
                continue  # another replica's
            self._load(pod, slot)

    def _next(self, slot: int) -> int | None:
        """The number of the pod to make for a place; None if there is one that waits."""
        number = 0
        for pod in self._equipment.reflector.all():
            if pod["metadata"].get("labels", {}).get(SLOT_LABEL) != str(slot):
                continue
            if self._waits(pod) and trouble_of(pod) is None:
                return None
            number = max(number, _number(pod["metadata"]["name"]))
        return number + 1

    async def _clear(self) -> None:
        """Remove pods that wait and will never serve."""
        now = asyncio.get_running_loop().time()
        pods = {pod["metadata"]["uid"]: pod for pod in self._equipment.reflector.all()}
        self._seen_at = {uid: self._seen_at.get(uid, now) for uid in pods}
        for uid, pod in pods.items():
            if SLOT_LABEL not in pod["metadata"]["labels"] or session_of(pod) or is_going(pod):
                continue
            trouble = trouble_of(pod)
            stale = not self._waits(pod) and now - self._seen_at[uid] > _STALE_SECONDS
            if stale or (trouble is not None and trouble.final):
                log.info("pod %s waits no more: %s", pod["metadata"]["name"], trouble or "stale")
                self._failed += trouble is not None
                await self._equipment.api.delete(pod["metadata"]["name"], uid=uid)

    def _load(self, pod: Pod, slot: int) -> None:
        """Let a new pod load the dependencies of a project, if there is one for its place."""
        if not self._projects:
            return
        name = pod["metadata"]["name"]
        folder = self._projects[slot % len(self._projects)]
        task = asyncio.create_task(self._load_into(pod, folder), name=f"load {name}")
        self._loading[name] = task
        task.add_done_callback(lambda _: self._loading.pop(name, None))

    async def _load_into(self, pod: Pod, folder: Path) -> None:
        try:
            files = await in_thread(npm_inputs, folder, self._equipment.settings.max_file_bytes)
            framework = choose(Recipe(), files).framework
            running = await self._equipment.until_it_runs(pod, lambda _: None)
            agent = self._equipment.agent(running)
            await agent.push_tree(RESERVED, generation=0, revision=1, files=files)
            if framework is not None:
                order = make_warm_order(self._equipment.settings, framework, files)
                await agent.warm(order)
        except (GatewayError, OSError) as exc:
            # It waits all the same, and what it lacks is installed when it is taken.
            self._failed += 1
            log.warning("%s has no dependencies of %s: %s", pod["metadata"]["name"], folder, exc)


def _number(name: str) -> int:
    text = name.rpartition("-")[2]
    return int(text) if text.isdecimal() else 0
