"""What the gateway asks of a spawner: start and stop dev servers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from gateway.session import Endpoint, Hmr, Recipe, SessionId

#: What a start is doing, in order: shown to the user on the starting page and by ``up``.
Phase = Literal["preparing", "installing", "starting"]


@dataclass(frozen=True, slots=True)
class Job:
    """One dev server to start. ``base`` begins and ends with ``/`` and is its public base path."""

    session_id: SessionId
    generation: int
    recipe: Recipe
    base: str
    files: Mapping[str, bytes] = field(repr=False)
    #: Of the files.
    revision: int = 1


@dataclass(frozen=True, slots=True)
class Running:
    """A dev server that some spawner has started, to be found again by another one."""

    session_id: SessionId
    generation: int


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a dev server that was adopted: the files it has, by path and sha256."""

    revision: int
    digests: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class DevServer:
    """A dev server that answers."""

    endpoint: Endpoint
    hmr: Hmr


class Reports(Protocol):
    """Where a spawner tells what happens to one job. Each call returns at once."""

    def phase(self, phase: Phase, detail: str = "") -> None:
        """The start has entered a phase."""

    def log(self, lines: Sequence[str]) -> None:
        """Lines of output, without line ends and terminal escapes, in order."""

    def exited(self, reason: str, log_tail: str) -> None:
        """The dev server, once ready, has ended by itself. Not called for a requested stop."""

    def vanished(self, reason: str) -> None:
        """The dev server, once ready, was taken away by no fault of its own (its node is gone)."""


class Spawner(Protocol):
    """Starts and stops dev servers. One contract suite tests every implementation."""

    @property
    def outlasting(self) -> bool:
        """Whether dev servers live on without the spawner that has started them.

        Then another one can ``adopt`` them, and none stops them because its replica ends.
        """

    async def open(self) -> None:
        """Make ready; remove what a former life left behind."""

    async def tidy(self, *, grace_seconds: float) -> None:
        """Remove what spawners left behind that died, and were found dead so long ago.

        Until then what they started may still serve: nobody has taken it over yet.
        """

    def seen(self, *, seconds: float) -> Collection[Running]:
        """Dev servers of this and other spawners that have been there for at least so long.

        Only where they are ``outlasting``: for whoever knows which of them are wanted.
        """

    async def close(self) -> None:
        """Free what this spawner holds, and stop what it started unless that is ``outlasting``.

        Idempotent.
        """

    async def start(self, job: Job, reports: Reports) -> DevServer:
        """Start a dev server and return once it answers.

        Raises SpawnFailed with a reason a user can act on and the end of the log; nothing is
        left running then. Cancelling the call stops and cleans up too. A dev server of an older
        generation of the same session is stopped first.
        """

    async def adopt(self, running: Running, reports: Reports) -> Found:
        """Look after a dev server that another spawner has started, from now on.

        Only where dev servers are ``outlasting``. Raises SpawnFailed, with the reason, if it is
        there no more.
        """

    async def release(self, session_id: SessionId, *, generation: int) -> None:
        """Look no longer after a dev server, which goes on; one that cannot is stopped."""

    async def write(
        self,
        session_id: SessionId,
        *,
        write: Mapping[str, bytes],
        delete: Sequence[str] = (),
        revision: int = 0,
    ) -> None:
        """Put edits into the workspace so that the dev server's file watcher sees them.

        Each file changes atomically; the workspace then has ``revision``. Does nothing for a
        session without a workspace.
        """

    async def read(self, session_id: SessionId, paths: Collection[str]) -> dict[str, bytes]:
        """What these files hold now. Left out are those that are gone, or no files any more."""

    async def stop(self, session_id: SessionId, *, generation: int | None = None) -> None:
        """Stop the dev server and remove its workspace; returns when no process is left.

        Where it is ``outlasting``, whichever spawner has started it. With ``generation``, only
        that one. Stopping an absent one succeeds.
        """
