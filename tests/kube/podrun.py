"""The life of one pod on the fake node."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.kube import failures, podstatus
from tests.kube.addresses import Address
from tests.kube.podstatus import ContainerState, PodState, Status
from tests.kube.probes import parse_probe
from tests.kube.processes import Processes
from tests.kube.rendering import ConfigError, render
from tests.kube.statuses import Refusal
from tests.kube.store import Pod, Store

_BACK_OFF_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Node:
    """What all pods of a node share. ``images`` are paths in images, as folders of this machine."""

    store: Store
    http: aiohttp.ClientSession
    folder: Path
    name: str = "node-1"
    ip: str = "127.0.0.1"
    images: Mapping[str, Path] = field(default_factory=dict)
    #: Until a pod has its node and its images.
    schedule_seconds: float = 0.0
    probe_seconds: float = 0.1


class PodRun:
    """One pod, from its creation until it is removed. ``start`` first, ``remove`` in the end."""

    def __init__(self, node: Node, pod: Pod, failure: failures.Failure | None) -> None:
        self._node = node
        self._spec = pod["spec"]
        self._failure = failure
        self.namespace, self.name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self.uid = pod["metadata"]["uid"]
        self.folder = node.folder / f"{self.name}-{self.uid}"
        self._processes = Processes(self.folder)
        self._address: Address | None = None
        self._mains: dict[str, asyncio.subprocess.Process] = {}
        self._reasons: dict[str, str] = {}
        self._stopping = False
        self.lost = False
        self._task: asyncio.Task[None] | None = None
        self._state: PodState | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._live(), name=f"pod {self.name}")

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

    async def _live(self) -> None:
        kind = self._failure.kind if self._failure else None
        message = self._failure.message if self._failure else ""
        if kind == "unschedulable":
            text = message or failures.UNSCHEDULABLE
            self._write(lambda status: podstatus.unschedulable(status, text))
            return
        await asyncio.sleep(self._node.schedule_seconds)
        if not self._bind():
            return
        state = self._begin()
        try:
            async with asyncio.timeout(self._spec.get("activeDeadlineSeconds")):
                await self._run(state, kind, message)
        except TimeoutError:
            text = "Pod was active on the node longer than the specified deadline"
            await self.give_up("DeadlineExceeded", text)

    async def _run(self, state: PodState, kind: failures.Kind | None, message: str) -> None:
        """Run all containers, to the end of those that end."""
        if kind == "image":
            await self._pull_in_vain(state, message)
        inits = self._spec.get("initContainers") or ()
        for spec, container in zip(inits, state.inits, strict=True):
            if not await self._run_init(spec, container, fails=kind == "init"):
                return
        await self._run_mains(state, kind, message)

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

    def _begin(self) -> PodState:
        """Give the pod its address and its folders."""
        self._address = Address()
        for volume in self._spec.get("volumes") or ():
            (self.folder / "volumes" / volume["name"]).mkdir(parents=True)
        (self.folder / "root").mkdir(parents=True)
        inits = [_waiting(spec) for spec in self._spec.get("initContainers") or ()]
        mains = [_waiting(spec) for spec in self._spec["containers"]]
        for main in mains if inits else ():
            main.wait("PodInitializing")
        self._state = PodState(
            pod_ip=self._address.ip,
            host_ip=self._node.ip,
            inits=inits,
            mains=mains,
            restarts=self._spec.get("restartPolicy") != "Never",
        )
        self._report()
        return self._state

    async def _pull_in_vain(self, state: PodState, message: str) -> None:
        """Try to get the image of the first container, for ever."""
        first = (state.inits or state.mains)[0]
        while True:
            for reason, text in failures.pull_error(first.image, message):
                first.wait(reason, text)
                self._report()
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _run_init(
        self, spec: Mapping[str, Any], container: ContainerState, *, fails: bool
    ) -> bool:
        """Run an init container to its end; whether the pod goes on."""
        while True:
            process = await self._launch(spec, container)
            if process is not None:
                code = _exit_code(await process.wait())
                container.complete(1 if fails else code)
            await self._processes.kill()
            self._report()
            if container.exit_code == 0:
                return True
            if self._spec.get("restartPolicy") == "Never" or self._stopping:
                return False
            await self._back_off(container)

    async def _run_mains(self, state: PodState, kind: failures.Kind | None, message: str) -> None:
        async with asyncio.TaskGroup() as group:
            for spec, container in zip(self._spec["containers"], state.mains, strict=True):
                group.create_task(
                    self._run_main(spec, container, kind, message),
                    name=f"container {self.name}/{container.name}",
                )

    async def _run_main(
        self,
        spec: Mapping[str, Any],
        container: ContainerState,
        kind: failures.Kind | None,
        message: str,
    ) -> None:
        if kind == "config":
            container.wait("CreateContainerConfigError", message or failures.MISSING_SECRET)
            self._report()
            return
        policy = self._spec.get("restartPolicy")
        while True:
            process = await self._launch(spec, container)
            if process is not None:
                await self._attend(spec, container, process, kind, message)
            again = policy == "Always" or (policy == "OnFailure" and container.exit_code != 0)
            self._report()
            if not again or self._stopping:
                return
            await self._back_off(container)

    async def _attend(
        self,
        spec: Mapping[str, Any],
        container: ContainerState,
        process: asyncio.subprocess.Process,
        kind: failures.Kind | None,
        message: str,
    ) -> None:
        """Be with a main container until it has ended."""
        self._mains[container.name] = process
        probes = asyncio.create_task(
            self._probe(spec, container, process, never=kind == "never-ready"),
            name=f"probes {self.name}/{container.name}",
        )
        try:
            if kind in ("exit", "oom"):
                self._reasons[container.name] = "OOMKilled" if kind == "oom" else "Error"
                process.kill()
            elif kind == "evicted":
                await self.give_up(
                    "Evicted",
                    message or failures.EVICTED,
                    podstatus.disruption("TerminationByKubelet", message or failures.EVICTED),
                )
            code = _exit_code(await process.wait())
        finally:
            probes.cancel()
            await asyncio.gather(probes, return_exceptions=True)
            self._mains.pop(container.name, None)
        # What it has started does not outlive it.
        if len(self._spec["containers"]) == 1:
            await self._processes.kill()
        reason = self._reasons.pop(container.name, "")
        container.end(1 if kind == "exit" else code, reason=reason)

    async def _launch(
        self, spec: Mapping[str, Any], container: ContainerState
    ) -> asyncio.subprocess.Process | None:
        """Start a container; None if that fails, as its state says then."""
        try:
            command = render(
                spec,
                self._node.store.get(self.namespace, self.name),
                folders={
                    volume["name"]: self._volume(volume)
                    for volume in self._spec.get("volumes") or ()
                },
                images=self._node.images,
                default_cwd=self.folder / "root",
            )
        except ConfigError as exc:
            container.wait("CreateContainerConfigError", str(exc))
            self._report()
            await asyncio.Event().wait()  # until the pod is deleted
        self._make_folders(spec, Path(command.cwd))
        try:
            process = await self._processes.start(
                command, host=self.name, log=self.folder / f"{container.name}.log"
            )
        except OSError as exc:
            text = f'exec: "{command.argv[0]}": {exc.strerror or exc}'
            container.end(128, reason="StartError")
            container.state["terminated"]["message"] = f"failed to start: {text}: unknown"
            return None
        container.run()
        self._report()
        return process

    def _volume(self, volume: Mapping[str, Any]) -> Path:
        if "emptyDir" not in volume:
            raise ConfigError(f'the fake kubelet has no volumes but emptyDir: "{volume["name"]}"')
        return self.folder / "volumes" / str(volume["name"])

    def _make_folders(self, spec: Mapping[str, Any], cwd: Path) -> None:
        """Make what the kubelet and the runtime make: sub-paths of volumes, and the directory."""
        for mount in spec.get("volumeMounts") or ():
            volume = self.folder / "volumes" / mount["name"]
            (volume / mount.get("subPath", "")).mkdir(parents=True, exist_ok=True)
        if cwd.is_relative_to(self.folder):
            cwd.mkdir(parents=True, exist_ok=True)

    async def _back_off(self, container: ContainerState) -> None:
        """Wait before a container is run again."""
        container.last = container.state
        container.restarts += 1
        container.wait(
            "CrashLoopBackOff",
            f"back-off 10s restarting failed container={container.name} pod={self.name}",
        )
        self._report()
        await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _probe(
        self,
        spec: Mapping[str, Any],
        container: ContainerState,
        process: asyncio.subprocess.Process,
        *,
        never: bool,
    ) -> None:
        """Find out whether a container is started, ready and alive, until cancelled."""
        assert self._state is not None
        startup, readiness, liveness = (
            parse_probe(
                spec.get(f"{name}Probe"),
                spec,
                ip=self._state.pod_ip,
                longest_period=self._node.probe_seconds,
            )
            for name in ("startup", "readiness", "liveness")
        )

        def ready(holds: bool) -> None:
            container.ready = holds and not never
            self._report()

        def alive(holds: bool) -> None:
            if not holds:
                process.kill()

        if startup:
            begun = asyncio.Event()
            first = asyncio.create_task(
                startup.run(self._node.http, lambda holds: begun.set() if holds else alive(False))
            )
            try:
                await begun.wait()
            finally:
                first.cancel()
        container.started = True
        if readiness is None:
            ready(True)
        else:
            self._report()
        probes = [
            probe.run(self._node.http, told)
            for probe, told in ((readiness, ready), (liveness, alive))
            if probe
        ]
        await asyncio.gather(*probes)

    # -- its end -------------------------------------------------------------------------------

    async def stop(self, grace: float) -> None:
        """End the processes in order, then remove the pod. As the kubelet does for a deletion."""
        self._stopping = True
        for process in tuple(self._mains.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if self._mains and grace > 0:
            waits = [process.wait() for process in self._mains.values()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.gather(*waits)
        if self._mains:
            for process in self._mains.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await self._processes.kill()
        if self._task and self._mains:
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
        for name, process in self._mains.items():
            self._reasons[name] = "Error"
            process.kill()
        await self._processes.kill()
        for container in state.mains:
            if container.exit_code is None:
                container.end(137, reason="Error")
        self._report()

    def kill_main(self, *, reason: str) -> None:
        """Kill the first container, for a reason such as OOMKilled."""
        name, process = next(iter(self._mains.items()))
        self._reasons[name] = reason
        process.kill()

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

    def log(self) -> str:
        """What all containers have printed."""
        files = sorted(self.folder.glob("*.log"))
        return "".join(file.read_text(errors="replace") for file in files)


def _waiting(spec: Mapping[str, Any]) -> ContainerState:
    container = ContainerState(str(spec["name"]), str(spec["image"]), {})
    container.wait("ContainerCreating")
    return container


def _exit_code(returncode: int) -> int:
    """As a shell tells it: a process that died of a signal ended with 128 and its number."""
    return returncode if returncode >= 0 else 128 - returncode
