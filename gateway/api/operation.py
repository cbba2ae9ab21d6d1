"""One call of the API: what it takes, what it answers, who may make it.

A handler is marked with ``operation`` and written in terms of a ``Call``, which names the models of
its parameters and its body. From that come the route, the check of all that comes in, the shape of
all that goes out, the scopes that the gate asks for, and the document of the API. So the document
cannot say anything else than what the handler gets and gives: what is not declared cannot be read,
and answering it is an error of the gateway.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast, get_args, get_type_hints

from aiohttp import web
from pydantic import BaseModel

from gateway.api import query
from gateway.api.bodies import Archive, read_body
from gateway.api.problems import OlderShape, route_of
from gateway.api.query import Query
from gateway.errors import BadRequest, GatewayError
from gateway.session import SessionId, parse_session_id
from gateway.tokens import Scope

QueryT = TypeVar("QueryT", bound=Query)
BodyT = TypeVar("BodyT")
HandlerT = TypeVar("HandlerT", bound=Callable[..., Awaitable[web.StreamResponse]])

#: For everybody, without a token.
OPEN: Final[frozenset[Scope]] = frozenset()
ADMINS: Final = frozenset({Scope.ADMIN})
MANAGERS: Final = frozenset({Scope.ADMIN, Scope.CREATE})
READERS: Final = frozenset({Scope.ADMIN, Scope.CREATE, Scope.READ})
#: Who comes with a ticket reads one session.
TICKETED: Final = frozenset({Scope.ADMIN, Scope.READ})

#: The tag of what only the gateway's own pages ask: not in the document.
INTERNAL: Final = "internal"

_MARK: Final = "operation"


@dataclass(frozen=True, slots=True)
class HeaderField:
    """A field that a call takes; ``pattern`` is what its value must match."""

    name: str
    pattern: str
    meaning: str
    example: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: JSON of a ``model``, or content of a ``media`` type, or nothing.

    ``also`` are further forms of the content, ``session_at`` is where in the model the id of the
    session stands (RFC 6901), ``fields`` are header fields with their meaning.
    """

    meaning: str
    model: type[BaseModel] | None = None
    media: str = ""
    also: tuple[str, ...] = ()
    session_at: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """A call, as its handler declares it. ``text`` is the handler's docstring."""

    name: str
    method: str
    path: str
    tag: str
    text: str
    query: type[Query]
    body: type[BaseModel] | None
    or_archive: bool
    answers: Mapping[int, Answer]
    scopes: frozenset[Scope]
    #: What can go wrong, besides what can in every call of this kind.
    problems: tuple[type[GatewayError], ...] = ()
    fields: tuple[HeaderField, ...] = ()
    #: The body may be large.
    with_files: bool = False
    #: Opened by a ticket in the address, too.
    by_ticket: bool = False
    shape: OlderShape | None = None

    @property
    def is_of_session(self) -> bool:
        """Whether the address names a session."""
        return "{id}" in self.path


#: The addresses that ask for no token, whatever the method.
OPEN_PATHS: Final = web.AppKey("open_paths", frozenset[str])
#: By method and path, all there are.
OPERATIONS: Final = web.AppKey("operations", dict[tuple[str, str], Operation])


