"""What the gateway asks of a registry: the promises, without a word of Redis.

One contract suite (``tests/contract/test_registry.py``) holds every implementation to them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gateway.session import Endpoint, Hmr, Recipe, Route, Session, SessionId, State

EventType = Literal["state", "log", "event", "end"]


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a create call registers. ``files`` maps POSIX paths to contents."""

    id: SessionId
    digest: str
    recipe: Recipe
    files: Mapping[str, bytes]
    base: str
    ttl_seconds: int
    idle_seconds: int
    public: bool = True
    metadata: str = "{}"
    #: With an endpoint (a ``target`` session) it is ready as soon as it is registered.
    endpoint: Endpoint | None = None
    #: Only the id is taken: nothing is started until the id is registered with content.
    reserved: bool = False
    #: Whose token makes it; empty: an administrator's.
    creator: str = ""


@dataclass(frozen=True, slots=True)
class Charge:
    """What a session is to take up: all its files, not only those of this call."""

    session_id: SessionId
    files: int
    bytes: int
    #: Made by this call, not edited.
    creates: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What all sessions of one account may take up together; 0: no limit."""

    creates_per_minute: int = 0
    sessions: int = 0
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Registered:
    """The stored session, read back, and whether this call made it."""

    session: Session
    created: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """A session after its end was asked for, and whether somebody had asked before."""

    session: Session
    already: bool


@dataclass(frozen=True, slots=True)
class Noted:
    """An entry that a client has added to a stream; ``late``: after the session's end."""

    id: str
    late: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What a move changes besides the state; None leaves a field as it is.

    An empty ``endpoint`` is written with ``clear_endpoint``.
    """

    endpoint: Endpoint | None = None
    clear_endpoint: bool = False
    hmr: Hmr | None = None
    reason: str | None = None
    log_tail: str | None = None


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One entry of a session's event stream. ``id`` orders entries and resumes a stream."""

    id: str
    type: EventType
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list. ``cursor`` fetches the next part; empty at the end."""

    sessions: list[Session]
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class Replica:
    """One gateway process. ``incarnation`` tells a restarted replica from its former self.

    ``info`` says what others should know: ``spawns`` is there if it can start dev servers now.
    """

    id: str
    incarnation: str
    url: str = ""
    started_at_ms: int = 0
    info: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """The name under which this process owns sessions."""
        return f"{self.id}/{self.incarnation}"


@dataclass(frozen=True, slots=True)
class Lapsed:
    """Owners whose lease has run out and who may still hold sessions."""

    owners: list[str]
    #: Until the next lease runs out, if nobody renews it.
    next_seconds: float


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Callbacks of one listener to changes; each must return at once.

    ``changed`` gets every change of every session. ``synced`` is called each time the push link
    has come up: changes before it may have been missed, so what is cached must be read again.
    ``lost`` is called when the link is down.
    """

    changed: Callable[[Route], None]
    synced: Callable[[], None]
    lost: Callable[[], None]


