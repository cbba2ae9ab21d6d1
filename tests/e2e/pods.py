"""Replicas that run previews in the pods of a fake cluster, and what tests ask of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.spawner.kube.manifest import SESSION_LABEL
from tests.e2e.conftest import Store
from tests.e2e.fleet import Fleet, until
from tests.e2e.replicas import Api, ReplicaProcess
from tests.kube.cluster import FakeCluster

LEASE_SECONDS: Final = 2.0


@dataclass
class Pods:
    """Replicas, and the cluster in which they run previews."""

    fleet: Fleet
    cluster: FakeCluster

    def api(self, number: int) -> Api:
        """The API of a replica."""
        return self.fleet.api(self.fleet.replicas[number])

    def of(self, session_id: str) -> list[dict[str, Any]]:
        """The pods of a session."""
        return [
            pod
            for pod in self.cluster.pods.values()
            if pod["metadata"]["labels"].get(SESSION_LABEL) == session_id
        ]

    def uids(self, session_id: str) -> list[str]:
        """Which pods a session has."""
        return sorted(pod["metadata"]["uid"] for pod in self.of(session_id))


def settings(store: Store, cluster: FakeCluster, folder: Path, **more: str) -> dict[str, str]:
    """Environment of a replica. The machine's cache of packages stands for a registry near by."""
    template = folder / "template.json"
    cache = {"name": "npm_config_cache", "value": str(Path.home() / ".npm")}
    template.write_text(json.dumps({"container": {"env": [cache]}}))
    return {
        "GATEWAY_REDIS_URL": store.url,
        "GATEWAY_LEASE_SECONDS": str(LEASE_SECONDS),
        "GATEWAY_SPAWNER": "kubernetes",
        "GATEWAY_KUBE_API_URL": cluster.url,
        "GATEWAY_KUBE_NAMESPACE": cluster.namespace,
        "GATEWAY_POD_IMAGE": "previews:test",
        "GATEWAY_POD_AGENT_IMAGE": "preview-gateway:test",
        "GATEWAY_POD_TEMPLATE_FILE": str(template),
        "GATEWAY_POD_START_SECONDS": "20",
        "GATEWAY_DRAIN_GRACE_SECONDS": "1",
        **more,
    }


async def text_of(pods: Pods, replica: ReplicaProcess, session_id: str) -> str:
    async with pods.fleet.http.get(f"{replica.url}/preview/{session_id}/") as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def gone(pods: Pods, session_id: str) -> bool:
    async def none() -> bool:
        return not pods.of(session_id)

    await until(none, seconds=20)
    return True
