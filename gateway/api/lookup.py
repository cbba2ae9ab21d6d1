"""The session that a call is about: found, waited for, shown."""

from __future__ import annotations

from aiohttp import web

from gateway.api.views import Urls
from gateway.errors import BadRequest, SessionEnded
from gateway.lifecycle import Lifecycle
from gateway.session import ENDED, Session, SessionId, State, parse_session_id
from gateway.settings import Settings


def session_id_of(request: web.Request) -> SessionId:
    """The id in the address; raises BadSessionId."""
    return parse_session_id(request.match_info["id"])


class Lookup:
    """Finds sessions. Nothing is "not found" before its registration was waited for."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._lifecycle = lifecycle

    async def known(self, session_id: SessionId, *, seconds: float | None = None) -> Session:
        """The session, waited for up to ``seconds`` (``status_wait_seconds``).

        Raises SessionNotFound, and SessionEnded for one that was deleted.
        """
        session = await self.recorded(session_id, seconds=seconds)
        if session.forgotten:
            raise SessionEnded(session.id, state=session.state, reason=session.reason)
        return session

    async def recorded(self, session_id: SessionId, *, seconds: float | None = None) -> Session:
        """The same, whatever has become of it. Raises SessionNotFound."""
        if seconds is None:
            seconds = self._settings.status_wait_seconds
        return await self._lifecycle.wait(session_id, lambda _: True, seconds=seconds)

    async def settled(self, session_id: SessionId, wanted: str, *, seconds: float) -> Session:
        """The session as it is wanted ("ready", "ended", "": as it is), or has become by then.

        Who waits for ready gets an ended session too, and wakes one that sleeps. Raises
        SessionNotFound, and SessionEnded for one that was deleted.
        """
        return await self.become(await self.known(session_id), wanted, seconds=seconds)

    async def become(self, session: Session, wanted: str, *, seconds: float) -> Session:
        """The same of a session that is at hand, whatever has become of it."""
        if not wanted:
            return session
        if wanted == "ready" and session.state is State.SLEEPING:
            await self._lifecycle.wake(session.id, generation=session.generation)

        def is_wanted(session: Session) -> bool:
            return session.state in ENDED or (wanted == "ready" and session.state is State.READY)

        return await self._lifecycle.wait(session.id, is_wanted, seconds=seconds)

    def urls(self, request: web.Request) -> Urls:
        """Public addresses as this caller knows them."""
        settings = self._settings
        # Both are the data plane's word, which is the only one to reach this application.
        scheme = request.headers.get("X-Forwarded-Proto", "http")
        base = settings.public_url or f"{scheme}://{request.host}"
        return Urls(base=base, preview_domain=settings.preview_domain)


def check_has_files(session: Session) -> None:
    """Raise BadRequest for a session without files of its own."""
    if session.recipe.target:
        raise BadRequest("a target session has no files here")
    if session.reserved:
        raise BadRequest("the session has no content yet: create it with its files first")


def check_is_live(session: Session) -> None:
    """Raise SessionEnded for a session that is ending, or has ended."""
    if session.state in ENDED or session.state is State.STOPPING:
        raise SessionEnded(session.id, state=session.state, reason=session.reason)
