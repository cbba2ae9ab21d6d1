"""The reference of the HTTP API in Markdown, made from its document (OpenAPI 3.1).

``python scripts/api_reference.py`` prints it; with file names it is written into each file. What no
call can say (sessions, previews) is prose of this file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from gateway.api.catalogue import document

_METHODS: Final = ("get", "post", "put", "patch", "delete")

_HEAD: Final = """\
<!-- Made by scripts/api_reference.py from the API's own document: `make docs` after a change. -->

# HTTP API

The same as OpenAPI 3.1 is served at `/api/v1/openapi.json`, and printed by `preview-gateway
openapi`.
"""

_PREVIEWS: Final = """\
## Previews

`/preview/<id>/...`, or `<id>.<GATEWAY_PREVIEW_DOMAIN>/...`. Every response carries
`x-preview-replica`.

| The session | A navigation gets | Anything else gets |
|---|---|---|
| is being registered | held up to `GATEWAY_REGISTRATION_WAIT_SECONDS` | the same |
| is starting | the starting page: 503, `no-store`, `Retry-After`; it reloads itself | held up to \
`GATEWAY_HOLD_SECONDS`, then 503 |
| is ready | the dev server's answer | the dev server's answer |
| has stopped, failed, expired | a page with the reason: 410 | `application/problem+json`: 410 |
| never existed | a page: 404 | 404 with `success: false`, `error`, `sessionId`, `retries` too |

