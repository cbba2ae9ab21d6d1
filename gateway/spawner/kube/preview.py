"""One generation of a preview in its pod, as one replica looks after it: from start, or adoption,
to its end, or until another replica looks after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from gateway.errors import (
    AgentRefused,
    AgentUnreachable,
    BadRequest,
    Fenced,
    GatewayError,
    KubeAlreadyExists,
    KubeRefused,
    KubeUnavailable,
    RevisionConflict,
    SpawnFailed,
)
from gateway.session import Endpoint, SessionId
from gateway.settings import PREFIX
from gateway.spawner.base import DevServer, Found, Job, Reports
from gateway.spawner.kube.agent import Agent
from gateway.spawner.kube.agent_wire import (
    AgentEvent,
    AgentExit,
    ExitEvent,
    GapEvent,
    LogEvent,
    PhaseEvent,
)
from gateway.spawner.kube.equipment import Equipment
from gateway.spawner.kube.manifest import DEV_PORT, NONCE, Pod, Purpose
from gateway.spawner.kube.orders import make_order
from gateway.spawner.kube.pods import (
    Trouble,
    address_of,
    generation_of,
    is_going,
    refusal_sentence,
    trouble_of,
)
from gateway.spawner.npm_errors import npm_errors, npm_reason
from gateway.spawner.probe import ping_request, until_it_answers
from gateway.spawner.recipes import Plan, choose

log = logging.getLogger(__name__)

#: How a launcher begins the line that gives the reason of its failure.
_REASON: Final = "preview: "
_TAIL_LINES: Final = 200
#: A pod in the way is asked for again after this, should nobody tell that it is gone.
_TAKEN_PAUSE_SECONDS: Final = 0.5
#: How long an agent may be silent before this is worth a word; its pod's status counts, not that.
_SILENCE_SECONDS: Final = 30.0
#: For the agent to answer whoever adopts its dev server.
_ADOPT_SECONDS: Final = 15.0
#: A process that has waited needs a hundredth of this; if it hangs, a new one is started.
_WARM_SECONDS: Final = 10.0
_RETRY_PAUSE_SECONDS: Final = 0.5
#: The agent keeps the limit of an install itself.
_SPARE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a dev server is no more; see ``Trouble.innocent``."""

    reason: str
    innocent: bool = False


T = TypeVar("T")
Take = Callable[[Purpose, Mapping[str, bytes]], Awaitable[Pod | None]]


