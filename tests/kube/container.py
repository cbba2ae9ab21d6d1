"""One container of a pod: its process, its probes, and what its state says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.kube.node import Place
from tests.kube.podstatus import ContainerState
from tests.kube.probes import Probe, parse_probe
from tests.kube.rendering import Command, ConfigError, render

_BACK_OFF_SECONDS: Final = 0.2


class Container:
    """Runs its process once or several times, one after the other."""

    def __init__(self, spec: Mapping[str, Any], place: Place) -> None:
        self._spec = spec
        self._place = place
        self._process: asyncio.subprocess.Process | None = None
        self._reason = ""
        self.never_ready = False
        self.state = ContainerState(str(spec["name"]), str(spec["image"]), {})
        self.state.wait("ContainerCreating")

    @property
    def running(self) -> bool:
        return self._process is not None

    async def run(self, *, begun: Callable[[], Awaitable[None]] | None = None) -> None:
        """Run until the process has ended; ``begun`` is called when it runs."""
        try:
            command, probes = self._prepare()
        except ConfigError as exc:
            self.state.wait("CreateContainerConfigError", str(exc))
            self._place.report()
            await asyncio.Event().wait()  # until the pod is deleted
            return
        try:
            process = await self._place.processes.start(
                command,
                host=self._place.name,
                log=self._place.folder / f"{self.state.name}.log",
            )
        except OSError as exc:
            text = f'exec: "{command.argv[0]}": {exc.strerror or exc}'
            self.state.end(128, reason="StartError")
            self.state.state["terminated"]["message"] = f"failed to start: {text}: unknown"
            return
        self.state.run()
        self._place.report()
        self._process, self._reason = process, ""
        probing = asyncio.create_task(
            self._probe(probes), name=f"probes {self._place.name}/{self.state.name}"
        )
        try:
            if begun is not None:
                await begun()
            code = await process.wait()
        finally:
            self._process = None
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
        # As a shell tells it: a process that died of a signal ended with 128 and its number.
        self.state.end(code if code >= 0 else 128 - code, reason=self._reason)

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self, *, reason: str = "") -> None:
        """Kill the process, for a reason such as OOMKilled."""
        if self._process is not None:
            self._reason = reason
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def ended(self) -> None:
        """Wait until the process has ended."""
        if self._process is not None:
            await self._process.wait()

    async def back_off(self) -> None:
        """Wait before the next run."""
        state = self.state
        state.last = state.state
        state.restarts += 1
        state.wait(
            "CrashLoopBackOff",
            f"back-off 10s restarting failed container={state.name} pod={self._place.name}",
        )
        self._place.report()
        await asyncio.sleep(_BACK_OFF_SECONDS)

    def _prepare(self) -> tuple[Command, list[Probe | None]]:
        """The command and the probes: for start-up, readiness and liveness. Raises ConfigError."""
        place = self._place
        command = render(
            self._spec,
            place.current(),
            folders=place.volumes(),
            images=place.node.images,
            default_cwd=place.folder / "root",
        )
        # What the kubelet and the runtime make: sub-paths of volumes, and the directory.
        for mount in self._spec.get("volumeMounts") or ():
            volume = place.folder / "volumes" / mount["name"]
            (volume / mount.get("subPath", "")).mkdir(parents=True, exist_ok=True)
        if Path(command.cwd).is_relative_to(place.folder):
            Path(command.cwd).mkdir(parents=True, exist_ok=True)
        probes = [
            parse_probe(
                self._spec.get(f"{kind}Probe"),
                self._spec,
                ip=place.ip,
                longest_period=place.node.probe_seconds,
            )
            for kind in ("startup", "readiness", "liveness")
        ]
        return command, probes

    async def _probe(self, probes: list[Probe | None]) -> None:
        """Find out whether the container is started, ready and alive, until cancelled."""
        startup, readiness, liveness = probes
        http = self._place.node.http
        if startup is not None:
            begun = asyncio.Event()

            def started(holds: bool) -> None:
                if holds:
                    begun.set()
                else:
                    self.kill()

            first = asyncio.create_task(startup.run(http, started), name="startup probe")
            try:
                await begun.wait()
            finally:
                first.cancel()
        self.state.started = True
        self._ready(readiness is None)
        further = []
        if readiness is not None:
            further.append(readiness.run(http, self._ready))
        if liveness is not None:
            further.append(liveness.run(http, self._alive))
        await asyncio.gather(*further)

    def _ready(self, holds: bool) -> None:
        self.state.ready = holds and not self.never_ready
        self._place.report()

    def _alive(self, holds: bool) -> None:
        if not holds:
            self.kill()
