"""What an operator adds to every pod of a preview: a JSON file with an allow-list. Pure.

The pod keeps its isolation whatever the file says: users, capabilities, namespaces of the host,
accounts of the cluster, containers and commands are not for it to change, and a key that is not
listed here is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.errors import SettingsError
from gateway.settings import PREFIX

#: Where a pod runs and what it may resolve; none of these lets it out of its confinement.
_SPEC: Final = frozenset(
    {
        "affinity",
        "dnsConfig",
        "dnsPolicy",
        "hostUsers",
        "imagePullSecrets",
        "nodeSelector",
        "preemptionPolicy",
        "priorityClassName",
        "schedulerName",
        "tolerations",
        "topologySpreadConstraints",
        "volumes",
    }
)
_CONTAINER: Final = frozenset({"env", "volumeMounts"})
#: hostPath is the node's disk, projected ones may hold tokens, and previews have no secrets.
_VOLUMES: Final = frozenset({"configMap", "csi", "emptyDir", "ephemeral", "persistentVolumeClaim"})
_OWN_VOLUMES: Final = frozenset({"agent", "preview", "tmp"})
_OWN_FOLDERS: Final = ("/agent", "/preview", "/tmp")  # noqa: S108 - inside the pod
#: Prefixes of labels and annotations by which policies and the gateway itself know a pod.
_RESERVED: Final = ("preview-gateway.dev/", "app.kubernetes.io/")


@dataclass(frozen=True, slots=True)
class Template:
    """What is added to a pod; nothing by default."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    volumes: Sequence[Mapping[str, Any]] = ()
    env: Sequence[Mapping[str, Any]] = ()
    volume_mounts: Sequence[Mapping[str, Any]] = ()


def parse_template(text: str) -> Template:
    """The template in a file's text: ``{metadata?, spec?, container?}``.

    Raises SettingsError naming what is not allowed.
    """
    try:
        document = json.loads(text)
    except ValueError as exc:
        raise _refused(f"it is no JSON ({exc})") from exc
    parts = _object(document, "the file", {"metadata", "spec", "container"})
    metadata = _object(parts.get("metadata", {}), "metadata", {"labels", "annotations"})
    spec = dict(_object(parts.get("spec", {}), "spec", _SPEC))
    container = _object(parts.get("container", {}), "container", _CONTAINER)
    volumes = _objects(spec.pop("volumes", []), "spec.volumes")
    env = _objects(container.get("env", []), "container.env")
    mounts = _objects(container.get("volumeMounts", []), "container.volumeMounts")
    _check_volumes(volumes)
    _check_env(env)
    _check_mounts(mounts)
    return Template(
        labels=_names(metadata.get("labels", {}), "metadata.labels"),
        annotations=_names(metadata.get("annotations", {}), "metadata.annotations"),
        spec=spec,
        volumes=volumes,
        env=env,
        volume_mounts=mounts,
    )


def _refused(problem: str) -> SettingsError:
    return SettingsError(f"{PREFIX}POD_TEMPLATE_FILE: {problem}")


def _object(value: object, where: str, allowed: Collection[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _refused(f"{where} is no object")
    for name in value:
        if name not in allowed:
            known = ", ".join(sorted(allowed))
            raise _refused(f"{name!r} in {where} is not allowed; allowed are {known}")
    return value


def _objects(value: object, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _refused(f"{where} is no list of objects")
    return value


def _names(value: object, where: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _refused(f"{where} is no object of texts")
    for name in value:
        if name.startswith(_RESERVED):
            raise _refused(f"{name!r} in {where} is reserved: by it policies know a preview")
    return value


def _check_volumes(volumes: Sequence[Mapping[str, Any]]) -> None:
    for volume in volumes:
        name = volume.get("name")
        if name in _OWN_VOLUMES:
            raise _refused(f"the volume {name!r} is the gateway's own: choose another name")
        for kind in volume.keys() - {"name"}:
            if kind not in _VOLUMES:
                allowed = ", ".join(sorted(_VOLUMES))
                raise _refused(f"volumes of the kind {kind!r} are not allowed; allowed: {allowed}")


def _check_env(env: Sequence[Mapping[str, Any]]) -> None:
    for variable in env:
        name = str(variable.get("name", ""))
        if name.startswith("PREVIEW_") and name != "PREVIEW_BAKED":
            raise _refused(f"the variable {name} is the agent's own")
        if variable.keys() - {"name", "value"}:
            raise _refused(f"the variable {name} may have a `value` only: previews see it")


def _check_mounts(mounts: Sequence[Mapping[str, Any]]) -> None:
    for mount in mounts:
        path = str(mount.get("mountPath", ""))
        if any(path == folder or path.startswith(f"{folder}/") for folder in _OWN_FOLDERS):
            raise _refused(f"nothing may be mounted at {path}: the folder is the gateway's own")
        if mount.get("mountPropagation", "None") != "None":
            raise _refused(f"the mount at {path} must not be propagated")