class Registry(Protocol):
    """The store of sessions, shared by all replicas.

    Every call raises RegistryUnavailable when the store does not answer within its limit; none
    ever turns that into "not found". A write whose reply is lost may have happened; calls are
    made so that repeating them is safe.
    """

    async def open(self) -> None:
        """Connect, load scripts, start the push link. Returns when the link is up."""

    async def close(self) -> None:
        """Close every connection and end every task. Idempotent."""

    async def ping(self) -> float:
        """Round trip in seconds."""

    def addresses(self) -> Collection[tuple[str, int]]:
        """Host and port of every server of the store, as far as known by now."""

    # -- sessions ------------------------------------------------------------------------------

    async def register(self, new: NewSession, *, owner: str) -> Registered:
        """Store a session, read it back, and wait for the configured acknowledgements.

        One of any number of concurrent calls with one id makes it (``created``); the others get
        the same session if the digest is equal, SessionConflict if not. An ended session of this
        id is begun anew, under a higher generation; so is one that was only ``reserved``, whose
        events stay, and its metadata if the new one has none. State is REGISTERED, or READY with an
        ``endpoint``. Raises NotAcknowledged on too few acknowledgements (the record may exist).
        """

    async def session(self, session_id: SessionId) -> Session | None:
        """The session, tombstones included; None if it never existed or was forgotten."""

    async def sessions(
        self,
        *,
        wanted: Callable[[Session], bool] | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> Page:
        """Sessions that are ``wanted``, newest first, of those registered before the call.

        A page may be short of ``limit``, or empty, and still have a cursor.
        """

    async def held_by(self, owner: str, *, limit: int = 100, cursor: str = "") -> Page:
        """Sessions whose record names this owner, in a state that leaves it something to do.

        Its cost does not grow with the sessions of others. Sessions with a ``target`` are not in
        it: nobody runs anything for them.
        """

    async def enlist(self, session: Session) -> None:
        """See to it that ``held_by`` and ``lapsed`` know of this session and its owner.

        For what an interrupted write or a failover has left out; otherwise nothing changes.
        """

    async def move(
        self,
        session_id: SessionId,
        to: State,
        *,
        owner: str,
        generation: int,
        change: Change = Change(),
    ) -> Session:
        """Move on by compare-and-set on (owner, generation, state), as MOVES allows.

        In the same step the change is appended to the session's event stream (``state``, and
        ``end`` when it has ended) and published. Raises Fenced if owner, generation or state do
        not fit (nothing is changed then), SessionNotFound if there is no record.
        """

    async def restore(self, session: Session, files: Mapping[str, bytes]) -> Session:
        """Register again, READY, a session whose dev server runs and which the store has lost.

        ``session`` is what its owner knows of it, with endpoint. Does nothing harmful if the store
        has it: raises Fenced if it knows a newer generation, or how this one went on.
        """

    async def claim(self, session_id: SessionId, *, owner: str, generation: int) -> Session:
        """Take over: become owner under a new, higher generation, in state STARTING.

        ``generation`` is the one the caller saw. Raises Fenced if it is no longer current or the
        state cannot start (STOPPING or ended). Whether the former owner is dead is the caller's
        question (``is_alive``). Claiming what the caller already owns and is STARTING under a
        higher generation than seen raises Fenced too.
        """

    async def offer(
        self, session_id: SessionId, *, owner: str, generation: int, heir: str
    ) -> Session:
        """Offer a session to another owner, its heir (``Session.heir``), told by the push.

        The heir takes over with ``succeed`` if the session is READY: nothing else changes until
        then. In any other state it claims. Any move of the session ends the offer. Raises Fenced if
        owner or generation do not fit (a SLEEPING session is anybody's), or there is no dev server
        to be had; SessionNotFound.
        """

    async def succeed(
        self, session_id: SessionId, *, heir: str, generation: int, change: Change = Change()
    ) -> Session:
        """Become the owner of an offered session under the generation that was offered.

        In one step from READY to READY, so that no request finds the session without a dev server.
        Raises Fenced if the offer has ended, SessionNotFound.
        """

    async def adopt(
        self, session_id: SessionId, *, owner: str, generation: int, former: str
    ) -> Session:
        """Become the owner of a READY session whose dev server outlives its ``former`` owner.

        Nothing else changes: same generation, same endpoint, no request notices. Raises Fenced if
        generation, owner or state do not fit, SessionNotFound. Whether the former owner is dead, or
        agrees, is the caller's question.
        """

    async def request_stop(
        self, session_id: SessionId, *, reason: str, to: State = State.STOPPED
    ) -> Stop:
        """Ask for the end, whoever owns the session.

        With no dev server to stop (target session, SLEEPING) it goes straight to ``to``;
        otherwise to STOPPING, and the owner (told by the push) moves it on. STOPPING or ended
        ``already``: unchanged; of any number of calls one finds it otherwise. Raises
        SessionNotFound.
        """

    async def patch(
        self,
        session_id: SessionId,
        *,
        metadata: Callable[[str], str] | None = None,
        public: bool | None = None,
        ttl_seconds: int | None = None,
        revoke: bool = False,
    ) -> Session:
        """Change what is not content. Raises SessionNotFound, SessionEnded.

        ``revoke`` gives the session another ``access`` number: what was signed with it is void.

        ``metadata`` makes the new one of the present one, and may be called more than once: what
        others change meanwhile is not lost.
        """

    async def touch(self, session_ids: Collection[SessionId]) -> None:
        """Note that these sessions have traffic now (``Session.idle_ms`` begins anew)."""

    async def forget(self, session_id: SessionId) -> None:
        """Drop the files and events of an ended session; its tombstone stays. Idempotent."""

    # -- files ---------------------------------------------------------------------------------

    async def files(self, session_id: SessionId) -> dict[str, bytes]:
        """All files of a session; empty if there are none."""

    async def edit_files(
        self,
        session_id: SessionId,
        *,
        write: Mapping[str, bytes],
        delete: Sequence[str] = (),
        base_revision: int | None = None,
    ) -> Session:
        """Write and delete files in one step; the session's revision grows by one and is pushed.

        Raises RevisionConflict if ``base_revision`` is given and not current, SessionEnded,
        SessionNotFound.
        """

    # -- events --------------------------------------------------------------------------------

    async def append(
        self,
        session_id: SessionId,
        kind: EventType,
        data: Mapping[str, Any],
        *,
        generation: int | None = None,
    ) -> str:
        """Append to the event stream; returns the entry's id.

        With ``generation``, an append of an older generation is refused with Fenced (what an old
        dev server says after a take-over is nobody's log). Never writes for a session that does
        not exist: SessionNotFound.
        """

    async def note(
        self, session_id: SessionId, data: Mapping[str, Any], *, late_seconds: float
    ) -> Noted:
        """Append what a client tells of a session (an ``event``).

        For ``late_seconds`` after the end it is still kept, with ``late`` in its data; then
        SessionEnded. Never writes for a session that does not exist: SessionNotFound.
        """

    async def recent_events(self, session_id: SessionId, *, count: int) -> list[StreamEvent]:
        """The last ``count`` entries of the event stream, oldest first."""

    def events(
        self, session_id: SessionId, *, after: str = "0"
    ) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """All entries after ``after`` (an entry's id; "0": from the start), then new ones as
        they come, each once and in order. The iteration ends after an ``end`` entry. One shared
        push link serves all listeners; RegistryUnavailable is raised out of the iteration if it
        is lost, ListenerTooSlow if the caller is too slow, and the caller resumes with the
        last id it has seen. A wait for the next entry that is cancelled loses none.
        """

    # -- what calls leave behind -----------------------------------------------------------------

    async def remember(self, name: str, value: str, *, seconds: int) -> str:
        """Keep ``value`` under ``name``, unless something is kept there; what is kept there."""

    async def recall(self, name: str) -> str | None:
        """What is kept under ``name``, and keep it no longer. Of many callers one gets it."""

    async def charge(self, account: str, charge: Charge, limits: Limits) -> None:
        """Let a session count for an account; raises LimitReached, and charges nothing then.

        A session that has ended, or is not the account's (``creator``), stops to count at the
        latest when a limit is reached.
        """

    # -- changes -------------------------------------------------------------------------------

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Be told of every change from now on; returns the call that ends it.

        ``synced`` is called at once (inside this call) if the link is up.
        """

    # -- replicas ------------------------------------------------------------------------------

    async def heartbeat(self, replica: Replica) -> int:
        """Renew the replica's lease, for ``lease_seconds``; returns the store's epoch.

        Another epoch than last time means that the store was away for long, or has lost its data:
        look after what you hold, and ``restore`` what is gone. Until all had time for that, nobody
        counts as lost for want of a lease (``is_alive``, ``lease_left``, ``lapsed``).
        """

    async def resign(self, replica: Replica) -> None:
        """End the lease, if it is still this incarnation's."""

    async def replicas(self) -> list[Replica]:
        """The replicas with a lease."""

    async def is_alive(self, owner: str) -> bool:
        """Whether this incarnation of a replica holds its lease."""

    async def lease_left(self, owner: str) -> float:
        """Seconds until its lease runs out if nobody renews it; 0 if it has none."""

    async def recovering_seconds(self) -> float:
        """For how long owners may still be about to ``restore`` what the store has lost.

        0 but for a while after an outage. Until then a record may be older than what runs: who
        claims by it would end the newer generation.
        """

    async def lapsed(self) -> Lapsed:
        """The owners without a lease that may still hold sessions."""
