"""The Lua scripts of ``lua/``, each with the shared part in front of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the server knows it: ``sha`` is the SHA-1 of ``source`` (EVALSHA)."""

    name: str
    source: bytes
    sha: str


def _load(name: str) -> Script:
    folder = resources.files(__package__) / "lua"
    source = b"\n".join((folder / file).read_bytes() for file in ("_common.lua", f"{name}.lua"))
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


REGISTER: Final = _load("register")
MOVE: Final = _load("move")
CLAIM: Final = _load("claim")
REQUEST_STOP: Final = _load("request_stop")
PATCH: Final = _load("patch")
EDIT_FILES: Final = _load("edit_files")
APPEND: Final = _load("append")
NOTE: Final = _load("note")
FORGET: Final = _load("forget")
INDEX: Final = _load("index")
PRUNE: Final = _load("prune")
RESIGN: Final = _load("resign")
RENEW: Final = _load("renew")
HELD: Final = _load("held")
RESTORE: Final = _load("restore")
TOUCH: Final = _load("touch")
OFFER: Final = _load("offer")
SUCCEED: Final = _load("succeed")

ALL: Final = (
    REGISTER,
    MOVE,
    CLAIM,
    REQUEST_STOP,
    PATCH,
    EDIT_FILES,
    APPEND,
    NOTE,
    FORGET,
    INDEX,
    PRUNE,
    RESIGN,
    RENEW,
    HELD,
    RESTORE,
    TOUCH,
    OFFER,
    SUCCEED,
)