class Preview:
    """One pod. ``bring_up`` or ``adopt`` is called once; ``end`` or ``release`` ends it."""

    def __init__(
        self, session_id: SessionId, generation: int, reports: Reports, equipment: Equipment
    ) -> None:
        """Nothing happens before ``bring_up`` or ``adopt``."""
        self.session_id: Final = session_id
        self.generation: Final = generation
        self.purpose: Final = Purpose.session(session_id, generation)
        self.pod: Pod | None = None
        self._reports = reports
        self._equipment = equipment
        self._settings = equipment.settings
        self._agent: Agent | None = None
        self._revision = 0
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._title = ""
        self._starting = asyncio.Event()
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- up --------------------------------------------------------------------------------------

    async def bring_up(self, job: Job, take: Take) -> DevServer:
        """Start a dev server in a pod of its own. ``take`` gives one that waits, or None.

        Raises SpawnFailed; the caller ends the pod then.
        """
        try:
            plan = choose(job.recipe, job.files)
            self._title = plan.title
            self._reports.phase("preparing", "a pod")
            self.pod = await take(self.purpose, job.files) or await self._create()
            self.pod = await self._equipment.until_it_runs(self.pod, self._tell_wait)
            return await self._start(job, plan)
        except (BadRequest, AgentRefused, AgentUnreachable, Fenced, RevisionConflict) as exc:
            raise SpawnFailed(str(exc), log_tail=self._log_tail) from exc
        except (KubeRefused, KubeUnavailable) as exc:
            raise SpawnFailed(refusal_sentence(exc)) from exc

    def _tell_wait(self, sentence: str) -> None:
        self._reports.phase("preparing", sentence)

    async def _create(self) -> Pod:
        """The pod, created. A name that is taken is an older generation's, which ends first."""
        manifest = self._equipment.manifests.pod(self.purpose)
        limit = self._settings.pod_start_seconds
        try:
            async with asyncio.timeout(limit):
                while True:
                    try:
                        return await self._equipment.api.create(manifest)
                    except KubeAlreadyExists:
                        if found := await self._in_the_way(manifest):
                            return found
        except TimeoutError as exc:
            raise SpawnFailed(
                f"a former pod of the preview was not gone within {limit:g} s: is its node well?"
            ) from exc

    async def _in_the_way(self, manifest: Pod) -> Pod | None:
        """The pod that has our name, if it is ours after all; else it is ended."""
        found = await self._equipment.api.read(self.purpose.name)
        if found is None:
            return None
        nonce = manifest["metadata"]["annotations"][NONCE]
        if found["metadata"].get("annotations", {}).get(NONCE) == nonce:
            return found  # made by an earlier try, whose answer was lost
        if generation_of(found) >= self.generation:
            raise SpawnFailed(
                f"generation {self.generation} of {self.session_id} is running or outdated already"
            )
        await self._equipment.remove(found)
        if is_going(found):
            await asyncio.sleep(_TAKEN_PAUSE_SECONDS)
        return None

    async def _start(self, job: Job, plan: Plan) -> DevServer:
        agent, endpoint = self._reach()
        state = await agent.push_tree(
            self.session_id,
            generation=self.generation,
            revision=job.revision,
            files=job.files,
        )
        self._revision = job.revision
        # What it said before, while it waited for a session, is nobody's log.
        self._look_after(agent, after=state.last_event)
        order = make_order(self._settings, job, plan, endpoint)
        is_warm = await agent.start(order)
        limit = self._settings.install_timeout_seconds + _SPARE_SECONDS
        if not await self._before_end(self._starting.wait(), limit):
            raise SpawnFailed(f"the agent did not start {plan.title} within {limit:g} s")
        if is_warm and not await self._answers(job, plan, endpoint, _WARM_SECONDS):
            log.info("%s: a process that had waited did not serve it", self.purpose.name)
            await agent.start(replace(order, attempt=order.attempt + 1, line=""))
            is_warm = False
        limit = self._settings.start_timeout_seconds
        if not is_warm and not await self._answers(job, plan, endpoint, limit):
            raise SpawnFailed(
                f"{plan.title} did not listen on {endpoint} within {limit:g} s: does it take its "
                f"address from {{host}} and {{port}}? {PREFIX}START_TIMEOUT_SECONDS raises the "
                "limit",
                log_tail=self._log_tail,
            )
        self._own(self._watch(), "watch")
        return DevServer(endpoint, plan.hmr)

    async def _answers(self, job: Job, plan: Plan, endpoint: Endpoint, seconds: float) -> bool:
        """Wait for the dev server's first answer. Raises SpawnFailed if the pod ends."""
        accept = plan.framework.probe_accept if plan.framework else "*/*"
        request = ping_request(port=endpoint.port, base=job.base, accept=accept)
        answer = until_it_answers(endpoint, request, silence_will_do=plan.framework is None)
        return await self._before_end(answer, seconds)

    async def _before_end(self, event: Awaitable[object], seconds: float) -> bool:
        """Wait for ``event``; False if it does not come in time. SpawnFailed if the pod ends."""
        waiting: asyncio.Future[object] = asyncio.ensure_future(event)
        both: set[asyncio.Future[Any]] = {waiting, self._ended}
        try:
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._ended.done():
                raise SpawnFailed(self._ended.result().reason, log_tail=self._log_tail)
            return waiting.done()
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})

    # -- adopt -----------------------------------------------------------------------------------

    async def adopt(self, pod: Pod) -> Found:
        """Look after what runs in a pod already. Raises SpawnFailed if nothing does."""
        self.pod = pod
        if trouble := trouble_of(pod):
            raise SpawnFailed(trouble.sentence)
        if not address_of(pod):
            raise SpawnFailed("its pod does not run")
        agent, _ = self._reach()
        try:
            async with asyncio.timeout(_ADOPT_SECONDS):
                state = await _answered(lambda: agent.state(digests=True))
        except (TimeoutError, AgentRefused) as exc:
            raise SpawnFailed(f"the agent in its pod does not answer as it should: {exc}") from exc
        if state.exit is not None:
            raise SpawnFailed(f"its dev server {state.exit.ending}")
        if (state.session_id, state.generation) != (self.session_id, self.generation):
            raise SpawnFailed("its pod serves something else")
        self._revision = state.revision
        self._look_after(agent, after=state.last_event)
        self._own(self._watch(), "watch")
        return Found(
            state.revision, {path: bytes.fromhex(text) for path, text in state.digests.items()}
        )

    # -- meanwhile -------------------------------------------------------------------------------

    async def write(self, write: Mapping[str, bytes], delete: Sequence[str], revision: int) -> None:
        """Put edits into the pod. Raises BadFiles; waits while its agent cannot be reached."""
        if (agent := self._agent) is None or self._ended.done():
            return
        while self._revision < revision:
            try:
                await _answered(
                    lambda: agent.patch_files(
                        generation=self.generation,
                        base_revision=self._revision,
                        revision=revision,
                        write=write,
                        delete=delete,
                    )
                )
                self._revision = revision
            except RevisionConflict as exc:
                # The former owner's last edit came after all. What is written now holds it, too.
                if exc.current <= self._revision:
                    raise
                self._revision = exc.current

    async def read(self, paths: Collection[str]) -> dict[str, bytes]:
        """What these files hold now; nothing if the agent cannot be asked."""
        if self._agent is None:
            return {}
        try:
            return await self._agent.read(paths, longest=self._settings.max_file_bytes)
        except (AgentUnreachable, AgentRefused) as exc:
            log.warning("the files of %s cannot be read: %s", self.session_id, exc)
            return {}

    def changed(self, pod: Pod) -> None:
        """What Kubernetes says of the pod now."""
        if self._is_ours(pod) and (trouble := trouble_of(pod)) and trouble.final:
            self._end_with(trouble)

    def deleted(self, pod: Pod) -> None:
        """The pod is gone."""
        if self._is_ours(pod):
            self._end_with(trouble_of(pod) or Trouble("its pod was deleted", innocent=True))

    def _is_ours(self, pod: Pod) -> bool:
        return self.pod is not None and pod["metadata"]["uid"] == self.pod["metadata"]["uid"]

    def _end_with(self, trouble: Trouble) -> None:
        if not self._ended.done():
            self._ended.set_result(Ending(trouble.sentence, trouble.innocent))

    def _reach(self) -> tuple[Agent, Endpoint]:
        if self.pod is None:
            raise SpawnFailed("it has no pod")
        self._agent = self._equipment.agent(self.pod)
        return self._agent, Endpoint(address_of(self.pod), DEV_PORT)

    def _look_after(self, agent: Agent, *, after: int) -> None:
        self._own(self._follow(agent, after), "events")
        known = self._equipment.reflector.get(self.pod["metadata"]["name"]) if self.pod else None
        if known is not None:
            self.changed(known)

    async def _follow(self, agent: Agent, after: int) -> None:
        """Pass on what the agent tells, for as long as there is one."""
        while True:
            try:
                async for event in agent.events(after=after, unreachable_seconds=_SILENCE_SECONDS):
                    after = event.number
                    self._hear(event)
            except AgentUnreachable as exc:
                # Its pod's status tells whether it is gone; till then it may just be cut off.
                log.warning("%s is not heard of: %s", self.purpose.name, exc)
            except AgentRefused as exc:
                self._end_with(Trouble(f"the agent in its pod does not know this gateway: {exc}"))
                return

    def _hear(self, event: AgentEvent) -> None:
        match event:
            case LogEvent(lines=lines):
                self._tail.extend(lines)
                self._reports.log(lines)
            case GapEvent(number=number, first=first):
                self._reports.log([f"... {number - first + 1} events were too fast to be kept ..."])
            case PhaseEvent(generation=self.generation, phase="installing", detail=detail):
                self._reports.phase("installing", detail)
            case PhaseEvent(generation=self.generation, phase="starting", detail=detail):
                self._reports.phase("starting", detail)
                self._starting.set()
            case ExitEvent(generation=self.generation, exit=exit_) if not exit_.requested:
                self._end_with(Trouble(self._why(exit_)))

    def _why(self, exit_: AgentExit) -> str:
        """Why what ran has ended, in a sentence."""
        if exit_.during == "install":
            return exit_.reason or npm_reason("npm", exit_.ending, list(self._tail))
        for line in reversed(self._tail):
            if line.startswith(_REASON):
                return line.removeprefix(_REASON)
        return exit_.reason or f"the dev server {exit_.ending}; see the end of the log"

    @property
    def _log_tail(self) -> str:
        return "\n".join(npm_errors(list(self._tail)) or self._tail)

    async def _watch(self) -> None:
        """Tell how it ended, once it has been ready."""
        ending = await asyncio.shield(self._ended)
        if self._closed:
            return
        if ending.innocent:
            self._reports.vanished(ending.reason)
        else:
            self._reports.exited(ending.reason, self._log_tail)

    # -- end -------------------------------------------------------------------------------------

    async def release(self) -> None:
        """Look after the pod no longer. Idempotent."""
        self._closed = True
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._ended.done():
            self._ended.set_result(Ending("the session was stopped"))

    async def end(self) -> None:
        """End the pod; returns when it is gone. Idempotent.

        If the API server cannot be asked, the dev server is ended through the agent, and the pod is
        left to whoever tidies.
        """
        await self.release()
        pod, self.pod = self.pod, None
        if pod is None:
            return
        try:
            await self._equipment.remove(pod)
        except (KubeRefused, KubeUnavailable) as exc:
            log.warning("pod %s is not deleted: %s", pod["metadata"]["name"], exc)
            await self._stop_inside()

    async def _stop_inside(self) -> None:
        if self._agent is None:
            return
        try:
            await self._agent.stop(
                grace_seconds=self._settings.stop_grace_seconds, generation=self.generation
            )
        except GatewayError as exc:
            log.warning("the dev server of %s is not stopped: %s", self.session_id, exc)

    def _own(self, coroutine: Awaitable[None], name: str) -> None:
        task = asyncio.ensure_future(coroutine)
        task.set_name(f"{name} of {self.purpose.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _answered(call: Callable[[], Awaitable[T]]) -> T:
    """The agent's answer, asked for until it gives one. The caller sets the limit."""
    while True:
        try:
            return await call()
        except AgentUnreachable as exc:
            log.debug("asked again: %s", exc)
            await asyncio.sleep(_RETRY_PAUSE_SECONDS)
