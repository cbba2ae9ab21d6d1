"""A fake cluster: the API server and what runs its pods."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kube.apiserver import ApiServer
from tests.kube.faults import Faults
from tests.kube.kubelet import Kubelet
from tests.kube.store import Change, Pod


class FakeCluster:
    """Use as an async context manager; nothing is left of it afterwards.

    ``images`` are paths that the images of pods hold, as folders of this machine. Without ``nodes``
    nothing runs the pods: they stay pending.
    """

    def __init__(
        self,
        *,
        namespace: str = "previews",
        history: int = 1000,
        bookmark_seconds: float = 1.0,
        tls: ssl.SSLContext | None = None,
        nodes: bool = True,
        images: Mapping[str, Path] | None = None,
        schedule_seconds: float = 0.0,
        probe_seconds: float = 0.1,
    ) -> None:
        self.namespace = namespace
        self.api = ApiServer(
            namespaces=("default", namespace),
            history=history,
            bookmark_seconds=bookmark_seconds,
            tls=tls,
        )
        self.kubelet = Kubelet(
            self.api.store,
            images=images,
            schedule_seconds=schedule_seconds,
            probe_seconds=probe_seconds,
        )
        self._nodes = nodes

    async def __aenter__(self) -> Self:
        await self.api.start()
        if self._nodes:
            await self.kubelet.start()
            self.api.read_log = lambda _, name: self.kubelet.log(name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if self._nodes:
                await self.kubelet.stop()
        finally:
            await self.api.stop()

    async def until(
        self, name: str, predicate: Callable[[Pod | None], bool], *, seconds: float = 10.0
    ) -> Pod | None:
        """Wait until a predicate holds for a pod (None: there is none); returns it."""
        news = asyncio.Event()

        def heard(change: Change) -> None:
            news.set()

        self.api.store.listeners.append(heard)
        try:
            async with asyncio.timeout(seconds):
                while not predicate(pod := self.pods.get(name)):
                    news.clear()
                    await news.wait()
                return pod
        finally:
            self.api.store.listeners.remove(heard)

    @property
    def url(self) -> str:
        """The API server's address."""
        return self.api.url

    @property
    def faults(self) -> Faults:
        """What goes wrong."""
        return self.api.faults

    @property
    def pods(self) -> dict[str, Pod]:
        """The pods of the namespace, by name, as they are now."""
        return {
            pod["metadata"]["name"]: pod
            for pod in self.api.store.all()
            if pod["metadata"]["namespace"] == self.namespace
        }
