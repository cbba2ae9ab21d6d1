"""What an agent is told to run for a project. Pure but for the launchers it reads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from gateway.session import Endpoint
from gateway.settings import Settings
from gateway.spawner.base import Job
from gateway.spawner.environment import PLAIN
from gateway.spawner.kube.agent_wire import Install, Order
from gateway.spawner.manifests import npm_arguments, npm_files
from gateway.spawner.package_json import dependency_names, read_package
from gateway.spawner.recipes import Framework, Plan, command_environment
from gateway.spawner.strays import JOB_VARIABLE
from gateway.spawner.warm_process import LAUNCHERS
from gateway.spawner.warm_process import Order as WarmOrder

#: Whose files are pushed before there is a session; no session can have this id.
RESERVED: Final = "warm"
_LAUNCHERS: Final = ("vite.mjs", "ahead.mjs")


@cache
def launchers() -> Mapping[str, str]:
    """The scripts that start frameworks, by name."""
    return {name: (LAUNCHERS / name).read_text("utf-8") for name in _LAUNCHERS}


def make_order(settings: Settings, job: Job, plan: Plan, endpoint: Endpoint) -> Order:
    """The order to start a job's dev server."""
    public_host = settings.public_host(job.session_id)
    # As the processes of a replica have it, too.
    mark = {JOB_VARIABLE: f"{job.session_id}.{job.generation}"}
    install = make_install(settings, job.files)
    if plan.framework is None:
        env = command_environment(
            host=endpoint.host, port=endpoint.port, base=job.base, public_host=public_host
        )
        command = plan.arguments(host=endpoint.host, port=endpoint.port, base=job.base)
        return Order(
            job.generation,
            tuple(command),
            env={**PLAIN, **plan.env, **env, **mark},
            install=install,
            title=plan.title,
        )
    env = {**plan.env, **mark}
    line = WarmOrder(endpoint, job.base, public_host, env) if plan.can_be_warm else None
    arguments = (endpoint.host, str(endpoint.port), job.base, public_host)
    return Order(
        job.generation,
        _launch(plan.framework, *arguments),
        env={**PLAIN, **env},
        install=install,
        launchers=launchers(),
        title=plan.title,
        line=str(line) if line else "",
    )


def make_warm_order(settings: Settings, framework: Framework, files: Mapping[str, bytes]) -> Order:
    """The order to load all that a start with these dependencies needs, and to wait."""
    packages = sorted(dependency_names(read_package(files)))
    return Order(
        0,
        _launch(framework, "--wait", *packages),
        env=PLAIN,
        install=make_install(settings, files),
        launchers=launchers(),
        title=framework.name,
    )


def make_install(settings: Settings, files: Mapping[str, bytes]) -> Install | None:
    """How a project's dependencies are installed; None if it has none."""
    given = npm_files(files)
    if not given:
        return None
    arguments = npm_arguments(given, scripts=settings.install_scripts)
    return Install(
        ("npm", *arguments),
        env=PLAIN,
        title=f"npm {arguments[0]}",
        limit_seconds=settings.install_timeout_seconds,
    )


def _launch(framework: Framework, *arguments: str) -> tuple[str, ...]:
    return ("node", f"{{launchers}}/{framework.launcher}", *arguments)
