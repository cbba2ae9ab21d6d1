"""Finding and ending all processes of a job, wherever they have put themselves.

Each process that a spawner starts carries variables that name the spawner and the job; children
inherit them. So a process that left the process group (``setsid``, a daemon) is found in /proc.
A process that changed its environment *and* its group is not: local processes are no security
boundary. Where there is no /proc, only the group is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.spawner.threads import in_thread

SPAWNER_VARIABLE: Final = "PREVIEW_SPAWNER"
JOB_VARIABLE: Final = "PREVIEW_SESSION"

_PROC: Final = Path("/proc")
_PINS: Final = sys.platform == "linux" and hasattr(os, "pidfd_open")
#: After SIGKILL only the kernel stands between a process and its end.
_KILL_SECONDS: Final = 5.0
_KILL_ROUNDS: Final = 20
_GROUP_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Mark:
    """The variables that name a job's processes; an empty ``job`` stands for all of a spawner."""

    spawner: str
    job: str = ""

    @property
    def env(self) -> dict[str, str]:
        """The variables to start a process with."""
        return {SPAWNER_VARIABLE: self.spawner} | ({JOB_VARIABLE: self.job} if self.job else {})


async def end_processes(mark: Mark, *, grace_seconds: float, group: int = 0) -> bool:
    """SIGTERM, then SIGKILL after the grace, all processes of ``mark`` and of the group.

    Returns when none is left; False if some outlive SIGKILL for seconds.
    """
    if not _PINS:
        return await _end_group(group, grace_seconds)
    await _signal_and_wait(mark, group, signal.SIGTERM, grace_seconds)
    for _ in range(_KILL_ROUNDS):  # again, for what was forked meanwhile
        if not await _signal_and_wait(mark, group, signal.SIGKILL, _KILL_SECONDS):
            return True
    return False


async def _signal_and_wait(
    mark: Mark, group: int, number: signal.Signals, limit_seconds: float
) -> bool:
    """Signal every process that is found and wait for their end; whether any was found."""
    pinned = await in_thread(_pin, mark, group)
    try:
        for fd in pinned:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(fd, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                for fd in pinned:
                    await _readable(fd)
    finally:
        for fd in pinned:
            os.close(fd)
    return bool(pinned)


async def _readable(fd: int) -> None:
    # pidfd_open(2): readable once the process has ended.
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)


def _pin(mark: Mark, group: int) -> list[int]:
    """Descriptors of the living processes that belong to ``mark`` or the group.

    A descriptor stays with its process, so no signal can hit another one that got its number.
    """
    pinned = []
    variables = [f"{name}={value}".encode() for name, value in mark.env.items()]
    for pid in _pids():
        if not _belongs(pid, variables, group):
            continue
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if _belongs(pid, variables, group):
            pinned.append(fd)
        else:
            os.close(fd)
    return pinned


def _pids() -> Iterator[int]:
    with os.scandir(_PROC) as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def _belongs(pid: int, variables: list[bytes], group: int) -> bool:
    try:
        # proc(5): "pid (name) state ppid pgrp ...", where the name may hold anything.
        status = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        if status[0] in b"ZX":
            return False  # ended; its parent has yet to ask for its status
        if group and int(status[2]) == group:
            return True
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False  # gone, or another user's
    have = environment.split(b"\0")
    return all(variable in have for variable in variables)


async def _end_group(group: int, grace_seconds: float) -> bool:
    # Without pidfd the end of a group can only be asked for.
    for number, limit in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, _KILL_SECONDS)):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while _signal_group(group, number):  # noqa: ASYNC110
                    await asyncio.sleep(_GROUP_POLL_SECONDS)
    return not _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> bool:
    if not group:
        return False
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
        return False
    return True


def environment_of(mark: Mark, env: Mapping[str, str]) -> dict[str, str]:
    """``env`` with the mark, which nothing in it overrides."""
    return {**env, **mark.env}
