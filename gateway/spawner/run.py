"""One job of the process spawner, from its files to its end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from gateway.errors import BadRequest, SpawnFailed
from gateway.session import Endpoint
from gateway.settings import PREFIX, Settings
from gateway.spawner.base import DevServer, Job, Reports
from gateway.spawner.child import Child, spawn
from gateway.spawner.dependencies import Dependencies
from gateway.spawner.environment import dev_server_environment
from gateway.spawner.nodejs import Node
from gateway.spawner.ports import HOLDS, Port, take_port
from gateway.spawner.probe import ping_request, until_it_answers
from gateway.spawner.recipes import Plan, choose, command_environment
from gateway.spawner.strays import Mark, end_processes
from gateway.spawner.threads import in_thread
from gateway.spawner.warm_pool import Kind, WarmPool
from gateway.spawner.warm_process import LAUNCHERS, Order, WarmProcess
from gateway.spawner.workspace import Workspace

log = logging.getLogger(__name__)

_PORT_ATTEMPTS: Final = 3
_PORT_IN_USE: Final = ("EADDRINUSE", "already in use")
#: How a launcher begins the line that gives the reason of its failure.
_REASON: Final = "preview: "
#: A process that has waited needs a hundredth of this; if it hangs, a new one is started.
_WARM_SECONDS: Final = 10.0

_Up = tuple[DevServer, Child]


@dataclass(frozen=True, slots=True)
class Equipment:
    """What all runs of one spawner share."""

    settings: Settings
    spawner: str
    dependencies: Dependencies
    node: Callable[[], Awaitable[Node]]
    pool: WarmPool


class Run:
    """One dev server: brought up, watched, and taken down with everything that belongs to it."""

    def __init__(self, job: Job, reports: Reports, equipment: Equipment) -> None:
        """Nothing happens before ``bring_up``."""
        self.job = job
        self._reports = reports
        self._equipment = equipment
        self._settings = equipment.settings
        self._mark = Mark(equipment.spawner, f"{job.session_id}.{job.generation}")
        self._bringing: asyncio.Task[_Up] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._why_ended = ""
        loop = asyncio.get_running_loop()
        self._written: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._disk = asyncio.Lock()
        self._workspace: Workspace | None = None
        self._port: Port | None = None
        self._child: Child | None = None

    async def bring_up(self, after: Sequence[Run]) -> DevServer:
        """Start, once the runs ``after`` have ended. Raises SpawnFailed; nothing is left then."""
        name = f"start {self._mark.job}"
        self._bringing = asyncio.create_task(self._bring_up(after), name=name)
        try:
            await asyncio.wait({self._bringing})
            server, child = self._outcome(self._bringing)
        except BadRequest as exc:
            await self.end(str(exc))
            raise SpawnFailed(str(exc)) from exc
        except OSError as exc:
            await self.end(str(exc))
            raise SpawnFailed(f"the workspace could not be prepared: {exc.strerror}") from exc
        except BaseException as exc:
            await self.end(str(exc))
            raise
        watch = self._watch(child)
        self._watching = asyncio.create_task(watch, name=f"watch {self._mark.job}")
        return server

    async def write(self, write: Mapping[str, bytes], delete: Sequence[str]) -> None:
        """Put edits into the workspace, after the job's own files. Nothing if it has ended."""
        await asyncio.wait({self._written, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        async with self._disk:
            if self._workspace and not self._ending:
                await in_thread(self._workspace.write, write, delete)

    async def read(self, paths: Collection[str], *, longest: int) -> dict[str, bytes]:
        """What these files hold now; see ``Workspace.read``."""
        async with self._disk:
            if self._workspace is None or self._ending:
                return {}
            return await in_thread(self._workspace.read, paths, longest)

    async def end(self, why: str = "the session was stopped") -> None:
        """Take everything down; returns when nothing is left. Idempotent."""
        # Once begun it goes on, also when the one who asked for it is cancelled.
        await asyncio.shield(self._begin_end(why))

    @property
    def is_over(self) -> bool:
        """Whether everything has been taken down."""
        return self._ended.done()

    # -- up

    def _outcome(self, bringing: asyncio.Task[_Up]) -> _Up:
        if self._ending or bringing.cancelled():  # perhaps in the moment it became ready
            raise SpawnFailed(self._why_ended)
        return bringing.result()

    async def _bring_up(self, after: Sequence[Run]) -> _Up:
        await asyncio.gather(*(run.end("a newer generation was started") for run in after))
        plan = choose(self.job.recipe, self.job.files)
        self._reports.phase("preparing")
        needs = await self._equipment.dependencies.needs(self.job.files)
        kind = Kind.of(plan.framework, needs) if needs and plan.framework else None
        warm = await self._take_warm(kind) if kind and plan.can_be_warm else None
        workspace = await self._prepare(warm)
        if needs and not warm:
            await self._equipment.dependencies.provide(needs, workspace.app, self._reports)
        self._reports.phase("starting", plan.title)
        up = await self._hand_over(plan, warm) if warm else None
        up = up or await self._start(plan, workspace)
        if kind and plan.can_be_warm:
            self._equipment.pool.used(kind)
        return up

    async def _take_warm(self, kind: Kind) -> WarmProcess | None:
        warm = await self._equipment.pool.take(kind)
        if warm:
            self._child, self._workspace = warm.child, warm.workspace
        return warm

    async def _prepare(self, warm: WarmProcess | None) -> Workspace:
        """The workspace with the job's own files in it."""
        async with self._disk:
            if warm:
                workspace = warm.workspace
            else:
                root = self._settings.data_dir.resolve() / "workspaces"
                workspace = Workspace(root, self._mark.job, owner=self._equipment.spawner)
                self._workspace = workspace
                await in_thread(workspace.make)
            await in_thread(workspace.write, self.job.files)
        self._written.set_result(None)
        return workspace

    async def _hand_over(self, plan: Plan, warm: WarmProcess) -> _Up | None:
        """Let a process that has waited serve; None if it fails, for whatever reason.

        What it says is held back until it answers: if it fails, nobody has to read it twice.
        """
        endpoint = await self._take_endpoint()
        public_host = self._settings.public_host(self.job.session_id)
        held: list[str] = []
        answered = False

        def hear(lines: Sequence[str]) -> None:
            if answered:
                self._log(lines)
            else:
                held.extend(lines)

        warm.begin(Order(endpoint, self.job.base, public_host, plan.env), hear)
        with suppress(SpawnFailed):  # a new process may do better, or tells the reason
            limit = min(_WARM_SECONDS, self._settings.start_timeout_seconds)
            answered = await self._answers(warm.child, plan, endpoint, limit)
        if answered:
            self._log(held)
            return DevServer(endpoint, plan.hmr), warm.child
        log.info("%s: a process that had waited did not serve it", self._mark.job)
        await self._drop_processes()
        return None

    async def _start(self, plan: Plan, workspace: Workspace) -> _Up:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            # Servers that cannot share a port with its holder say so; then it is let go.
            up = await self._try(plan, workspace, hold=HOLDS and attempt == 1)
            if up:
                return up
            self._reports.log([f"preview: the port was in use, trying another ({attempt})"])
        raise SpawnFailed(f"the dev server found {_PORT_ATTEMPTS} free ports in use")

    async def _try(self, plan: Plan, workspace: Workspace, *, hold: bool) -> _Up | None:
        """Start the dev server on a new port; None if it says that the port is in use."""
        endpoint = await self._take_endpoint()
        command, env = await self._command(plan, workspace, endpoint)
        if self._port and not hold:
            self._port.release()
        try:
            child = self._child = await spawn(
                command, cwd=workspace.app, env=env, mark=self._mark, lines=self._log
            )
        except OSError as exc:
            raise SpawnFailed(
                f"{command[0]!r} cannot be run: {exc.strerror}; is it installed, and spelled so?"
            ) from exc
        limit = self._settings.start_timeout_seconds
        if await self._answers(child, plan, endpoint, limit):
            return DevServer(endpoint, plan.hmr), child
        await self._drop_processes()
        if any(sign in child.output.tail for sign in _PORT_IN_USE):
            return None
        raise SpawnFailed(_why(plan, child), log_tail=child.output.tail)

    async def _take_endpoint(self) -> Endpoint:
        host = self._settings.advertise_host
        try:
            self._port = await take_port(host)
        except OSError as exc:
            raise SpawnFailed(
                f"no port can be taken on {host} ({exc.strerror}): "
                f"set {PREFIX}ADVERTISE_HOST to an address of this machine"
            ) from exc
        return Endpoint(host, self._port.number)

    async def _command(
        self, plan: Plan, workspace: Workspace, endpoint: Endpoint
    ) -> tuple[list[str], dict[str, str]]:
        base = self.job.base
        public_host = self._settings.public_host(self.job.session_id)
        node = await self._node(needed=plan.framework is not None)
        env = dev_server_environment(
            os.environ,
            node=node.program if node else None,
            app=workspace.app,
            home=workspace.home,
            tmp=workspace.tmp,
        )
        env |= plan.env
        if plan.framework and node:
            launcher = LAUNCHERS / plan.framework.launcher
            arguments = [endpoint.host, str(endpoint.port), base, public_host]
            return [str(node.program), str(launcher), *arguments], env
        env |= command_environment(
            host=endpoint.host, port=endpoint.port, base=base, public_host=public_host
        )
        return plan.arguments(host=endpoint.host, port=endpoint.port, base=base), env

    async def _node(self, *, needed: bool) -> Node | None:
        try:
            return await self._equipment.node()
        except SpawnFailed:
            if needed:
                raise
            return None  # a command may do without

    async def _answers(self, child: Child, plan: Plan, endpoint: Endpoint, limit: float) -> bool:
        """Wait for the first answer; False if the child ends before. Raises SpawnFailed."""
        accept = plan.framework.probe_accept if plan.framework else "*/*"
        request = ping_request(port=endpoint.port, base=self.job.base, accept=accept)
        answer = until_it_answers(endpoint, request, silence_will_do=plan.framework is None)
        probe = asyncio.create_task(answer, name=f"probe {self._mark.job}")
        exit_ = asyncio.create_task(child.exited.wait(), name=f"exit {self._mark.job}")
        try:
            done, _ = await asyncio.wait(
                {probe, exit_}, timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            probe.cancel()
            exit_.cancel()
            await asyncio.wait({probe, exit_})
        if not done:
            raise SpawnFailed(
                f"{plan.title} did not listen on {endpoint} within {limit:g} s: does it take its "
                f"address from {{host}} and {{port}}? {PREFIX}START_TIMEOUT_SECONDS raises the "
                "limit",
                log_tail=child.output.tail,
            )
        # An answer counts only if it can be the child's.
        return not child.exited.is_set()

    def _log(self, lines: Sequence[str]) -> None:
        # What the parts of a dev server say while they are ended one by one only alarms.
        if self._ending is None:
            self._reports.log(lines)

    # -- ready

    async def _watch(self, child: Child) -> None:
        await child.exited.wait()
        why = f"the dev server {child.ending}"
        try:
            # What it left behind may hold its output open, and its port.
            await self._drop_processes()
        finally:
            if self._ending is None:
                self._reports.exited(why, child.output.tail)
            self._begin_end(why)

    # -- down

    def _begin_end(self, why: str) -> asyncio.Task[None]:
        if self._ending is None:
            self._why_ended = why
            self._ending = asyncio.create_task(self._end(), name=f"end {self._mark.job}")
        return self._ending

    async def _end(self) -> None:
        try:
            for task in (self._bringing, self._watching):
                if task:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            await self._drop_processes()
            async with self._disk:
                if self._workspace:
                    await in_thread(self._workspace.remove)
        except OSError:
            log.exception("%s was not taken down completely", self._mark.job)
        finally:
            self._ended.set_result(None)

    async def _drop_processes(self) -> None:
        grace = self._settings.stop_grace_seconds
        if self._child:
            await self._child.end(grace_seconds=grace)
            self._child = None  # its number may soon be another process's
        else:  # its start may have been cancelled half-way
            await end_processes(self._mark, grace_seconds=grace)
        if self._port:
            self._port.release()


def _why(plan: Plan, child: Child) -> str:
    for line in reversed(child.output.tail.splitlines()):
        if plan.framework and line.startswith(_REASON):
            return line.removeprefix(_REASON)
    return f"{plan.title} {child.ending} before it answered; see the end of the log"
