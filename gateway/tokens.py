"""API tokens: who has one, and what it is good for.

A token is written ``TOKEN`` or ``admin:NAME:TOKEN`` (everything), or ``create:NAME:TOKEN`` (makes
sessions, and manages those made under the same name). Tokens of one name are one caller: while one
replaces another, both are good. A file of tokens is read again when it changes.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from gateway.errors import SettingsError

log: Final = logging.getLogger(__name__)

#: How often a file of tokens is looked at, at most.
_LOOK_SECONDS: Final = 1.0
_SHORTEST: Final = 16
#: What ``POST .../tokens`` issues: session, access, and the expiry with a signature.
SESSION_TOKEN: Final = re.compile(r"([a-z0-9-]{8,40})\.([0-9]{1,20})\.([0-9]+\.[\w-]+)", re.ASCII)
_SCOPED: Final = re.compile(r"(admin|create):([A-Za-z0-9._-]{1,64}):(.+)", re.DOTALL)


class Scope(StrEnum):
    """What a token is good for."""

    ADMIN = "admin"
    CREATE = "create"
    #: To read one session: issued by the API, not configured.
    READ = "read"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call. ``name`` is what its sessions and limits are kept under."""

    scope: Scope
    name: str = ""
    session_id: str = ""

    def manages(self, creator: str) -> bool:
        """Whether a session made by ``creator`` is this caller's to see and to change."""
        return self.scope is Scope.ADMIN or (self.scope is Scope.CREATE and self.name == creator)


#: Where no token is asked for.
ANYBODY: Final = Caller(Scope.ADMIN)


def parse_token(text: str) -> tuple[str, Caller]:
    """The secret part of a configured token, and who has it; raises ValueError without it."""
    match = _SCOPED.fullmatch(text)
    scope, name, token = match.groups() if match else (Scope.ADMIN, "", text)
    if len(token) < _SHORTEST:
        raise ValueError(
            f"a token is shorter than {_SHORTEST} characters: make one with `openssl rand -hex 24`"
        )
    # Of an administrator without a name: tells tokens apart, and nothing of a token.
    return token, Caller(Scope(scope), name or f"token-{_digest(token.encode()).hex()[:12]}")


def read_tokens(file: Path) -> list[str]:
    """The tokens in a file: one a line, ``#`` begins a comment. Raises OSError, ValueError."""
    lines = (line.strip() for line in file.read_text().splitlines())
    found = [line for line in lines if line and not line.startswith("#")]
    for text in found:
        parse_token(text)
    return found


class Tokens:
    """The tokens that are good now. Raises SettingsError for a file that cannot be read at first.

    Digests are compared, so that the time taken says nothing about a token.
    """

    def __init__(
        self,
        configured: Iterable[str] = (),
        file: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configured = _by_digest(configured)
        self._file = file
        #: Whether calls need a token. A file that is empty lets nobody in. Looked at with every
        #: request, so no property: that would be a call of interpreted code.
        self.asked_for: Final = bool(self._configured) or file is not None
        self._clock = clock
        self._callers = self._configured
        self._seen: tuple[int, int, int] | None = None
        self._look_at = 0.0
        if file is not None:
            try:
                self._read(file)
            except (OSError, ValueError) as exc:
                raise SettingsError(f"GATEWAY_API_TOKENS_FILE: {_reason(exc)}") from exc

    def caller(self, token: bytes) -> Caller | None:
        """Who has this token, if anybody."""
        if self._file is not None and self._clock() >= self._look_at:
            self._look(self._file)
        return self._callers.get(_digest(token))

    def _look(self, file: Path) -> None:
        self._look_at = self._clock() + _LOOK_SECONDS
        try:
            if _version(file) != self._seen:
                self._read(file)
                log.info("the API tokens were read again: %d are good", len(self._callers))
        except (OSError, ValueError) as exc:
            log.warning("the API tokens stay as they were: %s", _reason(exc))

    def _read(self, file: Path) -> None:
        # The version first: what is written in between is read again next time.
        seen = _version(file)
        self._callers = self._configured | _by_digest(read_tokens(file))
        self._seen = seen


def _by_digest(texts: Iterable[str]) -> dict[bytes, Caller]:
    return {_digest(token.encode()): caller for token, caller in map(parse_token, texts)}


def _version(file: Path) -> tuple[int, int, int]:
    """Another one for another content; follows the links that Kubernetes swaps."""
    found = file.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


def _reason(exc: OSError | ValueError) -> str:
    """Why a file was not read, without anything that is in it."""
    if isinstance(exc, UnicodeDecodeError):
        return "the file is no UTF-8"
    return str(exc)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