`/preview/<id>/hmr` upgrades to the dev server's HMR socket without its token or subprotocol.
`/preview/<id>/.preview/` is the gateway's own.
"""

#: Shown as a section of its own.
_SESSION: Final = "SessionView"
_FORMATS: Final = {"date-time": "time", "uri": "URL"}
_IN_WORDS: Final = {
    _SESSION: "[a session](#a-session)",
    "JsonValue": "any JSON",
    "State": "a state",
}


class Reference:
    """Renders one document."""

    def __init__(self, shown: Mapping[str, Any]) -> None:
        self._document = shown
        self._schemas: Mapping[str, Any] = shown["components"]["schemas"]

    def text(self) -> str:
        """The whole page."""
        parts = [_HEAD, self._document["info"]["description"].rstrip() + "\n", *self._session()]
        for tag in self._document["tags"]:
            parts += self._tag(tag)
        return "\n".join([*parts, _PREVIEWS])

    def _session(self) -> Iterator[str]:
        schema = self._schemas[_SESSION]
        yield "## A session\n"
        yield f"```json\n{json.dumps(schema['example'], indent=2)}\n```\n"
        yield "`state` is one of {}.\n".format(
            ", ".join(f"`{state}`" for state in self._schemas["State"]["enum"])
        )
        rows = [
            (f"`{name}`", _meaning(part))
            for name, part in schema["properties"].items()
            if _meaning(part)
        ]
        yield from _table(("Field", ""), rows)

    def _tag(self, tag: Mapping[str, str]) -> Iterator[str]:
        name = tag["name"]
        yield f"## {name[:1].upper()}{name[1:]}\n"
        yield f"{tag['description']}\n"
        for path, item in self._document["paths"].items():
            for method in _METHODS:
                call = item.get(method)
                if call is not None and call["tags"] == [name]:
                    yield from self._call(method.upper(), path, call)

    # -- a call ----------------------------------------------------------------------------------

    def _call(self, method: str, path: str, call: Mapping[str, Any]) -> Iterator[str]:
        yield f"### `{method} {path}`\n"
        text = call["summary"] + "\n"
        if "description" in call:
            text += "\n" + call["description"] + "\n"
        yield text
        yield from self._parameters(call.get("parameters", ()))
        if "requestBody" in call:
            yield from self._body(call["requestBody"])
        yield from self._answers(call)

    def _parameters(self, parameters: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        rows = [
            (
                f"`{part['name']}`" + (" (header)" if part["in"] == "header" else ""),
                self._type(part.get("schema", {"type": "object"})),
                _meaning(part),
            )
            for part in parameters
        ]
        yield from _table(("Parameter", "", ""), rows)

    def _body(self, body: Mapping[str, Any]) -> Iterator[str]:
        schema = self._resolved(body["content"]["application/json"]["schema"])
        required = schema.get("required", ())
        rows = [
            (f"`{name}`" + ("" if name in required else "?"), self._type(part), _meaning(part))
            for name, part in schema.get("properties", {}).items()
        ]
        yield from _table(("Field of the body", "", ""), rows)

    def _answers(self, call: Mapping[str, Any]) -> Iterator[str]:
        rows, refusals = [], []
        for status, answer in call["responses"].items():
            if codes := self._codes(answer):
                refusals.append(f"{status} " + ", ".join(f"`{code}`" for code in codes))
                continue
            rows.append((status, self._content(answer), answer["description"]))
        yield from _table(("Answer", "", ""), rows)
        who = self._who(call)
        yield f"{who}Problems: {'; '.join(refusals)}.\n"

    def _who(self, call: Mapping[str, Any]) -> str:
        scopes = [scope for need in call["security"] for scope in need.get("token", ())]
        if not scopes:
            return "Needs no token. "
        ticket = ", or a ticket" if any("ticket" in need for need in call["security"]) else ""
        return f"Needs a token of the scope `{scopes[0]}`{ticket}. "

    def _codes(self, answer: Mapping[str, Any]) -> list[str]:
        problem = answer.get("content", {}).get("application/problem+json")
        if problem is None:
            return []
        parts = problem["schema"]["allOf"]
        return [
            code
            for part in parts
            for code in part.get("properties", {}).get("code", {}).get("enum", ())
        ]

    def _content(self, answer: Mapping[str, Any]) -> str:
        shown = []
        for media, content in answer.get("content", {}).items():
            schema = content.get("schema", {})
            shown.append(self._type(schema) if "$ref" in schema else f"`{media}`")
        return ", or ".join(shown)

    # -- types -----------------------------------------------------------------------------------

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        name = _name(schema)
        return self._schemas[name] if name else schema

    def _type(self, schema: Mapping[str, Any], depth: int = 0) -> str:
        """A schema in a few words."""
        name = _name(schema)
        if name in _IN_WORDS:
            return _IN_WORDS[name]
        schema = self._resolved(schema)
        if "anyOf" in schema:
            found = [self._type(part, depth) for part in schema["anyOf"]]
            return " or ".join(part for part in dict.fromkeys(found) if part != "null")
        if "enum" in schema or "const" in schema:
            values = schema.get("enum") or [schema["const"]]
            return " / ".join(f"`{json.dumps(value)}`" for value in values if value != "")
        match schema.get("type"):
            case "array":
                return f"list of {self._type(schema.get('items', {}), depth + 1)}"
            case "object":
                return self._object(schema, depth)
            case "integer" | "number" as kind:
                return _bounded("whole number" if kind == "integer" else "number", schema)
            case "string":
                return _FORMATS.get(schema.get("format", ""), "text")
            case None:
                return "any JSON"
            case kind:
                return str(kind)

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        properties = schema.get("properties")
        if not properties:
            return "object"
        required = schema.get("required", ())
        members = [
            f"{name}{'' if name in required else '?'}"
            + (f": {self._type(part, depth + 1)}" if _is_nested(part) else "")
            for name, part in properties.items()
        ]
        return "{" + ", ".join(members) + "}"


def _meaning(described: Mapping[str, Any]) -> str:
    return str(described.get("description", ""))


def _is_nested(schema: Mapping[str, Any]) -> bool:
    """Whether the name alone does not say enough."""
    return bool(_name(schema)) or schema.get("type") in ("array", "object") or "enum" in schema


def _name(schema: Mapping[str, Any]) -> str:
    reference = str(schema.get("$ref", ""))
    return reference.rpartition("/")[2]


def _bounded(kind: str, schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = f", {low} to {high}" if low is not None and high is not None else ""
    default = schema.get("default")
    return f"{kind}{bounds}" + (f" ({default})" if default is not None else "")


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    found = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if found:
        rule = "|" + "---|" * len(heads)
        lines = [f"| {' | '.join(cells)} |" for cells in (list(heads), *found)]
        yield "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def reference() -> str:
    """The page."""
    return Reference(document()).text()


def main(paths: list[str]) -> None:
    """Print the page, or write it into the files."""
    if not paths:
        sys.stdout.write(reference())
    for path in map(Path, paths):
        path.write_text(reference(), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
