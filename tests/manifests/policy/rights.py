"""What the gateway may do in the cluster: the calls that its code makes, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Final

from gateway.spawner.kube.client import KubeApi
from tests.manifests.documents import (
    Document,
    gateway_of,
    has,
    namespace_of,
    of_kind,
    pods_of,
    title,
)

#: The verb that each call of the client needs, on pods of one namespace.
VERBS: Final = {
    "create": "create",
    "read": "get",
    "list": "list",
    "watch": "watch",
    "patch": "patch",
    "delete": "delete",
}
#: What a Role may hold: (group, resource, verb).
RIGHTS: Final = frozenset(("", "pods", verb) for verb in VERBS.values())
CLUSTER_WIDE: Final = ("ClusterRole", "ClusterRoleBinding")


def calls_of_the_client() -> set[str]:
    """The calls of the API server that the gateway's client offers."""
    return {
        name
        for name, member in vars(KubeApi).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


def problems(documents: Sequence[Document]) -> Iterator[str]:
    """Rights that are missing or too many, and tokens where none is used."""
    for document in of_kind(documents, *CLUSTER_WIDE):
        yield f"{title(document)}: rights in the whole cluster"
    roles = of_kind(documents, "Role")
    granted = {right for role in roles for right in _rights(role)}
    wanted = RIGHTS if has(documents, "Namespace", "previews") else frozenset()
    if granted != wanted:
        yield f"Role: {_names(granted - wanted)} too many, {_names(wanted - granted)} missing"
    for role in roles:
        if namespace_of(role) != "previews":
            yield f"{title(role)}: rights where the previews are not"
    for binding in of_kind(documents, "RoleBinding"):
        yield from _problems_of_binding(documents, binding)
    yield from _problems_of_tokens(documents, used=bool(wanted))


def _rights(role: Document) -> Iterator[tuple[str, str, str]]:
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield group, resource, verb


def _names(rights: frozenset[tuple[str, str, str]] | set[tuple[str, str, str]]) -> list[str]:
    return sorted(f"{verb} {resource}" for _group, resource, verb in rights)


def _problems_of_binding(documents: Sequence[Document], binding: Document) -> Iterator[str]:
    role = binding["roleRef"]
    if not has(documents, role["kind"], role["name"], namespace_of(binding)):
        yield f"{title(binding)}: there is no {role['kind']} {role['name']} beside it"
    gateway = gateway_of(documents)
    account = {
        "kind": "ServiceAccount",
        "name": gateway.spec["serviceAccountName"],
        "namespace": gateway.namespace,
    }
    if binding["subjects"] != [account]:
        yield f"{title(binding)}: is not for the gateway's account alone"


def _problems_of_tokens(documents: Sequence[Document], *, used: bool) -> Iterator[str]:
    for account in of_kind(documents, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{title(account)}: gives its token to every pod that does not decline it"
    gateway = gateway_of(documents)
    for pods in pods_of(documents):
        name = pods.spec.get("serviceAccountName", "default")
        if name != "default" and not has(documents, "ServiceAccount", name, pods.namespace):
            yield f"{pods.title}: there is no service account {name}"
        wanted = used and pods.title == gateway.title
        if pods.spec.get("automountServiceAccountToken") is not wanted:
            yield f"{pods.title}: {'needs' if wanted else 'has no use for'} an account's token"
