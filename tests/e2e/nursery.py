"""Replicas by fork: a process that has imported the gateway once makes each of them.

A replica is a process like any other; only its imports, 1.5 s of a processor each time, are done
already. ``python -m gateway serve`` as such is what ``test_cli.py`` starts.

The process that forks is this file as a program. It is asked over a socket pair: a line
of JSON (the environment) and the descriptor that becomes standard output and error; it answers with
the number of the new process, and tells each end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

_LONGEST_BYTES: Final = 2**20
_LIMIT_SECONDS: Final = 60.0


class Born:
    """A process that was forked: the part of ``asyncio.subprocess.Process`` that tests need."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Its status, once it has ended; negative for a signal."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def ended(self, status: int) -> None:
        """It has ended."""
        self.returncode = status
        self._ended.set()


class Nursery:
    """The process that forks, for all event loops that come one after the other."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            # As a file, and with nothing of its folder on the path: `gateway` is the one of this
            # run, compiled or not.
            [sys.executable, "-P", __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._socket = ours
        self._born: dict[int, Born] = {}
        self._early: dict[int, int] = {}
        ours.setblocking(False)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._enter(asyncio.get_running_loop())

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear of pids and ends in this event loop; the one before is closed."""
        if loop is not self._loop:
            self._loop = loop
            self._pids: asyncio.Queue[int] = asyncio.Queue()
            self._turn = asyncio.Lock()
            self._born.clear()
            loop.add_reader(self._socket, self._heard)

    def _heard(self) -> None:
        message = self._socket.recv(_LONGEST_BYTES)
        if not message:
            raise EOFError("the process that forks replicas has ended")
        told: dict[str, int] = json.loads(message)
        if "status" not in told:
            self._pids.put_nowait(told["pid"])
        elif born := self._born.pop(told["pid"], None):
            born.ended(told["status"])
        else:
            self._early[told["pid"]] = told["status"]

    async def serve(self, environ: Mapping[str, str]) -> Born:
        """``preview-gateway serve`` with this environment and nothing else of ours."""
        loop = asyncio.get_running_loop()
        self._enter(loop)
        reading, writing = os.pipe()
        try:
            async with self._turn, asyncio.timeout(_LIMIT_SECONDS):
                request = json.dumps(dict(environ)).encode()
                socket.send_fds(self._socket, [request], [writing])
                pid = await self._pids.get()
        finally:
            os.close(writing)
        stdout = asyncio.StreamReader(limit=_LONGEST_BYTES)
        protocol = asyncio.StreamReaderProtocol(stdout)
        await loop.connect_read_pipe(lambda: protocol, os.fdopen(reading, "rb"))
        born = Born(pid, stdout)
        if pid in self._early:
            born.ended(self._early.pop(pid))
        else:
            self._born[pid] = born
        return born


_nursery: Nursery | None = None


async def serve(environ: Mapping[str, str]) -> Born:
    """``preview-gateway serve`` with this environment, by the nursery of this process."""
    global _nursery
    if _nursery is None:
        _nursery = Nursery()
    return await _nursery.serve(environ)


# -- the process that forks ------------------------------------------------------------------------


def _fork(environ: Mapping[str, str], output: int, talk: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        talk.close()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environ)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        random.seed()

        from gateway.cli import main

        status = main(["serve"])
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _work(talk: socket.socket) -> None:
    """Fork as asked until nobody asks any more."""
    waking, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks

    while True:
        readable, _, _ = select.select([talk.fileno(), waking], [], [])
        if waking in readable:
            with suppress(BlockingIOError):
                os.read(waking, 4096)
            _tell_ends(talk)
        if talk.fileno() in readable:
            request, fds, _, _ = socket.recv_fds(talk, _LONGEST_BYTES, 1)
            if not request:
                return
            pid = _fork(json.loads(request), fds[0], talk)
            os.close(fds[0])
            talk.send(json.dumps({"pid": pid}).encode())


def _tell_ends(talk: socket.socket) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            talk.send(json.dumps({"pid": pid, "status": code}).encode())


if __name__ == "__main__":
    import gateway.app
    import gateway.cli  # noqa: F401 - what every replica needs

    _work(socket.socket(fileno=int(sys.argv[1])))
