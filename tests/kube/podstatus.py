"""The status of a pod, as kubelets and schedulers write it. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.kube.store import now

Status = dict[str, Any]


@dataclass(slots=True)
class ContainerState:
    """One container: waiting, running or terminated, as in its ``state``."""

    name: str
    image: str
    state: dict[str, Any]
    last: dict[str, Any] = field(default_factory=dict)
    ready: bool = False
    started: bool = False
    restarts: int = 0

    def wait(self, reason: str, message: str = "") -> None:
        """It waits, for a reason."""
        detail = {"reason": reason, **({"message": message} if message else {})}
        self.state, self.ready, self.started = {"waiting": detail}, False, False

    def run(self) -> None:
        """It runs; whether it is ready is for its probes to say."""
        self.state = {"running": {"startedAt": now()}}

    def end(self, exit_code: int, *, reason: str = "", signal: int = 0) -> None:
        """It has ended."""
        started = (self.state.get("running") or {}).get("startedAt", now())
        detail: dict[str, Any] = {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "startedAt": started,
            "finishedAt": now(),
        }
        if signal:
            detail["signal"] = signal
        self.state, self.ready, self.started = {"terminated": detail}, False, False

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it has not."""
        terminated = self.state.get("terminated")
        return None if terminated is None else terminated["exitCode"]

    def shown(self) -> dict[str, Any]:
        """As an entry of ``containerStatuses``."""
        real = "waiting" not in self.state
        return {
            "name": self.name,
            "state": copy.deepcopy(self.state),
            "lastState": copy.deepcopy(self.last),
            "ready": self.ready,
            "restartCount": self.restarts,
            "image": self.image,
            "imageID": f"{self.image}@sha256:{'0' * 64}" if real else "",
            "containerID": f"containerd://{self.name}" if real else "",
            "started": self.started,
        }


@dataclass(slots=True)
class PodState:
    """All that a status is made of, once the pod is on a node."""

    pod_ip: str
    host_ip: str
    inits: list[ContainerState]
    mains: list[ContainerState]
    restarts: bool
    started_at: str = field(default_factory=now)
    #: What ended the pod as a whole: (reason, message), as for an eviction.
    verdict: tuple[str, str] | None = None
    #: Further conditions.
    extra: list[dict[str, Any]] = field(default_factory=list)

    @property
    def initialized(self) -> bool:
        return all(container.exit_code == 0 for container in self.inits)

    @property
    def phase(self) -> str:
        if self.verdict:
            return "Failed"
        codes = [container.exit_code for container in self.inits]
        if any(codes) and not self.restarts:
            return "Failed"
        if not self.initialized:
            return "Pending"
        codes = [container.exit_code for container in self.mains]
        if not self.restarts and all(code is not None for code in codes):
            return "Failed" if any(codes) else "Succeeded"
        # One that waits to be run again has run.
        begun = any("waiting" not in main.state or main.last for main in self.mains)
        return "Running" if begun else "Pending"


def bound(status: Status) -> Status:
    """The status once the scheduler has found a node."""
    return {**status, "conditions": conditions(status, [_condition("PodScheduled", True)])}


def unschedulable(status: Status, message: str) -> Status:
    """The status while the scheduler finds none."""
    condition = _condition("PodScheduled", False, "Unschedulable", message)
    return {**status, "phase": "Pending", "conditions": conditions(status, [condition])}


def on_node(status: Status, pod: PodState) -> Status:
    """The status that a kubelet writes."""
    phase = pod.phase
    result: Status = {
        **status,
        "phase": phase,
        "hostIP": pod.host_ip,
        "hostIPs": [{"ip": pod.host_ip}],
        "startTime": pod.started_at,
        "conditions": conditions(status, _of(pod, phase)),
        "containerStatuses": [container.shown() for container in pod.mains],
    }
    if pod.pod_ip:
        result |= {"podIP": pod.pod_ip, "podIPs": [{"ip": pod.pod_ip}]}
    if pod.inits:
        result["initContainerStatuses"] = [container.shown() for container in pod.inits]
    if pod.verdict:
        result["reason"], result["message"] = pod.verdict
    return result


def _of(pod: PodState, phase: str) -> list[dict[str, Any]]:
    ended = {"Failed": "PodFailed", "Succeeded": "PodCompleted"}.get(phase)
    unready = [container.name for container in pod.mains if not container.ready]
    if ended:
        ready = ("ContainersReady", False, ended, "")
    elif unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        ready = ("ContainersReady", False, "ContainersNotReady", message)
    else:
        ready = ("ContainersReady", True, "", "")
    open_inits = [container.name for container in pod.inits if container.exit_code != 0]
    if open_inits:
        message = f"containers with incomplete status: [{' '.join(open_inits)}]"
        initialized = _condition("Initialized", False, "ContainersNotInitialized", message)
    else:
        initialized = _condition("Initialized", True, ended if ended == "PodCompleted" else "")
    return [
        _condition("PodReadyToStartContainers", bool(pod.pod_ip) and not ended),
        initialized,
        _condition("Ready", *ready[1:]),
        _condition(*ready),
        _condition("PodScheduled", True),
        *pod.extra,
    ]


def _condition(
    kind: str, holds: bool, reason: str | None = "", message: str = ""
) -> dict[str, Any]:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "lastProbeTime": None,
        **({"reason": reason} if reason else {}),
        **({"message": message} if message else {}),
    }


def disruption(reason: str, message: str) -> dict[str, Any]:
    """The condition that says that the cluster, not the pod, was the cause."""
    return _condition("DisruptionTarget", True, reason, message)


def not_ready(status: Status) -> Status:
    """The status once the node is not heard of any more."""
    return {**status, "conditions": conditions(status, [_condition("Ready", False)])}


def conditions(status: Mapping[str, Any], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conditions of a status with new ones; the time is that of the last change of each."""
    old = {condition["type"]: condition for condition in status.get("conditions") or ()}
    for condition in new:
        before = old.get(condition["type"])
        same = before is not None and before["status"] == condition["status"]
        since = before["lastTransitionTime"] if before and same else now()
        old[condition["type"]] = {**condition, "lastTransitionTime": since}
    return list(old.values())
