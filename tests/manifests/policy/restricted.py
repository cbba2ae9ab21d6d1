"""The restricted Pod Security Standard, and what we ask for beyond it.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gateway.errors import SettingsError
from tests.manifests.documents import Document, has, of_kind, pods_of, title
from tests.manifests.policy.configured import preview_pod

VOLUMES: Final = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
SYSCTLS: Final = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
SECCOMP: Final = frozenset({"RuntimeDefault", "Localhost"})
MODES: Final = ("enforce", "audit", "warn")


def problems(documents: Sequence[Document]) -> Iterator[str]:
    """What the restricted standard, enforced on every namespace, would refuse; and ours."""
    for namespace in of_kind(documents, "Namespace"):
        labels = namespace["metadata"].get("labels", {})
        for mode in MODES:
            if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted":
                yield f"{title(namespace)}: does not {mode} the restricted standard"
    for pods in pods_of(documents):
        for problem in of_pod(pods.spec):
            yield f"{pods.title}: {problem}"
    if has(documents, "Namespace", "previews"):
        try:
            spec = preview_pod(documents)["spec"]
        except SettingsError:  # said by ``configured``
            return
        for problem in of_pod(spec):
            yield f"pods of previews: {problem}"


def of_pod(spec: Document) -> Iterator[str]:
    """The same for the ``spec`` of one pod."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is set"
    context = spec.get("securityContext", {})
    for sysctl in context.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']} is not safe"
    for volume in spec.get("volumes", []):
        (kind,) = volume.keys() - {"name"}
        if kind not in VOLUMES:
            yield f"volume {volume['name']} is a {kind}"
    if "automountServiceAccountToken" not in spec:
        yield "does not say whether it wants a service account's token"
    # Variables of services look like settings: GATEWAY_PORT=tcp://... for a Service "gateway".
    if spec.get("enableServiceLinks") is not False:
        yield "has service links"
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for problem in of_container(container, context):
            yield f"{container['name']}: {problem}"


def of_container(container: Document, pod: Document) -> Iterator[str]:
    """The same for one container, in a pod with this security context."""
    own = container.get("securityContext", {})
    for field in ("privileged", "hostProcess"):
        if own.get(field):
            yield f"{field} is set"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "may escalate privileges"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "does not drop all capabilities"
    if extra := set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"adds capabilities {sorted(extra)}"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "may run as root"
    # Given as a number, so that Kubernetes can see it without the image.
    if not own.get("runAsUser", pod.get("runAsUser")):
        yield "has no numeric user, or root"
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in SECCOMP:
        yield "has no seccomp profile"
    if own.get("procMount", "Default") != "Default":
        yield "unmasks /proc"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "takes a port of the node"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "may write to its image"
