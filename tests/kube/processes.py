"""The processes of one pod: started in its folder, and found again wherever they went."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

import psutil

from tests.kube.rendering import Command

#: Where programs are found: beside the running Python first.
PATH: Final = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
)

_KILL_SECONDS: Final = 10.0


class Processes:
    """What runs of a pod whose files lie in ``folder``.

    On a node a container's processes die with it, whatever they did to their process group. Here
    they are known by their session, their working directory and their variables, where the pod's
    folder is named.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._sessions: set[int] = set()

    async def start(self, command: Command, *, host: str, log: Path) -> asyncio.subprocess.Process:
        """Start a container's first process. Raises OSError."""
        env = {
            "PATH": PATH,
            "HOME": self._folder,
            "HOSTNAME": host,
            # What every pod has, service links or not.
            "KUBERNETES_SERVICE_HOST": "10.96.0.1",
            "KUBERNETES_SERVICE_PORT": "443",
            **command.env,
        }
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                cwd=command.cwd,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions.add(process.pid)
        return process

    async def kill(self) -> None:
        """Kill all of them; returns when none is left. Raises TimeoutError if one stays."""
        async with asyncio.timeout(_KILL_SECONDS):
            # A process may start another one while the list is read.
            while found := self._find():
                for process in found:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGKILL)
                await asyncio.sleep(0.005)

    def _find(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_of_pod(process)]

    def _is_of_pod(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                return False
            if os.getsid(process.pid) in self._sessions:
                return True
            places = [process.cwd(), *process.environ().values()]
        except (psutil.Error, OSError):
            return False
        return any(self._folder in place for place in places)
