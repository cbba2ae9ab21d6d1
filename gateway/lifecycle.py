"""The life of sessions: the only place where registry and spawner meet.

Order is everything here: a session is registered, read back and acknowledged before anything is
spawned; every move is a compare-and-set on (owner, generation, state), and whoever loses one has
lost the session and stops its dev server. What other replicas do is learnt from pushed changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from gateway.errors import (
    BadFiles,
    Fenced,
    GatewayError,
    RegistryUnavailable,
    SessionConflict,
    SessionNotFound,
    SpawnFailed,
)
from gateway.registry.base import Change, NewSession, Registered, Registry, Replica, Subscriber
from gateway.reports import StreamReports
from gateway.session import ENDED, OWNED, PENDING, Route, Session, SessionId, State
from gateway.settings import Settings
from gateway.spawner.base import Job, Spawner
from gateway.sweep import Sweeper

log: Final = logging.getLogger(__name__)

T = TypeVar("T")

_FLUSH_SECONDS: Final = 2.0


@dataclass(slots=True, eq=False)
class _Owned:
    """A session whose dev server this replica runs, or is starting."""

    id: SessionId
    generation: int
    reports: StreamReports
    #: sha256 of each file as it stands in the workspace.
    applied: dict[str, bytes] = field(default_factory=dict)
    revision: int = 0
    edited: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    ready: bool = False


class Lifecycle:
    """Creates, wakes, edits, stops and sweeps sessions for one replica."""

    def __init__(
        self, settings: Settings, registry: Registry, spawner: Spawner | None, replica: Replica
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._spawner = spawner
        self.replica = replica
        self._sweeper = Sweeper(settings, registry, replica, self)
        self._owned: dict[SessionId, _Owned] = {}
        self._creating: set[SessionId] = set()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._wakes: dict[SessionId, asyncio.Task[bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsubscribe: Callable[[], None] | None = None
        self._closing = False

    async def open(self) -> None:
        """Take the lease, settle what a former life left behind, begin to listen."""
        await self._registry.heartbeat(self.replica)
        if self._spawner is not None:
            await self._spawner.open()
        self._unsubscribe = self._registry.subscribe(
            Subscriber(changed=self._changed, synced=self._synced, lost=lambda: None)
        )
        # Before the first request: an address of a dead dev server may be in use again.
        await self._sweeper.sweep()
        self._spawn_task(self._sweeper.beat(), "heartbeat")
        self._spawn_task(self._sweeper.sweep_often(), "session sweep")

    async def close(self) -> None:
        """Put all owned sessions to sleep, stop their dev servers, give the lease back."""
        if self._closing:
            return
        self._closing = True
        if self._unsubscribe is not None:
            self._unsubscribe()
        tasks = [*self._tasks, *self._wakes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        reason = "its replica was shut down"
        sleeping = [self._put_to_sleep(owned, reason) for owned in tuple(self._owned.values())]
        await asyncio.gather(*sleeping)
        if self._spawner is not None:
            await self._spawner.close()
        try:
            await self._registry.resign(self.replica)
        except RegistryUnavailable as exc:
            log.warning("the lease runs out by itself: %s", exc)

    # -- create ----------------------------------------------------------------------------------

    async def create(self, new: NewSession) -> Registered:
        """Register a session and begin to start its dev server.

        Returns when the registration is verified. Raises SessionConflict, RegistryUnavailable.
        """
        self._creating.add(new.id)
        try:
            registered = await self._register(new)
            session = registered.session
            if registered.created:
                log.info("session %s is registered (%d files)", new.id, len(new.files))
            if session.state is State.REGISTERED and session.owner == self.replica.owner:
                # Also when a former call registered it and then failed to be acknowledged.
                self._begin(session)
        finally:
            self._creating.discard(new.id)
        if not registered.created and session.state is State.SLEEPING:
            await self.wake(session.id, generation=session.generation)
        return registered

    async def _register(self, new: NewSession) -> Registered:
        """Register; an id whose session is just stopping is begun anew once that has stopped."""
        for _ in range(2):
            try:
                registered = await self._registry.register(new, owner=self.replica.owner)
            except SessionConflict:
                session = await self._registry.session(new.id)
                if session is None or session.state is not State.STOPPING:
                    raise
            else:
                session = registered.session
                if session.state is not State.STOPPING:
                    return registered
            await self._until_ended(session)
        raise SessionConflict(new.id)

    def _begin(self, session: Session) -> None:
        """Start the dev server of a session that this replica owns, unless it is under way."""
        current = self._owned.get(session.id)
        if self._closing or self._spawner is None:
            return
        if current is not None and current.generation >= session.generation:
            return
        if current is not None:
            self._spawn_task(self._drop(current), f"drop {session.id}")
        owned = _Owned(
            session.id,
            session.generation,
            StreamReports(
                self._registry,
                session.id,
                session.generation,
                on_exit=lambda reason, tail: self._dev_server_exited(owned, reason, tail),
            ),
        )
        self._owned[session.id] = owned
        owned.task = asyncio.create_task(
            self._run(owned, session, self._spawner), name=f"session {session.id}"
        )

    async def _run(self, owned: _Owned, session: Session, spawner: Spawner) -> None:
        """From registered to ready, then apply edits until cancelled."""
        try:
            await self._start(owned, session, spawner)
            while True:
                await owned.edited.wait()
                owned.edited.clear()
                await self._apply_edits(owned, spawner)
        except Fenced:
            log.info("session %s went to another owner", owned.id)
            self._spawn_task(self._drop(owned), f"drop {owned.id}")
        except SpawnFailed as exc:
            log.info("session %s failed: %s", owned.id, exc)
            self._spawn_task(self._fail(owned, str(exc), exc.log_tail), f"fail {owned.id}")
        except GatewayError as exc:
            log.warning("session %s failed: %s", owned.id, exc)
            self._spawn_task(self._fail(owned, str(exc), ""), f"fail {owned.id}")
        except Exception:
            log.exception("session %s failed", owned.id)
            reason = "the gateway failed to run this session; its log says why"
            self._spawn_task(self._fail(owned, reason, ""), f"fail {owned.id}")

    async def _start(self, owned: _Owned, session: Session, spawner: Spawner) -> None:
        if session.state is State.REGISTERED:
            session = await self._move(owned, State.STARTING)
        files = await _answered(owned.id, lambda: self._registry.files(session.id))
        owned.revision = session.revision
        owned.applied = {path: _digest(content) for path, content in files.items()}
        job = Job(
            session_id=session.id,
            generation=session.generation,
            recipe=session.recipe,
            base=session.base,
            files=files,
        )
        started = asyncio.get_running_loop().time()
        server = await spawner.start(job, owned.reports)
        await owned.reports.flush(seconds=_FLUSH_SECONDS)
        change = Change(endpoint=server.endpoint, hmr=server.hmr)
        await self._move(owned, State.READY, change)
        seconds = asyncio.get_running_loop().time() - started
        log.info("session %s is ready at %s (%.2f s)", owned.id, server.endpoint, seconds)
        owned.ready = True
        owned.edited.set()  # edits may have come in while it started

    async def _move(self, owned: _Owned, to: State, change: Change = Change()) -> Session:  # noqa: B008
        """Move a session that is held here, however long the registry is away."""

        async def move() -> Session:
            try:
                return await self._registry.move(
                    owned.id,
                    to,
                    owner=self.replica.owner,
                    generation=owned.generation,
                    change=change,
                )
            except Fenced:
                # The reply to an earlier try may have been lost after it took effect.
                session = await self._registry.session(owned.id)
                if (
                    session is not None
                    and session.state is to
                    and session.owner == self.replica.owner
                    and session.generation == owned.generation
                ):
                    return session
                raise

        return await _answered(owned.id, move)

    async def _apply_edits(self, owned: _Owned, spawner: Spawner) -> None:
        """Bring the workspace to the registry's revision."""
        session = await _answered(owned.id, lambda: self._registry.session(owned.id))
        if session is None or session.revision == owned.revision:
            return
        files = await _answered(owned.id, lambda: self._registry.files(owned.id))
        wanted = {path: _digest(content) for path, content in files.items()}
        write = {
            path: content
            for path, content in files.items()
            if owned.applied.get(path) != wanted[path]
        }
        delete = [path for path in owned.applied if path not in wanted]
        try:
            await spawner.write(owned.id, write=write, delete=delete)
        except BadFiles as exc:
            # The dev server has put something in the way; what it runs is still worth showing.
            owned.reports.log([f"an edit could not be written: {exc}"])
        owned.applied = wanted
        owned.revision = session.revision

    # -- ends ------------------------------------------------------------------------------------

    def _dev_server_exited(self, owned: _Owned, reason: str, log_tail: str) -> None:
        self._spawn_task(self._fail(owned, reason, log_tail), f"fail {owned.id}")

    async def _fail(self, owned: _Owned, reason: str, log_tail: str) -> None:
        """The dev server is gone or never came: say so, and clean up."""
        await self._drop(owned)
        change = Change(reason=reason, log_tail=log_tail, clear_endpoint=True)
        try:
            await self._move(owned, State.FAILED, change)
        except (Fenced, SessionNotFound) as exc:
            log.info("session %s is not marked as failed: %s", owned.id, exc)

    async def _drop(self, owned: _Owned) -> None:
        """Stop what runs here of a session; says nothing to the registry."""
        if self._owned.get(owned.id) is owned:
            del self._owned[owned.id]
        if owned.task is not None and owned.task is not asyncio.current_task():
            owned.task.cancel()
            await asyncio.gather(owned.task, return_exceptions=True)
        if self._spawner is not None:
            await self._spawner.stop(owned.id, generation=owned.generation)
        await owned.reports.close(seconds=_FLUSH_SECONDS)

    async def put_to_sleep(self, session_id: SessionId, *, reason: str) -> None:
        """Stop the dev server of a session that runs here; the next request wakes it."""
        owned = self._owned.get(session_id)
        if owned is not None:
            log.info("session %s goes to sleep: %s", session_id, reason)
            await self._put_to_sleep(owned, reason)

    async def touch(self, session_ids: Collection[SessionId]) -> None:
        """Note traffic of these sessions, for the replicas that own them."""
        await self._registry.touch(session_ids)

    async def _put_to_sleep(self, owned: _Owned, reason: str) -> None:
        """First no replica routes here any more, then the dev server stops."""
        try:
            change = Change(clear_endpoint=True, reason=reason)
            await self._registry.move(
                owned.id,
                State.SLEEPING,
                owner=self.replica.owner,
                generation=owned.generation,
                change=change,
            )
        except GatewayError as exc:
            log.warning("session %s is left as it is: %s", owned.id, exc)
        await self._drop(owned)

    async def stop(self, session_id: SessionId, *, reason: str) -> tuple[Session, bool]:
        """Stop a session, whoever owns it. Returns it, and whether it was stopped already.

        Waits until the owner has stopped the dev server. Raises SessionNotFound.
        """
        before = await self._registry.session(session_id)
        if before is None:
            raise SessionNotFound(session_id)
        already = before.state in ENDED or before.state is State.STOPPING
        session = await self._registry.request_stop(session_id, reason=reason)
        if not already:
            log.info("session %s stops: %s", session_id, reason)
        if session.state is State.STOPPING:
            session = await self._until_ended(session)
        return session, already

    async def _until_ended(self, stopping: Session) -> Session:
        session = stopping
        limit = self._settings.stop_grace_seconds + self._settings.lease_seconds
        alive_check = max(1.0, self._settings.stop_grace_seconds)
        waited = 0.0
        while session.state is State.STOPPING and waited < limit:
            session = await self.wait(
                session.id, lambda s: s.state is not State.STOPPING, seconds=alive_check
            )
            waited += alive_check
            if session.generation != stopping.generation:
                # It has ended, and somebody has begun it anew already.
                return replace(stopping, state=stopping.stop_to or State.STOPPED)
            if session.state is State.STOPPING:
                await self._sweeper.finish_for_dead_owner(session)
        return session

    async def _finish_stop(self, owned: _Owned) -> None:
        await self._drop(owned)
        session = await _answered(owned.id, lambda: self._registry.session(owned.id))
        to = (session.stop_to if session is not None else None) or State.STOPPED
        try:
            await self._move(owned, to, Change(clear_endpoint=True))
        except (Fenced, SessionNotFound) as exc:
            log.info("session %s is not marked as %s: %s", owned.id, to, exc)

    # -- wake and take over ----------------------------------------------------------------------

    async def wake(self, session_id: SessionId, *, generation: int) -> bool:
        """Implements ``proxy.routes.Waker``. Concurrent calls for one session share one try."""
        wake = self._wakes.get(session_id)
        if wake is None:
            wake = asyncio.create_task(
                self._wake(session_id, generation), name=f"wake {session_id}"
            )
            self._wakes[session_id] = wake
            wake.add_done_callback(lambda _: self._wakes.pop(session_id, None))
        return await asyncio.shield(wake)

    async def _wake(self, session_id: SessionId, generation: int) -> bool:
        session = await self._registry.session(session_id)
        if session is None:
            raise SessionNotFound(session_id)
        if session.state in ENDED or session.state is State.STOPPING:
            return True  # the caller's route is old: reading it again tells how it ended
        if session.generation > generation and session.state is not State.SLEEPING:
            return True
        if session.recipe.target or self._spawner is None or self._closing:
            return False
        if session.state in OWNED and await self._registry.is_alive(session.owner):
            return session.state in PENDING
        return await self._claim(session)

    async def _claim(self, session: Session) -> bool:
        """True if the session starts, here or (somebody was faster) elsewhere."""
        try:
            await self.take_over(session)
        except Fenced:
            log.info("session %s is taken over by another replica", session.id)
        return True

    async def take_over(self, session: Session) -> None:
        """Claim a session and start it. Raises Fenced if somebody else did."""
        claimed = await self._registry.claim(
            session.id, owner=self.replica.owner, generation=session.generation
        )
        log.info("session %s is taken over from %s", session.id, session.owner or "nobody")
        self._begin(claimed)

    # -- wait ------------------------------------------------------------------------------------

    async def wait(
        self, session_id: SessionId, until: Callable[[Session], bool], *, seconds: float
    ) -> Session:
        """The session as soon as ``until`` holds, or as it is after ``seconds``.

        Waits for a registration still under way too. Raises SessionNotFound.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        told = asyncio.Event()
        watchers = self._watchers.setdefault(session_id, set())
        watchers.add(told)
        try:
            while True:
                session = await self._registry.session(session_id)
                remaining = started + seconds - loop.time()
                if remaining <= 0 or (session is not None and until(session)):
                    break
                try:
                    async with asyncio.timeout(remaining):
                        await told.wait()
                except TimeoutError:
                    continue
                told.clear()
        finally:
            watchers.discard(told)
            if not watchers and self._watchers.get(session_id) is watchers:
                del self._watchers[session_id]
        if session is None:
            raise SessionNotFound(session_id, waited=loop.time() - started)
        return session

    # -- changes ---------------------------------------------------------------------------------

    def _changed(self, route: Route) -> None:
        """A session has changed somewhere."""
        for told in self._watchers.get(route.id, ()):
            told.set()
        owned = self._owned.get(route.id)
        if owned is None or route.generation < owned.generation:
            return
        if route.generation > owned.generation or route.state in ENDED:
            self._owned.pop(owned.id)
            self._spawn_task(self._drop(owned), f"drop {owned.id}")
        elif route.state is State.STOPPING:
            self._owned.pop(owned.id)
            self._spawn_task(self._finish_stop(owned), f"stop {owned.id}")
        elif owned.ready:
            owned.edited.set()

    def _synced(self) -> None:
        """Changes may have been missed: look at every session that somebody here waits for."""
        for watchers in self._watchers.values():
            for told in watchers:
                told.set()
        for owned in tuple(self._owned.values()):
            self._spawn_task(self._recheck(owned), f"recheck {owned.id}")

    async def _recheck(self, owned: _Owned) -> None:
        session = await _answered(owned.id, lambda: self._registry.session(owned.id))
        if session is not None:
            self._changed(session.route)

    def _spawn_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=exc)

    # -- what the API asks -----------------------------------------------------------------------

    async def edit(
        self,
        session_id: SessionId,
        *,
        write: Mapping[str, bytes],
        delete: Sequence[str],
        base_revision: int | None,
    ) -> Session:
        """Change files; the owner, wherever it is, puts them into its workspace."""
        return await self._registry.edit_files(
            session_id, write=write, delete=delete, base_revision=base_revision
        )

    def holds(self, session_id: SessionId) -> bool:
        """Whether this replica runs the session, or is just registering it."""
        return session_id in self._owned or session_id in self._creating

    @property
    def spawns(self) -> bool:
        """Whether this replica can start dev servers now."""
        return self._spawner is not None and not self._closing

    @property
    def owned(self) -> int:
        """Sessions whose dev servers this replica runs."""
        return len(self._owned)


async def _answered(session_id: SessionId, call: Callable[[], Awaitable[T]]) -> T:
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
