"""The life of one pod on the fake node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from typing import Any, Final

from tests.kube import failures, podstatus
from tests.kube.addresses import Address
from tests.kube.container import Container
from tests.kube.failures import Failure
from tests.kube.node import Node, Place
from tests.kube.podstatus import PodState, Status
from tests.kube.processes import Processes
from tests.kube.statuses import Refusal
from tests.kube.store import Pod

_log = logging.getLogger(__name__)

_BACK_OFF_SECONDS: Final = 0.2
#: Nothing befalls a pod.
_NOTHING: Final = Failure("never", "", "", 0)


class PodRun:
    """One pod, from its creation until it is removed. ``start`` first, ``remove`` in the end."""

    def __init__(self, node: Node, pod: Pod, failure: Failure | None) -> None:
        self._node = node
        self._pod = pod
        self._spec = pod["spec"]
        self._failure = failure or _NOTHING
        self.namespace, self.name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self.uid = pod["metadata"]["uid"]
        self.folder = node.folder / f"{self.name}-{self.uid}"
        self._processes = Processes(self.folder)
        self._address: Address | None = None
        self._inits: list[Container] = []
        self._mains: list[Container] = []
        self._stopping = False
        self.lost = False
        self._task: asyncio.Task[None] | None = None
        self._state: PodState | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._logged(), name=f"pod {self.name}")

    def log(self) -> str:
        """What all containers have printed."""
        files = sorted(self.folder.glob("*.log"))
        return "".join(file.read_text(errors="replace") for file in files)

    # -- what the status says ------------------------------------------------------------------

    def _write(self, change: Callable[[Status], Status]) -> None:
        """Change the pod's status, unless the pod or its node is gone."""
        if self.lost:
            return

        def update(pod: Pod) -> None:
            pod["status"] = change(pod["status"])

        with contextlib.suppress(Refusal):
            self._node.store.update(self.namespace, self.name, update, uid=self.uid)

    def _report(self) -> None:
        if (state := self._state) is not None:
            self._write(lambda status: podstatus.on_node(status, state))

    # -- its life ------------------------------------------------------------------------------

    async def _logged(self) -> None:
        try:
            await self._live()
        except* Refusal as exc:
            _log.debug("pod %s is gone: %s", self.name, exc)
        except* Exception:
            _log.exception("pod %s failed by a defect of the fake kubelet", self.name)

    async def _live(self) -> None:
        if self._failure.kind == "unschedulable":
            text = self._failure.message or failures.UNSCHEDULABLE
            self._write(lambda status: podstatus.unschedulable(status, text))
            return
        await asyncio.sleep(self._node.schedule_seconds)
        if not self._bind():
            return
        self._begin()
        try:
            async with asyncio.timeout(self._spec.get("activeDeadlineSeconds")):
                await self._run()
        except TimeoutError:
            text = "Pod was active on the node longer than the specified deadline"
            await self.give_up("DeadlineExceeded", text)

    def _bind(self) -> bool:
        """Put the pod on the node, as the scheduler does; False if it is gone."""

        def bind(pod: Pod) -> None:
            pod["spec"]["nodeName"] = self._node.name
            pod["status"] = podstatus.bound(pod["status"])

        try:
            self._node.store.update(self.namespace, self.name, bind, uid=self.uid)
        except Refusal:
            return False
        return True

    def _begin(self) -> None:
        """Give the pod its address and its folders."""
        self._address = Address()
        place = Place(
            self._node, self._pod, self.folder, self._address.ip, self._processes, self._report
        )
        place.make_folders()
        self._inits = [Container(spec, place) for spec in self._spec.get("initContainers") or ()]
        self._mains = [Container(spec, place) for spec in self._spec["containers"]]
        for main in self._mains:
            main.never_ready = self._failure.kind == "never-ready"
            if self._inits:
                main.state.wait("PodInitializing")
        self._state = PodState(
            pod_ip=place.ip,
            host_ip=self._node.ip,
            inits=[container.state for container in self._inits],
            mains=[container.state for container in self._mains],
            restarts=self._spec.get("restartPolicy") != "Never",
        )
        self._report()

    async def _run(self) -> None:
        """Run all containers, to the end of those that end."""
        if self._failure.kind == "image":
            await self._pull_in_vain((self._inits or self._mains)[0])
        for container in self._inits:
            if not await self._run_init(container):
                return
        async with asyncio.TaskGroup() as group:
            for container in self._mains:
                name = f"container {self.name}/{container.state.name}"
                group.create_task(self._run_main(container), name=name)

    async def _pull_in_vain(self, container: Container) -> None:
        """Try to get the image of the first container, for ever."""
        while True:
            image, message = container.state.image, self._failure.message
            for reason, text in failures.pull_error(image, message):
                container.state.wait(reason, text)
                self._report()
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _run_init(self, container: Container) -> bool:
        """Run an init container to its end; whether the pod goes on."""
        while True:
            await container.run()
            if self._failure.kind == "init":
                container.state.end(1)
            container.state.ready = container.state.exit_code == 0
            await self._processes.kill()
            self._report()
            if container.state.exit_code == 0:
                return True
            if self._spec.get("restartPolicy") == "Never" or self._stopping:
                return False
            await container.back_off()

    async def _run_main(self, container: Container) -> None:
        if self._failure.kind == "config":
            text = self._failure.message or failures.MISSING_SECRET
            container.state.wait("CreateContainerConfigError", text)
            self._report()
            return
        policy = self._spec.get("restartPolicy")
        while True:
            await container.run(begun=lambda: self._befall(container))
            if self._failure.kind == "exit":
                container.state.end(1)
            if len(self._mains) == 1:
                # What it has started does not outlive it.
                await self._processes.kill()
            self._report()
            again = policy == "Always" or (policy == "OnFailure" and container.state.exit_code != 0)
            if not again or self._stopping:
                return
            await container.back_off()

    async def _befall(self, container: Container) -> None:
        """Let happen what is to happen as soon as a container runs."""
        if self._failure.kind == "exit":
            container.kill()
        elif self._failure.kind == "oom":
            container.kill(reason="OOMKilled")
        elif self._failure.kind == "evicted":
            text = self._failure.message or failures.EVICTED
            condition = podstatus.disruption("TerminationByKubelet", text)
            await self.give_up("Evicted", text, condition)

    # -- its end -------------------------------------------------------------------------------

    async def stop(self, grace: float) -> None:
        """End the processes in order, then remove the pod. As the kubelet does for a deletion."""
        self._stopping = True
        for container in self._mains:
            container.terminate()
        if grace > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.gather(*(container.ended() for container in self._mains))
        running = any(container.running for container in self._mains)
        for container in self._mains:
            container.kill()
        await self._processes.kill()
        if self._task and running:
            # It sees the end of the processes, and says so.
            await asyncio.wait([self._task], timeout=1)
        await self._cancel()
        if not self.lost:
            with contextlib.suppress(Refusal):
                self._node.store.delete(self.namespace, self.name, grace=0, uid=self.uid)

    async def give_up(self, reason: str, message: str, *extra: dict[str, Any]) -> None:
        """End the pod as a whole, with a verdict."""
        state = self._state
        assert state is not None, f"{self.name} is on no node"
        state.verdict = (reason, message)
        state.extra += extra
        self._stopping = True
        for container in self._mains:
            container.kill(reason="Error")
        await self._processes.kill()
        for container in self._mains:
            if container.state.exit_code is None:
                container.state.end(137, reason="Error")
        self._report()

    def kill_main(self, *, reason: str) -> None:
        """Kill the first container, for a reason such as OOMKilled."""
        assert self._mains[0].running, f"{self.name} does not run"
        self._mains[0].kill(reason=reason)

    async def lose(self) -> None:
        """Let the node be lost: nothing answers any more, and nothing of it is reported."""
        self.lost = True
        await self._processes.kill()
        await self._cancel()

    async def remove(self) -> None:
        """Leave nothing of the pod on this machine."""
        await self._cancel()
        await self._processes.kill()
        if self._address:
            self._address.release()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def _cancel(self) -> None:
        task = self._task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
