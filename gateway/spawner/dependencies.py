"""node_modules for workspaces: installed once per set of dependencies, then hard-linked.

``<data_dir>/dependencies/<key>/`` is made under a temporary name and renamed when it is complete;
what exists is complete. The files are shared by all workspaces that link them, so they are
read-only: a program that wants to change one replaces it, and thereby its own copy alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import secrets
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.errors import SpawnFailed
from gateway.settings import PREFIX, Settings
from gateway.spawner.base import Reports
from gateway.spawner.child import spawn
from gateway.spawner.environment import npm_environment
from gateway.spawner.hardlinks import link_tree
from gateway.spawner.manifests import cache_key, npm_arguments, npm_files
from gateway.spawner.nodejs import Node
from gateway.spawner.npm_errors import npm_errors, npm_reason
from gateway.spawner.package_json import dependency_names, read_package
from gateway.spawner.strays import Mark
from gateway.spawner.threads import in_thread
from gateway.spawner.workspace import TEMPORARY, remove_tree

_FORMAT: Final = "1"
_LOCK_POLL_SECONDS: Final = 0.05
_KEPT_LINES: Final = 1000
_END_GRACE_SECONDS: Final = 1.0

#: Inode and time of change of a cache entry.
Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a project needs installed: the files npm is given, and the cache entry for them."""

    key: str
    given: Mapping[str, bytes] = field(repr=False)

    @property
    def packages(self) -> list[str]:
        """The names that package.json lists, in order."""
        return sorted(dependency_names(read_package(self.given)))


@dataclass(slots=True)
class _Fill:
    """An install under way: its task, and the jobs that wait for it."""

    task: asyncio.Task[None]
    waiting: list[Reports] = field(default_factory=list)
    running: str = ""


