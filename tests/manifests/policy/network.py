"""Who reaches whom, by the network policies: evaluated as Kubernetes defines them.

A connection needs the leave of its source's egress policies and of its target's ingress policies.
A pod that no policy of a direction selects is free in it. Pods have addresses here, and ``ipBlock``
matches them too: some implementations do so, and what is denied must be denied by all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.spawner.kube.manifest import AGENT_PORT, COMPONENT_LABEL, DEV_PORT, NAME_LABEL
from tests.manifests.documents import (
    Document,
    Labels,
    Pods,
    gateway_of,
    has,
    matches,
    name_of,
    namespace_of,
    of_kind,
    pods_of,
    title,
)


@dataclass(frozen=True)
class Place:
    """One end of a connection: a pod, or (without a namespace) an address somewhere."""

    name: str
    address: str
    namespace: str = ""
    labels: Labels = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """A connection, and whether there should be one."""

    source: Place
    target: Place
    port: int
    wanted: bool
    protocol: str = "TCP"
    #: Ask the target's policies alone: whoever comes may have been let out by mistake.
    let_out: bool = False


#: Pods that are not in these manifests, but that policies may name.
DNS: Final = Place("cluster DNS", "10.96.0.10", "kube-system", {"k8s-app": "kube-dns"})
PROMETHEUS: Final = Place(
    "Prometheus", "10.244.9.1", "monitoring", {"app.kubernetes.io/name": "prometheus"}
)
PREVIEW: Final = Place(
    "preview",
    "10.244.9.2",
    "previews",
    {NAME_LABEL: "preview-gateway", COMPONENT_LABEL: "preview"},
)
OTHER_PREVIEW: Final = Place("other preview", "10.244.9.3", PREVIEW.namespace, PREVIEW.labels)
STRANGER: Final = Place("pod of somebody", "10.244.9.4", "default", {"app": "something"})
#: In the namespace of the gateway or of the previews, but none of these.
SQUATTER: Final = Place("unknown pod", "10.244.9.5", "preview-gateway", {})

INTERNET: Final = (Place("Internet", "104.16.1.1"), Place("Internet (IPv6)", "2606:4700::6810:101"))
NODE_DNS: Final = Place("DNS of the node", "169.254.20.10")
API_SERVERS: Final = (Place("API server", "10.96.0.1"), Place("API server (v6)", "fd00:10:96::1"))
#: Where a preview must not go, whatever the port.
FORBIDDEN: Final = tuple(
    Place(name, address)
    for name, address in (
        ("metadata", "169.254.169.254"),
        ("metadata of AWS, IPv6", "fd00:ec2::254"),
        ("metadata of Alibaba", "100.100.100.200"),
        ("metadata of Oracle", "192.0.0.192"),
        ("host agent of Azure", "168.63.129.16"),
        ("metadata by NAT64", "64:ff9b::a9fe:a9fe"),
        ("metadata mapped into IPv6", "::ffff:169.254.169.254"),
        ("10/8", "10.1.2.3"),
        ("10/8 by NAT64", "64:ff9b::a01:203"),
        ("172.16/12", "172.31.255.1"),
        ("192.168/16", "192.168.1.1"),
        ("carrier-grade NAT", "100.64.0.1"),
        ("link-local", "169.254.1.1"),
        ("loopback", "127.0.0.1"),
        ("loopback, IPv6", "::1"),
        ("unique local", "fd12:3456::1"),
        ("link-local, IPv6", "fe80::1"),
        ("multicast", "224.0.0.251"),
        ("multicast, IPv6", "ff02::1"),
    )
)


def problems(documents: Sequence[Document]) -> Iterator[str]:
    """Connections that are open and should not be, or the other way; peers that select nothing."""
    yield from _peers_that_select_nothing(documents)
    for namespace in of_kind(documents, "Namespace"):
        if not _denies_by_default(documents, name_of(namespace)):
            yield f"{title(namespace)}: has no policy that denies everything by default"
    for way in wanted_ways(documents):
        if is_open(documents, way) != way.wanted:
            yield (
                f"{way.source.name} -> {way.target.name} port {way.port}: "
                f"{'closed' if way.wanted else 'open'}"
            )


def wanted_ways(documents: Sequence[Document]) -> Iterator[Way]:
    """All that should be open, and what must not be."""
    gateway = place_of(gateway_of(documents), "10.244.1.1")
    other_gateway = place_of(gateway_of(documents), "10.244.1.2")
    pods = has(documents, "Namespace", PREVIEW.namespace)
    http, admin = gateway.ports["http"], gateway.ports["admin"]
    for source in (STRANGER, Place("ingress controller on a node", "10.0.0.7"), other_gateway):
        yield Way(source, gateway, http, wanted=True)
        yield Way(source, gateway, admin, wanted=source is other_gateway and not pods)
    yield Way(
        PROMETHEUS, gateway, admin, wanted=has(documents, "ServiceMonitor", "preview-gateway")
    )
    yield Way(gateway, other_gateway, 40000, wanted=not pods)
    yield Way(STRANGER, gateway, 40000, wanted=False)
    yield Way(SQUATTER, gateway, 40000, wanted=False)
    for server in (DNS, NODE_DNS):
        yield Way(gateway, server, 53, wanted=True, protocol="UDP")
    for api_server in API_SERVERS:
        yield Way(gateway, api_server, 443, wanted=pods)
        yield Way(gateway, api_server, 6443, wanted=pods)
    for somewhere in INTERNET:
        yield Way(gateway, somewhere, 443, wanted=True)  # npm, or the API server: by port
        yield Way(gateway, somewhere, 80, wanted=False)
    yield Way(gateway, Place("metadata", "169.254.169.254"), 80, wanted=False)
    yield from _ways_of_redis(documents, gateway)
    if pods:
        yield from _ways_of_previews(gateway)


def _ways_of_redis(documents: Sequence[Document], gateway: Place) -> Iterator[Way]:
    """Redis in the cluster hears the gateway alone; else the gateway may leave for its port."""
    servers = [pods for pods in pods_of(documents) if "redis" in pods.ports]
    for server in servers:
        redis = place_of(server, "10.244.2.1")
        yield Way(gateway, redis, 6379, wanted=True)
        for source in (STRANGER, PREVIEW, SQUATTER, PROMETHEUS):
            yield Way(source, redis, 6379, wanted=False, let_out=True)
        for somewhere in (*INTERNET, *FORBIDDEN, gateway):
            yield Way(redis, somewhere, 443, wanted=False)
    yield Way(gateway, Place("managed Redis", "10.20.30.40"), 6379, wanted=not servers)


def _ways_of_previews(gateway: Place) -> Iterator[Way]:
    for port in (DEV_PORT, AGENT_PORT):
        yield Way(gateway, PREVIEW, port, wanted=True)
        for source in (STRANGER, OTHER_PREVIEW, SQUATTER, PROMETHEUS):
            yield Way(source, PREVIEW, port, wanted=False, let_out=True)
    yield Way(gateway, PREVIEW, 22, wanted=False)
    yield Way(PREVIEW, gateway, gateway.ports["http"], wanted=False)
    yield Way(PREVIEW, gateway, gateway.ports["admin"], wanted=False)
    yield Way(PREVIEW, Place("Redis somewhere", "10.20.30.40"), 6379, wanted=False)
    for server in (DNS, NODE_DNS):
        yield Way(PREVIEW, server, 53, wanted=True, protocol="UDP")
        yield Way(PREVIEW, server, 53, wanted=True)
        yield Way(PREVIEW, server, 9153, wanted=False)
    for somewhere in INTERNET:
        yield Way(PREVIEW, somewhere, 443, wanted=True)
        yield Way(PREVIEW, somewhere, 53, wanted=True)
    for forbidden in (*FORBIDDEN, *API_SERVERS):
        for port in (53, 80, 443, 6443):
            yield Way(PREVIEW, forbidden, port, wanted=False)


def place_of(pods: Pods, address: str) -> Place:
    return Place(pods.title, address, pods.namespace, pods.labels, pods.ports)


def is_open(documents: Sequence[Document], way: Way) -> bool:
    """Whether the policies let a connection through."""
    leaves = way.let_out or _allowed(
        documents, way, of=way.source, peer=way.target, direction="egress"
    )
    return leaves and _allowed(documents, way, of=way.target, peer=way.source, direction="ingress")


def _allowed(
    documents: Sequence[Document], way: Way, *, of: Place, peer: Place, direction: str
) -> bool:
    policies = [
        policy["spec"]
        for policy in of_kind(documents, "NetworkPolicy")
        if namespace_of(policy) == of.namespace
        and direction.capitalize() in policy["spec"]["policyTypes"]
        and matches(policy["spec"]["podSelector"], of.labels)
    ]
    if not of.namespace or not policies:
        return True
    peers = "to" if direction == "egress" else "from"
    return any(
        _is_among(peer, rule.get(peers), namespace=of.namespace)
        and _has_port(rule.get("ports"), way)
        for spec in policies
        for rule in spec.get(direction, [])
    )


def _is_among(place: Place, peers: list[Document] | None, *, namespace: str) -> bool:
    """Whether one of these peers is it; no list at all is everybody."""
    return not peers or any(_is(place, peer, namespace=namespace) for peer in peers)


def _is(place: Place, peer: Document, *, namespace: str) -> bool:
    if block := peer.get("ipBlock"):
        address = ipaddress.ip_address(place.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(network) for network in block.get("except", [])
        )
    if not place.namespace:
        return False
    spaces = peer.get("namespaceSelector")
    if spaces is None:
        if place.namespace != namespace:
            return False
    elif not matches(spaces, {"kubernetes.io/metadata.name": place.namespace}):
        return False
    return matches(peer.get("podSelector", {}), place.labels)


def _has_port(ports: list[Document] | None, way: Way) -> bool:
    return not ports or any(_is_port(port, way) for port in ports)


def _is_port(port: Document, way: Way) -> bool:
    if port.get("protocol", "TCP") != way.protocol:
        return False
    wanted = port.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return way.target.ports.get(wanted) == way.port
    last = port.get("endPort") or wanted
    return int(wanted) <= way.port <= int(last)


def _denies_by_default(documents: Sequence[Document], namespace: str) -> bool:
    return any(
        namespace_of(policy) == namespace
        and policy["spec"] == {"podSelector": {}, "policyTypes": policy["spec"]["policyTypes"]}
        and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        for policy in of_kind(documents, "NetworkPolicy")
    )


def _peers_that_select_nothing(documents: Sequence[Document]) -> Iterator[str]:
    """Policies that are about nobody, and peers that are nobody: a typing error, mostly."""
    known = [place_of(pods, "10.244.1.1") for pods in pods_of(documents)]
    known += [DNS, PROMETHEUS]
    if has(documents, "Namespace", PREVIEW.namespace):
        known.append(PREVIEW)
    for policy in of_kind(documents, "NetworkPolicy"):
        spec, namespace = policy["spec"], namespace_of(policy)
        about = {"namespaceSelector": None, "podSelector": spec["podSelector"]}
        rules = [*spec.get("ingress", []), *spec.get("egress", [])]
        for peer in [about, *(peer for rule in rules for peer in _peers(rule))]:
            here = [place for place in known if _is(place, peer, namespace=namespace)]
            if not here and "ipBlock" not in peer:
                yield f"{title(policy)}: {peer} selects nothing"
        for rule in spec.get("ingress", []):
            for port in rule.get("ports", []):
                yield from _ports_that_nobody_has(policy, port, known)
        # The name would be one of the target's pods: not every network looks it up.
        ports = [port["port"] for rule in spec.get("egress", []) for port in rule.get("ports", [])]
        if not all(isinstance(port, int) for port in ports):
            yield f"{title(policy)}: egress by the name of a port"


def _peers(rule: Document) -> list[Document]:
    return [*(rule.get("from") or []), *(rule.get("to") or [])]


def _ports_that_nobody_has(
    policy: Document, port: Document, known: Sequence[Place]
) -> Iterator[str]:
    name = port.get("port")
    selected = [
        place
        for place in known
        if place.namespace == namespace_of(policy)
        and matches(policy["spec"]["podSelector"], place.labels)
    ]
    if isinstance(name, str) and not any(name in place.ports for place in selected):
        yield f"{title(policy)}: port {name} is of none of its pods"
