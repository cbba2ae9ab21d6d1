"""The pod of a preview, as it is asked for. Pure, no I/O.

Untrusted code runs in it, so it meets the *restricted* Pod Security Standard, has no account of the
cluster, and nothing in it is written but three folders of limited size. What an operator may add is
an allow-list (``template.py``).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from gateway.session import SessionId
from gateway.settings import Settings
from gateway.spawner.kube.template import Template

Pod = dict[str, Any]

AGENT_PORT: Final = 8700
DEV_PORT: Final = 5173
#: The user of the images; a number, so that Kubernetes can see that it is not root.
USER: Final = 10001

NAME_LABEL: Final = "app.kubernetes.io/name"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
_OWN: Final = "preview-gateway.dev/"
SESSION_LABEL: Final = f"{_OWN}session"
GENERATION_LABEL: Final = f"{_OWN}generation"
#: Of a pod that waits, or has waited, for a session: which place in the pool it was made for.
SLOT_LABEL: Final = f"{_OWN}slot"
#: What the pod was made from: one of another version of the gateway is not taken for a session.
SPEC_LABEL: Final = f"{_OWN}spec"
#: A random part of the agent's token; the rest is the gateway's key.
NONCE: Final = f"{_OWN}nonce"

#: Every pod of this gateway, and none else in its namespace.
SELECTOR: Final = f"{NAME_LABEL}=preview-gateway,{COMPONENT_LABEL}=preview"

_SUFFIXES: Final = {"m": "0.001", "": "1", "k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12"} | {
    f"{letter}i": str(1024**power) for power, letter in enumerate("KMGT", 1)
}


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a pod is for: one generation of a session, or (``slot``) to wait for one."""

    name: str
    session_id: str = ""
    generation: int = 0
    slot: int | None = None

    @classmethod
    def session(cls, session_id: SessionId, generation: int) -> Purpose:
        """The name is the session's: the API server decides between two who claim it."""
        return cls(f"preview-{session_id}", session_id, generation)

    @property
    def labels(self) -> dict[str, str]:
        """What tells it from other pods."""
        labels: dict[str, str] = {}
        if self.session_id:
            labels |= {SESSION_LABEL: self.session_id, GENERATION_LABEL: str(self.generation)}
        if self.slot is not None:
            labels[SLOT_LABEL] = str(self.slot)
        return labels