class Call(Generic[QueryT, BodyT]):
    """A request that has passed every check that its operation declares."""

    def __init__(
        self, request: web.Request, operation: Operation, query: QueryT, body: BodyT
    ) -> None:
        self.request = request
        self.query = query
        self.body = body
        self._operation = operation

    @property
    def session_id(self) -> SessionId:
        """The id in the address."""
        return SessionId(self.request.match_info["id"])

    def field(self, declared: HeaderField) -> str | None:
        """The value of a header field; None without one. Raises BadRequest."""
        if declared not in self._operation.fields:
            raise TypeError(f"{self._operation.name} does not declare {declared.name}")
        value = self.request.headers.get(declared.name)
        if value is not None and not re.fullmatch(declared.pattern, value):
            raise BadRequest(
                f"{declared.name}: {value[:40]!r} is none: send {declared.meaning}, or leave it out"
            )
        return value

    def answer(
        self, view: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """A declared answer, as JSON."""
        if self._operation.answers[status].model is not type(view):
            raise TypeError(f"{self._operation.name} does not declare {type(view).__name__}")
        body = view.model_dump(by_alias=True)
        return web.json_response(body, status=status, headers=headers)

    def secret(self, view: BaseModel) -> web.Response:
        """201 with what nobody may keep on the way."""
        return self.answer(view, status=201, headers={"Cache-Control": "no-store"})

    def content(
        self, body: bytes, media: str, *, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """A declared answer that is no JSON."""
        declared = self._operation.answers[200]
        if media not in (declared.media, *declared.also):
            raise TypeError(f"{self._operation.name} does not declare {media}")
        charset = "utf-8" if media.startswith("text/") else None
        return web.Response(body=body, content_type=media, charset=charset, headers=headers)

    def done(self) -> web.Response:
        """204."""
        if 204 not in self._operation.answers:
            raise TypeError(f"{self._operation.name} does not declare 204")
        return web.Response(status=204)


def operation(
    name: str,
    method: str,
    path: str,
    *,
    tag: str,
    scopes: frozenset[Scope],
    answers: Mapping[int, Answer],
    problems: tuple[type[GatewayError], ...] = (),
    fields: tuple[HeaderField, ...] = (),
    with_files: bool = False,
    by_ticket: bool = False,
    shape: OlderShape | None = None,
) -> Callable[[HandlerT], HandlerT]:
    """Mark a handler as that of an operation (see there), which ``operations_of`` finds.

    The models are those of the handler's parameter ``call: Call[..., ...]``.
    """

    def mark(handler: HandlerT) -> HandlerT:
        takes, body, or_archive = _models(handler)
        declared = Operation(
            name=name,
            method=method,
            path=path,
            tag=tag,
            text=_text(handler),
            query=takes,
            body=body,
            or_archive=or_archive,
            answers=answers,
            scopes=scopes,
            problems=problems,
            fields=fields,
            with_files=with_files,
            by_ticket=by_ticket,
            shape=shape,
        )
        setattr(handler, _MARK, declared)
        return handler

    return mark


def operations_of(part: type) -> Iterator[tuple[str, Operation]]:
    """The operations that a class declares, in its order, each with its handler's name."""
    for name, member in vars(part).items():
        declared = getattr(member, _MARK, None)
        if declared is not None:
            yield name, declared


def routes_of(part: object) -> list[web.RouteDef]:
    """The routes of a part of the API: each operation, and HEAD where there is GET.

    RFC 9110 9.1: a resource that can be got has HEAD, too.
    """
    return [
        # For GET, aiohttp adds HEAD.
        web.route(declared.method, declared.path, _checked(declared, getattr(part, name)))
        for name, declared in operations_of(type(part))
    ]


def operation_of(request: web.Request) -> Operation | None:
    """The operation that a request has found; None where there is none."""
    method = "GET" if request.method == "HEAD" else request.method
    return request.app[OPERATIONS].get((method, route_of(request)))


def _checked(
    declared: Operation, handler: Callable[[Call[Any, Any]], Awaitable[web.StreamResponse]]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        if declared.is_of_session:
            parse_session_id(request.match_info["id"])
        takes = query.parse(declared.query, request.query)
        body: Any = None
        if declared.body is not None:
            body = await read_body(
                request,
                declared.body,
                with_files=declared.with_files,
                or_archive=declared.or_archive,
            )
        return await handler(Call(request, declared, takes, body))

    return answer


def _models(handler: Callable[..., Any]) -> tuple[type[Query], type[BaseModel] | None, bool]:
    """The models of a handler's query and body, and whether the body may be a tar.gz."""
    takes, body = get_args(get_type_hints(handler)["call"])
    members = get_args(body) or (body,)
    models = [member for member in members if member not in (Archive, type(None))]
    return (
        cast("type[Query]", takes),
        cast("type[BaseModel]", models[0]) if models else None,
        Archive in members,
    )


def _text(handler: Callable[..., Any]) -> str:
    """What a handler's docstring says, as Markdown; a line that is continued is one line."""
    text = inspect.cleandoc(handler.__doc__ or "")
    return re.sub(r"(?<=\S) {2,}", " ", text.replace("``", "`"))
