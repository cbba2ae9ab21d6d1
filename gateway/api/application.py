"""The control plane as one aiohttp application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from gateway import __version__
from gateway.api.bodies import body_middleware
from gateway.api.call_log import call_log_middleware
from gateway.api.compat import CompatApi
from gateway.api.cors import cors_middleware
from gateway.api.creation import Creation
from gateway.api.dashboard import Dashboard
from gateway.api.events import EventStreams
from gateway.api.files import FilesApi
from gateway.api.gate import Gate
from gateway.api.links import LinksApi
from gateway.api.lookup import Lookup
from gateway.api.notes import NotesApi
from gateway.api.problems import OLDER_SHAPES, problem_middleware
from gateway.api.sessions import SessionApi
from gateway.api.tickets import Tickets
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Registry
from gateway.session import Recipe
from gateway.settings import Settings
from gateway.signing import Signer
from gateway.tokens import Tokens


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
    lookup = Lookup(settings, lifecycle)
    signer = Signer(settings.secret_key.get_secret_value())
    tickets = Tickets(registry, lookup)
    gate = Gate(
        *(settings, registry, lookup),
        tokens=Tokens(settings.tokens, settings.api_tokens_file),
        tickets=tickets,
        signer=signer,
    )
    application = web.Application(
        middlewares=[
            call_log_middleware(settings.replica),
            # CORS is outermost, so that pages of a configured origin can read errors too.
            cors_middleware(settings.cors_origins),
            problem_middleware,
            body_middleware(settings.max_api_body_bytes),
            gate.middleware,
        ],
    )
    creation = Creation(
        settings, registry, lifecycle, check_files=check_files, check_project=check_project
    )
    streams = EventStreams(registry, closing=health.closing)
    notes = NotesApi(settings, registry, lookup)
    sessions = SessionApi(
        settings, registry, lifecycle, lookup=lookup, creation=creation, streams=streams
    )
    files = FilesApi(registry, lifecycle, lookup=lookup, creation=creation)
    links = LinksApi(registry, lookup=lookup, signer=signer)
    compat = CompatApi(
        *(settings, registry, lifecycle),
        lookup=lookup,
        creation=creation,
        notes=notes,
        streams=streams,
    )
    for part in (health, sessions, files, notes, links, tickets, compat, Dashboard()):
        application.add_routes(part.routes())
    application[OLDER_SHAPES] = compat.shapes()

    async def replicas(_: web.Request) -> web.Response:
        found: list[dict[str, Any]] = [
            {"id": replica.id, "incarnation": replica.incarnation, "url": replica.url}
            for replica in await registry.replicas()
        ]
        return web.json_response({"replicas": found})

    application.router.add_get("/api/v1/replicas", replicas, allow_head=False)
    return application