class Manifests:
    """Makes pods by the settings and the operator's template."""

    def __init__(self, settings: Settings, template: Template) -> None:
        self._settings = settings
        self._template = template
        self._key = settings.secret_key.get_secret_value().encode()
        self.spec_label = self._fingerprint()

    def pod(self, purpose: Purpose) -> Pod:
        """A pod that has not been created."""
        nonce = secrets.token_hex(16)
        token = self._token(purpose.name, nonce)
        template = self._template
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": purpose.name,
                "namespace": self._settings.kube_namespace,
                "labels": {
                    **template.labels,
                    NAME_LABEL: "preview-gateway",
                    COMPONENT_LABEL: "preview",
                    SPEC_LABEL: self.spec_label,
                    **purpose.labels,
                },
                "annotations": {**template.annotations, NONCE: nonce},
            },
            "spec": self._spec(token),
        }

    def token(self, pod: Pod) -> str:
        """The token of a pod's agent, which every replica with the same key can tell."""
        metadata = pod["metadata"]
        return self._token(metadata["name"], metadata.get("annotations", {}).get(NONCE, ""))

    def _token(self, name: str, nonce: str) -> str:
        return hmac.digest(self._key, f"agent\0{name}\0{nonce}".encode(), "sha256").hex()

    def _fingerprint(self) -> str:
        """The same for all pods that replicas of these settings make."""
        unkeyed = replace_token(self._spec(""))
        return hashlib.sha256(json.dumps(unkeyed, sort_keys=True).encode()).hexdigest()[:16]

    def _spec(self, token: str) -> dict[str, Any]:
        settings, template = self._settings, self._template
        runtime = settings.pod_runtime_class
        return {
            **template.spec,
            **({"runtimeClassName": runtime} if runtime else {}),
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            # Its first process is the pause container's, which reaps what dev servers leave behind.
            "shareProcessNamespace": True,
            # SIGTERM ends the dev server first, and that has its own grace.
            "terminationGracePeriodSeconds": int(settings.stop_grace_seconds) + 5,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [self._agent_container()],
            "containers": [self._preview_container(token)],
            "volumes": [
                _folder("agent", "16Mi"),
                _folder("preview", settings.pod_storage),
                _folder("tmp", settings.pod_storage),
                *template.volumes,
            ],
        }

    def _agent_container(self) -> dict[str, Any]:
        """Brings the agent along, so that the image of previews needs nothing of the gateway."""
        return {
            "name": "agent",
            "image": self._settings.pod_agent_image,
            "command": ["python", "-m", "gateway.install_agent", "/agent"],
            "securityContext": _confined(),
            "resources": {
                "requests": {"cpu": "10m", "memory": "64Mi", "ephemeral-storage": "16Mi"},
                "limits": {"cpu": "1", "memory": "256Mi", "ephemeral-storage": "64Mi"},
            },
            "volumeMounts": [{"name": "agent", "mountPath": "/agent"}],
        }

    def _preview_container(self, token: str) -> dict[str, Any]:
        settings, most = self._settings, self._settings.max_session_bytes
        limits = {
            "cpu": settings.pod_cpu,
            "memory": settings.pod_memory,
            "ephemeral-storage": settings.pod_storage,
        }
        requests = {
            "cpu": part_of(settings.pod_cpu, "0.1"),
            "memory": part_of(settings.pod_memory, "0.25"),
            "ephemeral-storage": part_of(settings.pod_storage, "0.25"),
        }
        return {
            "name": "preview",
            "image": settings.pod_image,
            "command": ["node", "/agent/agent.mjs"],
            "env": [
                {"name": "PREVIEW_AGENT_TOKEN", "value": token},
                {
                    "name": "PREVIEW_AGENT_HOST",
                    "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
                },
                {"name": "PREVIEW_AGENT_PORT", "value": str(AGENT_PORT)},
                {
                    "name": "PREVIEW_AGENT_GRACE_SECONDS",
                    "value": f"{settings.stop_grace_seconds:g}",
                },
                # All files of a session as JSON, before and after they are inflated.
                {"name": "PREVIEW_AGENT_MAX_BODY_BYTES", "value": str(2 * most)},
                {"name": "PREVIEW_AGENT_MAX_INFLATED_BYTES", "value": str(3 * most)},
                {"name": "PREVIEW_ROOT", "value": "/preview"},
                *self._template.env,
            ],
            "ports": [
                {"name": "dev", "containerPort": DEV_PORT},
                {"name": "agent", "containerPort": AGENT_PORT},
            ],
            # Of the agent: whether the dev server answers is for the gateway to see.
            "readinessProbe": {
                "httpGet": {"path": "/healthz", "port": "agent"},
                "periodSeconds": 2,
                "timeoutSeconds": 5,  # it may be busy with a large tree
            },
            "securityContext": _confined(),
            "resources": {"requests": requests, "limits": limits},
            "volumeMounts": [
                {"name": "agent", "mountPath": "/agent", "readOnly": True},
                {"name": "preview", "mountPath": "/preview"},
                {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - inside the pod
                *self._template.volume_mounts,
            ],
        }


def replace_token(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec without what differs from pod to pod."""
    container = dict(spec["containers"][0])
    container["env"] = [item for item in container["env"] if item["name"] != "PREVIEW_AGENT_TOKEN"]
    return {**spec, "containers": [container]}


def part_of(quantity: str, share: str) -> str:
    """A share of a quantity, rounded up to whole bytes or thousandths of a processor."""
    number = quantity.rstrip("mkMGTi")
    value = Decimal(number) * Decimal(_SUFFIXES[quantity[len(number) :]]) * Decimal(share)
    if value == value.to_integral_value():
        return str(int(value))
    thousandths = (value * 1000).to_integral_value(rounding="ROUND_CEILING")
    # Memory and disk are whole bytes: a fraction of one is none.
    return f"{int(thousandths)}m" if value < 1000 else str(int(value) + 1)


def bound(purpose: Purpose, pod: Pod) -> Pod:
    """The patch that gives a waiting pod to a session, unless it has changed meanwhile."""
    labels = replace(purpose, slot=None).labels
    version = pod["metadata"]["resourceVersion"]
    return {"metadata": {"resourceVersion": version, "labels": labels}}


def _confined() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _folder(name: str, size: str) -> dict[str, Any]:
    return {"name": name, "emptyDir": {"sizeLimit": size}}
