"""Changes for the worse, and what a policy has to say to each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tests.manifests.documents import Document, find, gateway_of

#: Everything at once, so that each change has something to be made to.
WHOLE: Final = "base+gateway-api+hpa+service-monitor+redis-embedded+kubernetes-spawner+warm-pool"
INGRESS: Final = "base+ingress"
KIND: Final = "overlays/kind"
PROD: Final = "overlays/prod"

Change = Callable[[list[Document]], Any]


def gateway(documents: list[Document]) -> Document:
    """The pod of the gateway."""
    return gateway_of(documents).spec


def container(documents: list[Document]) -> Document:
    (found,) = gateway(documents)["containers"]
    return dict_of(found)


def dict_of(value: Any) -> Document:
    assert isinstance(value, dict)
    return value


def policy(documents: list[Document], name: str, namespace: str = "preview-gateway") -> Document:
    return dict_of(find(documents, "NetworkPolicy", name, namespace)["spec"])


def settings(documents: list[Document]) -> Document:
    name = container(documents)["envFrom"][0]["configMapRef"]["name"]
    return dict_of(find(documents, "ConfigMap", name)["data"])


def spec(documents: list[Document], kind: str, name: str = "preview-gateway") -> Document:
    return dict_of(find(documents, kind, name)["spec"])


def without(documents: list[Document], kind: str, name: str) -> None:
    documents.remove(find(documents, kind, name))


def except_of(documents: list[Document], block: int) -> list[str]:
    """The networks that previews do not reach, of IPv4 or IPv6."""
    rule = policy(documents, "preview", "previews")["egress"][1]
    found: list[str] = rule["to"][block]["ipBlock"]["except"]
    return found


def api_server_policy(documents: list[Document]) -> Document:
    return find(documents, "NetworkPolicy", "gateway-to-api-server")


def secret_name(documents: list[Document]) -> str:
    (volume,) = [volume for volume in gateway(documents)["volumes"] if "secret" in volume]
    return str(volume["secret"]["secretName"])


#: What is said, the kustomization, and what is done to it.
CHANGES: Final[list[tuple[str, str, Change]]] = [
    # -- restricted
    ("enforce", KIND, lambda all_: find(all_, "Namespace", "previews")["metadata"].pop("labels")),
    ("hostNetwork", KIND, lambda all_: gateway(all_).update(hostNetwork=True)),
    (
        "volume tmp is a hostPath",
        KIND,
        lambda all_: gateway(all_).update(volumes=[{"name": "tmp", "hostPath": {"path": "/"}}]),
    ),
    ("service links", KIND, lambda all_: gateway(all_).pop("enableServiceLinks")),
    ("privileged", KIND, lambda all_: container(all_)["securityContext"].update(privileged=True)),
    (
        "escalate",
        KIND,
        lambda all_: container(all_)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    ("capabilities", KIND, lambda all_: container(all_)["securityContext"].pop("capabilities")),
    ("adds", KIND, lambda all_: container(all_)["securityContext"]["capabilities"].update(add="X")),
    ("as root", KIND, lambda all_: gateway(all_)["securityContext"].pop("runAsNonRoot")),
    ("numeric user", KIND, lambda all_: gateway(all_)["securityContext"].update(runAsUser=0)),
    ("seccomp", KIND, lambda all_: gateway(all_)["securityContext"].pop("seccompProfile")),
    (
        "write to its image",
        KIND,
        lambda all_: container(all_)["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    ("port of the node", KIND, lambda all_: container(all_)["ports"][0].update(hostPort=80)),
    # -- network
    ("by default", KIND, lambda all_: policy(all_, "default-deny").update(policyTypes=["Ingress"])),
    (
        "unknown pod -> preview",
        KIND,
        lambda all_: policy(all_, "preview", "previews")["ingress"][0]["from"][0].pop(
            "podSelector"
        ),
    ),
    (
        "other preview -> preview port 5173: open",
        KIND,
        lambda all_: policy(all_, "preview", "previews")["ingress"].append({}),
    ),
    (
        "preview port 8700: closed",
        KIND,
        lambda all_: policy(all_, "preview", "previews")["ingress"][0]["ports"].pop(),
    ),
    (
        "preview -> metadata port 80: open",
        KIND,
        lambda all_: except_of(all_, 0).remove("169.254.0.0/16"),
    ),
    (
        "preview -> metadata by NAT64 port 443: open",
        KIND,
        lambda all_: except_of(all_, 1).remove("64:ff9b::a9fe:0/112"),
    ),
    ("preview -> API server (v6)", KIND, lambda all_: except_of(all_, 1).remove("fc00::/7")),
    ("preview -> Redis somewhere", KIND, lambda all_: except_of(all_, 0).remove("10.0.0.0/8")),
    (
        "preview -> cluster DNS port 53: closed",
        KIND,
        lambda all_: policy(all_, "preview", "previews")["egress"].pop(0),
    ),
    ("redis port 6379: open", KIND, lambda all_: policy(all_, "redis").update(ingress=[{}])),
    (
        "selects nothing",
        KIND,
        lambda all_: policy(all_, "redis")["ingress"][0]["from"][0]["podSelector"][
            "matchLabels"
        ].update({"app.kubernetes.io/component": "gatway"}),
    ),
    (
        "selects nothing",
        KIND,
        lambda all_: policy(all_, "redis").update(podSelector={"matchLabels": {"app": "redis"}}),
    ),
    (
        "is of none of its pods",
        KIND,
        lambda all_: policy(all_, "gateway")["ingress"][0]["ports"][0].update(port="htpp"),
    ),
    ("port 9090: open", KIND, lambda all_: policy(all_, "gateway").update(ingress=[{}])),
    ("API server port 6443", KIND, lambda all_: all_.remove(api_server_policy(all_))),
    ("Prometheus -> ", WHOLE, lambda all_: without(all_, "NetworkPolicy", "metrics")),
    # -- rights
    (
        "['watch pods'] missing",
        KIND,
        lambda all_: find(all_, "Role", "preview-gateway")["rules"][0]["verbs"].remove("watch"),
    ),
    (
        "get secrets",
        KIND,
        lambda all_: find(all_, "Role", "preview-gateway")["rules"].append(
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
        ),
    ),
    (
        "whole cluster",
        KIND,
        lambda all_: find(all_, "RoleBinding", "preview-gateway").update(kind="ClusterRoleBinding"),
    ),
    (
        "account alone",
        KIND,
        lambda all_: find(all_, "RoleBinding", "preview-gateway")["subjects"].append(
            {"kind": "Group", "name": "system:authenticated"}
        ),
    ),
    (
        "no Role",
        KIND,
        lambda all_: find(all_, "RoleBinding", "preview-gateway")["roleRef"].update(name="admin"),
    ),
    ("no use for", "base", lambda all_: gateway(all_).update(automountServiceAccountToken=True)),
    (
        "needs an account",
        KIND,
        lambda all_: gateway(all_).update(automountServiceAccountToken=False),
    ),
    ("no service account", KIND, lambda all_: without(all_, "ServiceAccount", "preview-gateway")),
    # -- resources and images
    ("requests no cpu", KIND, lambda all_: container(all_)["resources"]["requests"].pop("cpu")),
    (
        "no limit of eph",
        KIND,
        lambda all_: container(all_)["resources"]["limits"].pop("ephemeral-storage"),
    ),
    (
        "more memory than",
        KIND,
        lambda all_: container(all_)["resources"]["requests"].update(memory="2Gi"),
    ),
    (
        "tmp has no limit",
        KIND,
        lambda all_: next(
            volume for volume in gateway(all_)["volumes"] if volume["name"] == "tmp"
        ).update(emptyDir={}),
    ),
    (
        "volumes may hold",
        "base",
        lambda all_: container(all_)["resources"]["limits"].update({"ephemeral-storage": "3Gi"}),
    ),
    ("tomorrow", KIND, lambda all_: container(all_).update(image="preview-gateway:latest")),
    ("POD_IMAGE", KIND, lambda all_: settings(all_).update(GATEWAY_POD_IMAGE="node")),
    (
        "another place",
        PROD,
        lambda all_: settings(all_).update(GATEWAY_POD_IMAGE="preview-gateway:preview"),
    ),
    (
        "own image",
        PROD,
        lambda all_: settings(all_).update(GATEWAY_POD_AGENT_IMAGE="preview-gateway:gateway"),
    ),
    ("too little", KIND, lambda all_: settings(all_).update(GATEWAY_POD_MEMORY="2Gi")),
    ("than the greatest", KIND, lambda all_: settings(all_).update(GATEWAY_POD_CPU="3")),
    # -- leaving
    ("s to leave", KIND, lambda all_: settings(all_).update(GATEWAY_DRAIN_SECONDS="60")),
    ("Service has forgotten", KIND, lambda all_: container(all_).pop("lifecycle")),
    (
        "Service has forgotten",
        KIND,
        lambda all_: container(all_).update(lifecycle={"preStop": {"sleep": {"seconds": 5}}}),
    ),
    (
        "egress by the name of a port",
        KIND,
        lambda all_: policy(all_, "gateway")["egress"][0]["ports"][0].update(port="http"),
    ),
    (
        "before others are ready",
        KIND,
        lambda all_: spec(all_, "Deployment")["strategy"]["rollingUpdate"].update(maxUnavailable=1),
    ),
    (
        "liveness probe",
        KIND,
        lambda all_: container(all_)["livenessProbe"]["httpGet"].update(path="/readyz"),
    ),
    ("not spread", KIND, lambda all_: gateway(all_)["topologySpreadConstraints"].pop()),
    (
        "spread over",
        KIND,
        lambda all_: gateway(all_)["topologySpreadConstraints"][0]["labelSelector"][
            "matchLabels"
        ].update(a="b"),
    ),
    (
        "disruption budget",
        KIND,
        lambda all_: without(all_, "PodDisruptionBudget", "preview-gateway"),
    ),
    ("2 replicas", KIND, lambda all_: spec(all_, "Deployment").update(replicas=2)),
    ("sets back", WHOLE, lambda all_: spec(all_, "Deployment").update(replicas=3)),
    (
        "lull",
        WHOLE,
        lambda all_: spec(all_, "HorizontalPodAutoscaler")["behavior"]["scaleDown"].update(
            stabilizationWindowSeconds=0
        ),
    ),
    ("fewer than", WHOLE, lambda all_: spec(all_, "HorizontalPodAutoscaler").update(minReplicas=1)),
    (
        "there is no Deployment",
        WHOLE,
        lambda all_: spec(all_, "HorizontalPodAutoscaler")["scaleTargetRef"].update(name="gateway"),
    ),
    # -- references
    (
        "whatever namespace",
        KIND,
        lambda all_: find(all_, "Role", "preview-gateway")["metadata"].pop("namespace"),
    ),
    ("not made", KIND, lambda all_: without(all_, "Namespace", "previews")),
    (
        "its own pods",
        KIND,
        lambda all_: spec(all_, "Deployment")["selector"]["matchLabels"].update(a="b"),
    ),
    (
        "session affinity",
        KIND,
        lambda all_: spec(all_, "Service").update(sessionAffinity="ClientIP"),
    ),
    ("of 0 workloads", KIND, lambda all_: spec(all_, "Service")["selector"].update(a="b")),
    (
        "of 2 workloads",
        KIND,
        lambda all_: spec(all_, "Service")["selector"].pop("app.kubernetes.io/component"),
    ),
    ("no port web", KIND, lambda all_: spec(all_, "Service")["ports"][0].update(targetPort="web")),
    (
        "selects 0 services",
        WHOLE,
        lambda all_: spec(all_, "ServiceMonitor")["selector"]["matchLabels"].update(a="b"),
    ),
    (
        "no port http",
        WHOLE,
        lambda all_: spec(all_, "ServiceMonitor")["endpoints"][0].update(port="http"),
    ),
    (
        "no service redis",
        KIND,
        lambda all_: spec(all_, "StatefulSet", "preview-gateway-redis").update(serviceName="redis"),
    ),
    (
        "no ConfigMap",
        KIND,
        lambda all_: without(
            all_,
            "ConfigMap",
            spec(all_, "StatefulSet", "preview-gateway-redis")["template"]["spec"]["volumes"][0][
                "configMap"
            ]["name"],
        ),
    ),
    (
        "has no redis-url",
        KIND,
        lambda all_: container(all_)["env"].append(
            {
                "name": "X",
                "valueFrom": {"secretKeyRef": {"name": secret_name(all_), "key": "redis-url"}},
            }
        ),
    ),
    (
        "nobody makes",
        "base",
        lambda all_: gateway(all_)["volumes"][-1]["secret"].update(secretName="tokens"),
    ),
    (
        "no volume cache",
        KIND,
        lambda all_: container(all_)["volumeMounts"].append({"name": "cache", "mountPath": "/c"}),
    ),
    (
        "no listener",
        WHOLE,
        lambda all_: spec(all_, "HTTPRoute")["parentRefs"][0].update(sectionName="https"),
    ),
    (
        "another host name",
        WHOLE,
        lambda all_: spec(all_, "Gateway")["listeners"][1].update(hostname="a.example"),
    ),
    ("cuts sockets", WHOLE, lambda all_: spec(all_, "HTTPRoute")["rules"][0].pop("timeouts")),
    (
        "no service gateway",
        WHOLE,
        lambda all_: spec(all_, "HTTPRoute")["rules"][0]["backendRefs"][0].update(name="gateway"),
    ),
    (
        "no port 8080",
        WHOLE,
        lambda all_: spec(all_, "HTTPRoute")["rules"][0]["backendRefs"][0].update(port=8080),
    ),
    ("without TLS", INGRESS, lambda all_: spec(all_, "Ingress")["tls"].pop()),
    ("no wildcard", INGRESS, lambda all_: spec(all_, "Ingress")["rules"].pop()),
    ("other hosts", PROD, lambda all_: settings(all_).update(GATEWAY_PREVIEW_DOMAIN="p.example")),
    # -- configured
    ("GATEWAY_PROT is no setting", KIND, lambda all_: settings(all_).update(GATEWAY_PROT="1")),
    ("GATEWAY_PORT: ", KIND, lambda all_: settings(all_).update(GATEWAY_PORT="http")),
    ("not those of the settings", KIND, lambda all_: settings(all_).update(GATEWAY_PORT="8081")),
    ("image is read-only", KIND, lambda all_: settings(all_).update(GATEWAY_DATA_DIR="/var/lib/x")),
    (
        "where they are looked",
        KIND,
        lambda all_: settings(all_).update(GATEWAY_API_TOKENS_FILE="/a/b"),
    ),
    ("comes after it", KIND, lambda all_: container(all_)["env"].reverse()),
    (
        "does not say it is none",
        KIND,
        lambda all_: find(all_, "Secret", secret_name(all_))["data"].update(
            {"api-tokens": "aHVudGVyMg=="}
        ),
    ),
    (
        "plain sight",
        KIND,
        lambda all_: container(all_)["env"].append(
            {"name": "GATEWAY_SECRET_KEY", "value": "0" * 32}
        ),
    ),
    (
        "plain sight",
        KIND,
        lambda all_: container(all_)["env"].append(
            {"name": "GATEWAY_REDIS_URL", "value": "redis://a:b@c"}
        ),
    ),
]
