"""A container of a pod as a command of this machine. Pure.

What a container sees under a mount path lies in a folder of this machine; the paths are replaced
in its command, its arguments, its variables and its working directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_REFERENCE: Final = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")


class ConfigError(Exception):
    """The container cannot be made (CreateContainerConfigError)."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, where, and with which variables."""

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]


def render(
    container: Mapping[str, Any],
    pod: Mapping[str, Any],
    *,
    folders: Mapping[str, Path],
    images: Mapping[str, Path],
    default_cwd: Path,
) -> Command:
    """``folders`` are those of the volumes by name; ``images`` are paths that images hold.

    Raises ConfigError.
    """
    localized = _localizer(container, folders, images)
    env = {name: localized(value) for name, value in _variables(container, pod).items()}
    argv = [*(container.get("command") or ()), *(container.get("args") or ())]
    if not argv:
        raise ConfigError("no command specified")
    cwd = container.get("workingDir")
    return Command(
        tuple(localized(expanded(part, env)) for part in argv),
        localized(cwd) if cwd else str(default_cwd),
        env,
    )


def _localizer(
    container: Mapping[str, Any], folders: Mapping[str, Path], images: Mapping[str, Path]
) -> Callable[[str], str]:
    places = {path.rstrip("/"): str(folder) for path, folder in images.items()}
    for mount in container.get("volumeMounts") or ():
        folder = folders[mount["name"]] / mount.get("subPath", "")
        places[mount["mountPath"].rstrip("/")] = str(folder)
    if not places:
        return lambda text: text
    # The longest first, and all in one pass: what has been replaced is not looked at again.
    longest_first = sorted(places, key=len, reverse=True)
    paths = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, longest_first))})(?![\w.-])")
    return lambda text: paths.sub(lambda match: places[match[1]], text)


def _variables(container: Mapping[str, Any], pod: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a container; each may refer to those before it."""
    if container.get("envFrom"):
        raise ConfigError("envFrom is nothing the fake kubelet can do")
    found: dict[str, str] = {}
    for item in container.get("env") or ():
        if "valueFrom" in item:
            found[item["name"]] = _field(item["valueFrom"], pod)
        else:
            found[item["name"]] = expanded(str(item.get("value") or ""), found)
    return found


def _field(source: Mapping[str, Any], pod: Mapping[str, Any]) -> str:
    if secret := source.get("secretKeyRef") or source.get("configMapKeyRef"):
        kind = "secret" if "secretKeyRef" in source else "configmap"
        raise ConfigError(f'{kind} "{secret["name"]}" not found')
    path = str((source.get("fieldRef") or {}).get("fieldPath", ""))
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    fields = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "status.hostIP": pod["status"].get("hostIP", ""),
        "status.podIP": pod["status"].get("podIP", ""),
    }
    if path not in fields:
        raise ConfigError(f"unsupported source of a variable: {dict(source)}")
    return str(fields[path])


def expanded(text: str, env: Mapping[str, str]) -> str:
    """``$(NAME)`` as the kubelet replaces it: unknown names stay, ``$$`` is one ``$``."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return env.get(match[2], match[0])

    return _REFERENCE.sub(value, text)
