"""What a pod's status means, in sentences for the user; the shapes are those of real clusters."""

from __future__ import annotations

from typing import Any, Final

import pytest

from gateway.errors import KubeForbidden, KubeInvalid, KubeNotFound, KubeRefused, KubeUnavailable
from gateway.spawner.kube.manifest import GENERATION_LABEL, SESSION_LABEL
from gateway.spawner.kube.pods import (
    address_of,
    generation_of,
    refusal_sentence,
    session_of,
    trouble_of,
)

RUNNING: Final = {"name": "preview", "image": "node:1", "state": {"running": {}}}


def pod(*, deleted: bool = False, **status: Any) -> dict[str, Any]:
    metadata = {"name": "p", "uid": "u"}
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-28T00:00:00Z"
    return {"metadata": metadata, "status": status}


def waiting(reason: str, message: str = "", name: str = "preview") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": name, "image": "previews:1", "state": state}


def ended(code: int, reason: str = "Error", name: str = "preview") -> dict[str, Any]:
    return {
        "name": name,
        "image": "i",
        "state": {"terminated": {"exitCode": code, "reason": reason}},
    }


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"phase": "Pending"},
        {"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]},
        {"phase": "Running", "containerStatuses": [RUNNING]},
        {"initContainerStatuses": [ended(0, "Completed", "agent")], "containerStatuses": [RUNNING]},
        {"conditions": [{"type": "PodScheduled", "status": "True"}]},
    ],
)
def test_a_pod_on_its_way_is_in_no_trouble(status: dict[str, Any]) -> None:
    assert trouble_of(pod(**status)) is None


def disruption(reason: str) -> dict[str, Any]:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why"}


UNSCHEDULABLE: Final = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient memory.",
}


@pytest.mark.parametrize(
    ("status", "part", "final", "innocent"),
    [
        ({"conditions": [UNSCHEDULABLE]}, "no node has room", False, False),
        (
            {"containerStatuses": [waiting("ErrImagePull")]},
            "previews:1 cannot be had",
            False,
            False,
        ),
        (
            {"containerStatuses": [waiting("ImagePullBackOff", "not found")]},
            "not found",
            True,
            False,
        ),
        ({"containerStatuses": [waiting("InvalidImageName")]}, "cannot be had", True, False),
        (
            {"containerStatuses": [waiting("CreateContainerConfigError", "no secret")]},
            "cannot be started: CreateContainerConfigError: no secret",
            True,
            False,
        ),
        ({"containerStatuses": [ended(137, "OOMKilled")]}, "GATEWAY_POD_MEMORY", True, False),
        ({"containerStatuses": [ended(1)]}, "its pod has ended (status 1)", True, False),
        (
            {"initContainerStatuses": [ended(1, name="agent")]},
            "the agent could not be brought into its pod",
            True,
            False,
        ),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "Pod ephemeral local storage usage exceeds the total limit of "
                "containers 2Gi.",
            },
            "GATEWAY_POD_STORAGE",
            True,
            False,
        ),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "The node was low on resource: memory.",
            },
            "its pod was taken away: Evicted",
            True,
            True,
        ),
        ({"phase": "Running", "reason": "NodeLost"}, "taken away: NodeLost", True, True),
        ({"phase": "Failed", "message": "odd"}, "its pod has failed: odd", True, False),
        ({"conditions": [disruption("EvictionByEvictionAPI")]}, "taken away", True, True),
    ],
)
def test_a_trouble_is_told_in_a_sentence(
    status: dict[str, Any], part: str, final: bool, innocent: bool
) -> None:
    trouble = trouble_of(pod(**status))
    assert trouble is not None
    assert part in trouble.sentence
    assert (trouble.final, trouble.innocent) == (final, innocent)


def test_a_preview_is_innocent_of_the_deletion_of_its_pod() -> None:
    trouble = trouble_of(pod(deleted=True, containerStatuses=[ended(0, "Completed")]))
    assert trouble is not None
    assert (trouble.sentence, trouble.innocent) == ("its pod was deleted", True)


def test_a_pod_has_an_address_once_its_container_runs() -> None:
    assert address_of(pod(podIP="10.0.0.7", containerStatuses=[RUNNING])) == "10.0.0.7"
    assert address_of(pod(podIP="10.0.0.7", containerStatuses=[waiting("PodInitializing")])) == ""
    assert address_of({"metadata": {}}) == ""


def test_a_pod_without_readable_labels_is_no_sessions() -> None:
    assert (session_of(pod()), generation_of(pod())) == ("", 0)
    labelled = pod()
    labelled["metadata"]["labels"] = {SESSION_LABEL: "quick-fox-1", GENERATION_LABEL: "x"}
    assert (session_of(labelled), generation_of(labelled)) == ("quick-fox-1", 0)


@pytest.mark.parametrize(
    ("refusal", "part"),
    [
        (KubeForbidden("pods is forbidden: exceeded quota: previews"), "no room for another"),
        (KubeForbidden("violates PodSecurity"), "Kubernetes forbids the pod: violates"),
        (KubeInvalid("spec.x: Invalid value"), "does not take the pod"),
        (KubeNotFound('namespaces "previews" not found'), "there is no namespace"),
        (KubeUnavailable("it does not answer"), "try again"),
        (KubeRefused("odd"), "no pod could be made: odd"),
    ],
)
def test_why_no_pod_is_made_is_told_in_a_sentence(refusal: Any, part: str) -> None:
    assert part in refusal_sentence(refusal)
