"""The spawner that gives each preview a pod of its own: untrusted code runs in none of ours.

Pods outlast the replicas: who runs one is a matter of the registry, and a replica that is lost, or
leaves, takes none along. The API server's names decide between two that start the same preview.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import aiohttp

from gateway.errors import KubeRefused, KubeUnavailable, SettingsError, SpawnFailed
from gateway.session import SessionId, is_session_id
from gateway.settings import PREFIX, Settings
from gateway.spawner.base import DevServer, Found, Job, Reports, Running
from gateway.spawner.kube.client import KubeApi
from gateway.spawner.kube.config import load_config
from gateway.spawner.kube.equipment import Equipment
from gateway.spawner.kube.manifest import (
    SELECTOR,
    SESSION_LABEL,
    Manifests,
    Pod,
    Purpose,
)
from gateway.spawner.kube.pods import generation_of, is_going, refusal_sentence, session_of
from gateway.spawner.kube.preview import Preview
from gateway.spawner.kube.reflector import Reflector
from gateway.spawner.kube.template import Template, parse_template
from gateway.spawner.kube.warm_pods import WarmPods
from gateway.spawner.threads import in_thread
from gateway.telemetry import Sample

log: Final = logging.getLogger(__name__)

#: A replica that begins waits so long for the list of pods; without it, it serves what runs.
_SYNC_SECONDS: Final = 5.0


class KubernetesSpawner:
    """A ``gateway.spawner.base.Spawner`` on pods. Implements ``Reflector``'s ``Listener``, too."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is asked before ``open``. ``settings`` hold the key that replicas share."""
        self._settings = settings
        self._stack = AsyncExitStack()
        self._equipment: Equipment | None = None
        self._warm: WarmPods | None = None
        self._previews: dict[tuple[SessionId, int], Preview] = {}
        #: When each pod, by UID, was first seen here.
        self._seen_at: dict[str, float] = {}

    @property
    def outlasting(self) -> bool:
        """Pods need no replica."""
        return True

    async def open(self) -> None:
        """Find the API server, and begin to watch pods. Raises SettingsError.

        An API server that does not answer keeps no replica from serving what runs.
        """
        settings = self._settings
        template = await in_thread(_read_template, settings.pod_template_file)
        config = await in_thread(
            lambda: load_config(api_url=settings.kube_api_url, namespace=settings.kube_namespace)
        )
        api = await self._stack.enter_async_context(KubeApi(config))
        reflector = await self._stack.enter_async_context(Reflector(api, SELECTOR))
        # Event streams of agents stay open, one for each preview that is looked after here.
        connector = aiohttp.TCPConnector(limit=0)
        http = await self._stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        manifests = Manifests(settings, template)
        self._equipment = Equipment(settings, api, reflector, http, manifests)
        self._stack.callback(reflector.subscribe(self))
        self._warm = WarmPods(self._equipment)
        self._stack.push_async_callback(self._warm.close)
        try:
            async with asyncio.timeout(_SYNC_SECONDS):
                await reflector.synced.wait()
        except TimeoutError:
            log.warning("the pods are not known yet: %s", reflector.failure or "no answer")
        self._warm.open()

    async def tidy(self, *, grace_seconds: float) -> None:
        """Nothing of a dead replica's lies about: pods are in the cluster, see ``seen``."""

    async def close(self) -> None:
        """Look after nothing any longer; the pods go on. Idempotent."""
        await asyncio.gather(*(preview.release() for preview in self._previews.values()))
        self._previews.clear()
        await self._stack.aclose()

    async def start(self, job: Job, reports: Reports) -> DevServer:
        """See ``Spawner.start``."""
        equipment = self._ready()
        key = job.session_id, job.generation
        if any(id_ == key[0] and number >= key[1] for id_, number in self._previews):
            raise SpawnFailed(f"generation {key[1]} of {key[0]} is running or outdated already")
        preview = Preview(job.session_id, job.generation, reports, equipment)
        self._previews[key] = preview
        try:
            await self._end_older(job)
            return await preview.bring_up(job, self._warm_or_none)
        except BaseException:
            # Whoever cancels this waits until nothing is left.
            ending = asyncio.create_task(self._end(preview), name=f"end pod of {key[0]}")
            await asyncio.shield(ending)
            raise

    async def adopt(self, running: Running, reports: Reports) -> Found:
        """See ``Spawner.adopt``."""
        equipment = self._ready()
        pods = await self._pods_of(running.session_id)
        for pod in pods:
            if generation_of(pod) == running.generation:
                break
        else:
            raise SpawnFailed("its pod is gone")
        preview = Preview(running.session_id, running.generation, reports, equipment)
        self._previews[running.session_id, running.generation] = preview
        try:
            return await preview.adopt(pod)
        except BaseException:
            self._forget(preview)
            await preview.release()
            raise

    async def release(self, session_id: SessionId, *, generation: int) -> None:
        """See ``Spawner.release``."""
        preview = self._previews.pop((session_id, generation), None)
        if preview is not None:
            await preview.release()

    async def write(
        self,
        session_id: SessionId,
        *,
        write: Mapping[str, bytes],
        delete: Sequence[str] = (),
        revision: int = 0,
    ) -> None:
        """See ``Spawner.write``. Raises BadFiles."""
        preview = self._newest(session_id)
        if preview is not None:
            await preview.write(write, delete, revision)

    async def read(self, session_id: SessionId, paths: Collection[str]) -> dict[str, bytes]:
        """See ``Spawner.read``."""
        preview = self._newest(session_id)
        return await preview.read(paths) if preview is not None else {}

    async def stop(self, session_id: SessionId, *, generation: int | None = None) -> None:
        """See ``Spawner.stop``: of whatever replica's.

        While the API server does not answer only dev servers that are looked after here end; their
        pods are removed later.
        """
        mine = [
            preview
            for (id_, number), preview in tuple(self._previews.items())
            if id_ == session_id and generation in {None, number}
        ]
        await asyncio.gather(*(self._end(preview) for preview in mine))
        equipment = self._ready()
        try:
            for pod in self._known_pods(session_id):
                if generation in {None, generation_of(pod)} and not is_going(pod):
                    await equipment.remove(pod)
        except (KubeRefused, KubeUnavailable) as exc:
            log.warning("a pod of %s is removed later: %s", session_id, exc)

    def seen(self, *, seconds: float) -> Collection[Running]:
        """See ``Spawner.seen``."""
        if self._equipment is None:
            return []
        now = asyncio.get_running_loop().time()
        pods = {pod["metadata"]["uid"]: pod for pod in self._equipment.reflector.all()}
        self._seen_at = {uid: self._seen_at.get(uid, now) for uid in pods}
        return [
            Running(SessionId(session_of(pod)), generation_of(pod))
            for uid, pod in pods.items()
            if now - self._seen_at[uid] >= seconds
            and is_session_id(session_of(pod))
            and not is_going(pod)
        ]

    def samples(self) -> Iterator[Sample]:
        """For the metrics."""
        if self._equipment is None or self._warm is None:
            return
        reflector = self._equipment.reflector
        count = len(reflector.all())
        yield ("pods", "Pods of previews, of all replicas.", "gauge", [({}, count)])
        age = reflector.age_seconds if reflector.synced.is_set() else -1.0
        yield ("pods_age_seconds", "Since the API server was heard of.", "gauge", [({}, age)])
        yield from self._warm.samples()

    # -- Listener --------------------------------------------------------------------------------

    def changed(self, pod: Pod) -> None:
        """Implements ``Listener``."""
        if preview := self._previews.get(_key(pod)):
            preview.changed(pod)

    def deleted(self, pod: Pod) -> None:
        """Implements ``Listener``."""
        if preview := self._previews.get(_key(pod)):
            preview.deleted(pod)

    # -- parts -----------------------------------------------------------------------------------

    def _ready(self) -> Equipment:
        if self._equipment is None:
            raise SpawnFailed("the spawner is closed")
        return self._equipment

    async def _warm_or_none(self, purpose: Purpose, files: Mapping[str, bytes]) -> Pod | None:
        return await self._warm.take(purpose, files) if self._warm is not None else None

    async def _end_older(self, job: Job) -> None:
        """A pod of an older generation ends first. Raises SpawnFailed if there is a newer one."""
        try:
            pods = await self._pods_of(job.session_id)
            if any(generation_of(pod) > job.generation for pod in pods):
                raise SpawnFailed(f"generation {job.generation} of {job.session_id} is outdated")
            await asyncio.gather(*(self._ready().remove(pod) for pod in pods))
        except (KubeRefused, KubeUnavailable) as exc:
            raise SpawnFailed(refusal_sentence(exc)) from exc

    async def _pods_of(self, session_id: SessionId) -> Sequence[Pod]:
        """All pods of a session, asked for: what the reflector knows may be old."""
        selector = f"{SELECTOR},{SESSION_LABEL}={session_id}"
        return (await self._ready().api.list(selector)).pods

    def _known_pods(self, session_id: SessionId) -> Iterator[Pod]:
        for pod in self._ready().reflector.all():
            if session_of(pod) == session_id:
                yield pod

    async def _end(self, preview: Preview) -> None:
        self._forget(preview)
        await preview.end()

    def _forget(self, preview: Preview) -> None:
        self._previews.pop((preview.session_id, preview.generation), None)

    def _newest(self, session_id: SessionId) -> Preview | None:
        mine = [preview for (id_, _), preview in self._previews.items() if id_ == session_id]
        return max(mine, key=lambda preview: preview.generation, default=None)


def _key(pod: Pod) -> tuple[SessionId, int]:
    return SessionId(session_of(pod)), generation_of(pod)


def _read_template(path: Path | None) -> Template:
    if path is None:
        return Template()
    try:
        return parse_template(path.read_text("utf-8"))
    except OSError as exc:
        raise SettingsError(f"{PREFIX}POD_TEMPLATE_FILE: {path} cannot be read: {exc}") from exc
