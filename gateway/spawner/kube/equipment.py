"""What all pods of one spawner share, and the calls that concern a single one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import aiohttp

from gateway.errors import KubeConflict, SpawnFailed
from gateway.settings import PREFIX, Settings
from gateway.spawner.kube.agent import Agent
from gateway.spawner.kube.client import KubeApi
from gateway.spawner.kube.manifest import AGENT_PORT, Manifests, Pod
from gateway.spawner.kube.pods import address_of, trouble_of
from gateway.spawner.kube.reflector import Reflector

log = logging.getLogger(__name__)

#: A new container listens within this often; a refused connection costs next to nothing.
_HEALTH_PAUSE_SECONDS: Final = 0.05
#: Beyond a pod's own grace: kubelet and API server have to tell.
_GONE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Equipment:
    """What all pods of one spawner share."""

    settings: Settings
    api: KubeApi
    reflector: Reflector
    http: aiohttp.ClientSession
    manifests: Manifests

    def agent(self, pod: Pod) -> Agent:
        """The agent of a pod that has an address."""
        return Agent(self.http, address_of(pod), AGENT_PORT, self.manifests.token(pod))

    async def until_it_runs(self, pod: Pod, tell: Callable[[str], None]) -> Pod:
        """Wait for the agent of a new pod; ``tell`` is given what it waits for.

        Raises SpawnFailed if the pod never will, or not within ``pod_start_seconds``.
        """
        seconds, sentence = self.settings.pod_start_seconds, ""

        def runs(now: Pod | None) -> bool:
            nonlocal sentence
            if now is None or now["metadata"]["uid"] != uid:
                if seen:
                    raise SpawnFailed("its pod was deleted while it started")
                return False
            seen.append(uid)
            trouble = trouble_of(now)
            if trouble is not None and trouble.final:
                raise SpawnFailed(trouble.sentence)
            if trouble is not None and trouble.sentence != sentence:
                sentence = trouble.sentence
                tell(sentence)
            return bool(address_of(now))

        name, uid, seen = pod["metadata"]["name"], pod["metadata"]["uid"], list[str]()
        try:
            async with asyncio.timeout(seconds):
                found = await self.reflector.wait(name, runs, seconds)
                if found is None:
                    raise SpawnFailed("its pod was deleted while it started")
                await self._until_healthy(self.agent(found), name, runs)
        except TimeoutError as exc:
            why = sentence or "its agent does not answer: may the gateway reach pods?"
            raise SpawnFailed(
                f"its pod did not start within {seconds:g} s: {why} "
                f"({PREFIX}POD_START_SECONDS raises the limit)"
            ) from exc
        return found

    async def _until_healthy(
        self, agent: Agent, name: str, runs: Callable[[Pod | None], bool]
    ) -> None:
        while not await agent.healthy():
            runs(self.reflector.get(name))
            await asyncio.sleep(_HEALTH_PAUSE_SECONDS)

    async def remove(self, pod: Pod) -> None:
        """Have a pod ended, and wait until it is gone. Raises KubeUnavailable, KubeRefused.

        One that does not go in time is left to Kubernetes: nothing is routed to it any more.
        """
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        with suppress(KubeConflict):  # the name is another pod's by now
            if not await self.api.delete(name, uid=uid):
                return
        grace = pod["spec"].get("terminationGracePeriodSeconds", 0)
        try:
            await self.reflector.wait(
                name,
                lambda now: now is None or now["metadata"]["uid"] != uid,
                grace + _GONE_SECONDS,
            )
        except TimeoutError:
            log.warning("pod %s is not gone yet", name)
