"""Label and field selectors. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.kube.statuses import bad_request

Labels = Mapping[str, str]
Requirement = Callable[[Labels], bool]

_KEY: Final = r"(?P<key>[A-Za-z0-9][A-Za-z0-9./_-]*)"
_SET: Final = re.compile(rf"{_KEY}\s+(?P<verb>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUAL: Final = re.compile(rf"{_KEY}\s*(?P<verb>==|=|!=)\s*(?P<value>[A-Za-z0-9._-]*)")
_EXISTS: Final = re.compile(rf"(?P<absent>!\s*)?{_KEY}")


def parse_labels(text: str) -> Requirement:
    """What a ``labelSelector`` asks for: =, ==, !=, in, notin, key, !key, joined by commas."""
    requirements = [_requirement(part.strip(), text) for part in _split(text)]
    return lambda labels: all(requirement(labels) for requirement in requirements)


def _split(text: str) -> list[str]:
    """The parts between commas outside of parentheses."""
    return [part for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def _requirement(part: str, whole: str) -> Requirement:
    if match := _SET.fullmatch(part):
        key, wanted = match["key"], match["verb"] == "in"
        values = {value.strip() for value in match["values"].split(",")}
        # `notin` and `!=` also select what has no such label.
        return lambda labels: (key in labels and labels[key] in values) == wanted
    if match := _EQUAL.fullmatch(part):
        key, equal, value = match["key"], match["verb"] != "!=", match["value"]
        return lambda labels: (labels.get(key) == value) == equal
    if match := _EXISTS.fullmatch(part):
        key, absent = match["key"], bool(match["absent"])
        return lambda labels: (key not in labels) == absent
    raise bad_request(f"unable to parse requirement: found {part!r} in {whole!r}")


#: The fields that pods can be selected by here; the API server has a few more.
_FIELDS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "metadata.name": lambda pod: pod["metadata"]["name"],
    "metadata.namespace": lambda pod: pod["metadata"]["namespace"],
    "spec.nodeName": lambda pod: pod["spec"].get("nodeName", ""),
    "status.phase": lambda pod: pod["status"].get("phase", ""),
    "status.podIP": lambda pod: pod["status"].get("podIP", ""),
}


def parse_fields(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """What a ``fieldSelector`` asks for."""
    wanted: list[tuple[str, bool, str]] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([A-Za-z.]+)(==|=|!=)(.*)", part)
        if match is None or match[1] not in _FIELDS:
            raise bad_request(
                f'Unable to find "/v1, Resource=pods" that match label selector "", field '
                f'selector "{text}": field label not supported: {part}'
            )
        wanted.append((match[1], match[2] != "!=", match[3]))
    return lambda pod: all((_FIELDS[name](pod) == value) == equal for name, equal, value in wanted)


def parse_selector(labels: str, fields: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a pod is selected by both."""
    by_label, by_field = parse_labels(labels), parse_fields(fields)
    return lambda pod: by_label(pod["metadata"].get("labels") or {}) and by_field(pod)
