"""A session and its states: the nouns that every layer shares. Pure, no I/O."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Final, NewType

from gateway.errors import BadSessionId

SessionId = NewType("SessionId", str)

#: A DNS label (RFC 1123), so that ``<id>.<preview_domain>`` is a host name.
SESSION_ID_PATTERN: Final = "^[a-z0-9][a-z0-9-]{6,38}[a-z0-9]$"
_ID: Final = re.compile(SESSION_ID_PATTERN)
#: The name of every cookie of the gateway's own begins so, behind ``__Host-`` or ``__Secure-``
#: where it has one. Dev servers neither see nor set such cookies.
COOKIE_PREFIX: Final = "preview-gateway-"


def parse_session_id(text: str) -> SessionId:
    """The id in ``text``, or BadSessionId."""
    if not _ID.fullmatch(text):
        raise BadSessionId(text)
    return SessionId(text)


def is_session_id(text: str) -> bool:
    """Whether ``text`` has the form of a session id."""
    return _ID.fullmatch(text) is not None


def new_session_id() -> SessionId:
    """128 random bits in 32 hexadecimal digits. An id is a name, not a permission."""
    return SessionId(secrets.token_hex(16))


class State(StrEnum):
    """Where a session stands in its life."""

    REGISTERED = "registered"
    STARTING = "starting"
    READY = "ready"
    SLEEPING = "sleeping"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    EXPIRED = "expired"


ENDED: Final = frozenset({State.STOPPED, State.FAILED, State.EXPIRED})
#: States in which a request is held until the dev server is ready.
PENDING: Final = frozenset({State.REGISTERED, State.STARTING, State.SLEEPING})
#: States in which an owner holds, or is about to hold, a dev server.
OWNED: Final = frozenset({State.REGISTERED, State.STARTING, State.READY})
#: States in which something is left for the owner to do.
HELD: Final = OWNED | {State.STOPPING}
#: States in which a session may be offered to another replica.
OFFERED: Final = OWNED | {State.SLEEPING}

_AWAY: Final = frozenset({State.STOPPING, *ENDED})

#: Every allowed move. STARTING -> STARTING and READY -> STARTING are claims by a new owner; an
#: ended session is begun anew by a create call with its id, which registers a new generation.
MOVES: Final[dict[State, frozenset[State]]] = {
    State.REGISTERED: frozenset({State.STARTING, State.READY, State.SLEEPING}) | _AWAY,
    State.STARTING: frozenset({State.STARTING, State.READY, State.SLEEPING}) | _AWAY,
    State.READY: frozenset({State.STARTING, State.SLEEPING}) | _AWAY,
    State.SLEEPING: frozenset({State.STARTING}) | _AWAY,
    State.STOPPING: frozenset(ENDED),
    State.STOPPED: frozenset({State.REGISTERED}),
    State.FAILED: frozenset({State.REGISTERED}),
    State.EXPIRED: frozenset({State.REGISTERED}),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a dev server: ``host`` is a literal IP address or a name, ``port`` 1-65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Hmr:
    """Where a dev server's HMR socket is: path below the session's base, and its subprotocol."""

    path: str = ""
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """What the proxy needs to know about a session, nothing more.

    ``version`` grows with every change of the record: of two routes of one session the one with
    the higher (generation, version) is true. ``owner`` is the owner's replica id.
    """

    id: SessionId
    generation: int
    version: int
    state: State
    owner: str = ""
    endpoint: Endpoint | None = None
    base: str = "/"
    public: bool = True
    hmr: Hmr = field(default_factory=Hmr)
    reason: str = ""
    log_tail: str = ""
    #: The owner to whom the session is offered; it starts a dev server of its own, then succeeds.
    heir: str = ""
    #: Of the session's files: grows with each edit.
    revision: int = 0
    #: Covered by every signature that lets somebody see the preview; another one revokes them all.
    access: int = 0
    #: Whose token made the session; empty: an administrator's.
    creator: str = ""

    def newer_than(self, other: Route) -> bool:
        """Whether this route replaces ``other``."""
        return (self.generation, self.version) > (other.generation, other.version)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a session runs, as the caller asked for it; exactly what its digest covers.

    ``command`` is an argument vector with the placeholders ``{host}``, ``{port}`` and ``{base}``;
    empty means that the framework's recipe decides. ``target`` is ``host:port`` of a server that
    exists already; then nothing is spawned.
    """

    framework: str = ""
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    target: str = ""


def content_digest(recipe: Recipe, files: Mapping[str, bytes]) -> str:
    """What makes two create calls equal: the recipe and every file, in hexadecimal SHA-256."""
    listing = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    text = json.dumps([asdict(recipe), listing], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Session:
    """One preview as the registry knows it. Times are the registry's clock, in milliseconds.

    ``owner`` is ``<replica id>/<incarnation>``: a replica that restarts is another owner.
    ``expires_in_ms`` is the rest of its life at the moment of reading (clock of the registry), so
    that no two hosts' clocks are compared.
    """

    id: SessionId
    generation: int
    version: int
    state: State
    owner: str
    digest: str
    recipe: Recipe
    base: str
    public: bool
    created_at_ms: int
    expires_at_ms: int
    expires_in_ms: int
    revision: int = 1
    endpoint: Endpoint | None = None
    hmr: Hmr = field(default_factory=Hmr)
    idle_seconds: int = 0
    #: Since the last traffic that a replica has noted, or since it became ready.
    idle_ms: int = 0
    #: Only the id is taken: there is nothing to start yet.
    reserved: bool = False
    #: Somebody has deleted it: nothing is left but its end.
    forgotten: bool = False
    metadata: str = "{}"
    reason: str = ""
    log_tail: str = ""
    ended_at_ms: int = 0
    #: The owner to whom it is offered, and under which generation that one may succeed.
    heir: str = ""
    heir_generation: int = 0
    #: The end somebody asked for with ``request_stop``; while STOPPING, where the owner moves it.
    stop_to: State | None = None
    #: See ``Route``.
    access: int = 0
    creator: str = ""

    @property
    def replica(self) -> str:
        """The replica id of the owner, without its incarnation."""
        return self.owner.partition("/")[0]

    @property
    def route(self) -> Route:
        """The part of this session that the proxy needs."""
        return Route(
            id=self.id,
            generation=self.generation,
            version=self.version,
            state=self.state,
            owner=self.replica,
            endpoint=self.endpoint,
            base=self.base,
            public=self.public,
            hmr=self.hmr,
            reason=self.reason,
            log_tail=self.log_tail,
            heir=self.heir,
            revision=self.revision,
            access=self.access,
            creator=self.creator,
        )
