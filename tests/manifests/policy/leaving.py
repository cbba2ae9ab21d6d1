"""A roll-out that fails no request: who comes before who goes, and the time that leaving takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gateway.settings import Settings
from tests.manifests.documents import (
    Document,
    configuration,
    find,
    gateway_of,
    has,
    matches,
    of_kind,
    title,
)

#: What follows on SIGTERM, one after the other.
STEPS: Final = ("drain_grace_seconds", "drain_seconds", "handover_seconds", "stop_grace_seconds")
TOPOLOGIES: Final = {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
REPLICAS: Final = 3


def problems(documents: Sequence[Document]) -> Iterator[str]:
    """What would cut a request off when pods are replaced, moved or taken away."""
    deployment = find(documents, "Deployment", "preview-gateway", "preview-gateway")
    pods = gateway_of(documents)
    yield from _of_number(documents, deployment)
    rolling = deployment["spec"]["strategy"]["rollingUpdate"]
    if rolling["maxUnavailable"] != 0:
        yield "a roll-out takes pods away before others are ready"
    grace, needed = pods.spec["terminationGracePeriodSeconds"], seconds_to_leave(documents)
    if grace <= needed:
        yield f"a pod is given {grace} s to leave, and takes up to {needed:g} s"
    (container,) = pods.spec["containers"]
    if not _pause(container):
        yield "a pod stops listening before the Service has forgotten it"
    yield from _of_probes(container)
    spread = {rule["topologyKey"]: rule for rule in pods.spec["topologySpreadConstraints"]}
    if set(spread) != TOPOLOGIES:
        yield "the pods are not spread over zones and hosts"
    for key, rule in spread.items():
        if not matches(rule["labelSelector"], pods.labels):
            yield f"the pods that are spread over {key} are others"
    budgets = of_kind(documents, "PodDisruptionBudget")
    if not any(matches(budget["spec"]["selector"], pods.labels) for budget in budgets):
        yield "no disruption budget is for the gateway's pods"


def seconds_to_leave(documents: Sequence[Document]) -> float:
    """How long a pod takes to leave at most: preStop, then what the settings allow each step."""
    found = configuration(documents)
    (container,) = gateway_of(documents).spec["containers"]
    steps = (
        float(found.get(f"GATEWAY_{step.upper()}", Settings.model_fields[step].default))
        for step in STEPS
    )
    return _pause(container) + sum(steps)


def _pause(container: Document) -> float:
    """Seconds for which a container sleeps before it is told to end; 0 if it does not.

    In 1.29 the API server drops ``preStop.sleep`` by default, and refuses what is left.
    """
    match container.get("lifecycle", {}).get("preStop", {}):
        case {"exec": {"command": ["sleep", seconds]}}:
            return float(seconds)
        case _:
            return 0.0


def _of_number(documents: Sequence[Document], deployment: Document) -> Iterator[str]:
    scalers = of_kind(documents, "HorizontalPodAutoscaler")
    given = deployment["spec"].get("replicas")
    if not scalers:
        if given != REPLICAS:
            yield f"there are {given} replicas"
        return
    if given is not None:
        yield "each apply sets back what the autoscaler has chosen"
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        if not has(documents, target["kind"], target["name"], "preview-gateway"):
            yield f"{title(scaler)}: there is no {target['kind']} {target['name']}"
        if scaler["spec"]["minReplicas"] < REPLICAS:
            yield f"{title(scaler)}: leaves fewer than {REPLICAS} replicas"
        if scaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] < 300:
            yield f"{title(scaler)}: takes pods away at every lull"


def _of_probes(container: Document) -> Iterator[str]:
    """Life and readiness are apart: a registry that is away restarts nobody."""
    for probe, path in (("startup", "/livez"), ("readiness", "/readyz"), ("liveness", "/livez")):
        asked = container.get(f"{probe}Probe", {}).get("httpGet", {})
        if asked != {"path": path, "port": "admin"}:
            yield f"the {probe} probe does not ask for {path} on the admin port"
