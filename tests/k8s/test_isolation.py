"""What a preview cannot reach on a cluster, and what the gateway may not do there.

That policies are enforced is a matter of the cluster's network: kindnet (kind 0.24 and later),
Calico and Cilium do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from gateway.spawner.kube.manifest import AGENT_PORT, DEV_PORT
from tests.k8s.cluster import Cluster
from tests.k8s.kubectl import KubectlFailed
from tests.k8s.manifests import PREVIEWS, confined_pod
from tests.k8s.previews import APP, PROBE
from tests.k8s.replica import Replica

pytestmark = pytest.mark.timeout(600)

#: No connection was made: refused counts as well as no answer.
CLOSED: Final = {"no answer", "ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES", "EPERM"}
METADATA: Final = "169.254.169.254"


@dataclass(frozen=True)
class Inside:
    """A preview that says what it can reach."""

    replica: Replica
    session_id: str

    async def ask(self, query: str) -> str:
        status, text, _replica = await self.replica.get(self.session_id, f"?{query}")
        assert status == 200
        return text

    async def reach(self, host: str, port: int) -> str:
        return await self.ask(f"host={host}&port={port}")


@pytest.fixture
async def inside(pods: list[Replica]) -> AsyncIterator[Inside]:
    session_id = await pods[0].create(PROBE)
    yield Inside(pods[1], session_id)
    await pods[0].call("POST", f"/sessions/{session_id}/stop", {})


def cluster_ip(cluster: Cluster, name: str, namespace: str) -> str:
    service = cluster.kubectl.within(namespace).json("get", "service", name)
    return str(service["spec"]["clusterIP"])


async def test_a_preview_resolves_names_so_that_its_silence_elsewhere_means_something(
    cluster: Cluster, inside: Inside
) -> None:
    dns = await asyncio.to_thread(cluster_ip, cluster, "kube-dns", "kube-system")
    assert await inside.reach(dns, 53) == "open"


async def test_fault_41_a_preview_reaches_no_redis(cluster: Cluster, inside: Inside) -> None:
    space = cluster.gateway.namespace
    service = await asyncio.to_thread(cluster_ip, cluster, "preview-gateway-redis", space)
    (pod,) = cluster.gateway.items("pods", "app.kubernetes.io/component=redis")
    for address in (service, str(pod["status"]["podIP"])):
        assert await inside.reach(address, 6379) in CLOSED


async def test_fault_41_a_preview_reaches_no_api_server(cluster: Cluster, inside: Inside) -> None:
    service = await asyncio.to_thread(cluster_ip, cluster, "kubernetes", "default")
    assert await inside.reach(service, 443) in CLOSED
    slices = cluster.kubectl.within("default").items(
        "endpointslices", "kubernetes.io/service-name=kubernetes"
    )
    for found in slices:
        for endpoint in found["endpoints"]:
            for port in found["ports"]:
                assert await inside.reach(endpoint["addresses"][0], port["port"]) in CLOSED


async def test_fault_41_a_preview_reaches_no_metadata(inside: Inside) -> None:
    assert await inside.reach(METADATA, 80) in CLOSED


async def test_fault_41_a_preview_reaches_no_other_and_no_gateway(
    cluster: Cluster, pods: list[Replica], inside: Inside
) -> None:
    other = await pods[0].create(APP)
    (pod,) = cluster.pods_of(other)
    for port in (DEV_PORT, AGENT_PORT):
        assert await inside.reach(str(pod["status"]["podIP"]), port) in CLOSED
    for gateway in cluster.gateway_pods():
        for port in (8080, 9090):
            assert await inside.reach(str(gateway["status"]["podIP"]), port) in CLOSED


async def test_fault_41_a_preview_has_no_token_of_the_cluster_and_none_of_the_gateway(
    cluster: Cluster, inside: Inside
) -> None:
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert await inside.ask(f"path={token}") == "not there"
    environment = json.loads(await inside.ask(""))
    assert not [name for name in environment if name.startswith("GATEWAY_")]
    secrets = (cluster.names.token, cluster.names.password)
    assert not [name for name, value in environment.items() if value in secrets]


@pytest.mark.parametrize(
    ("verb", "resource", "namespace", "allowed"),
    [
        *((verb, "pods", "previews", True) for verb in ("create", "delete", "list", "watch")),
        ("create", "pods/exec", "previews", False),
        ("get", "secrets", "previews", False),
        ("create", "pods", "preview-gateway", False),
        ("get", "secrets", "preview-gateway", False),
        ("list", "pods", "kube-system", False),
        ("list", "nodes", "", False),
    ],
)
def test_the_gateway_may_do_what_it_does_and_nothing_else(
    cluster: Cluster, verb: str, resource: str, namespace: str, allowed: bool
) -> None:
    own = cluster.names.namespace
    space = own(namespace) if namespace in {"previews", "preview-gateway"} else namespace
    account = f"system:serviceaccount:{own('preview-gateway')}:preview-gateway"
    command = ("auth", "can-i", verb, resource, f"--as={account}")
    try:
        answer = cluster.kubectl.within(space).run(*command)
    except KubectlFailed as exc:  # "no" has an exit status of its own
        answer = exc.said
    assert answer.strip().splitlines()[-1].startswith("yes" if allowed else "no")


@pytest.mark.parametrize(
    "change",
    [
        {"hostNetwork": True},
        {"securityContext": {"runAsNonRoot": False, "runAsUser": 0}},
        {"volumes": [{"name": "tmp", "hostPath": {"path": "/"}}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_namespace_of_previews_takes_no_pod_below_the_restricted_standard(
    cluster: Cluster, change: dict[str, Any]
) -> None:
    space = cluster.names.namespace(PREVIEWS)
    pod = confined_pod("intruder", space, cluster.pod_image, "", labels={})
    dry = ("apply", "--dry-run=server", "-f", "-")
    cluster.kubectl.run(*dry, text=json.dumps(pod))
    pod["spec"] |= change
    with pytest.raises(KubectlFailed, match="restricted"):
        cluster.kubectl.run(*dry, text=json.dumps(pod))
