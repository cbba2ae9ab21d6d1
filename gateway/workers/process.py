"""One worker as the control process sees it: started, heard, drained, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from gateway.errors import GatewayError
from gateway.proxy.routes import Waker
from gateway.session import SessionId
from gateway.settings import PREFIX
from gateway.workers.link import Link, Message, pack_error, unpack_samples
from gateway.workers.tally import Tally

log: Final = logging.getLogger(__name__)

#: How long a new process may take to say its first word: the machine may be busy.
_START_SECONDS: Final = 30
#: A worker reports once a second; one whose event loop hangs for this long is replaced.
_HUNG_SECONDS: Final = 10
#: What a worker has said last is read within this time after its end.
_LAST_WORDS_SECONDS: Final = 1.0

#: Imports what this process would, and nothing from the directory that it was started in.
_BOOTSTRAP: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from gateway.workers.main import main; main()"
)


class WorkerProcess:
    """A running worker."""

    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        link: Link,
        *,
        waker: Waker,
        tally: Tally,
        ready: Callable[[], None],
    ) -> None:
        self.number = number
        self._process = process
        self._link = link
        self._waker = waker
        self._tally = tally
        self._ready = ready
        self._calls: set[asyncio.Task[None]] = set()
        #: Seconds of this process's own time in which nothing was heard.
        self._silent = 0
        self._patience = _START_SECONDS

    @classmethod
    async def start(
        cls,
        number: int,
        sock: socket.socket,
        start: Message,
        *,
        waker: Waker,
        tally: Tally,
        ready: Callable[[], None],
    ) -> WorkerProcess:
        """Start a worker that accepts from ``sock``, which listens, and then calls ``ready``.

        It is a fresh program, no fork: nothing of this process but the two sockets is left to it.
        Raises OSError.
        """
        ours, theirs = socket.socketpair()
        inherited = (sock.fileno(), theirs.fileno())
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", _BOOTSTRAP, json.dumps(sys.path)),
                *map(str, (number, *inherited)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env={k: v for k, v in os.environ.items() if not k.startswith(PREFIX)},
                pass_fds=inherited,
                # Ctrl-C in a terminal is for the control process, which lets workers drain.
                start_new_session=True,
            )
            link = await Link.over(ours)
        except BaseException:
            ours.close()  # a process that has been started ends by that
            raise
        finally:
            theirs.close()
        link.send({"start": start})
        return cls(number, process, link, waker=waker, tally=tally, ready=ready)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def run(self) -> str:
        """Do what it asks for until it has ended; how it ended, to go on a sentence.

        A worker that hangs is killed, and so is one whose run is cancelled.
        """
        hearing = asyncio.create_task(self._hear(), name=f"link to worker {self.number}")
        watching = asyncio.create_task(self._watch(), name=f"watch over worker {self.number}")
        try:
            status = await self._process.wait()
            await asyncio.wait((hearing,), timeout=_LAST_WORDS_SECONDS)
        finally:
            self.kill()
            tasks = (hearing, watching, *self._calls)
            for task in tasks:
                task.cancel()
            await asyncio.gather(self._process.wait(), *tasks, return_exceptions=True)
            self._link.close()
            self._tally.gone(self.number)
        return _ending(status)

    def drain(self, **how: float) -> None:
        """Let it serve to the end what it has begun, and exit; arguments of ``Serving.close``."""
        self._link.send({"drain": how})

    def kill(self) -> None:
        """End it at once. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _watch(self) -> None:
        """Kill a worker that has been silent for too long.

        Seconds are counted, not read from a clock: if this process stood still itself, or both did,
        what the worker said meanwhile is heard before the next second is counted.
        """
        while self._silent < self._patience:
            await asyncio.sleep(1.0)
            self._silent += 1
        log.error(
            "worker %d (process %d) has said nothing for %d s and is killed",
            *(self.number, self.pid, self._silent),
        )
        self.kill()

    # -- what it says ----------------------------------------------------------------------------

    async def _hear(self) -> None:
        try:
            while (message := await self._link.receive()) is not None:
                self._silent, self._patience = 0, _HUNG_SECONDS
                self._take(message)
        except Exception:
            log.exception("the link to worker %d failed", self.number)
            self.kill()

    def _take(self, message: Message) -> None:
        if "report" in message:
            self._tally.report(self.number, unpack_samples(message["report"]))
        elif "ready" in message:
            self._ready()
        else:
            call = asyncio.create_task(
                self._answer(message), name=f"{message['do']} for worker {self.number}"
            )
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _answer(self, message: Message) -> None:
        """Call the life cycle and send its answer. The worker minds how long that may take."""
        answer: Message = {"answer": message["call"]}
        try:
            answer["result"] = await self._call(message)
        except GatewayError as exc:
            answer |= pack_error(exc)
        except Exception:
            log.exception("%s for worker %d failed", message["do"], self.number)
            answer |= pack_error(GatewayError("the gateway failed; its log says why"))
        self._link.send(answer)

    async def _call(self, message: Message) -> Any:
        if message["do"] == "wake":
            session_id = SessionId(message["session"])
            return await self._waker.wake(session_id, generation=message["generation"])
        return await self._waker.touch([SessionId(text) for text in message["sessions"]])


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"
