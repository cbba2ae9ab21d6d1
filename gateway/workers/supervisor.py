"""The workers of one gateway: started together, replaced one by one, drained together."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from typing import Final

from gateway import usage
from gateway.errors import GatewayError
from gateway.proxy.routes import Waker
from gateway.settings import Settings
from gateway.telemetry import Sample
from gateway.workers.link import Message, pack_settings
from gateway.workers.pauses import Pauses
from gateway.workers.process import WorkerProcess
from gateway.workers.sockets import listening_sockets
from gateway.workers.tally import Tally, merged

log: Final = logging.getLogger(__name__)

#: All workers must serve within this time after the start.
_READY_SECONDS: Final = 60.0
#: Beyond the drain: what a worker needs to end once it has nothing left to do.
_END_SECONDS: Final = 5.0


class WorkerFailed(GatewayError):
    """A worker could not be started."""

    code = "worker_failed"
    title = "Worker failed"


class _Place:
    """What stays while workers come and go: the socket, and who is there now."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.worker: WorkerProcess | None = None
        #: Whether that worker accepts connections.
        self.up = False
        self.restarts = 0
        self.keeper: asyncio.Task[None] | None = None
        #: Done when the first worker here accepts connections, or has failed to.
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ready(self) -> None:
        """The worker accepts connections."""
        self.up = True
        if not self.opened.done():
            self.opened.set_result(None)


class Workers:
    """N data-plane processes on one port. The same to its user as ``Serving`` in one process."""

    def __init__(self, settings: Settings, waker: Waker, *, control_socket: str) -> None:
        self._count = settings.workers
        self._start: Message = {
            "settings": pack_settings(share(settings)),
            "control_socket": control_socket,
            "log_level": logging.getLevelName(logging.getLogger().getEffectiveLevel()),
        }
        self._waker = waker
        self._tally = Tally()
        self._places: list[_Place] = []
        self._closing = False

    async def open(self, sock: socket.socket) -> None:
        """Listen on the port of ``sock``, which is bound; returns when all workers accept.

        Raises SettingsError if the port cannot be shared, WorkerFailed if one does not start.
        """
        sockets = listening_sockets(sock, self._count)
        self._places = [_Place(number, sock) for number, sock in enumerate(sockets)]
        for place in self._places:
            place.keeper = asyncio.create_task(self._keep(place), name=f"worker {place.number}")
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await asyncio.gather(*(place.opened for place in self._places))
        except TimeoutError as exc:
            raise WorkerFailed(f"not all workers serve after {_READY_SECONDS:g} s") from exc

    async def close(self, *, grace_seconds: float = 0.0, drain_seconds: float) -> None:
        """Let all workers drain, as ``Serving.close`` says, and end them. Idempotent.

        What they serve to the end may need the control plane: it must be there until then.
        """
        self._closing = True
        keepers = []
        for place in self._places:
            # The worker's own copy is the last one now: closing it, it stops listening.
            place.sock.close()
            if place.worker is not None:
                place.worker.drain(grace_seconds=grace_seconds, drain_seconds=drain_seconds)
            elif place.keeper is not None:
                place.keeper.cancel()
            if place.keeper is not None:
                keepers.append(place.keeper)
        if not keepers:
            return
        try:
            limit = grace_seconds + drain_seconds + _END_SECONDS
            _, late = await asyncio.wait(keepers, timeout=limit)
            if late:
                log.error("%d workers did not end and are killed", len(late))
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
        self._places = []

    def samples(self) -> Iterator[Sample]:
        """The samples of all workers added up, at most a second old, and how the workers are.

        What processes hold is that of the workers and of this one.
        """
        yield from merged([self._tally.samples(), usage.samples()])
        ups = [({"worker": str(place.number)}, float(place.up)) for place in self._places]
        yield ("worker_up", "Whether a data-plane process serves.", "gauge", ups)
        restarts = [
            ({"worker": str(place.number)}, float(place.restarts)) for place in self._places
        ]
        yield ("worker_restarts", "Data-plane processes replaced.", "counter", restarts)

    async def _keep(self, place: _Place) -> None:
        """See to it that there is a worker in this place, until the gateway closes."""
        pauses = Pauses()
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            ended = await self._run_one(place)
            if self._closing:
                return
            if not place.opened.done():
                place.opened.set_exception(WorkerFailed(f"worker {place.number} {ended}"))
                return
            pause = pauses.after(clock() - started)
            again = f" in {pause:g} s" if pause else ""
            log.error("worker %d %s and is started again%s", place.number, ended, again)
            place.restarts += 1
            await asyncio.sleep(pause)

    async def _run_one(self, place: _Place) -> str:
        """One worker from start to end; how it ended."""
        try:
            place.worker = await WorkerProcess.start(
                place.number,
                place.sock,
                self._start,
                waker=self._waker,
                tally=self._tally,
                ready=place.ready,
            )
            return f"(process {place.worker.pid}) {await place.worker.run()}"
        except OSError as exc:
            return f"could not be started ({exc})"
        except Exception:
            log.exception("worker %d is lost", place.number)
            return "is lost"
        finally:
            place.worker, place.up = None, False


def share(settings: Settings) -> Settings:
    """The settings of one worker: its part of the limits that are meant for the gateway."""

    def part(total: int) -> int:
        return -(-total // settings.workers)

    return settings.model_copy(
        update={
            "max_connections": part(settings.max_connections),
            "max_connections_per_preview": part(settings.max_connections_per_preview),
            "max_queue_per_preview": part(settings.max_queue_per_preview),
            "max_tunnels_per_preview": part(settings.max_tunnels_per_preview),
        }
    )
