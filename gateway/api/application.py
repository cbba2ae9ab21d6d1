"""The control plane as one aiohttp application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from gateway import __version__
from gateway.api.auth import cors_middleware, token_middleware
from gateway.api.events import EventStreams
from gateway.api.kontext import KontextApi
from gateway.api.problems import problem_middleware
from gateway.api.sessions import SessionApi
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Registry
from gateway.session import Recipe
from gateway.settings import Settings


class Health:
    """Liveness and readiness. A registry that is away does not make a replica unready: all
    replicas would leave together, and with them every preview that still works.
    """

    def __init__(self) -> None:
        self.ready = False
        #: Set when the replica shuts down; ends every event stream.
        self.closing = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        """``/livez`` and ``/readyz``."""
        return [
            web.get("/livez", self.livez),
            web.get("/readyz", self.readyz),
        ]

    async def livez(self, _: web.Request) -> web.Response:
        """The process answers."""
        return web.json_response({"status": "ok", "version": __version__})

    async def readyz(self, _: web.Request) -> web.Response:
        """Traffic may come."""
        if self.ready:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "draining"}, status=503)


def make_application(
    settings: Settings,
    registry: Registry,
    lifecycle: Lifecycle,
    health: Health,
    *,
    check_files: Callable[[Mapping[str, bytes]], None],
    check_project: Callable[[Recipe, Mapping[str, bytes]], None],
) -> web.Application:
    """The application behind every request that is for no preview.

    ``check_files`` raises BadFiles, ``check_project`` UnsupportedProject.
    """
    application = web.Application(
        middlewares=[
            # CORS is outermost, so that pages of a configured origin can read errors too.
            cors_middleware(settings.cors_origins),
            problem_middleware,
            token_middleware(settings.tokens),
        ],
        client_max_size=settings.max_api_body_bytes,
    )
    sessions = SessionApi(
        settings,
        registry,
        lifecycle,
        streams=EventStreams(registry, closing=health.closing),
        check_files=check_files,
        check_project=check_project,
    )
    application.add_routes(health.routes())
    application.add_routes(sessions.routes())
    application.add_routes(KontextApi(sessions).routes())

    async def replicas(_: web.Request) -> web.Response:
        found: list[dict[str, Any]] = [
            {"id": replica.id, "incarnation": replica.incarnation, "url": replica.url}
            for replica in await registry.replicas()
        ]
        return web.json_response({"replicas": found})

    application.router.add_get("/api/v1/replicas", replicas, allow_head=False)
    return application
