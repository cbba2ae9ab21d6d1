"""One dev server process that has loaded everything but a project, and waits for one.

What a start of Vite consists of, and what is left of it for a process that has waited (Node 20,
example app and fixture, a busy machine with two cores; medians of five runs, milliseconds):

                                          Vite 8    Vite 7
    workspace, linked node_modules           10         5    done ahead
    Node                                     60        60    done ahead
    import of Vite and of plugins            90        95    done ahead
    server made from the config              45        13    17    4 after a rehearsal
    listening                                30         7     8    2
    first page                               37        42     9   10

A whole dev server started ahead would save the rest, too, but it is bound to one base path, and it
has run a project's config, which may be anybody's code. To give it another base, Vite makes the
server anew (``server.restart()``: 77 to 200 ms with Vite 8). A process that waits fits every id and
has seen nobody's code but that of the packages.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.errors import SpawnFailed
from gateway.session import Endpoint
from gateway.settings import Settings
from gateway.spawner.child import Child, spawn
from gateway.spawner.dependencies import Dependencies, Needs, Stamp
from gateway.spawner.environment import dev_server_environment
from gateway.spawner.nodejs import Node
from gateway.spawner.recipes import Framework
from gateway.spawner.strays import Mark, end_processes
from gateway.spawner.threads import in_thread
from gateway.spawner.workspace import Workspace

LAUNCHERS: Final = Path(__file__).parent / "launchers"
#: What a launcher prints when it waits for its project.
_LOADED: Final = "preview: loaded"


@dataclass(frozen=True, slots=True)
class Order:
    """What a waiting process is to serve, and where."""

    endpoint: Endpoint
    base: str
    public_host: str
    env: Mapping[str, str]

    def __str__(self) -> str:
        """The line that launchers read."""
        return json.dumps(
            {
                "host": self.endpoint.host,
                "port": self.endpoint.port,
                "base": self.base,
                "publicHost": self.public_host,
                "env": dict(self.env),
            }
        )


@dataclass(eq=False, slots=True)
class WarmProcess:
    """A process in a workspace that holds dependencies and no project yet.

    Who lets it ``begin`` has to end the child and remove the workspace. ``stamp`` is that of the
    cache entry that it has loaded.
    """

    name: str
    workspace: Workspace
    child: Child
    stamp: Stamp | None

    def begin(self, order: Order, lines: Callable[[Sequence[str]], None]) -> None:
        """Let it serve the project in its workspace; ``lines`` is given what it says."""
        self.child.tell(str(order), lines)

    async def drop(self, *, grace_seconds: float) -> None:
        """End it and remove its workspace. Raises OSError if that fails."""
        await self.child.end(grace_seconds=grace_seconds)
        await in_thread(self.workspace.remove)


async def load(
    framework: Framework,
    needs: Needs,
    *,
    settings: Settings,
    spawner: str,
    dependencies: Dependencies,
    node: Node,
) -> WarmProcess:
    """A new process, once it waits for a project.

    Raises SpawnFailed; OSError, also if the dependencies are not installed. Nothing is left then.
    """
    name = f"warm-{secrets.token_hex(8)}"
    root = settings.data_dir.resolve() / "workspaces"
    workspace = Workspace(root, name, owner=spawner)
    mark = Mark(spawner, name)
    stamp = await dependencies.stamp(needs.key)
    try:
        await in_thread(workspace.make)
        await dependencies.link(needs, workspace.app)
        child = await _launch(framework, needs, settings, workspace, mark, node)
    except BaseException:
        await end_processes(mark, grace_seconds=0)
        await in_thread(workspace.remove)
        raise
    return WarmProcess(name, workspace, child, stamp)


async def _launch(
    framework: Framework,
    needs: Needs,
    settings: Settings,
    workspace: Workspace,
    mark: Mark,
    node: Node,
) -> Child:
    loaded = asyncio.Event()

    def hear(lines: Sequence[str]) -> None:
        if _LOADED in lines:
            loaded.set()

    env = dev_server_environment(
        os.environ, node=node.program, app=workspace.app, home=workspace.home, tmp=workspace.tmp
    )
    launcher = str(LAUNCHERS / framework.launcher)
    command = [str(node.program), launcher, "--wait", *needs.packages]
    child = await spawn(command, cwd=workspace.app, env=env, mark=mark, lines=hear)
    try:
        await _until_loaded(child, loaded, settings.start_timeout_seconds)
    except BaseException:
        await child.end(grace_seconds=0)
        raise
    return child


async def _until_loaded(child: Child, loaded: asyncio.Event, limit_seconds: float) -> None:
    events = (loaded, child.exited)
    tasks = [asyncio.create_task(event.wait(), name="load ahead") for event in events]
    try:
        await asyncio.wait(tasks, timeout=limit_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if not loaded.is_set():
        raise SpawnFailed(f"it {child.ending} before it had loaded: {child.output.tail}")
