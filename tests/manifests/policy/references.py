"""Everything that is named exists: selectors, ports, ConfigMaps, Secrets, and the ways in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from tests.manifests.documents import (
    WORKLOADS,
    Document,
    configuration,
    find,
    has,
    matches,
    name_of,
    namespace_of,
    of_kind,
    pods_of,
    title,
)

#: What a deployer makes by hand (docs/deploy.md), and the keys that it may have.
BY_HAND: Final = {
    "preview-gateway": frozenset({"api-tokens", "redis-url", "redis-password"}),
    "preview-gateway-tls": frozenset[str](),
    "preview-gateway-previews-tls": frozenset[str](),
}


def problems(documents: Sequence[Document]) -> Iterator[str]:
    """Names that lead nowhere."""
    for document in documents:
        if not namespace_of(document) and document["kind"] != "Namespace":
            yield f"{title(document)}: is in whatever namespace kubectl is"
        space = namespace_of(document)
        if space and not has(documents, "Namespace", space):
            yield f"{title(document)}: its namespace is not made"
    yield from _of_selectors(documents)
    yield from _of_pods(documents)
    yield from _of_routes(documents)
    yield from _of_ingresses(documents)


def _of_selectors(documents: Sequence[Document]) -> Iterator[str]:
    for workload in of_kind(documents, *WORKLOADS):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        if not matches(workload["spec"]["selector"], labels):
            yield f"{title(workload)}: does not select its own pods"
    for service in of_kind(documents, "Service"):
        if service["spec"].get("sessionAffinity", "None") != "None":
            yield f"{title(service)}: has session affinity"
        selector = {"matchLabels": service["spec"]["selector"]}
        selected = [
            pods
            for pods in pods_of(documents)
            if pods.namespace == namespace_of(service) and matches(selector, pods.labels)
        ]
        if len(selected) != 1:
            yield f"{title(service)}: selects the pods of {len(selected)} workloads"
        for port in service["spec"]["ports"]:
            if any(port["targetPort"] not in pods.ports for pods in selected):
                yield f"{title(service)}: its pods have no port {port['targetPort']}"
    for monitor in of_kind(documents, "ServiceMonitor"):
        found = [
            service
            for service in of_kind(documents, "Service")
            if matches(monitor["spec"]["selector"], service["metadata"].get("labels", {}))
        ]
        if len(found) != 1:
            yield f"{title(monitor)}: selects {len(found)} services"
        for endpoint in monitor["spec"]["endpoints"]:
            for service in found:
                if endpoint["port"] not in _ports(service):
                    yield f"{title(monitor)}: {title(service)} has no port {endpoint['port']}"
    for set_ in of_kind(documents, "StatefulSet"):
        if not has(documents, "Service", set_["spec"]["serviceName"], namespace_of(set_)):
            yield f"{title(set_)}: there is no service {set_['spec']['serviceName']}"


def _ports(service: Document) -> set[object]:
    ports = service["spec"]["ports"]
    return {port["name"] for port in ports} | {port["port"] for port in ports}


def _of_pods(documents: Sequence[Document]) -> Iterator[str]:
    """ConfigMaps and Secrets that pods want."""
    for pods in pods_of(documents):
        volumes = {volume["name"]: volume for volume in pods.spec.get("volumes", [])}
        for volume in volumes.values():
            if "configMap" in volume:
                name = volume["configMap"]["name"]
                if not has(documents, "ConfigMap", name, pods.namespace):
                    yield f"{pods.title}: there is no ConfigMap {name}"
            if "secret" in volume:
                secret = volume["secret"]
                for item in secret["items"]:
                    yield from _of_secret(documents, pods.title, secret["secretName"], item["key"])
        known = set(volumes) | _claims(documents, pods.title)
        for container in pods.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in known:
                    yield f"{pods.title}: there is no volume {mount['name']}"
            for variable in container.get("env", []):
                if reference := (variable.get("valueFrom") or {}).get("secretKeyRef"):
                    name, key = reference["name"], reference["key"]
                    yield from _of_secret(documents, pods.title, name, key)


def _claims(documents: Sequence[Document], workload: str) -> set[str]:
    (found,) = [each for each in of_kind(documents, *WORKLOADS) if title(each) == workload]
    return {name_of(claim) for claim in found["spec"].get("volumeClaimTemplates", [])}


def _of_secret(documents: Sequence[Document], who: str, name: str, key: str) -> Iterator[str]:
    if has(documents, "Secret", name):
        secret = find(documents, "Secret", name)
        if key not in {**secret.get("data", {}), **secret.get("stringData", {})}:
            yield f"{who}: the Secret {name} has no {key}"
    elif key not in BY_HAND.get(name, ()):
        yield f"{who}: nobody makes a Secret {name} with {key}"


def _of_routes(documents: Sequence[Document]) -> Iterator[str]:
    for route in of_kind(documents, "HTTPRoute"):
        for parent in route["spec"]["parentRefs"]:
            gateway = find(documents, "Gateway", parent["name"], namespace_of(route))
            listeners = {listener["name"]: listener for listener in gateway["spec"]["listeners"]}
            if parent["sectionName"] not in listeners:
                yield f"{title(route)}: there is no listener {parent['sectionName']}"
            elif listeners[parent["sectionName"]].get("hostname", "") not in {
                "",
                *route["spec"]["hostnames"],
            }:
                yield f"{title(route)}: listener {parent['sectionName']} has another host name"
        for rule in route["spec"]["rules"]:
            for backend in rule.get("backendRefs", []):
                yield from _of_backend(documents, route, backend["name"], backend["port"])
            if rule.get("backendRefs") and rule.get("timeouts") != {"request": "0s"}:
                yield f"{title(route)}: cuts sockets and event streams off"
        yield from _of_hosts(documents, route, route["spec"]["hostnames"])


def _of_ingresses(documents: Sequence[Document]) -> Iterator[str]:
    for ingress in of_kind(documents, "Ingress"):
        hosts = [rule["host"] for rule in ingress["spec"]["rules"]]
        secured = [host for tls in ingress["spec"]["tls"] for host in tls["hosts"]]
        if sorted(hosts) != sorted(secured):
            yield f"{title(ingress)}: has hosts without TLS"
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield from _of_backend(documents, ingress, service["name"], service["port"]["name"])
        yield from _of_hosts(documents, ingress, hosts)


def _of_backend(
    documents: Sequence[Document], route: Document, name: str, port: object
) -> Iterator[str]:
    if not has(documents, "Service", name, namespace_of(route)):
        yield f"{title(route)}: there is no service {name}"
    elif port not in _ports(find(documents, "Service", name, namespace_of(route))):
        yield f"{title(route)}: the service {name} has no port {port}"


def _of_hosts(
    documents: Sequence[Document], route: Document, hosts: Sequence[str]
) -> Iterator[str]:
    """The hosts that come in are those that the gateway answers for."""
    found = configuration(documents)
    if len([host for host in hosts if host.startswith("*.")]) != 1:
        yield f"{title(route)}: has no wildcard for previews"
    if url := found.get("GATEWAY_PUBLIC_URL"):
        domain = found.get("GATEWAY_PREVIEW_DOMAIN", "")
        if set(hosts) != {urlsplit(url).hostname, f"*.{domain}"}:
            yield f"{title(route)}: has other hosts than the settings"
