"""The document of the API (OpenAPI 3.1), made from its operations and their models. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from gateway import __version__
from gateway.api.bodies import ARCHIVE_TYPE, JSON_TYPE, Overloaded
from gateway.api.operation import INTERNAL, Answer, Operation
from gateway.api.problems import PROBLEM_TYPE, UnsupportedMediaType, problem_model
from gateway.api.texts import DESCRIPTION, SECURITY, TAGS
from gateway.errors import (
    BadRequest,
    BadSessionId,
    Forbidden,
    GatewayError,
    PayloadTooLarge,
    RegistryUnavailable,
    Unauthorized,
)
from gateway.session import SESSION_ID_PATTERN
from gateway.tokens import Scope

#: Schemas of the document by model and use.
Schemas: TypeAlias = Mapping[tuple[Any, JsonSchemaMode], dict[str, Any]]
#: By the place of an id in an answer and by name: what it leads to.
Links: TypeAlias = Mapping[str, Mapping[str, dict[str, Any]]]

_REF: Final = "#/components/schemas/{model}"
#: Of bytes that are no request, which the data plane refuses for the whole gateway.
_MALFORMED: Final = "malformed_request"
#: The least scope that is enough, for who sends a token.
_LEAST: Final = (Scope.READ, Scope.CREATE, Scope.ADMIN)
_SESSION_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "The id of a session.",
    "schema": {"type": "string", "pattern": SESSION_ID_PATTERN, "minLength": 8, "maxLength": 40},
    "example": "hello-preview",
}
_RETRY_AFTER: Final = {
    "description": "Seconds after which to try again.",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}


class _Generator(GenerateJsonSchema):
    """In the order of the models, without a title for every field: the names say as much."""

    def sort(self, value: Any, parent_key: str | None = None) -> Any:
        return value

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def document_of(operations: Iterable[Operation]) -> dict[str, Any]:
    """The document of all operations but those of the gateway's own pages."""
    shown = [found for found in operations if found.tag != INTERNAL]
    schemas, definitions = _schemas(shown)
    links = _links(shown)
    paths: dict[str, dict[str, Any]] = {}
    for found in shown:
        path = paths.setdefault(found.path, {})
        if found.is_of_session:
            path["parameters"] = [_SESSION_ID]
        path[found.method.lower()] = _operation(found, schemas, links)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "info": {
            "title": "Preview gateway",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": definitions,
            "links": {name: link for found in links.values() for name, link in found.items()},
            "securitySchemes": SECURITY,
        },
    }


# -- schemas ---------------------------------------------------------------------------------------


def _schemas(operations: Iterable[Operation]) -> tuple[Schemas, dict[str, Any]]:
    """A reference to each model, and what is referred to."""
    used = list(dict.fromkeys(use for found in operations for use in _models(found)))
    schemas, rest = models_json_schema(
        used, by_alias=True, ref_template=_REF, schema_generator=_Generator
    )
    definitions = {name: _plain(schema) for name, schema in sorted(rest["$defs"].items())}
    return schemas, definitions


def _models(found: Operation) -> Iterator[tuple[type[BaseModel], JsonSchemaMode]]:
    if found.body is not None:
        yield found.body, "validation"
    for answer in found.answers.values():
        if answer.model is not None:
            yield answer.model, "serialization"
    for error in problems_of(found):
        yield problem_model(error), "serialization"
    if found.shape is not None:
        yield found.shape.model, "serialization"


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A model's schema with its docstring as Markdown, on one line for each paragraph."""
    text = schema.get("description", "")
    paragraphs = [" ".join(part.split()) for part in text.replace("``", "`").split("\n\n")]
    return {**schema, "description": "\n\n".join(paragraphs)} if text else schema


# -- operations ------------------------------------------------------------------------------------


def _operation(found: Operation, schemas: Schemas, links: Links) -> dict[str, Any]:
    summary, _, text = found.text.partition("\n\n")
    shown: dict[str, Any] = {
        "operationId": found.name,
        "tags": [found.tag],
        "summary": " ".join(summary.split()),
        "security": _security(found),
    }
    if text:
        shown["description"] = text
    if parameters := [*_query(found), *_fields(found)]:
        shown["parameters"] = parameters
    if found.body is not None:
        shown["requestBody"] = _body(found, schemas[found.body, "validation"])
    shown["responses"] = {
        **{
            str(status): _answer(answer, schemas, links)
            for status, answer in sorted(found.answers.items())
        },
        **_refusals(found, schemas),
    }
    return shown


def _security(found: Operation) -> list[dict[str, list[str]]]:
    if not found.scopes:
        return []
    least = next(scope for scope in _LEAST if scope in found.scopes)
    tickets: list[dict[str, list[str]]] = [{"ticket": []}] if found.by_ticket else []
    return [{"token": [str(least)]}, *tickets]


