"""Every operation of the API, and the document that is made of them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection
from functools import cache
from itertools import chain
from typing import Any, Final

from aiohttp import web

from gateway.api.bodies import JSON_TYPE
from gateway.api.compat import CompatApi
from gateway.api.files import FilesApi
from gateway.api.health import Health, ReplicasApi
from gateway.api.links import LinksApi
from gateway.api.notes import NotesApi
from gateway.api.openapi import document_of
from gateway.api.operation import (
    OPEN,
    OPEN_PATHS,
    OPERATIONS,
    Answer,
    Call,
    Operation,
    operation,
    operations_of,
    routes_of,
)
from gateway.api.problems import OLDER_SHAPES
from gateway.api.query import AnyQuery
from gateway.api.sessions import SessionApi
from gateway.api.tickets import Tickets


class DocumentApi:
    """The document of the API, served. It holds nothing that this repository does not hold."""

    @operation(
        "getDocument",
        "GET",
        "/api/v1/openapi.json",
        tag="replicas",
        scopes=OPEN,
        answers={200: Answer("OpenAPI 3.1.", media=JSON_TYPE)},
    )
    async def get(self, call: Call[AnyQuery, None]) -> web.Response:
        """Read this document (OpenAPI 3.1), without a token."""
        return call.content(_encoded(), JSON_TYPE)


#: In the order of the document.
PARTS: Final = (
    SessionApi,
    FilesApi,
    NotesApi,
    LinksApi,
    Tickets,
    ReplicasApi,
    Health,
    DocumentApi,
    CompatApi,
)


@cache
def operations() -> tuple[Operation, ...]:
    """All operations, those of the gateway's own pages with them."""
    return tuple(declared for part in PARTS for _, declared in operations_of(part))


@cache
def document() -> dict[str, Any]:
    """The document of the API (OpenAPI 3.1) as JSON."""
    return document_of(operations())


@cache
def _encoded() -> bytes:
    return json.dumps(document()).encode()


def add_routes(application: web.Application, parts: tuple[object, ...]) -> None:
    """Let an application answer what ``parts`` declare, and OPTIONS at each of these addresses."""
    declared = [found for part in parts for _, found in operations_of(type(part))]
    application[OPERATIONS] = {(found.method, found.path): found for found in declared}
    closed = {found.path for found in declared if found.scopes}
    application[OPEN_PATHS] = frozenset({found.path for found in declared} - closed)
    application[OLDER_SHAPES] = {
        found.path: found.shape for found in declared if found.shape is not None
    }
    application.add_routes(chain.from_iterable(routes_of(part) for part in parts))
    for path in dict.fromkeys(found.path for found in declared):
        methods = {found.method for found in declared if found.path == path}
        application.router.add_route("OPTIONS", path, _options(methods))


def _options(
    methods: Collection[str],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """What can be asked here (RFC 9110 9.3.7)."""
    allowed = {*methods, "OPTIONS", *(("HEAD",) if "GET" in methods else ())}
    fields = {"Allow": ", ".join(sorted(allowed))}

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=204, headers=fields)

    return answer
