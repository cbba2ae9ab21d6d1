"""What pydantic finds wrong, in a sentence for the caller. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

_MOST: Final = 10


def complaints(exc: ValidationError, kind: str) -> str:
    """What is wrong with each ``kind`` (field, parameter); bounded, whatever was sent."""
    errors = exc.errors(include_url=False)[:_MOST]
    return "; ".join(_complaint(error, kind) for error in errors)


def _complaint(error: Mapping[str, Any], kind: str) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "body"
    if error["type"] == "extra_forbidden":
        return f"{place[:200]}: there is no such {kind}; leave it out"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        possible = filter(None, re.findall("'([^']*)'", error["ctx"]["expected"]))
        return f"{place[:200]}: {error['input'][:40]!r} is none of {', '.join(possible)}"
    return f"{place[:200]}: {error['msg'].removeprefix('Value error, ')[:300]}"