def _query(found: Operation) -> Iterator[dict[str, Any]]:
    schema = found.query.model_json_schema(by_alias=True, schema_generator=_Generator)
    tickets = {SECURITY["ticket"]["name"]} if found.by_ticket else set()
    for name, described in schema.get("properties", {}).items():
        if name in tickets:
            continue
        shown = _without_null(described)
        parameter = {"name": name, "in": "query", "schema": shown}
        if text := shown.pop("description", ""):
            parameter["description"] = text
        if shown.get("type") == "object":
            parameter |= {"style": "form", "explode": True}
        if media := shown.pop("contentMediaType", ""):
            parameter.pop("schema")
            parameter["content"] = {media: {"schema": {"type": "object"}}}
        yield parameter


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without null, which no query can hold: what is left out is left out."""
    kept = {name: value for name, value in schema.items() if value is not None}
    for choice in kept.pop("anyOf", ()):
        if choice.get("type") != "null":
            kept |= choice
    return kept


def _fields(found: Operation) -> Iterator[dict[str, Any]]:
    for declared in found.fields:
        yield {
            "name": declared.name,
            "in": "header",
            "description": declared.meaning[:1].upper() + declared.meaning[1:] + ".",
            "schema": {"type": "string", "pattern": declared.pattern},
            "example": declared.example,
        }


def _body(found: Operation, schema: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {JSON_TYPE: {"schema": schema}}
    if found.or_archive:
        content[ARCHIVE_TYPE] = {}
    return {"required": True, "content": content}


def _answer(answer: Answer, schemas: Schemas, links: Links) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": answer.meaning}
    content: dict[str, Any] = {}
    if answer.model is not None:
        content[JSON_TYPE] = {"schema": schemas[answer.model, "serialization"]}
    for media in filter(None, (answer.media, *answer.also)):
        content[media] = {"schema": {"type": "object"}} if media == JSON_TYPE else {}
    if content:
        shown["content"] = content
    if answer.fields:
        shown["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in answer.fields.items()
        }
    if answer.session_at:
        shown["links"] = {
            link["operationId"]: {"$ref": f"#/components/links/{name}"}
            for name, link in links[answer.session_at].items()
        }
    return shown


def _links(operations: Iterable[Operation]) -> Links:
    """By the place of an id in an answer: the calls that it leads to, of the same generation."""
    links: dict[str, dict[str, dict[str, Any]]] = {}
    for source in operations:
        for place in {answer.session_at for answer in source.answers.values()} - {""}:
            links[place] = {
                found.name + place.replace("/", "-"): {
                    "operationId": found.name,
                    "parameters": {"id": f"$response.body#{place}"},
                }
                for found in operations
                if found.is_of_session and (found.shape is None) == (source.shape is None)
            }
    return links


# -- what goes wrong -------------------------------------------------------------------------------


def problems_of(found: Operation) -> list[type[GatewayError]]:
    """The errors that a call may answer: those it declares, and those of its kind."""
    problems: list[type[GatewayError]] = [BadRequest]
    if found.is_of_session:
        problems.append(BadSessionId)
    if found.scopes:
        problems += [Unauthorized, Forbidden]
    problems += found.problems
    if found.body is not None:
        problems += [PayloadTooLarge, UnsupportedMediaType, Overloaded]
    if found.scopes:
        problems.append(RegistryUnavailable)
    return list(dict.fromkeys(problems))


def codes_of(found: Operation) -> dict[int, list[str]]:
    """By status, the codes of a call's problems."""
    codes: dict[int, list[str]] = {}
    for error in problems_of(found):
        codes.setdefault(error.status, []).append(error.code)
    codes[BadRequest.status].append(_MALFORMED)
    return dict(sorted(codes.items()))


def _refusals(found: Operation, schemas: Schemas) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for status, codes in codes_of(found).items():
        if status in found.answers:
            continue
        errors = [error for error in problems_of(found) if error.status == status]
        models = dict.fromkeys(problem_model(error) for error in errors)
        refs = [schemas[model, "serialization"] for model in models]
        parts: list[dict[str, Any]] = [
            refs[0] if len(refs) == 1 else {"anyOf": refs},
            {"properties": {"code": {"enum": codes}}},
        ]
        if found.shape is not None:
            parts.append(schemas[found.shape.model, "serialization"])
        refusal: dict[str, Any] = {
            "description": "; ".join(dict.fromkeys(error.title for error in errors)) + ".",
            "content": {PROBLEM_TYPE: {"schema": {"allOf": parts}}},
        }
        if any(error.retry_after is not None for error in errors) or status == 429:
            refusal["headers"] = {"Retry-After": _RETRY_AFTER}
        shown[str(status)] = refusal
    return shown
