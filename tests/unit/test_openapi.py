"""The document of the API: whole, valid, and about what is really there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import jsonschema_rs
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import MultiDict
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from gateway.api.application import make_application
from gateway.api.catalogue import PARTS, document, operations
from gateway.api.dashboard import OPEN_ROUTES
from gateway.api.health import Health
from gateway.api.openapi import codes_of
from gateway.api.operation import INTERNAL, Call
from gateway.api.query import Query, parse
from gateway.api.schemas import CreateSession
from gateway.api.views import LiveView, ReadyView
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Replica
from gateway.registry.redis_store import RedisRegistry
from gateway.settings import load_settings

DOCUMENT: Final = document()
METHODS: Final = frozenset({"get", "put", "post", "patch", "delete"})
#: Those of the dashboard are pages, no calls.
PAGES: Final = {*OPEN_ROUTES, "/dashboard/{name}"}


def application() -> web.Application:
    """The real one; nothing is connected before it starts."""
    settings = load_settings({"secret_key": "x" * 32})
    registry = RedisRegistry(settings, url="redis://127.0.0.1:1")
    lifecycle = Lifecycle(settings, registry, None, Replica("a", "1"))
    return make_application(
        *(settings, registry, lifecycle, Health()),
        check_files=lambda _: None,
        check_project=lambda _, __: None,
    )


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of each call in the document."""
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS & item.keys():
            yield method.upper(), path, item[method]


# -- the routes ------------------------------------------------------------------------------------


def test_every_route_is_in_the_document_and_nothing_else() -> None:
    served = {
        (route.method, route.resource.canonical)
        for route in application().router.routes()
        if route.resource is not None and route.resource.canonical not in PAGES
    }
    inside = {(found.method, found.path) for found in operations() if found.tag == INTERNAL}
    shown = {(method, path) for method, path, _ in calls()}
    # RFC 9110: HEAD comes with GET, OPTIONS with every address.
    heads = {("HEAD", path) for method, path in shown | inside if method == "GET"}
    options = {("OPTIONS", path) for _, path in shown | inside}
    assert served == shown | inside | heads | options


def test_every_part_of_the_application_is_in_the_catalogue() -> None:
    names = [found.name for found in operations()]
    assert len(names) == len(set(names))
    assert len(PARTS) == len(set(PARTS))


def test_every_parameter_that_a_call_reads_is_in_the_document() -> None:
    shown = {(method, path): call for method, path, call in calls()}
    for found in operations():
        if found.tag == INTERNAL:
            continue
        call = shown[found.method, found.path]
        names = {(part["in"], part["name"]) for part in call.get("parameters", ())}
        taken = {("query", field.alias or name) for name, field in found.query.model_fields.items()}
        if found.by_ticket:
            taken.discard(("query", DOCUMENT["components"]["securitySchemes"]["ticket"]["name"]))
        assert names == taken | {("header", field.name) for field in found.fields}
        assert ("requestBody" in call) == (found.body is not None)


def test_what_is_not_declared_can_be_neither_answered_nor_read() -> None:
    found = next(found for found in operations() if found.name == "ready")
    request = make_mocked_request("GET", "/readyz")
    call: Call[Any, Any] = Call(request, found, parse(found.query, MultiDict()), None)
    assert call.answer(ReadyView(status="ready")).status == 200
    with pytest.raises(TypeError, match="LiveView"):
        call.answer(LiveView(status="ok", version="1"))
    with pytest.raises(KeyError):
        call.answer(ReadyView(status="ready"), status=201)
    with pytest.raises(TypeError, match="204"):
        call.done()
    with pytest.raises(TypeError, match="text/html"):
        call.content(b"", "text/html")
    stream = next(found for found in operations() if found.name == "streamEvents")
    with pytest.raises(TypeError, match="Last-Event-ID"):
        call.field(stream.fields[0])


# -- the document ----------------------------------------------------------------------------------


def test_the_document_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    OPENAPI_31_VALIDATOR.validate(DOCUMENT)


def test_every_schema_is_one_of_json_schema_2020_12() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        dialect = "https://json-schema.org/draft/2020-12/schema"
        jsonschema_rs.meta.validate({"$schema": dialect, **schema})


def test_every_reference_leads_somewhere() -> None:
    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            for member in part.values():
                yield from references(member)
        elif isinstance(part, list):
            for member in part:
                yield from references(member)

    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    names = {call["operationId"] for _, _, call in calls()}
    assert {link["operationId"] for link in DOCUMENT["components"]["links"].values()} <= names


def test_every_call_has_words_answers_and_problems() -> None:
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for _, path, call in calls():
        assert call["summary"].endswith((".", "?"))
        assert set(call["tags"]) <= tags
        assert any(status.startswith("2") for status in call["responses"])
        assert "400" in call["responses"]
        assert ("401" in call["responses"]) == bool(call["security"])
        for parameter in call.get("parameters", ()):
            assert "schema" in parameter or "content" in parameter, (path, parameter)


def test_the_codes_of_problems_are_those_of_the_error_tree() -> None:
    create = next(found for found in operations() if found.name == "createSession")
    codes = codes_of(create)
    assert codes[409] == ["session_conflict"]
    assert codes[422] == ["idempotency_key_reused"]
    assert {"bad_request", "bad_session_id", "bad_files", "unsupported_project"} <= set(codes[400])


def test_the_examples_are_what_their_models_take() -> None:
    for example in DOCUMENT["components"]["schemas"]["CreateSession"]["examples"]:
        assert CreateSession.model_validate_json(json.dumps(example)).contents()
    schema = DOCUMENT["components"]["schemas"]["SessionView"]
    assert set(schema["example"]) == set(schema["required"]) == set(schema["properties"])


def test_answers_may_grow_and_bodies_may_not() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert "additionalProperties" not in schemas["SessionView"]
    assert schemas["CreateSession"]["additionalProperties"] is False
    assert Query.model_config["extra"] == "forbid"
