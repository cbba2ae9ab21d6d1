"""What a pod's status means for its preview, in a sentence that a user understands. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import GatewayError, KubeForbidden, KubeInvalid, KubeNotFound, KubeUnavailable
from gateway.settings import PREFIX
from gateway.spawner.kube.manifest import GENERATION_LABEL, SESSION_LABEL, Pod

#: An image that cannot be had now may be had later (a registry that is down); one of these cannot.
_HOPELESS: Final = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ImageInspectError",
        "ImagePullBackOff",  # it was tried, and is tried again later and later
        "InvalidImageName",
        "RunContainerError",
    }
)
_IMAGE: Final = frozenset(
    {"ErrImageNeverPull", "ErrImagePull", "ImageInspectError", "ImagePullBackOff"}
    | {"InvalidImageName"}
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not serve. ``final``: it never will.

    ``innocent``: neither the preview nor the settings have anything to do with it, and another pod
    would serve.
    """

    sentence: str
    final: bool = True
    innocent: bool = False


def session_of(pod: Pod) -> str:
    """The id of the session that a pod was made for or given to; "" for one that waits."""
    return str(pod["metadata"].get("labels", {}).get(SESSION_LABEL, ""))


def generation_of(pod: Pod) -> int:
    """The generation of the session that a pod runs; 0 for one that waits, or is not ours."""
    text = str(pod["metadata"].get("labels", {}).get(GENERATION_LABEL, ""))
    return int(text) if text.isdecimal() else 0


def is_going(pod: Pod) -> bool:
    """Whether it was asked to end."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def address_of(pod: Pod) -> str:
    """Where its container listens; "" until that runs."""
    status = pod.get("status", {})
    runs = any("running" in each.get("state", {}) for each in status.get("containerStatuses", ()))
    return str(status.get("podIP", "")) if runs else ""


def trouble_of(pod: Pod) -> Trouble | None:
    """What keeps a pod from serving, as far as its status says; None: nothing, or not yet."""
    status = pod.get("status", {})
    if disruption := _condition(status, "DisruptionTarget", "True"):
        return Trouble(_sentence("its pod was taken away", disruption), innocent=True)
    if is_going(pod):
        return Trouble("its pod was deleted", innocent=True)
    for container in _containers(status):
        if trouble := _container_trouble(container):
            return trouble
    if status.get("phase") == "Failed" or status.get("reason") == "NodeLost":
        return _failed(status)
    if scheduling := _condition(status, "PodScheduled", "False"):
        return Trouble(_sentence("no node has room for its pod", scheduling), final=False)
    return None


def refusal_sentence(exc: GatewayError) -> str:
    """Why the API server does not make a pod."""
    if isinstance(exc, KubeForbidden) and exc.quota_exceeded:
        return (
            "there is no room for another preview, the quota of the namespace is used up: stop "
            f"one, or raise the quota ({exc})"
        )
    if isinstance(exc, KubeForbidden):
        return f"Kubernetes forbids the pod: {exc}"
    if isinstance(exc, KubeInvalid):
        return f"Kubernetes does not take the pod: {exc}"
    if isinstance(exc, KubeNotFound):
        return f"there is no namespace for previews: {exc}"
    if isinstance(exc, KubeUnavailable):
        return f"no pod could be made, try again: {exc}"
    return f"no pod could be made: {exc}"


def _container_trouble(container: Mapping[str, Any]) -> Trouble | None:
    state = container.get("state", {})
    if waiting := state.get("waiting"):
        reason = waiting.get("reason", "")
        if reason in _IMAGE:
            what = f"the image {container.get('image', '')} cannot be had"
            return Trouble(_sentence(what, waiting), final=reason in _HOPELESS)
        if reason in _HOPELESS:
            return Trouble(_sentence("its container cannot be started", waiting))
        return None
    ended = state.get("terminated")
    if ended is None:
        return None
    if ended.get("reason") == "OOMKilled":
        return Trouble(
            f"it ran out of memory and was ended: use less, or raise the limit ({PREFIX}POD_MEMORY)"
        )
    is_agent_copy = container.get("name") == "agent"
    if is_agent_copy and ended.get("exitCode") == 0:
        return None
    what = "the agent could not be brought into its pod" if is_agent_copy else "its pod has ended"
    return Trouble(_sentence(f"{what} (status {ended.get('exitCode')})", ended))


def _failed(status: Mapping[str, Any]) -> Trouble:
    reason, message = status.get("reason", ""), str(status.get("message", ""))
    if reason == "Evicted" and "exceeds" in message:
        return Trouble(
            f"it took more disk than it may: use less, or raise the limit ({PREFIX}POD_STORAGE): "
            f"{message}"
        )
    if reason in {"Evicted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Preempting"}:
        return Trouble(_sentence("its pod was taken away", status), innocent=True)
    return Trouble(_sentence("its pod has failed", status))


def _condition(status: Mapping[str, Any], kind: str, value: str) -> Mapping[str, Any] | None:
    for condition in status.get("conditions", ()):
        if condition.get("type") == kind and condition.get("status") == value:
            return dict(condition)
    return None


def _containers(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses", ())
    yield from status.get("containerStatuses", ())


def _sentence(what: str, source: Mapping[str, Any]) -> str:
    said = [str(source[name]) for name in ("reason", "message") if source.get(name)]
    return f"{what}: {': '.join(said)}" if said else what
