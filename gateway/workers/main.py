"""A worker: a process that serves the public port and nothing else.

It is started by ``workers.process`` with its number and the descriptors of its listening socket and
of its end of the link; all else comes over the link, so that no secret is on a command line. It
lives no longer than the control process, whatever ends that.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Collection
from typing import Any, Final

import uvloop

from gateway.errors import RegistryUnavailable
from gateway.proxy.serving import Serving
from gateway.registry.redis_store import RedisRegistry
from gateway.session import SessionId
from gateway.telemetry import configure_logging
from gateway.workers.link import (
    ControlUnavailable,
    Link,
    Message,
    unpack_error,
    unpack_settings,
)

log: Final = logging.getLogger(__name__)

_REPORT_SECONDS: Final = 1.0
#: Several calls of the control process to the registry, each with a limit of its own.
_CALL_SECONDS: Final = 15.0
#: Ids in one message.
_TOUCHED: Final = 1000
_LINK_PAUSE_SECONDS: Final = 1.0
#: prctl(2).
_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Entry of the process."""
    number, listening, link = map(int, sys.argv[1:4])
    # Who is to end a gateway signals its control process; that lets the workers drain first, also
    # where a service manager signals all processes at once.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The end of the link tells as much, but not to an event loop that hangs.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    uvloop.run(_work(number, socket.socket(fileno=listening), socket.socket(fileno=link)))


async def _work(number: int, listening: socket.socket, pair: socket.socket) -> None:
    link = await Link.over(pair)
    first = await link.receive()
    if first is None:
        return
    start = first["start"]
    configure_logging(
        start["log_level"], process=f"worker {number}", form=start["settings"]["log_format"]
    )
    await Worker(link, first["start"]).serve(listening)


class Worker:
    """The data plane of this process, and what it says and hears over the link."""

    def __init__(self, link: Link, start: Message) -> None:
        self._link = link
        self._control = ControlProcess(link)
        settings = self._settings = unpack_settings(start["settings"])
        self._registry = RedisRegistry(settings, url=settings.redis_url)
        self._serving = Serving(
            settings, self._registry, self._control, control_socket=start["control_socket"]
        )
        self._drain: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def serve(self, listening: socket.socket) -> None:
        """Serve until the control process says that it is enough."""
        connecting = asyncio.create_task(self._connect(), name="link to the registry")
        tasks = [
            connecting,
            asyncio.create_task(self._hear(), name="link to the control process"),
            asyncio.create_task(self._report(), name="reports"),
        ]
        await asyncio.wait((connecting,), timeout=self._settings.registry_timeout_seconds)
        await self._serving.open(listening)
        self._link.send({"ready": True})
        await self._serving.close(**await self._drain)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._registry.close()
        self._send_report()
        await self._link.flushed()

    async def _hear(self) -> None:
        try:
            while (message := await self._link.receive()) is not None:
                if "drain" in message:
                    self._drain.set_result(message["drain"])
                else:
                    self._control.answered(message)
        except Exception:
            log.exception("the link to the control process failed")
        # The control process is gone, or cannot wait any longer. Nothing is left to be put in order
        # that the kernel would not do.
        os._exit(1)

    async def _report(self) -> None:
        while True:
            self._send_report()
            await asyncio.sleep(_REPORT_SECONDS)

    def _send_report(self) -> None:
        # One that is not taken yet will do, too: the control process is busy.
        if not self._link.unsent:
            self._link.send({"report": list(self._serving.samples())})

    async def _connect(self) -> None:
        """Link up with the registry. Without it previews are looked up at each maximal age, and
        while it is away, what needs it is answered with 503: no reason not to serve the rest.
        """
        while True:
            try:
                await self._registry.open()
            except RegistryUnavailable as exc:
                log.warning("this worker is not told of changes yet: %s", exc)
                await asyncio.sleep(_LINK_PAUSE_SECONDS)
            else:
                return


class ControlProcess:
    """The life cycle, as far as a data plane needs it, in the other process. Implements
    ``proxy.routes.Waker``; raises ControlUnavailable if there is no answer.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._last = 0

    async def touch(self, session_ids: Collection[SessionId]) -> None:
        """Note that these sessions have traffic."""
        ids = list(session_ids)
        for begin in range(0, len(ids), _TOUCHED):
            await self._call("touch", sessions=ids[begin : begin + _TOUCHED])

    async def wake(self, session_id: SessionId, *, generation: int) -> bool:
        """See to it that a dev server newer than ``generation`` is on its way."""
        return bool(await self._call("wake", session=session_id, generation=generation))

    def answered(self, message: Message) -> None:
        """An answer has come in; who called may have left."""
        call = self._calls.get(message["answer"])
        if call is not None and not call.done():
            call.set_result(message)

    async def _call(self, what: str, **arguments: Any) -> Any:
        self._last += 1
        number = self._last
        call = self._calls[number] = asyncio.get_running_loop().create_future()
        self._link.send({"call": number, "do": what, **arguments})
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                answer = await call
        except TimeoutError as exc:
            raise ControlUnavailable(
                f"the control process did not answer within {_CALL_SECONDS:g} s; try again"
            ) from exc
        finally:
            del self._calls[number]
        if "error" in answer:
            raise unpack_error(answer, session_id=str(arguments.get("session", "")))
        return answer["result"]
