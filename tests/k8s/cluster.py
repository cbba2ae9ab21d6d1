"""The gateway on a cluster, for as long as a test run lasts; what it leaves behind is a dump."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.spawner.kube.manifest import SELECTOR, SESSION_LABEL
from tests.k8s.kubectl import Kubectl, KubectlFailed
from tests.k8s.manifests import GATEWAY, PREVIEWS, Names, fitted, namespaces
from tests.manifests.documents import Document, configuration
from tests.manifests.rendering import ROOT, documents

OVERLAY: Final = "overlays/kind"
GATEWAYS: Final = "app.kubernetes.io/component=gateway"
REPLICAS: Final = 3
#: Images are pulled, and a volume is made.
START_SECONDS: Final = 300
#: Beside JUnit's file of `make test-k8s`.
DUMPS: Final = ROOT / "build/k8s-test"


@dataclass(frozen=True)
class Cluster:
    """What a run has deployed."""

    names: Names
    kubectl: Kubectl
    documents: Sequence[Document]

    @property
    def gateway(self) -> Kubectl:
        """kubectl in the namespace of the gateway."""
        return self.kubectl.within(self.names.namespace(GATEWAY))

    @property
    def previews(self) -> Kubectl:
        """kubectl in the namespace of the previews."""
        return self.kubectl.within(self.names.namespace(PREVIEWS))

    @property
    def pod_image(self) -> str:
        """The image of previews, which has Node.js."""
        return configuration(self.documents)["GATEWAY_POD_IMAGE"]

    def gateway_pods(self) -> list[dict[str, Any]]:
        """The gateway's pods that are ready and not on their way out, oldest first."""
        pods = [pod for pod in self.gateway.items("pods", GATEWAYS) if is_ready(pod)]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def pods_of(self, session_id: str) -> list[dict[str, Any]]:
        """The pods of a session, those on their way out included."""
        return self.previews.items("pods", f"{SELECTOR},{SESSION_LABEL}={session_id}")

    def rolled_out(self, seconds: int = START_SECONDS) -> None:
        """Wait until every replica is of the newest revision and ready."""
        status = ("rollout", "status", "deployment/preview-gateway", f"--timeout={seconds}s")
        self.gateway.run(*status, seconds=seconds + 10)


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is ready, and stays."""
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


@contextlib.contextmanager
def deployed(kubectl: Kubectl, environ: Mapping[str, str] = os.environ) -> Iterator[Cluster]:
    """The overlay in namespaces of its own, three replicas ready. Deleted afterwards.

    With PREVIEW_K8S_KEEP=1 the namespaces stay, to look at.
    """
    names = Names.fresh(environ)
    cluster = Cluster(names, kubectl, fitted(documents(OVERLAY), names))
    try:
        kubectl.apply(cluster.documents)
        cluster.gateway.run("scale", "deployment/preview-gateway", f"--replicas={REPLICAS}")
        cluster.rolled_out()
        yield cluster
    finally:
        dump(cluster, DUMPS / names.run)
        if environ.get("PREVIEW_K8S_KEEP") != "1":
            # In this order: a gateway that still runs would make pods in a namespace that goes.
            for space in namespaces(cluster.documents):
                kubectl.run("delete", "namespace", space, "--ignore-not-found", "--wait=false")


def dump(cluster: Cluster, folder: Path) -> None:
    """All that helps to understand a run, into files; what cannot be had is named in them."""
    folder.mkdir(parents=True, exist_ok=True)
    everything = "pods,deployments,statefulsets,services,endpointslices,networkpolicies,events"
    for where, kubectl in (("gateway", cluster.gateway), ("previews", cluster.previews)):
        _save(folder / f"{where}.yaml", kubectl, "get", everything, "-o", "yaml")
        _save(folder / f"{where}.txt", kubectl, "get", everything, "-o", "wide")
        _save(folder / f"{where}-described.txt", kubectl, "describe", "pods")
        with contextlib.suppress(KubectlFailed):  # said in the files above
            for pod in kubectl.items("pods"):
                name = pod["metadata"]["name"]
                logs = ("logs", name, "--all-containers", "--prefix", "--tail=5000")
                _save(folder / f"{where}-{name}.log", kubectl, *logs)


def _save(path: Path, kubectl: Kubectl, *arguments: str) -> None:
    try:
        text = kubectl.run(*arguments)
    except KubectlFailed as exc:
        text = f"{exc}\n"
    path.write_text(without_secrets(text))


def without_secrets(text: str) -> str:
    """A dump without the tokens of agents, which pods carry in their environment."""
    return re.sub(r"(PREVIEW_AGENT_TOKEN(?::\s+|\n\s+value: ))\S+", r"\1<left out>", text)


def until(seconds: float, wanted: Any, look: Any) -> Any:
    """Look once a second until it is as wanted; what was seen last, after that."""
    deadline = time.monotonic() + seconds
    while (seen := look()) != wanted and time.monotonic() < deadline:
        time.sleep(1)
    return seen
