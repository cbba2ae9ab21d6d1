"""The data plane of one process, put together: routes, what connections share, the public port."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gateway import usage
from gateway.proxy.listener import Listener
from gateway.proxy.plane import DataPlane
from gateway.proxy.routes import RouteTable, Waker
from gateway.registry.base import Registry
from gateway.settings import Settings
from gateway.telemetry import Sample

#: The loop says once a second that it runs; a busy machine may be late.
_SHORTEST_STALL_SECONDS: Final = 2.5


class Serving:
    """Serves the public port: in the gateway's only process, or in one of several workers."""

    def __init__(
        self, settings: Settings, registry: Registry, waker: Waker, *, control_socket: str
    ) -> None:
        self.routes = RouteTable(
            registry,
            wait_seconds=settings.registration_wait_seconds,
            max_age_seconds=settings.route_max_age_seconds,
            # A lease is renewed three times in its life: with no more than half of it lost in a
            # stall no other replica can have claimed anything.
            lookups_per_second=settings.lookups_per_second,
            stall_seconds=max(settings.lease_seconds / 2, _SHORTEST_STALL_SECONDS),
            clock=time.monotonic,
        )
        self.plane = DataPlane(
            settings, routes=self.routes, waker=waker, control_socket=control_socket
        )
        self.listener = Listener(self.plane)

    async def open(self, sock: socket.socket) -> None:
        """Listen to changes of routes, then accept connections from ``sock``, which is bound."""
        self.routes.open()
        await self.listener.open(sock)

    async def close(self, *, grace_seconds: float = 0.0, drain_seconds: float) -> None:
        """Drain the port as ``Listener.close`` says, then let go of the routes. Idempotent."""
        try:
            await self.listener.close(grace_seconds=grace_seconds, drain_seconds=drain_seconds)
        finally:
            await self.routes.close()

    def samples(self) -> Iterator[Sample]:
        """The counters of this process, as ``telemetry.Metrics`` takes them."""
        stats, routes = self.plane.stats, self.routes
        yield ("responses", "Responses sent on.", "counter", _labelled("code", stats.responses))
        yield (
            "errors",
            "Answers of the gateway's own.",
            "counter",
            _labelled("code", stats.errors),
        )
        yield (
            "client_connections",
            "Open client connections, without tunnels.",
            "gauge",
            [({}, len(self.listener.connections))],
        )
        yield ("active_tunnels", "Open WebSocket tunnels.", "gauge", [({}, stats.tunnels)])
        hmr = {"resumed": stats.hmr_resumed, "given_up": stats.hmr_given_up}
        yield (
            "hmr_sockets",
            "HMR sockets kept while their dev server was started anew, and what became of them.",
            "counter",
            _labelled("outcome", hmr),
        )
        yield (
            "upstream_connections",
            "Open connections to dev servers and to the control plane, with those of tunnels.",
            "gauge",
            [({}, sum(len(pool) for pool in self.plane.pools))],
        )
        yield ("routes", "Cached routes.", "gauge", [({}, len(routes))])
        yield ("route_reads", "Reads of the registry.", "counter", [({}, routes.stats.reads)])
        unknown = {
            "not_found": routes.stats.not_found,
            "delayed": routes.stats.delayed,
            "refused": routes.stats.refused,
        }
        yield (
            "unknown_ids",
            "Requests for sessions of which nothing was known, by what came of them: not found, "
            "looked up later, or refused (503).",
            "counter",
            _labelled("outcome", unknown),
        )
        yield (
            "stale_routes",
            "Requests served by a stale route.",
            "counter",
            [({}, routes.stats.stale)],
        )
        yield (
            "data_plane_stalls",
            "Times at which the data plane stood still for too long to trust its routes.",
            "counter",
            [({}, routes.stats.stalls)],
        )
        yield ("registry_linked", "Whether changes are pushed.", "flag", [({}, routes.linked)])
        yield from usage.samples()


def _labelled(label: str, values: Mapping[Any, int]) -> list[tuple[dict[str, str], float]]:
    return [({label: str(key)}, float(value)) for key, value in values.items()]
