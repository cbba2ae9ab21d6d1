"""One session whose dev server this replica runs, or is starting: from its start to its end.

Every move is a compare-and-set on (owner, generation, state). Whoever loses one has lost the
session, and stops its dev server.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, Protocol, TypeVar

from gateway.errors import (
    BadFiles,
    Fenced,
    GatewayError,
    RegistryUnavailable,
    SessionNotFound,
    SpawnFailed,
)
from gateway.registry.base import Change, Registry
from gateway.reports import StreamReports
from gateway.session import Session, SessionId, State
from gateway.spawner.base import DevServer, Job, Running, Spawner

log: Final = logging.getLogger(__name__)

T = TypeVar("T")

_FLUSH_SECONDS: Final = 2.0
_NO_CHANGE: Final = Change()


class Holder(Protocol):
    """Who is told how a holding ends; each call returns at once."""

    def failed(self, holding: Holding, reason: str, log_tail: str) -> None:
        """The dev server is gone, or never came."""

    def vanished(self, holding: Holding, reason: str) -> None:
        """The dev server is gone by no fault of its own: the next request may have a new one."""

    def lost(self, holding: Holding) -> None:
        """The session went on without this owner, or without this generation."""


class Holding:
    """Starts a dev server, brings edits to it, and stops it. ``begin`` and ``drop`` are the ends.

    An heir starts one for a session that another replica still runs (``Session.heir``): it moves
    nothing until the dev server is ready, and succeeds then. One that is ``adopted`` runs already,
    and goes on when this replica lets go of it (``Spawner.outlasting``).
    """

    def __init__(
        self,
        session: Session,
        *,
        owner: str,
        registry: Registry,
        spawner: Spawner,
        holder: Holder,
        slots: asyncio.Semaphore | None = None,
        adopted: bool = False,
    ) -> None:
        """``slots`` bounds how many of those that nobody waits for start at a time."""
        self.id: Final = session.id
        self.is_heir = session.owner != owner
        self.generation: Final = generation_of(session, owner)
        self.ready = False
        #: It is offered to another replica: once that has succeeded, requests may end in peace.
        self.offered = False
        #: The registry may know of edits that the workspace does not have.
        self.edited = asyncio.Event()
        self._session = session
        self._owner = owner
        self._registry = registry
        self._spawner = spawner
        self._holder = holder
        self._slots = slots
        self._adopted = adopted
        #: sha256 of each file as it stands in the workspace.
        self._applied: dict[str, bytes] = {}
        self._revision = 0
        self._reports = StreamReports(
            registry,
            session.id,
            self.generation,
            on_exit=lambda reason, tail: holder.failed(self, reason, tail),
            on_vanish=lambda reason: holder.vanished(self, reason),
        )
        self._task: asyncio.Task[None] | None = None
        self._dropping: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the dev server."""
        self._task = asyncio.create_task(self._run(), name=f"session {self.id}")

    async def drop(self, *, release: bool = False) -> None:
        """Stop what runs here, or ``release`` it to another owner; says nothing to the registry.

        Idempotent: what is asked for first is done.
        """
        if self._dropping is None:
            self._dropping = asyncio.create_task(self._drop(release), name=f"drop {self.id}")
        # Once begun it goes on, also when the one who asked for it is cancelled.
        await asyncio.shield(self._dropping)

    async def _drop(self, release: bool) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        end = self._spawner.release if release else self._spawner.stop
        await end(self.id, generation=self.generation)
        await self._reports.close(seconds=_FLUSH_SECONDS)

    # -- start -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        """From registered to ready, then apply edits until cancelled."""
        try:
            if self._adopted:
                await self._adopt()
            elif self._slots is None:
                await self._start()
            else:
                async with self._slots:
                    await self._start()
            while True:
                await self.edited.wait()
                self.edited.clear()
                await self._apply_edits()
        except Fenced:
            log.info("session %s went to another owner", self.id)
            self._holder.lost(self)
        except SpawnFailed as exc:
            log.info("session %s failed: %s", self.id, exc)
            self._holder.failed(self, str(exc), exc.log_tail)
        except GatewayError as exc:
            log.warning("session %s failed: %s", self.id, exc)
            self._holder.failed(self, str(exc), "")
        except Exception:
            log.exception("session %s failed", self.id)
            reason = "the gateway failed to run this session; its log says why"
            self._holder.failed(self, reason, "")

    async def _adopt(self) -> None:
        """Look after a dev server that runs already."""
        try:
            running = Running(self.id, self.generation)
            found = await self._spawner.adopt(running, self._reports)
        except SpawnFailed as exc:
            log.info("session %s has no dev server any more: %s", self.id, exc)
            self._holder.vanished(self, str(exc))
            return
        self._revision, self._applied = found.revision, dict(found.digests)
        log.info("session %s is looked after here from now on", self.id)
        self.ready = True
        self.edited.set()

    async def _start(self) -> None:
        session = self._session
        if session.state is State.REGISTERED and not self.is_heir:
            session = await self.move(State.STARTING)
        files = await answered(self.id, lambda: self._registry.files(self.id))
        self._revision = session.revision
        self._applied = {path: _digest(content) for path, content in files.items()}
        job = Job(
            session_id=self.id,
            generation=self.generation,
            recipe=session.recipe,
            base=session.base,
            files=files,
            revision=session.revision,
        )
        started = asyncio.get_running_loop().time()
        server = await self._spawner.start(job, self._reports)
        await self._reports.flush(seconds=_FLUSH_SECONDS)
        await self._show(server)
        seconds = asyncio.get_running_loop().time() - started
        log.info("session %s is ready at %s (%.2f s)", self.id, server.endpoint, seconds)
        self.ready = True
        self.edited.set()  # edits may have come in while it started

    async def _show(self, server: DevServer) -> None:
        """Let requests come to this dev server."""
        change = Change(endpoint=server.endpoint, hmr=server.hmr)
        if not self.is_heir:
            try:
                self._session = await self.move(State.READY, change)
            except SessionNotFound:
                # The registry has lost it since it was claimed.
                known = self._session
                self._session = replace(known, endpoint=server.endpoint, hmr=server.hmr)
                await self.restore()
            return
        self._session = await self._ask_for(
            State.READY,
            lambda: self._registry.succeed(
                self.id, heir=self._owner, generation=self.generation, change=change
            ),
        )
        self.is_heir = False

    # -- moves -----------------------------------------------------------------------------------

    async def move(self, to: State, change: Change = _NO_CHANGE) -> Session:
        """Move the session on, however long the registry is away. Raises Fenced."""
        return await self._ask_for(
            to,
            lambda: self._registry.move(
                self.id, to, owner=self._owner, generation=self.generation, change=change
            ),
        )

    async def _ask_for(self, to: State, call: Callable[[], Awaitable[Session]]) -> Session:
        async def ask() -> Session:
            try:
                return await call()
            except Fenced:
                # The reply to an earlier try may have been lost after it took effect.
                session = await self._registry.session(self.id)
                if (
                    session is not None
                    and session.state is to
                    and session.owner == self._owner
                    and session.generation == self.generation
                ):
                    return session
                raise

        return await answered(self.id, ask)

    # -- a registry that has lost its data ---------------------------------------------------------

    def is_ahead_of(self, session: Session | None) -> bool:
        """Whether the registry, which knows this much of the session, has lost what runs here."""
        if not self.ready or self.is_heir:
            return False
        if session is None or session.generation < self.generation:
            return True
        is_same = session.generation == self.generation and session.owner == self._owner
        return is_same and session.state in {State.REGISTERED, State.STARTING}

    async def restore(self) -> None:
        """Register the session again, as it runs here. Raises Fenced if it went on elsewhere."""
        files = await self._spawner.read(self.id, self._applied)
        log.warning("session %s is unknown to the registry: it is registered again", self.id)
        await answered(self.id, lambda: self._registry.restore(self._session, files))

    # -- edits -----------------------------------------------------------------------------------

    async def _apply_edits(self) -> None:
        """Bring the workspace to the registry's revision."""
        session = await answered(self.id, lambda: self._registry.session(self.id))
        if session is None:
            return
        self._session = session
        if session.revision == self._revision:
            return
        files = await answered(self.id, lambda: self._registry.files(self.id))
        wanted = {path: _digest(content) for path, content in files.items()}
        write = {
            path: content
            for path, content in files.items()
            if self._applied.get(path) != wanted[path]
        }
        delete = [path for path in self._applied if path not in wanted]
        try:
            await self._spawner.write(
                self.id, write=write, delete=delete, revision=session.revision
            )
        except BadFiles as exc:
            # The dev server has put something in the way; what it runs is still worth showing.
            self._reports.log([f"an edit could not be written: {exc}"])
        self._applied = wanted
        self._revision = session.revision


def generation_of(session: Session, owner: str) -> int:
    """The generation of the dev server that this owner runs, or as an heir is to run."""
    return session.generation if session.owner == owner else session.heir_generation


async def answered(session_id: SessionId, call: Callable[[], Awaitable[T]]) -> T:
    """The registry's answer, asked for until it gives one: an outage must not end a session.

    Whoever owns the waiting task cancels it when the session is dropped or the replica closes.
    """
    pause = 0.05
    while True:
        try:
            return await call()
        except RegistryUnavailable as exc:
            log.warning("session %s waits for the registry: %s", session_id, exc)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
