"""A single gateway pod, asked directly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from tests.k8s.cluster import REPLICAS, Cluster

PORT: Final = 8080


@dataclass(frozen=True)
class Replica:
    """One pod of the gateway."""

    name: str
    url: str
    http: aiohttp.ClientSession

    async def call(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        """A call of the API that has to be answered with this status; its JSON."""
        async with self.http.request(method, f"{self.url}/api/v1{path}", json=body) as answer:
            text = await answer.text()
            assert answer.status == status, f"{method} {path}: {answer.status} {text}"
            return json.loads(text) if text else None

    async def create(self, body: dict[str, Any]) -> str:
        """The id of a new session that is ready."""
        path = "/sessions?wait=ready&timeout=180"
        made = await self.call("POST", path, {"id": fresh_id(), **body}, status=201)
        assert made["state"] == "ready", made
        return str(made["id"])

    async def get(self, session_id: str, path: str = "") -> tuple[int, str, str]:
        """Status and text of a page of a preview, and the replica that has answered."""
        async with self.http.get(f"{self.url}/preview/{session_id}/{path}") as answer:
            return answer.status, await answer.text(), answer.headers.get("X-Preview-Replica", "")

    @contextlib.asynccontextmanager
    async def hmr(self, session_id: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """The HMR socket of a preview, once it is connected."""
        url = f"{self.url}/preview/{session_id}/hmr"
        async with self.http.ws_connect(url, protocols=["vite-hmr"]) as socket:
            hello = await socket.receive_json(timeout=20)
            assert hello == {"type": "connected"}
            yield socket


def fresh_id() -> str:
    """An id that nobody has."""
    return f"k8s-{secrets.token_hex(6)}"


@contextlib.asynccontextmanager
async def replicas(cluster: Cluster) -> AsyncIterator[list[Replica]]:
    """All ready pods of the gateway, once there are three; each by a port-forward of its own."""
    cluster.rolled_out()
    found = cluster.gateway_pods()
    assert len(found) == REPLICAS, [pod["metadata"]["name"] for pod in found]
    headers = {"Authorization": f"Bearer {cluster.names.token}"}
    async with contextlib.AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=200)
        session = aiohttp.ClientSession(headers=headers, timeout=timeout)
        http = await stack.enter_async_context(session)
        made = []
        for pod in found:
            name = str(pod["metadata"]["name"])
            forward = cluster.gateway.forward(f"pod/{name}", PORT)
            port = await asyncio.to_thread(stack.enter_context, forward)
            made.append(Replica(name, f"http://127.0.0.1:{port}", http))
        yield made
