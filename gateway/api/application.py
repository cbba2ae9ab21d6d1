"""The control plane as one aiohttp application."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from gateway.api.bodies import body_middleware
from gateway.api.call_log import call_log_middleware
from gateway.api.catalogue import DocumentApi, add_routes
from gateway.api.compat import CompatApi
from gateway.api.cors import cors_middleware
from gateway.api.creation import Creation
from gateway.api.dashboard import Dashboard
from gateway.api.events import EventStreams
from gateway.api.files import FilesApi
from gateway.api.gate import Gate
from gateway.api.health import Health, ReplicasApi
from gateway.api.links import LinksApi
from gateway.api.lookup import Lookup
from gateway.api.notes import NotesApi
from gateway.api.problems import problem_middleware
from gateway.api.sessions import SessionApi
from gateway.api.tickets import Tickets
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Registry
from gateway.session import Recipe
from gateway.settings import Settings
from gateway.signing import Signer
from gateway.tokens import Tokens


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
    replicas = ReplicasApi(registry)
    add_routes(
        application,
        (sessions, files, notes, links, tickets, replicas, health, DocumentApi(), compat),
    )
    application.add_routes(Dashboard().routes())
    return application
