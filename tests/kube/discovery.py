"""What kubectl asks before it does anything: which resources there are."""

from __future__ import annotations

from typing import Any, Final

API_VERSIONS: Final[dict[str, Any]] = {"kind": "APIVersions", "versions": ["v1"]}
API_GROUPS: Final[dict[str, Any]] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": []}
VERSION: Final[dict[str, Any]] = {
    "major": "1",
    "minor": "37",
    "gitVersion": "v1.37.0",
    "platform": "linux/amd64",
}
RESOURCES: Final[dict[str, Any]] = {
    "kind": "APIResourceList",
    "groupVersion": "v1",
    "resources": [
        {
            "name": "namespaces",
            "singularName": "namespace",
            "namespaced": False,
            "kind": "Namespace",
            "verbs": ["get"],
            "shortNames": ["ns"],
        },
        {
            "name": "pods",
            "singularName": "pod",
            "namespaced": True,
            "kind": "Pod",
            "verbs": ["create", "delete", "get", "list", "patch", "watch"],
            "shortNames": ["po"],
        },
    ],
}

DOCUMENTS: Final[dict[str, dict[str, Any]]] = {
    "/api": API_VERSIONS,
    "/apis": API_GROUPS,
    "/version": VERSION,
    "/api/v1": RESOURCES,
}
