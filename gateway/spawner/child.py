"""One child process: its output, its exit, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

from gateway.spawner.output import Output
from gateway.spawner.strays import Mark, end_processes, environment_of

log = logging.getLogger(__name__)

#: Descriptors a dev server may open; Node raises its soft limit to the hard one by itself.
_OPEN_FILES: Final = 65536
#: After the end of all processes, how long the rest of their output and their status may take.
_DRAIN_SECONDS: Final = 1.0


class Child(asyncio.SubprocessProtocol):
    """A process in a group of its own; from the end of its input it can tell its parent's.

    Output and exit are told apart (a grandchild may hold the pipe open for longer), which is why
    this is an ``asyncio.SubprocessProtocol`` and no ``asyncio.subprocess.Process``.
    """

    def __init__(self, mark: Mark, lines: Callable[[Sequence[str]], None]) -> None:
        """``lines`` is given the lines of each read; it must return at once."""
        self.mark = mark
        self.output = Output()
        self.exited = asyncio.Event()
        self.pid = 0
        self._lines = lines
        self._drained = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None

    # -- asyncio.SubprocessProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process runs."""
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        """Output, as it comes."""
        self._tell(self.output.feed(cast(bytes, data)))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """No process holds that pipe any more."""
        if fd == 1 and not self._drained.is_set():
            self._tell(self.output.end())
            self._drained.set()

    def process_exited(self) -> None:
        """The process itself has ended; what it started may run on."""
        self.exited.set()

    # -- for the owner

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._transport.get_returncode() if self._transport else None

    @property
    def ending(self) -> str:
        """How it ended, to go on a sentence: "exited with status 3"."""
        status = self.status
        if status is None:
            return "did not end"
        if status >= 0:
            return f"exited with status {status}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
        return f"was ended by signal {-status}"

    def tell(self, line: str, lines: Callable[[Sequence[str]], None]) -> None:
        """Write a line to its input. What it said before counts no more; ``lines`` is given the
        rest.
        """
        self.output = Output()
        self._lines = lines
        pipe = self._transport.get_pipe_transport(0) if self._transport else None
        if pipe:  # otherwise it has ended
            cast(asyncio.WriteTransport, pipe).write(f"{line}\n".encode())

    async def end(self, *, grace_seconds: float) -> None:
        """End the process and all it started, read the rest of the output, free the pipes."""
        if not await end_processes(self.mark, grace_seconds=grace_seconds, group=self.pid):
            log.error("processes of %s outlive SIGKILL", self.mark.job)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self.exited.wait()
                await self._drained.wait()
        if self._transport:
            self._transport.close()

    def _tell(self, lines: list[str]) -> None:
        if lines:
            self._lines(lines)


async def spawn(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    mark: Mark,
    lines: Callable[[Sequence[str]], None],
) -> Child:
    """Start a process with exactly this environment and the mark. Raises OSError."""
    loop = asyncio.get_running_loop()
    _, child = await loop.subprocess_exec(
        lambda: Child(mark, lines),
        *command,
        cwd=cwd,
        env=environment_of(mark, env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    _limit(child.pid)
    return child


def _limit(pid: int) -> None:
    if sys.platform != "linux":
        return
    import resource  # not on every platform

    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        if hard == resource.RLIM_INFINITY or hard > _OPEN_FILES:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