class Dependencies:
    """The cache of installed dependencies of one data directory, shared between processes."""

    def __init__(self, settings: Settings, *, spawner: str, node: Callable[[], Awaitable[Node]]):
        """``spawner`` names the owner in marks and temporary names; ``node`` finds Node."""
        self.root = settings.data_dir.resolve() / "dependencies"
        self._settings = settings
        self._spawner = spawner
        self._node = node
        self._fills: dict[str, _Fill] = {}
        self._closing = False

    async def needs(self, files: Mapping[str, bytes]) -> Needs | None:
        """What the project needs installed; None for nothing.

        Raises UnsupportedProject for a malformed package.json.
        """
        given = npm_files(files)
        if not given:
            return None
        circumstances = self._circumstances(await self._node())
        return Needs(cache_key(given, circumstances=circumstances), given)

    async def install(self, needs: Needs, reports: Reports) -> None:
        """Fill the cache entry, unless it is there. Raises SpawnFailed with npm's reason."""
        entry = self.root / needs.key
        while not await in_thread(entry.is_dir):
            await self._filled(entry, needs.given, await self._node(), reports)

    async def provide(self, needs: Needs, app: Path, reports: Reports) -> None:
        """Put what a project needs into its folder; run npm only if it is new.

        Raises SpawnFailed with npm's reason.
        """
        await self.install(needs, reports)
        await self.link(needs, app)

    async def link(self, needs: Needs, app: Path) -> None:
        """Put what is installed into a project's folder. Raises FileNotFoundError if it is not."""
        await in_thread(_link_all, self.root / needs.key, app)

    async def stamp(self, key: str) -> Stamp | None:
        """What changes when a cache entry is replaced; None if none can be read."""
        return await in_thread(_stamp, self.root / key)

    async def close(self) -> None:
        """End every install under way. Idempotent."""
        self._closing = True
        tasks = [fill.task for fill in self._fills.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _circumstances(self, node: Node) -> list[str]:
        scripts = "scripts" if self._settings.install_scripts else "no scripts"
        libc = "".join(platform.libc_ver())
        machine = [sys.platform, platform.machine(), libc]
        return [_FORMAT, *machine, node.version, node.npm_version, scripts]

    async def _filled(
        self, entry: Path, given: Mapping[str, bytes], node: Node, reports: Reports
    ) -> None:
        """Wait for the one install of this entry; the last who stops waiting ends it."""
        fill = self._fills.get(entry.name)
        if fill is None:
            task = asyncio.create_task(
                self._fill(entry, given, node), name=f"install {entry.name[:12]}"
            )
            fill = self._fills[entry.name] = _Fill(task)
            task.add_done_callback(lambda _: self._forget(entry.name))
        fill.waiting.append(reports)
        if fill.running:
            reports.phase("installing", fill.running)
        try:
            await asyncio.wait({fill.task})
        finally:
            fill.waiting.remove(reports)
            if not fill.waiting and not fill.task.done():
                fill.task.cancel()
                await asyncio.wait({fill.task})
        if not fill.task.cancelled():
            fill.task.result()
        elif self._closing:
            raise SpawnFailed("the install of the dependencies was stopped")
        # Otherwise the job that began it went away while this one came: the caller looks again.

    def _forget(self, key: str) -> None:
        task = self._fills.pop(key).task
        if not task.cancelled():
            task.exception()  # retrieved, should nobody be left who waits for it

    async def _fill(self, entry: Path, given: Mapping[str, bytes], node: Node) -> None:
        limit = self._settings.install_timeout_seconds
        await in_thread(self.root.mkdir, mode=0o700, parents=True, exist_ok=True)
        try:
            async with asyncio.timeout(limit), _file_lock(entry.with_suffix(".lock")):
                if not await in_thread(entry.is_dir):  # another process may have filled it
                    await self._install(entry, given, node)
        except TimeoutError as exc:
            raise SpawnFailed(
                f"the dependencies were not installed within {limit:g} s: are they too many, or "
                f"is the package registry slow? {PREFIX}INSTALL_TIMEOUT_SECONDS raises the limit"
            ) from exc

    async def _install(self, entry: Path, given: Mapping[str, bytes], node: Node) -> None:
        folder = self.root / f"{TEMPORARY}{self._spawner}.{secrets.token_hex(8)}"
        try:
            await in_thread(_write_all, folder, given)
            arguments = npm_arguments(given, scripts=self._settings.install_scripts)
            await self._npm(folder, arguments, entry.name, node)
            await in_thread(_finish, folder, entry)
        except BaseException:
            if folder.exists():
                await in_thread(remove_tree, folder)
            raise

    async def _npm(self, folder: Path, arguments: Sequence[str], key: str, node: Node) -> None:
        """Run npm in ``folder`` and tell all who wait what it says. Raises SpawnFailed."""
        fill, said = self._fills[key], list[str]()

        def tell(lines: Sequence[str]) -> None:
            said.extend(lines)
            del said[:-_KEPT_LINES]
            for reports in fill.waiting:
                reports.log(lines)

        fill.running = f"npm {arguments[0]}"
        for reports in fill.waiting:
            reports.phase("installing", fill.running)
        mark = Mark(self._spawner, f"npm.{key}")
        env = npm_environment(
            os.environ, node=node.program, fallback_home=self.root.parent / "npm-cache"
        )
        try:
            child = await spawn([*node.npm, *arguments], cwd=folder, env=env, mark=mark, lines=tell)
        except OSError as exc:
            raise SpawnFailed(f"npm cannot be run: {exc.strerror}") from exc
        try:
            await child.exited.wait()
        finally:
            await child.end(grace_seconds=_END_GRACE_SECONDS)
        if child.status != 0:
            reason = npm_reason(fill.running, child.ending, said)
            tail = "\n".join(npm_errors(said)) or child.output.tail
            raise SpawnFailed(reason, log_tail=tail)


@contextlib.asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    """Hold a lock between processes. The kernel lets it go when its holder dies."""
    file = await in_thread(path.open, "ab")
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # A blocking flock() would keep a thread that nobody can cancel.
                await asyncio.sleep(_LOCK_POLL_SECONDS)
        yield


def _write_all(folder: Path, given: Mapping[str, bytes]) -> None:
    for path, content in given.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _finish(folder: Path, entry: Path) -> None:
    (folder / "node_modules").mkdir(exist_ok=True)  # npm makes none if all are optional
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~0o222)
    folder.rename(entry)


def _stamp(entry: Path) -> Stamp | None:
    try:
        facts = entry.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_ctime_ns


def _link_all(entry: Path, app: Path) -> None:
    """Link node_modules, and those of the packages inside the project, into ``app``."""
    (entry / "node_modules").stat()  # os.walk says nothing of a folder that is not there
    for parent, folders, _ in os.walk(entry):
        if "node_modules" in folders:
            inside = Path(parent).relative_to(entry)
            (app / inside).mkdir(parents=True, exist_ok=True)
            link_tree(Path(parent) / "node_modules", app / inside / "node_modules")
            folders.remove("node_modules")
