"""What is known about each kind of dev server, and which kind a project is. Pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.errors import UnsupportedProject
from gateway.session import Hmr, Recipe
from gateway.spawner.package_json import dependency_names, read_package

_VITE_ALLOWED_HOST: Final = "__VITE_ADDITIONAL_SERVER_ALLOWED_HOSTS"
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Framework:
    """One kind of dev server.

    ``package`` is the npm package that tells a project of this kind. ``launcher`` is the script in
    ``launchers/`` that starts it as ``node <launcher> <host> <port> <base> <public host>``, the
    last one empty if the dev server is asked under its own name. ``probe_accept`` is the
    ``Accept`` field of the request that asks whether it is up. ``late_prefix``: the launcher takes
    ``--wait`` and learns the rest from its input, and variables with this prefix may be set as
    late as that, because nothing reads them before there is a project; empty: it cannot wait.
    """

    name: str
    package: str
    launcher: str
    hmr: Hmr
    probe_accept: str = "*/*"
    late_prefix: str = ""


#: In order: the first whose package is listed is taken.
FRAMEWORKS: Final = (
    Framework(
        name="vite",
        package="vite",
        launcher="vite.mjs",
        hmr=Hmr(path="", protocol="vite-hmr"),
        probe_accept="text/x-vite-ping",
        late_prefix="VITE_",
    ),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start one project: by a framework's launcher, or by the caller's command."""

    title: str
    framework: Framework | None
    command: tuple[str, ...]
    hmr: Hmr
    env: Mapping[str, str]

    @property
    def can_be_warm(self) -> bool:
        """Whether a process that has been waiting can take this project on."""
        prefix = self.framework.late_prefix if self.framework else ""
        # Other variables may say how Node and packages are loaded, which has been done then.
        return bool(prefix) and all(name.startswith(prefix) for name in self.env)

    def arguments(self, *, host: str, port: int, base: str) -> list[str]:
        """The command with its placeholders filled in."""
        values = {"{host}": host, "{port}": str(port), "{base}": base}
        return [
            re.sub(r"\{(?:host|port|base)\}", lambda match: values[match[0]], part)
            for part in self.command
        ]


def command_environment(*, host: str, port: int, base: str, public_host: str) -> dict[str, str]:
    """What a dev server that is started by a command finds in its environment.

    ``public_host`` is the host it is asked under; empty if that is its own name.
    """
    env = {"HOST": host, "PORT": str(port), "BASE_PATH": base}
    if public_host:
        # Vite 6.1 and later adds the other one to its `server.allowedHosts`.
        env |= {"PUBLIC_HOST": public_host, _VITE_ALLOWED_HOST: public_host}
    return env


def choose(recipe: Recipe, files: Mapping[str, bytes]) -> Plan:
    """The plan for a project. Raises UnsupportedProject, with what is supported."""
    env = _environment(recipe)
    package = read_package(files)
    if recipe.command:
        if any("\0" in part for part in recipe.command) or not recipe.command[0]:
            raise UnsupportedProject("the command has an empty program name or a NUL character")
        return Plan(recipe.command[0], None, recipe.command, Hmr(), env)
    listed = dependency_names(package)
    for framework in FRAMEWORKS:
        if recipe.framework == framework.name or (
            not recipe.framework and framework.package in listed
        ):
            return Plan(framework.name, framework, (), framework.hmr, env)
    if recipe.framework:
        raise UnsupportedProject(f"the framework {recipe.framework!r} is not known: {_supported()}")
    found = "package.json lists none of them" if package else "there is no package.json"
    raise UnsupportedProject(f"the kind of project is not known, {found}: {_supported()}")


def _supported() -> str:
    names = ", ".join(framework.name for framework in FRAMEWORKS)
    return (
        f"supported are {names}; start anything else with `command`, which may contain "
        "{host}, {port} and {base}"
    )


def _environment(recipe: Recipe) -> dict[str, str]:
    for name, value in recipe.env:
        if not _VARIABLE.fullmatch(name):
            raise UnsupportedProject(f"{name!r} is no name of an environment variable")
        if "\0" in value:
            raise UnsupportedProject(f"the environment variable {name} contains a NUL character")
    return dict(recipe.env)
