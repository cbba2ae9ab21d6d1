"""Rendered manifests as Python sees them, and the few questions that all policies ask of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

#: One object of Kubernetes, as parsed.
Document = dict[str, Any]
Labels = Mapping[str, str]

#: CSafeLoader where libyaml is there: a hundred kustomizations are parsed.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Kinds that make pods.
WORKLOADS: Final = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job"})


def load(text: str) -> list[Document]:
    """The documents of a YAML stream."""
    return [document for document in yaml.load_all(text, Loader=_LOADER) if document]


def kind_of(document: Document) -> str:
    return str(document["kind"])


def name_of(document: Document) -> str:
    return str(document["metadata"]["name"])


def namespace_of(document: Document) -> str:
    return str(document["metadata"].get("namespace", ""))


def title(document: Document) -> str:
    """How a problem names a document."""
    return f"{kind_of(document)} {namespace_of(document)}/{name_of(document)}"


def of_kind(documents: Sequence[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if kind_of(document) in kinds]


def find(documents: Sequence[Document], kind: str, name: str, namespace: str = "") -> Document:
    """The one document of that kind and name; LookupError without it."""
    found = [
        document
        for document in of_kind(documents, kind)
        if name_of(document) == name and (not namespace or namespace_of(document) == namespace)
    ]
    if len(found) != 1:
        raise LookupError(f"{len(found)} of {kind} {namespace}/{name}")
    return found[0]


def has(documents: Sequence[Document], kind: str, name: str, namespace: str = "") -> bool:
    try:
        find(documents, kind, name, namespace)
    except LookupError:
        return False
    return True


@dataclass(frozen=True)
class Pods:
    """The pods that a workload makes."""

    title: str
    namespace: str
    labels: Labels
    spec: Document

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """The ports that have a name."""
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports", [])
            if "name" in port
        }


def pods_of(documents: Sequence[Document]) -> Iterator[Pods]:
    """The pods of every workload."""
    for document in of_kind(documents, *WORKLOADS):
        template = document["spec"]["template"]
        yield Pods(
            title(document),
            namespace_of(document),
            template["metadata"]["labels"],
            template["spec"],
        )


def gateway_of(documents: Sequence[Document]) -> Pods:
    """The pods of the gateway itself."""
    return next(
        pods
        for pods in pods_of(documents)
        if pods.labels["app.kubernetes.io/component"] == "gateway"
    )


def configuration(documents: Sequence[Document]) -> dict[str, str]:
    """The environment of the gateway's container: what its ConfigMap says, then its own variables.

    What comes from a Secret or from the pod's fields is ``<where from>``.
    """
    pods = gateway_of(documents)
    (container,) = pods.spec["containers"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        reference = source["configMapRef"]["name"]
        found |= find(documents, "ConfigMap", reference, pods.namespace)["data"]
    for variable in container.get("env", []):
        value = variable.get("value")
        source = variable.get("valueFrom") or {}
        found[variable["name"]] = f"<{next(iter(source), '')}>" if value is None else value
    return found


def matches(selector: Document, labels: Labels) -> bool:
    """Whether a label selector selects these labels; an empty one selects everything."""
    wanted = selector.get("matchLabels", {})
    if selector.keys() - {"matchLabels"}:
        raise NotImplementedError(f"only matchLabels is understood: {selector}")
    return all(labels.get(key) == value for key, value in wanted.items())
