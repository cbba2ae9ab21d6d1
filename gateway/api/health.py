"""Liveness and readiness, and which replicas there are."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway import __version__
from gateway.api.operation import ADMINS, OPEN, Answer, Call, operation, routes_of
from gateway.api.query import AnyQuery, Query
from gateway.api.views import LiveView, ReadyView, ReplicaList, ReplicaView
from gateway.registry.base import Registry


class Health:
    """A registry that is away does not make a replica unready: all replicas would leave together,
    and with them every preview that still works.
    """

    def __init__(self) -> None:
        self.ready = False
        #: Set when the replica shuts down; ends every event stream.
        self.closing = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        """Their routes, for a port of their own, too."""
        return routes_of(self)

    @operation(
        "live",
        "GET",
        "/livez",
        tag="replicas",
        scopes=OPEN,
        answers={200: Answer("It does.", LiveView)},
    )
    async def livez(self, call: Call[AnyQuery, None]) -> web.Response:
        """Does the process answer?

        With `GATEWAY_ADMIN_PORT`, `/livez`, `/readyz` and `/metrics` (Prometheus) on that port.
        """
        return call.answer(LiveView(status="ok", version=__version__))

    @operation(
        "ready",
        "GET",
        "/readyz",
        tag="replicas",
        scopes=OPEN,
        answers={200: Answer("It may.", ReadyView), 503: Answer("The replica leaves.", ReadyView)},
    )
    async def readyz(self, call: Call[AnyQuery, None]) -> web.Response:
        """May traffic come?"""
        if self.ready:
            return call.answer(ReadyView(status="ready"))
        return call.answer(ReadyView(status="draining"), status=503)


class ReplicasApi:
    """Which replicas there are."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @operation(
        "listReplicas",
        "GET",
        "/api/v1/replicas",
        tag="replicas",
        scopes=ADMINS,
        answers={200: Answer("The list.", ReplicaList)},
    )
    async def list(self, call: Call[Query, None]) -> web.Response:
        """List the replicas that have a lease."""
        found = [
            ReplicaView(id=replica.id, incarnation=replica.incarnation, url=replica.url)
            for replica in await self._registry.replicas()
        ]
        return call.answer(ReplicaList(replicas=found))
