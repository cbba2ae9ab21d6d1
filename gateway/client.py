"""A small client of the HTTP API; the command line is its first user."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from gateway.errors import GatewayError

_CALL_SECONDS: Final = 30.0
_CREATE_SECONDS: Final = 60.0
#: The server sends a comment every 15 s: longer silence means a dead connection.
_STREAM_SILENCE_SECONDS: Final = 40.0
_RECONNECT_SECONDS: Final = 0.5


class ApiError(GatewayError):
    """The API refused a call; ``problem`` is its RFC 9457 document."""

    code = "api_error"
    title = "API error"

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"status {status}"))
        self.http_status = status
        self.problem = dict(problem)


class Unreachable(GatewayError):
    """Nothing answers at the API's address."""

    code = "unreachable"
    title = "Gateway unreachable"


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    id: str
    type: str
    data: dict[str, Any]


def encoded_files(files: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Files as the API takes them: text as it is, anything else in base64."""
    encoded = []
    for path, content in files.items():
        try:
            encoded.append({"path": path, "content": content.decode()})
        except UnicodeDecodeError:
            text = base64.b64encode(content).decode()
            encoded.append({"path": path, "content": text, "encoding": "base64"})
    return encoded


class Client:
    """Calls of one gateway. Use as an async context manager."""

    def __init__(self, url: str, *, token: str = "") -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._http.close()

    async def alive(self) -> bool:
        """Whether a gateway answers there."""
        try:
            return bool((await self._call("GET", "/livez")).get("version"))
        except (ApiError, Unreachable):
            return False

    async def create(self, files: Mapping[str, bytes], **fields: Any) -> dict[str, Any]:
        """Create a session from files; ``fields`` are further fields of the call, in camelCase."""
        body = {"files": encoded_files(files), **fields}
        return await self._call("POST", "/api/v1/sessions", body, seconds=_CREATE_SECONDS)

    async def session(self, session_id: str) -> dict[str, Any]:
        """One session."""
        return await self._call("GET", f"/api/v1/sessions/{session_id}")

    async def sessions(self, *, state: str = "") -> list[dict[str, Any]]:
        """All sessions, newest first."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            query = {"cursor": cursor, **({"state": state} if state else {})}
            page = await self._call("GET", "/api/v1/sessions", query=query)
            found.extend(page["sessions"])
            cursor = page["cursor"]
            if not cursor:
                return found

    async def edit(
        self, session_id: str, *, write: Mapping[str, bytes], delete: Sequence[str]
    ) -> int:
        """Change files; the new revision."""
        body = {"write": encoded_files(write), "delete": list(delete)}
        answer = await self._call("PATCH", f"/api/v1/sessions/{session_id}/files", body)
        return int(answer["revision"])

    async def stop(self, session_id: str) -> dict[str, Any]:
        """Stop a session."""
        return await self._call("POST", f"/api/v1/sessions/{session_id}/stop", {})

    async def logs(self, session_id: str, *, tail: int) -> str:
        """The end of the log."""
        _, text = await self._ask(
            "GET", f"/api/v1/sessions/{session_id}/logs", query={"tail": str(tail)}
        )
        return text

    async def events(self, session_id: str) -> AsyncGenerator[Event, None]:
        """The session's events, resumed after every lost connection, until it has ended.

        A session that was begun anew has an ``end`` in the middle: the last one is the end.
        """
        after, last = "0", ""
        while last != "end":
            try:
                async with aclosing(self._events_after(session_id, after)) as events:
                    async for event in events:
                        after, last = event.id or after, event.type
                        yield event
            except (Unreachable, ApiError) as exc:
                if isinstance(exc, ApiError) and exc.http_status < 500:
                    raise
                last = ""
            if last != "end":
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _events_after(self, session_id: str, after: str) -> AsyncGenerator[Event, None]:
        """The events of one connection."""
        parser = EventParser()
        with self._translated():
            async with self._http.get(
                f"{self._url}/api/v1/sessions/{session_id}/events",
                headers={"Last-Event-ID": after},
                timeout=aiohttp.ClientTimeout(total=None, sock_read=_STREAM_SILENCE_SECONDS),
            ) as response:
                if response.status >= 400:
                    raise ApiError(response.status, _problem(await response.text()))
                async for data in response.content.iter_any():
                    for event in parser.feed(data):
                        yield event

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        seconds: float = _CALL_SECONDS,
    ) -> dict[str, Any]:
        """The JSON object that a call answers."""
        _, text = await self._ask(method, path, body, query=query, seconds=seconds)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Unreachable(f"what answers at {self._url} is no preview gateway")
        return answer

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        seconds: float = _CALL_SECONDS,
    ) -> tuple[int, str]:
        with self._translated():
            async with self._http.request(
                method,
                self._url + path,
                json=body,
                params=query,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                status, text = response.status, await response.text()
        if status >= 400:
            raise ApiError(status, _problem(text))
        return status, text

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the connection as Unreachable."""
        try:
            yield
        except (aiohttp.ClientError, TimeoutError) as exc:
            reason = str(exc) or type(exc).__name__
            raise Unreachable(
                f"no gateway answers at {self._url} ({reason}): start one with `preview-gateway "
                "serve`, or name another with --url"
            ) from exc


def _problem(text: str) -> dict[str, Any]:
    try:
        problem = json.loads(text)
    except ValueError:
        return {"detail": text[:500]}
    return problem if isinstance(problem, dict) else {"detail": text[:500]}


class EventParser:
    """Server-sent events from bytes as they come (HTML standard, 9.2.6). No I/O."""

    def __init__(self) -> None:
        self._open = b""
        self._fields: dict[str, str] = {}

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes."""
        *lines, self._open = (self._open + data).split(b"\n")
        events: list[Event] = []
        for raw in lines:
            line = raw.removesuffix(b"\r").decode(errors="replace")
            if line:
                name, _, value = line.partition(":")
                self._fields[name] = value.removeprefix(" ")
                continue
            fields, self._fields = self._fields, {}
            if "data" in fields:
                content = json.loads(fields["data"])
                events.append(Event(fields.get("id", ""), fields.get("event", "message"), content))
        return events
