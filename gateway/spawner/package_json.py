"""package.json as the spawner reads it. Pure, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import UnsupportedProject

NAME: Final = "package.json"
#: The fields that name packages to install.
DEPENDENCIES: Final = (
    "dependencies",
    "devDependencies",
    "optionalDependencies",
    "peerDependencies",
)


def parse_json_object(name: str, content: bytes) -> dict[str, Any]:
    """The object in ``content``; UnsupportedProject with the place of the mistake if it is none."""
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as exc:
        raise UnsupportedProject(
            f"{name} is not valid JSON: {exc.msg} in line {exc.lineno}, column {exc.colno}"
        ) from exc
    except (UnicodeDecodeError, RecursionError) as exc:
        raise UnsupportedProject(f"{name} is not valid JSON: it cannot be read as UTF-8") from exc
    if not isinstance(value, dict):
        raise UnsupportedProject(f"{name} must be a JSON object")
    return value


def read_package(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The project's package.json; empty if it has none. Raises UnsupportedProject."""
    content = files.get(NAME)
    if content is None:
        return {}
    package = parse_json_object(NAME, content)
    for field in DEPENDENCIES:
        value = package.get(field, {})
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise UnsupportedProject(
                f"{NAME}: {field} must be an object of package names and version ranges"
            )
    return package


def dependency_names(package: Mapping[str, Any]) -> frozenset[str]:
    """Names of all packages that package.json lists."""
    return frozenset(name for field in DEPENDENCIES for name in package.get(field, {}))
