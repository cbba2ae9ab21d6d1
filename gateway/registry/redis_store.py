"""The registry on Redis (7.0 or later) or Valkey.

Each change is one Lua script that compares, sets, appends to the session's event stream and
publishes. Each call of a changing script carries a nonce that the record keeps, so a call whose
connection broke is repeated once without happening twice.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, ParamSpec, TypeVar

from gateway.errors import (
    Fenced,
    NotAcknowledged,
    RegistryUnavailable,
    RevisionConflict,
    SessionConflict,
    SessionEnded,
    SessionNotFound,
)
from gateway.registry import records, scripts
from gateway.registry.base import (
    Change,
    Charge,
    EventType,
    Lapsed,
    Limits,
    NewSession,
    Noted,
    Page,
    Registered,
    Replica,
    Stop,
    StreamEvent,
    Subscriber,
)
from gateway.registry.contents import pack_files, pack_path, unpack_files
from gateway.registry.events import EventStream, Past
from gateway.registry.exchange import Exchange
from gateway.registry.keys import (
    INDEX,
    events_key,
    files_key,
    memory_key,
    owner_key,
    session_key,
    session_keys,
)
from gateway.registry.leases import Leases
from gateway.registry.listing import Listing
from gateway.registry.node import Argument
from gateway.registry.push import PushLink
from gateway.registry.quotas import Quotas
from gateway.registry.redis_client import RedisClient
from gateway.registry.scripts import Script
from gateway.session import ENDED, MOVES, OFFERED, Session, SessionId, State
from gateway.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

#: Entries read at a time when a stream is replayed.
_PAST_ENTRIES: Final = 256
#: Packing this much takes longer than handing it to a thread.
_PACK_IN_THREAD_BYTES: Final = 64 * 1024
#: Whoever loses this often has lost to as many others who changed the metadata.
_MOST_PATCH_ROUNDS: Final = 100
_NO_CHANGE: Final = Change()


class RedisRegistry:
    """Implements ``gateway.registry.base.Registry``; see there for what each call promises."""

    def __init__(self, settings: Settings, *, url: str) -> None:
        self._settings = settings
        self._client = RedisClient(url, limit_seconds=settings.registry_timeout_seconds)
        self._push = PushLink(self._client)
        self._leases = Leases(self._client, lease_seconds=settings.lease_seconds)
        self._listing = Listing(self._client)
        self._quotas = Quotas(self._client)

    # -- life ----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, load scripts, start the push link. Returns when the link is up."""
        load = [("SCRIPT", "LOAD", script.source) for script in scripts.ALL]
        await self._client.everywhere("load its scripts", load)
        await self._push.open()

    async def close(self) -> None:
        """Close every connection and end every task. Idempotent."""
        await self._push.close()
        await self._client.close()

    async def ping(self) -> float:
        """Round trip in seconds."""
        start = time.perf_counter()
        await self._client.ask("answer a ping", lambda exchange: exchange.command("PING"))
        return time.perf_counter() - start

    def addresses(self) -> Collection[tuple[str, int]]:
        """Host and port of every server; none for one on a Unix socket."""
        return self._client.addresses()

    # -- sessions ------------------------------------------------------------------------------

    async def register(self, new: NewSession, *, owner: str) -> Registered:
        """Index, write, read back, and wait for acknowledgements: in this order."""
        size = sum(map(len, new.files.values()))
        files = await _in_thread(size, pack_files, new.files)
        arguments = self._register_arguments(new, owner, secrets.token_hex(16), files)
        keys = session_keys(new.id)
        needed = self._settings.registry_replicas

        async def write(exchange: Exchange) -> tuple[int, Session, int]:
            # Indexed before it is written, so that no crash in between can hide a session.
            is_new = await exchange.run(scripts.INDEX, [INDEX], [new.id, "0"])
            if not (new.endpoint or new.reserved):
                await exchange.run(scripts.INDEX, [owner_key(owner)], [new.id, "1"])
            code, _, _ = await exchange.run(scripts.REGISTER, keys, arguments)
            if code == 1 and not is_new:
                await exchange.run(scripts.INDEX, [INDEX], [new.id, "1"])
            session = await _read_session(exchange, new.id)
            if session is None:
                raise RegistryUnavailable(
                    f"session {new.id} was written and could not be read back: try again"
                )
            acknowledged = needed
            if needed and code >= 0:
                acknowledged = await exchange.command("WAIT", needed, self._wait_ms)
            return code, session, acknowledged

        code, session, acknowledged = await self._client.ask(
            f"register {keys[0]}",
            write,
            size=size,
            more_seconds=self._client.limit_seconds if needed else 0.0,
        )
        if code < 0:
            raise SessionConflict(new.id)
        if acknowledged < needed:
            raise NotAcknowledged(
                f"{acknowledged} of {needed} replicas of the registry acknowledged session "
                f"{new.id} within {self._client.limit_seconds:.1f} s: try again with the same id"
            )
        return Registered(session, created=code == 1)

    @property
    def _wait_ms(self) -> int:
        return max(1, int(self._client.limit_seconds * 1000))

    def _register_arguments(
        self, new: NewSession, owner: str, nonce: str, files: Sequence[bytes]
    ) -> list[Argument]:
        fields = records.encode_new(new)
        return [
            nonce,
            new.digest,
            owner,
            State.READY if new.endpoint else State.REGISTERED,
            new.ttl_seconds * 1000,
            self._settings.tombstone_seconds * 1000,
            len(fields) // 2,
            *fields,
            *files,
        ]

    async def session(self, session_id: SessionId) -> Session | None:
        """The session, tombstones included; None if it never existed or was forgotten."""
        return await self._client.ask(
            f"read {session_key(session_id)}",
            lambda exchange: _read_session(exchange, session_id),
        )

    async def sessions(
        self,
        *,
        wanted: Callable[[Session], bool] | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> Page:
        """Sessions, newest first; a page may be short of ``limit`` and still have a cursor."""
        return await self._listing.page(wanted=wanted, limit=limit, cursor=cursor)

    async def held_by(self, owner: str, *, limit: int = 100, cursor: str = "") -> Page:
        """What this owner holds; a page may be short of ``limit`` and still have a cursor."""
        return await self._listing.held_by(owner, limit=limit, cursor=cursor)

    async def enlist(self, session: Session) -> None:
        """Enter the session for its owner, and the owner for ``lapsed``."""
        await self._leases.enlist(session.owner)
        await self._enlist(session.id, session.owner, renew="0")

    async def _enlist(self, session_id: SessionId, owner: str, *, renew: str = "1") -> None:
        key = owner_key(owner)
        await self._client.ask(
            f"enter {session_id} into {key}",
            lambda exchange: exchange.run(scripts.INDEX, [key], [session_id, renew]),
        )

    async def move(
        self,
        session_id: SessionId,
        to: State,
        *,
        owner: str,
        generation: int,
        change: Change = _NO_CHANGE,
    ) -> Session:
        """Move on by compare-and-set on (owner, generation, state), as MOVES allows."""
        code, session = await self._change(
            scripts.MOVE,
            session_id,
            [owner, generation, to, _sources(to), *records.encode_change(change)],
        )
        if code == 0:
            raise Fenced(
                f"session {session_id} cannot move to {to} for {owner} in generation "
                f"{generation}: it is {_standing(session)}"
            )
        return session

    async def restore(self, session: Session, files: Mapping[str, bytes]) -> Session:
        """Index, then write, as ``register`` does; in state READY."""
        size = sum(map(len, files.values()))
        fields = records.encode_restored(session)
        arguments: list[Argument] = [
            session.owner,
            session.generation,
            session.expires_at_ms,
            self._settings.tombstone_seconds * 1000,
            session.revision,
            session.digest,
            len(fields) // 2,
            *fields,
            *await _in_thread(size, pack_files, files),
        ]
        await self._client.ask(
            f"enter {session.id} into {INDEX}",
            lambda exchange: exchange.run(scripts.INDEX, [INDEX], [session.id, "0"]),
        )
        await self._enlist(session.id, session.owner)
        code, restored = await self._change(scripts.RESTORE, session.id, arguments, size=size)
        if code == 0:
            raise Fenced(
                f"session {session.id} is not restored in generation {session.generation}: "
                f"it is {_standing(restored)}"
            )
        return restored

    async def claim(self, session_id: SessionId, *, owner: str, generation: int) -> Session:
        """Take over under a new generation, in state STARTING; never a ``target`` session."""
        await self._enlist(session_id, owner)
        code, session = await self._change(
            scripts.CLAIM, session_id, [owner, generation, _sources(State.STARTING)]
        )
        if code == 0:
            raise Fenced(
                f"{owner} cannot take over session {session_id} from generation {generation}: "
                f"it is {_standing(session)}"
            )
        return session

    async def offer(
        self, session_id: SessionId, *, owner: str, generation: int, heir: str
    ) -> Session:
        """Offer a session to an heir, under a generation that nobody else gets."""
        code, session = await self._change(
            scripts.OFFER, session_id, [owner, generation, heir, _listed(OFFERED)]
        )
        if code == 0:
            raise Fenced(
                f"{owner} cannot offer session {session_id} in generation {generation}: "
                f"it is {_standing(session)}"
            )
        return session

    async def succeed(
        self, session_id: SessionId, *, heir: str, generation: int, change: Change = _NO_CHANGE
    ) -> Session:
        """Become the owner in one step from READY to READY."""
        await self._enlist(session_id, heir)
        code, session = await self._change(
            scripts.SUCCEED, session_id, [heir, generation, *records.encode_change(change)]
        )
        if code == 0:
            raise Fenced(
                f"{heir} cannot succeed in session {session_id} under generation {generation}: "
                f"it is {_standing(session)}"
            )
        return session

    async def adopt(
        self, session_id: SessionId, *, owner: str, generation: int, former: str
    ) -> Session:
        """Become the owner; generation and endpoint stay."""
        await self._enlist(session_id, owner)
        code, session = await self._change(scripts.ADOPT, session_id, [owner, generation, former])
        if code == 0:
            raise Fenced(
                f"{owner} cannot adopt session {session_id} of {former} in generation "
                f"{generation}: it is {_standing(session)}"
            )
        return session

    async def request_stop(
        self, session_id: SessionId, *, reason: str, to: State = State.STOPPED
    ) -> Stop:
        """Ask for the end; ``reason`` and ``stop_to`` tell the owner what was asked for."""
        if to not in ENDED:
            raise ValueError(f"{to} is no end")
        code, session = await self._change(
            scripts.REQUEST_STOP, session_id, [records.text(reason), to]
        )
        return Stop(session, already=code == 0)

    async def patch(
        self,
        session_id: SessionId,
        *,
        metadata: Callable[[str], str] | None = None,
        public: bool | None = None,
        ttl_seconds: int | None = None,
        revoke: bool = False,
    ) -> Session:
        """Change what is not content. ``ttl_seconds`` counts from now."""
        revoked = "1" if revoke else ""
        life = "" if ttl_seconds is None else ttl_seconds * 1000
        old, new = "", None
        if metadata is not None:
            session = await self.session(session_id)
            if session is None:
                raise SessionNotFound(session_id)
            old, new = session.metadata, metadata(session.metadata)
        for _ in range(_MOST_PATCH_ROUNDS):
            code, session = await self._change(
                scripts.PATCH,
                session_id,
                [
                    life,
                    records.text(old),
                    revoked,
                    *records.encode_patch(metadata=new, public=public),
                ],
            )
            if code == 0:
                raise _ended(session)
            if code == 1 or metadata is None:
                return session
            old, new = session.metadata, metadata(session.metadata)
        raise RegistryUnavailable(f"too many change the metadata of session {session_id} at once")

    async def touch(self, session_ids: Collection[SessionId]) -> None:
        """Note that these sessions have traffic now, over one connection."""

        async def note(exchange: Exchange) -> None:
            for session_id in session_ids:
                await exchange.run(scripts.TOUCH, [session_key(session_id)])

        await self._client.ask("note traffic", note)

    async def forget(self, session_id: SessionId) -> None:
        """Drop the files and events of an ended session. Raises Fenced if it has not ended."""
        keys = session_keys(session_id)
        dropped = await self._client.ask(
            f"forget {keys[0]}", lambda exchange: exchange.run(scripts.FORGET, keys)
        )
        if not dropped:
            raise Fenced(f"session {session_id} has not ended: stop it before it is forgotten")

    async def _change(
        self,
        script: Script,
        session_id: SessionId,
        arguments: Sequence[Argument],
        *,
        size: int = 0,
    ) -> tuple[int, Session]:
        """The code of a changing script and the record afterwards; SessionNotFound without one."""
        keys = session_keys(session_id)
        nonce = secrets.token_hex(16)
        code, now_ms, record = await self._client.ask(
            f"{script.name} {keys[0]}",
            lambda exchange: exchange.run(script, keys, [nonce, *arguments]),
            size=size,
        )
        if code == -1:
            raise SessionNotFound(session_id)
        return code, records.decode_session(session_id, record, now_ms=int(now_ms))

    # -- files ---------------------------------------------------------------------------------

    async def files(self, session_id: SessionId) -> dict[str, bytes]:
        """All files of a session; empty if there are none."""
        key = files_key(session_id)
        stored = await self._client.ask(
            f"read {key}",
            lambda exchange: exchange.command("HGETALL", key),
            size=self._settings.max_session_bytes,
        )
        return await _in_thread(sum(map(len, stored)), unpack_files, key, stored)

    async def edit_files(
        self,
        session_id: SessionId,
        *,
        write: Mapping[str, bytes],
        delete: Sequence[str] = (),
        base_revision: int | None = None,
    ) -> Session:
        """Delete, then write, in one step; the session's revision grows by one and is pushed."""
        size = sum(map(len, write.values()))
        code, session = await self._change(
            scripts.EDIT_FILES,
            session_id,
            [
                "" if base_revision is None else base_revision,
                len(delete),
                *map(pack_path, delete),
                *await _in_thread(size, pack_files, write),
            ],
            size=size,
        )
        if code == 0:
            raise _ended(session)
        if code == -2:
            raise RevisionConflict(session.revision)
        return session

    # -- events --------------------------------------------------------------------------------

    async def append(
        self,
        session_id: SessionId,
        kind: EventType,
        data: Mapping[str, Any],
        *,
        generation: int | None = None,
    ) -> str:
        """Append to the event stream; returns the entry's id. Never repeated by itself."""
        keys = session_key(session_id), events_key(session_id)
        arguments = [
            kind,
            records.encode_event_data(data),
            "" if generation is None else generation,
        ]
        answer = await self._client.ask(
            f"append to {keys[1]}",
            lambda exchange: exchange.run(scripts.APPEND, keys, arguments),
            repeatable=False,
        )
        if answer == -1:
            raise SessionNotFound(session_id)
        if answer == 0:
            raise Fenced(f"session {session_id} is past generation {generation}")
        return str(answer, "ascii")

    async def note(
        self, session_id: SessionId, data: Mapping[str, Any], *, late_seconds: float
    ) -> Noted:
        """Append what a client tells. Never repeated by itself."""
        keys = session_key(session_id), events_key(session_id)
        arguments: list[Argument] = [
            records.encode_event_data(data),
            records.encode_event_data({**data, "late": True}),
            int(late_seconds * 1000),
        ]
        code, now_ms, record, *entry = await self._client.ask(
            f"append to {keys[1]}",
            lambda exchange: exchange.run(scripts.NOTE, keys, arguments),
            repeatable=False,
        )
        if code == -1:
            raise SessionNotFound(session_id)
        if code == 0:
            raise _ended(records.decode_session(session_id, record, now_ms=int(now_ms)))
        return Noted(str(entry[0], "ascii"), late=code == 2)

    async def recent_events(self, session_id: SessionId, *, count: int) -> list[StreamEvent]:
        """The last ``count`` entries of the event stream, oldest first."""
        key = events_key(session_id)
        entries = await self._client.ask(
            f"read {key}",
            lambda exchange: exchange.command("XREVRANGE", key, "+", "-", "COUNT", count),
        )
        return [records.decode_event(session_id, entry) for entry in reversed(entries)]

    @asynccontextmanager
    async def events(
        self, session_id: SessionId, *, after: str = "0"
    ) -> AsyncIterator[AsyncIterator[StreamEvent]]:
        """All entries after ``after``, then new ones; BadRequest if ``after`` is no entry's id."""
        stream = EventStream(session_id, after, lambda last: self._past(session_id, last))
        leave = await self._push.listen(events_key(session_id), stream)
        try:
            yield stream
        finally:
            leave()

    async def _past(self, session_id: SessionId, after: str) -> Past:
        async def read(exchange: Exchange) -> list[Any]:
            # The state first: if it has ended, its end is among the entries.
            return await exchange.batch(
                [
                    ("HGET", session_key(session_id), "state"),
                    ("XRANGE", key, f"({after}", "+", "COUNT", _PAST_ENTRIES),
                ]
            )

        key = events_key(session_id)
        state, entries = await self._client.ask(f"read {key}", read)
        return Past(
            [records.decode_event(session_id, entry) for entry in entries],
            complete=len(entries) < _PAST_ENTRIES,
            ended=state is not None and state.decode("ascii", "replace") in ENDED,
        )

    # -- what calls leave behind -----------------------------------------------------------------

    async def remember(self, name: str, value: str, *, seconds: int) -> str:
        """Keep ``value`` under ``name``, unless something is kept there; what is kept there."""
        key = memory_key(name)
        kept: bytes | None = await self._client.ask(
            f"remember {key}",
            lambda exchange: exchange.command(
                "SET", key, records.text(value), "NX", "GET", "PX", seconds * 1000
            ),
        )
        return value if kept is None else kept.decode("utf-8", "replace")

    async def recall(self, name: str) -> str | None:
        """What is kept under ``name``, and keep it no longer. Never repeated by itself."""
        key = memory_key(name)
        kept, dropped = await self._client.ask(
            f"recall {key}",
            lambda exchange: exchange.batch([("GET", key), ("DEL", key)]),
            repeatable=False,
        )
        # Several may have read it; one of them has dropped it.
        return kept.decode("utf-8", "replace") if kept is not None and dropped else None

    async def charge(self, account: str, charge: Charge, limits: Limits) -> None:
        """Let a session count for an account; raises LimitReached, and charges nothing then."""
        await self._quotas.charge(account, charge, limits)

    # -- changes -------------------------------------------------------------------------------

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Be told of every change from now on; returns the call that ends it."""
        return self._push.subscribe(subscriber)

    # -- replicas ------------------------------------------------------------------------------

    async def heartbeat(self, replica: Replica) -> int:
        """Renew the replica's lease, for ``lease_seconds``; returns the registry's epoch."""
        return await self._leases.renew(replica)

    async def resign(self, replica: Replica) -> None:
        """End the lease, if it is still this incarnation's."""
        await self._leases.end(replica)

    async def replicas(self) -> list[Replica]:
        """The replicas with a lease."""
        return await self._leases.holders()

    async def is_alive(self, owner: str) -> bool:
        """Whether this incarnation of a replica holds its lease."""
        return await self._leases.is_held_by(owner)

    async def lease_left(self, owner: str) -> float:
        """Seconds until the lease of this incarnation runs out; 0 if it has none."""
        return await self._leases.left_of(owner)

    async def recovering_seconds(self) -> float:
        """For how long owners may still be about to restore what the registry has lost."""
        return await self._leases.held_seconds()

    async def lapsed(self) -> Lapsed:
        """The owners without a lease that may still hold sessions."""
        return await self._leases.lapsed()


async def _read_session(exchange: Exchange, session_id: SessionId) -> Session | None:
    (seconds, microseconds), stored = await exchange.batch(
        [("TIME",), ("HGETALL", session_key(session_id))]
    )
    if not stored:
        return None
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    return records.decode_session(session_id, stored, now_ms=now_ms)


async def _in_thread(size: int, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """The result of ``work``; away from the event loop if it is much."""
    if size < _PACK_IN_THREAD_BYTES:
        return work(*arguments, **named)
    return await asyncio.to_thread(work, *arguments, **named)


def _sources(to: State) -> str:
    """The states from which MOVES leads to ``to``, each between commas."""
    return _listed(state for state, targets in MOVES.items() if to in targets)


def _listed(states: Iterable[State]) -> str:
    return f",{','.join(states)},"


def _standing(session: Session) -> str:
    return f"{session.state}, generation {session.generation}, of {session.owner}"


def _ended(session: Session) -> SessionEnded:
    how = session.state if session.state in ENDED else State.EXPIRED
    return SessionEnded(session.id, state=how, reason=session.reason)
