"""What schemathesis cannot make up by itself: sessions that can be made here.

The document cannot say which targets are allowed, or what runs on this machine. Without this every
create would be refused, and no call would ever meet a session.
"""

from __future__ import annotations

import itertools
import os
from typing import Any, Final

import schemathesis
from schemathesis import Case, HookContext

_TARGET: Final = os.environ["SCHEMATHESIS_TARGET"]
_NUMBERS: Final = itertools.count()
#: What decides whether a session can be made, and how long it lives.
_MADE_HERE: Final = (
    *("files", "packageJson", "framework", "command", "env", "target"),
    *("id", "ttlSeconds"),
)
#: What every second session is made of.
_FILES: Final[list[Any]] = [{"path": "a.txt", "content": "a"}]


@schemathesis.hook
def before_call(_: HookContext, case: Case[Any], __: dict[str, Any]) -> None:
    """Let creates that are meant to succeed do so."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.operation.label == "POST /api/v1/sessions" and isinstance(case.body, dict):
        for name in _MADE_HERE:
            case.body.pop(name, None)
        case.query.pop("session", None)
        if next(_NUMBERS) % 2:
            case.body["target"] = _TARGET
        else:
            case.body |= {"files": _FILES, "command": ["sleep", "60"]}
