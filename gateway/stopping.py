"""The end of a session that somebody asked for, whoever owns it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from gateway.errors import Fenced
from gateway.registry.base import Registry
from gateway.session import Session, SessionId, State
from gateway.settings import Settings
from gateway.takeover import Takeover
from gateway.watchers import Watchers

log: Final = logging.getLogger(__name__)


class Stopping:
    """Asks for the end of sessions and waits for it. The owner, told by the push, does the rest."""

    def __init__(
        self, settings: Settings, registry: Registry, watchers: Watchers, takeover: Takeover
    ) -> None:
        self._limit_seconds = settings.stop_grace_seconds + settings.lease_seconds
        #: How often it is asked whether the owner is alive.
        self._check_seconds = max(1.0, settings.stop_grace_seconds)
        self._registry = registry
        self._watchers = watchers
        self._takeover = takeover

    async def stop(self, session_id: SessionId, *, reason: str) -> tuple[Session, bool]:
        """Stop a session. Returns it, and whether it was stopped already.

        Waits until the owner has stopped the dev server. Raises SessionNotFound.
        """
        stop = await self._registry.request_stop(session_id, reason=reason)
        session = stop.session
        if not stop.already:
            log.info("session %s stops: %s", session_id, reason)
        if session.state is State.STOPPING:
            session = await self.until_ended(session)
        return session, stop.already

    async def until_ended(self, stopping: Session) -> Session:
        """The session once it is no longer STOPPING, or as it is after a lease."""
        session = stopping
        waited = 0.0
        while session.state is State.STOPPING and waited < self._limit_seconds:
            session = await self._watchers.wait(
                session.id, lambda s: s.state is not State.STOPPING, seconds=self._check_seconds
            )
            waited += self._check_seconds
            if session.generation != stopping.generation:
                # It has ended, and somebody has begun it anew already.
                return replace(stopping, state=stopping.stop_to or State.STOPPED)
            if session.state is State.STOPPING:
                await self._finish_for_dead_owner(session)
        return session

    async def _finish_for_dead_owner(self, session: Session) -> None:
        try:
            await self._takeover.finish(session)
        except Fenced:
            log.info("session %s was ended by another replica", session.id)
