"""What a pod must be to be taken, and what the API server adds to it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]

from tests.kube.statuses import bad_request, invalid

Pod = dict[str, Any]

#: The newest Kubernetes whose schema is at hand.
_SCHEMA: Final = "1.37"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
#: What an update may change of a pod's spec, besides the images.
_MUTABLE: Final = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")


def admitted(pod: Pod, namespace: str) -> Pod:
    """A new pod with what the API server adds. Raises a Refusal.

    Stricter than a real one, which drops unknown fields with a warning: here they are refused,
    so that no manifest of ours has any.
    """
    if pod.get("kind") != "Pod" or pod.get("apiVersion") != "v1":
        raise bad_request(
            f'pod in version "v1" cannot be handled as a Pod: no kind "{pod.get("kind")}"'
        )
    metadata = dict(pod.get("metadata") or {})
    name = str(metadata.get("name") or "")
    if metadata.get("resourceVersion"):
        raise bad_request("resourceVersion should not be set on objects to be created")
    if metadata.get("namespace", namespace) != namespace:
        raise bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    _check_name(name)
    _check_schema(pod)
    _check_containers(name, pod["spec"])
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {**metadata, "namespace": namespace},
        "spec": {
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler",
            "serviceAccountName": "default",
            **pod["spec"],
        },
        "status": {"phase": "Pending", "qosClass": "Burstable"},
    }


def _check_name(name: str) -> None:
    if not name:
        raise invalid(name, "metadata.name", "Required value: name or generateName is required")
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise invalid(
            name,
            "metadata.name",
            f'Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist of lower case '
            "alphanumeric characters, '-' or '.', and must start and end with an alphanumeric "
            "character",
        )


def _check_schema(pod: Pod) -> None:
    # The name is checked elsewhere; without it most pods of a test are the same.
    anonymous = {**pod, "metadata": {**pod["metadata"], "name": "x"}}
    if error := _schema_error(json.dumps(anonymous, sort_keys=True)):
        raise bad_request(f"strict decoding error: {error}")


@lru_cache(maxsize=64)  # one validation takes 45 ms
def _schema_error(text: str) -> str:
    try:
        kubernetes_validate.validate(json.loads(text), _SCHEMA, strict=True)
    except kubernetes_validate.ValidationError as exc:
        return f'"{".".join(map(str, exc.path))}": {exc.message[:300]}'
    return ""


def _check_containers(name: str, spec: Mapping[str, Any]) -> None:
    containers = spec.get("containers") or []
    if not containers:
        raise invalid(name, "spec.containers", "Required value", "FieldValueRequired")
    volumes = {volume["name"] for volume in spec.get("volumes") or ()}
    taken: set[str] = set()
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or ()):
            field = f"spec.{kind}[{index}]"
            if container["name"] in taken:
                raise invalid(
                    name,
                    f"{field}.name",
                    f'Duplicate value: "{container["name"]}"',
                    "FieldValueDuplicate",
                )
            taken.add(container["name"])
            if not container.get("image"):
                raise invalid(name, f"{field}.image", "Required value", "FieldValueRequired")
            for place, mount in enumerate(container.get("volumeMounts") or ()):
                if mount["name"] not in volumes:
                    raise invalid(
                        name,
                        f"{field}.volumeMounts[{place}].name",
                        f'Not found: "{mount["name"]}"',
                        "FieldValueNotFound",
                    )


def merged(target: Any, change: Any) -> Any:
    """``change`` merged into ``target`` (RFC 7396)."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def patched(pod: Pod, change: Mapping[str, Any]) -> Pod:
    """A pod after a merge patch. Raises a Refusal if that would change what is fixed."""
    after: Pod = merged(pod, change)
    name = pod["metadata"]["name"]
    if after["metadata"]["name"] != name:
        raise bad_request(
            f"the name of the object ({after['metadata']['name']}) does not match the name on the "
            f"URL ({name})"
        )
    if after["metadata"]["uid"] != pod["metadata"]["uid"]:
        raise invalid(name, "metadata.uid", "Invalid value: field is immutable")
    for fixed in ("creationTimestamp", "namespace", "generation", "resourceVersion"):
        after["metadata"][fixed] = pod["metadata"][fixed]
    if _fixed_part(after["spec"]) != _fixed_part(pod["spec"]):
        raise invalid(
            name,
            "spec",
            "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
            "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to "
            "be set to 1 if it was previously negative)",
            "FieldValueForbidden",
        )
    # The status has a subresource of its own; here it stays.
    after["status"] = pod["status"]
    return after


def _fixed_part(spec: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {name: value for name, value in spec.items() if name not in _MUTABLE}
    for kind in ("containers", "initContainers"):
        if kind in fixed:
            fixed[kind] = [{**container, "image": ""} for container in fixed[kind]]
    return fixed
