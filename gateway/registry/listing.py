"""Lists of sessions, newest first, in pages: all, or those of one owner."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

from gateway.errors import BadRequest, RegistryUnavailable
from gateway.registry import records, scripts
from gateway.registry.base import Page
from gateway.registry.exchange import Exchange
from gateway.registry.keys import INDEX, owner_key, session_key
from gateway.registry.redis_client import RedisClient
from gateway.session import HELD, Session, SessionId, is_session_id

_log = logging.getLogger(__name__)

#: Entries read at a time, and at most for one page: a rare state must not block the server.
_CHUNK: Final = 100
_LONGEST_SCAN: Final = 2000
#: An entry without its record is a write under way, or, after this, a leftover.
_PRUNE_AFTER_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the index; ordered by score, then by id, both descending."""

    score: int
    id: str

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """The entry a cursor names, or BadRequest."""
        score, _, session_id = cursor.partition(".")
        if not (score.isascii() and score.isdigit() and is_session_id(session_id)):
            raise BadRequest("this is no cursor: send the one of the previous page")
        return cls(int(score), session_id)

    def __str__(self) -> str:
        return f"{self.score}.{self.id}"

    def is_past(self, last: _Entry | None) -> bool:
        """Whether this entry comes after ``last`` in the list."""
        return last is None or (self.score, self.id) < (last.score, last.id)


@dataclass(slots=True)
class _Scan:
    """What one page has gathered so far."""

    key: str
    wanted: Callable[[Session], bool] | None
    #: Whether an entry is a leftover, too, once its session is not wanted.
    strict: bool
    limit: int
    last: _Entry | None
    found: list[Session] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    more: bool = True

    @property
    def chunk(self) -> int:
        """How many entries to read next."""
        return _CHUNK if self.wanted else min(_CHUNK, self.limit - len(self.found))

    def take(self, entry: _Entry, stored: list[bytes], now_ms: int) -> None:
        """Look at one entry and its record."""
        self.last = entry
        if not stored:
            self._leave(entry, now_ms)
            return
        try:
            session = records.decode_session(SessionId(entry.id), stored, now_ms=now_ms)
        except RegistryUnavailable as exc:
            # One damaged record must not hide all other sessions.
            _log.error("a session is left out of the list: %s", exc)
            return
        if self.wanted is None or self.wanted(session):
            self.found.append(session)
        elif self.strict:
            self._leave(entry, now_ms)

    def _leave(self, entry: _Entry, now_ms: int) -> None:
        if entry.score < now_ms - _PRUNE_AFTER_MS:
            self.leftovers += (entry.id, str(entry.score))


class Listing:
    """Reads pages of an index and the records in it."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def page(
        self, *, wanted: Callable[[Session], bool] | None, limit: int, cursor: str
    ) -> Page:
        """The part of the list of all sessions after ``cursor``."""
        return await self._page(INDEX, wanted, strict=False, limit=limit, cursor=cursor)

    async def held_by(self, owner: str, *, limit: int, cursor: str) -> Page:
        """The part of the list of what ``owner`` holds after ``cursor``."""

        def held(session: Session) -> bool:
            return session.owner == owner and session.state in HELD

        return await self._page(owner_key(owner), held, strict=True, limit=limit, cursor=cursor)

    async def _page(
        self,
        key: str,
        wanted: Callable[[Session], bool] | None,
        *,
        strict: bool,
        limit: int,
        cursor: str,
    ) -> Page:
        start = _Entry.parse(cursor) if cursor else None

        async def read(exchange: Exchange) -> Page:
            scan = _Scan(key, wanted, strict, limit, start)
            for _ in range(0, _LONGEST_SCAN, _CHUNK):
                if not scan.more or len(scan.found) >= limit:
                    break
                await _read_chunk(exchange, scan)
            if scan.leftovers:
                await exchange.run(scripts.PRUNE, [key], scan.leftovers)
            return Page(scan.found, str(scan.last) if scan.more and scan.last else "")

        return await self._client.ask(f"list {key}", read)


async def _read_chunk(exchange: Exchange, scan: _Scan) -> None:
    size = scan.chunk
    entries = await _entries(exchange, scan.key, scan.last, size)
    # Each record with the clock of its own server: in a cluster there are several.
    keys = [session_key(SessionId(entry.id)) for entry in entries]
    answers = await exchange.batch(
        [command for key in keys for command in (("TIME",), ("HGETALL", key))]
    )
    for entry, (seconds, microseconds), record in zip(
        entries, answers[::2], answers[1::2], strict=True
    ):
        if len(scan.found) >= scan.limit:
            return
        scan.take(entry, record, int(seconds) * 1000 + int(microseconds) // 1000)
    scan.more = len(entries) == size


async def _entries(exchange: Exchange, key: str, last: _Entry | None, size: int) -> list[_Entry]:
    """The next entries; those that share the score of ``last`` are told apart by their ids."""
    highest = "+inf" if last is None else str(last.score)
    found: list[_Entry] = []
    offset = 0
    while len(found) < size:
        listed = await exchange.command(
            "ZREVRANGEBYSCORE", key, highest, "-inf", "WITHSCORES", "LIMIT", offset, size
        )
        pairs = zip(listed[::2], listed[1::2], strict=True)
        entries = [_Entry(int(float(score)), name.decode()) for name, score in pairs]
        found += [entry for entry in entries if entry.is_past(last)]
        if len(entries) < size:
            break
        offset += size
    return found[:size]
