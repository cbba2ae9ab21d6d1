"""Pods for tests."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

Pod = dict[str, Any]

#: Serves the working directory at the pod's address, port 8080.
SERVE: Final = (
    "import http.server, os; http.server.test(http.server.SimpleHTTPRequestHandler, "
    "bind=os.environ['POD_IP'], port=8080)"
)
POD_IP: Final = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
READINESS: Final = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}


def python(code: str) -> list[str]:
    """The command that runs a few lines of Python."""
    return [sys.executable, "-c", code]


def pod(
    name: str, *command: str, labels: Mapping[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    """A pod with one container, which sleeps if it has nothing else to do; it ends at once."""
    container = spec.pop("container", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels or {"app": "preview"})},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "main",
                    "image": "registry.example/preview:1",
                    "command": list(command) or ["sleep", "600"],
                    **container,
                }
            ],
            **spec,
        },
    }


def serving(name: str, **spec: Any) -> Pod:
    """A pod that serves, and has a readiness probe."""
    container = {"env": [POD_IP], "readinessProbe": READINESS}
    return pod(name, *python(SERVE), container=container, **spec)


def condition(pod: Pod | None, kind: str) -> dict[str, Any]:
    """A condition of a pod, empty if it has none."""
    found = ((pod or {}).get("status") or {}).get("conditions") or ()
    return next((dict(item) for item in found if item["type"] == kind), {})


def is_ready(pod: Pod | None) -> bool:
    return condition(pod, "Ready").get("status") == "True"


def phase(pod: Pod | None) -> str:
    return str(((pod or {}).get("status") or {}).get("phase", ""))


def state(pod: Pod | None, index: int = 0, kind: str = "containerStatuses") -> dict[str, Any]:
    """The state of a container: {"waiting": ...}, {"running": ...} or {"terminated": ...}."""
    found = ((pod or {}).get("status") or {}).get(kind) or []
    return dict(found[index]["state"]) if index < len(found) else {}
