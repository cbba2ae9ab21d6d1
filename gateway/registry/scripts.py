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


#: What keeps things going, or frees memory: run also while the server is out of it.
_WHEN_FULL: Final = b"#!lua flags=allow-oom\n"


def _load(name: str, *, when_full: bool = False) -> Script:
    folder = resources.files(__package__) / "lua"
    source = b"\n".join((folder / file).read_bytes() for file in ("_common.lua", f"{name}.lua"))
    if when_full:
        source = _WHEN_FULL + source
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


REGISTER: Final = _load("register")
MOVE: Final = _load("move", when_full=True)
CLAIM: Final = _load("claim")
REQUEST_STOP: Final = _load("request_stop", when_full=True)
PATCH: Final = _load("patch")
EDIT_FILES: Final = _load("edit_files")
APPEND: Final = _load("append")
NOTE: Final = _load("note")
FORGET: Final = _load("forget", when_full=True)
INDEX: Final = _load("index")
PRUNE: Final = _load("prune", when_full=True)
RESIGN: Final = _load("resign", when_full=True)
RENEW: Final = _load("renew", when_full=True)
HELD: Final = _load("held", when_full=True)
RESTORE: Final = _load("restore")
TOUCH: Final = _load("touch", when_full=True)
OFFER: Final = _load("offer")
SUCCEED: Final = _load("succeed")
ADOPT: Final = _load("adopt")
QUOTA: Final = _load("quota")

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
    ADOPT,
    QUOTA,
)
