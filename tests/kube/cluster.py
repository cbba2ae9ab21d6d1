"""A fake cluster: the API server and what runs its pods."""

from __future__ import annotations

import ssl
from types import TracebackType
from typing import Self

from tests.kube.apiserver import ApiServer
from tests.kube.faults import Faults
from tests.kube.store import Pod


class FakeCluster:
    """Use as an async context manager; nothing is left of it afterwards."""

    def __init__(
        self,
        *,
        namespace: str = "previews",
        history: int = 1000,
        bookmark_seconds: float = 1.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.namespace = namespace
        self.api = ApiServer(
            namespaces=("default", namespace),
            history=history,
            bookmark_seconds=bookmark_seconds,
            tls=tls,
        )

    async def __aenter__(self) -> Self:
        await self.api.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.api.stop()

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
