"""The calls of the API."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, Literal, Self, Unpack, cast
from urllib.parse import quote

import aiohttp

from gateway.client.answers import (
    Edited,
    Files,
    IssuedToken,
    Link,
    NewSession,
    Page,
    Posted,
    Replica,
    Session,
    Stopped,
    Ticket,
    Visibility,
)
from gateway.client.errors import ApiError, PreviewEnded, Unreachable, WaitTimeout
from gateway.client.events import Event
from gateway.client.files import encoded_files
from gateway.client.transport import CALL_SECONDS, Call, Transport
from gateway.client.waiting import Patience

_SESSIONS: Final = "/api/v1/sessions"
_ENDED: Final = frozenset({"stopped", "failed", "expired"})
#: One long poll: shorter than the 60 s after which proxies in front give up.
_POLL_SECONDS: Final = 25.0
_UPLOAD_SECONDS: Final = 120.0
#: The gateway says something every 15 s: a longer silence means a dead connection.
_SILENCE_SECONDS: Final = 40.0


class Client:
    """Calls of one gateway. Use as an async context manager.

    ``token``: an API token, or what gives one, asked for each call, so that it may change.
    ``patience_seconds``: how long calls are tried again while the gateway cannot answer; 0: never.
    All calls raise ApiError and Unreachable.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str] = "",
        patience_seconds: float = 30.0,
        silence_seconds: float = _SILENCE_SECONDS,
    ) -> None:
        self._transport = Transport(
            url, token=token, patience_seconds=patience_seconds, silence_seconds=silence_seconds
        )

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._transport.close()

    async def alive(self) -> bool:
        """Whether a gateway answers there, at once."""
        try:
            answer = await self._transport.once(Call("GET", "/livez"), self._transport.json)
        except (ApiError, Unreachable):
            return False
        return bool(answer.get("version"))

    # -- sessions --------------------------------------------------------------------------------

    async def create(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        archive: bytes | None = None,
        wait: bool = False,
        timeout_seconds: float = 120.0,
        idempotency_key: str = "",
        **fields: Unpack[NewSession],
    ) -> Session:
        """Make a session from files, or from a tar.gz of them; with ``wait``, until it is ready.

        Repeated as often as it takes, it is made once: by the key, which is made up if there is
        none.
        """
        body: dict[str, Any] = dict(fields)
        if files is not None:
            body["files"] = encoded_files(files)
        call = Call(
            "POST",
            _SESSIONS,
            json=None if archive is not None else body,
            archive=archive,
            query=[("session", json.dumps(body))] if archive is not None else (),
            headers={"Idempotency-Key": idempotency_key or secrets.token_hex(16)},
            seconds=_UPLOAD_SECONDS,
        )
        session = cast("Session", await self._transport.ask(call, self._transport.json))
        if not wait:
            return session
        return await self.wait(session["id"], timeout_seconds=timeout_seconds)

    async def session(self, session_id: str) -> Session:
        """One session, ended ones included; a registration under way is waited for."""
        return cast("Session", await self._call("GET", _one(session_id)))

    async def wait(
        self,
        session_id: str,
        *,
        until: Literal["ready", "ended"] = "ready",
        timeout_seconds: float = 120.0,
    ) -> Session:
        """The session once it is ready (which wakes it) or has ended.

        Raises PreviewEnded if it has ended and was to be ready, and WaitTimeout.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            seconds = max(0.0, min(_POLL_SECONDS, deadline - time.monotonic()))
            query = [("wait", until), ("timeout", f"{seconds:.3f}")]
            call = Call("GET", _one(session_id), query=query, seconds=CALL_SECONDS + seconds)
            session = cast("Session", await self._transport.ask(call, self._transport.json))
            if session["state"] == until:
                return session
            if session["state"] in _ENDED:
                if until == "ended":
                    return session
                raise PreviewEnded(session)
            if time.monotonic() >= deadline:
                raise WaitTimeout(session, until=until, seconds=timeout_seconds)

    async def page(
        self,
        *,
        state: str = "",
        visibility: str = "",
        owner: str = "",
        metadata: Mapping[str, Any] | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> Page:
        """One page of the list, newest first: an empty ``cursor`` is the end."""
        given = {"state": state, "visibility": visibility, "owner": owner, "cursor": cursor}
        query = [(name, value) for name, value in given.items() if value]
        query.append(("limit", str(limit)))
        for name, value in (metadata or {}).items():
            text = value if isinstance(value, str) else json.dumps(value)
            query.append((f"metadata.{name}", text))
        return cast("Page", await self._call("GET", _SESSIONS, query=query))

    async def sessions(
        self,
        *,
        state: str = "",
        visibility: str = "",
        owner: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> list[Session]:
        """All sessions that are wanted, newest first."""
        found: list[Session] = []
        cursor = ""
        while True:
            page = await self.page(
                state=state, visibility=visibility, owner=owner, metadata=metadata, cursor=cursor
            )
            found += page["sessions"]
            cursor = page["cursor"]
            if not cursor:
                return found

    async def patch(
        self,
        session_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        visibility: Visibility | None = None,
        ttl_seconds: int | None = None,
    ) -> Session:
        """Change metadata (merged: None removes a member), visibility, life time."""
        body = _given(metadata=metadata, visibility=visibility, ttlSeconds=ttl_seconds)
        return cast("Session", await self._call("PATCH", _one(session_id), body))

    async def stop(self, session_id: str) -> Stopped:
        """Stop; of a session that has ended already it says so."""
        return cast("Stopped", await self._call("POST", _one(session_id, "/stop"), {}))

    async def delete(self, session_id: str) -> None:
        """Stop, and forget files and events."""
        await self._transport.ask(Call("DELETE", _one(session_id)), self._transport.text)

    # -- files -----------------------------------------------------------------------------------

    async def files(self, session_id: str) -> Files:
        """The files as the API has them; ``decoded_file`` makes bytes of one."""
        call = Call("GET", _one(session_id, "/files"), seconds=_UPLOAD_SECONDS)
        return cast("Files", await self._transport.ask(call, self._transport.json))

    async def archive(self, session_id: str) -> tuple[int, bytes]:
        """The revision, and the files as a tar.gz."""

        async def read(response: aiohttp.ClientResponse) -> tuple[int, bytes]:
            return int(response.headers["ETag"].strip('"')), await response.read()

        query = [("format", "tar.gz")]
        path = _one(session_id, "/files")
        return await self._transport.ask(
            Call("GET", path, query=query, seconds=_UPLOAD_SECONDS), read
        )

    async def edit(
        self,
        session_id: str,
        *,
        write: Mapping[str, bytes] | None = None,
        delete: Sequence[str] = (),
        archive: bytes | None = None,
        base_revision: int | None = None,
    ) -> Edited:
        """Write and delete files of a running preview; ``archive``: a tar.gz of files to write."""
        body = {"write": encoded_files(write or {}), "delete": list(delete)}
        query = [("delete", path) for path in delete]
        return await self._upload("PATCH", session_id, body, archive, query, base_revision)

    async def replace_files(
        self,
        session_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        archive: bytes | None = None,
        base_revision: int | None = None,
    ) -> Edited:
        """These files instead of all that are there, in one step."""
        body = {"files": encoded_files(files or {})}
        return await self._upload("PUT", session_id, body, archive, [], base_revision)

    async def _upload(
        self,
        method: str,
        session_id: str,
        body: dict[str, Any],
        archive: bytes | None,
        query: list[tuple[str, str]],
        base_revision: int | None,
    ) -> Edited:
        if base_revision is not None:
            body["baseRevision"] = base_revision
            query.append(("baseRevision", str(base_revision)))
        call = Call(
            method,
            _one(session_id, "/files"),
            json=None if archive is not None else body,
            archive=archive,
            query=query if archive is not None else (),
            seconds=_UPLOAD_SECONDS,
            # Sent again after a lost answer, it would conflict with itself.
            once=base_revision is not None,
        )
        return cast("Edited", await self._transport.ask(call, self._transport.json))

    # -- events ----------------------------------------------------------------------------------

    async def post_event(
        self,
        session_id: str,
        kind: str,
        data: Any = None,
        *,
        t: float | str | None = None,
        once: bool = False,
    ) -> Posted:
        """Post an event of a type.

        If its answer is lost it is posted again, so it may come twice; with ``once`` it is not, and
        Unreachable leaves open whether it is there.
        """
        body = {"type": kind, **_given(data=data, t=t)}
        call = Call("POST", _one(session_id, "/events"), json=body, once=once)
        return cast("Posted", await self._transport.ask(call, self._transport.json))

    async def events(self, session_id: str, *, after: str = "0") -> AsyncGenerator[Event, None]:
        """The session's events after ``after`` (an event's id), until the session has ended.

        Without gap or repeat over lost connections and replicas; once it was connected, it
        reconnects for as long as it is read. Waits for a registration under way. A session that
        was begun anew has an ``end`` in the middle: the last one is the end.
        """
        path, last = _one(session_id, "/events"), ""
        trying = Patience(self._transport.patience_seconds)
        while True:
            had_ended = last == "end"
            try:
                connection = self._transport.events(path, after=after, trying=trying)
                async with aclosing(connection) as events:
                    async for event in events:
                        trying.calm()
                        # After a cut right behind the end: it is said again, without an id.
                        if had_ended and event.type == "end" and not event.id:
                            return
                        after, last = event.id or after, event.type
                        yield event
                if last == "end":
                    return
                await trying.pause(Unreachable("the replica has closed the event stream"))
            except (ApiError, Unreachable) as exc:
                await trying.pause(exc)

    async def logs(self, session_id: str, *, tail: int = 500) -> str:
        """The end of the log."""
        call = Call("GET", _one(session_id, "/logs"), query=[("tail", str(tail))])
        return await self._transport.ask(call, self._transport.text)

    # -- access ----------------------------------------------------------------------------------

    async def ticket(self, session_id: str) -> Ticket:
        """What opens the event stream once, within 30 s, where no header can be sent."""
        return cast("Ticket", await self._call("POST", _one(session_id, "/ticket")))

    async def create_link(self, session_id: str, *, ttl_seconds: int | None = None) -> Link:
        """A link that opens a private preview in a browser."""
        body = _given(ttlSeconds=ttl_seconds)
        return cast("Link", await self._call("POST", _one(session_id, "/links"), body))

    async def revoke_links(self, session_id: str) -> None:
        """Void all links, their cookies and the session's tokens."""
        await self._transport.ask(Call("DELETE", _one(session_id, "/links")), self._transport.text)

    async def create_token(self, session_id: str, *, ttl_seconds: int | None = None) -> IssuedToken:
        """A token that reads this session, and changes nothing."""
        body = _given(ttlSeconds=ttl_seconds)
        return cast("IssuedToken", await self._call("POST", _one(session_id, "/tokens"), body))

    async def replicas(self) -> list[Replica]:
        """The replicas with a lease."""
        return cast("list[Replica]", (await self._call("GET", "/api/v1/replicas"))["replicas"])

    # -- how calls are made ----------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Iterable[tuple[str, str]] = (),
    ) -> dict[str, Any]:
        return await self._transport.ask(
            Call(method, path, json=body, query=tuple(query)), self._transport.json
        )


def _one(session_id: str, rest: str = "") -> str:
    return f"{_SESSIONS}/{quote(session_id, safe='')}{rest}"


def _given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
