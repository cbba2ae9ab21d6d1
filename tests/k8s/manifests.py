"""The overlay `kind`, made to fit a test: namespaces, credentials and images of its own. Pure."""

from __future__ import annotations

import base64
import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.manifests.documents import Document, Labels, kind_of, of_kind

GATEWAY: Final = "preview-gateway"
PREVIEWS: Final = "previews"
_NAME: Final = "kubernetes.io/metadata.name"
#: On every namespace of a test, so that leftovers of a run that was killed can be found.
MARK: Final = {"preview-gateway.dev/test": "replicas"}


@dataclass(frozen=True)
class Names:
    """What is this run's own."""

    run: str
    token: str
    password: str
    image: str = ""
    pod_image: str = ""

    @classmethod
    def fresh(cls, environ: Mapping[str, str]) -> Names:
        """Names that no other run has; images as PREVIEW_K8S_IMAGE and _POD_IMAGE say."""
        return cls(
            run=secrets.token_hex(4),
            token=secrets.token_hex(24),
            password=secrets.token_hex(24),
            image=environ.get("PREVIEW_K8S_IMAGE", ""),
            pod_image=environ.get("PREVIEW_K8S_POD_IMAGE", ""),
        )

    def namespace(self, name: str) -> str:
        """The namespace that stands for one of the overlay."""
        return f"pgw-test-{self.run}-{name}"


def fitted(documents: Sequence[Document], names: Names) -> list[Document]:
    """The overlay with these names: nothing of it is in a namespace that was there before."""
    return [_fitted(document, names) for document in copy.deepcopy(list(documents))]


def _fitted(document: Document, names: Names) -> Document:
    moved = _moved(document, {space: names.namespace(space) for space in (GATEWAY, PREVIEWS)})
    assert isinstance(moved, dict)
    kind = kind_of(moved)
    if kind == "Secret":
        given = {"api-tokens": names.token, "redis-password": names.password}
        moved["data"] = {
            key: base64.b64encode(given[key].encode()).decode() for key in moved["data"]
        }
    if kind == "ConfigMap" and "GATEWAY_KUBE_NAMESPACE" in moved["data"]:
        moved["data"] |= _settings(names)
    if kind == "Deployment" and names.image:
        for container in moved["spec"]["template"]["spec"]["containers"]:
            container["image"] = names.image
    return moved


def _settings(names: Names) -> dict[str, str]:
    images = {"GATEWAY_POD_AGENT_IMAGE": names.image, "GATEWAY_POD_IMAGE": names.pod_image}
    chosen = {name: image for name, image in images.items() if image}
    return {"GATEWAY_KUBE_NAMESPACE": names.namespace(PREVIEWS), **chosen}


def _moved(value: Any, spaces: Mapping[str, str]) -> Any:
    """A document with its namespaces renamed, wherever one is named."""
    if isinstance(value, list):
        return [_moved(each, spaces) for each in value]
    if not isinstance(value, dict):
        return value
    made = {key: _moved(each, spaces) for key, each in value.items()}
    for key in ("namespace", _NAME):
        if isinstance(made.get(key), str):
            made[key] = spaces.get(made[key], made[key])
    if made.get("kind") == "Namespace":
        metadata = made["metadata"]
        metadata["name"] = spaces[metadata["name"]]
        metadata["labels"] = {**metadata.get("labels", {}), **MARK}
    return made


def namespaces(documents: Sequence[Document]) -> list[str]:
    """The namespaces that these documents make."""
    return [str(each["metadata"]["name"]) for each in of_kind(documents, "Namespace")]


def confined_pod(
    name: str, namespace: str, image: str, script: str, *arguments: str, labels: Labels
) -> Document:
    """A pod that runs a script of Node.js once, and may do no more than the standard allows."""
    resources = {"cpu": "500m", "memory": "256Mi", "ephemeral-storage": "64Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "script",
                    "image": image,
                    "command": ["node", "-e", script, *arguments],
                    "resources": {"requests": resources, "limits": resources},
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}}],
        },
    }
