"""The gateway's side of the agent in a preview's pod.

Every call may be repeated: the agent knows generations, attempts and revisions, and answers what it
has done already as if it did it now. So a call whose connection broke is made once more.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import aiohttp
from aiohttp.http_exceptions import LineTooLong

from gateway.errors import AgentRefused, AgentUnreachable, NoAgent
from gateway.session import Endpoint
from gateway.spawner.kube.agent_wire import (
    AgentEvent,
    AgentState,
    Order,
    digests_of,
    file_entries,
    missing_paths,
    parse_event,
    parse_files,
    parse_object,
    parse_state,
    refusal,
)
from gateway.spawner.threads import in_thread

#: Files of fewer bytes together are sent as they are; of others those that are there are left out.
_SMALL_TREE_BYTES: Final = 64 * 1024
_ZIPPED_FROM_BYTES: Final = 16 * 1024
#: The fastest: what is sent travels inside a cluster.
_ZIP_LEVEL: Final = 1
_CONNECT_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 30.0
_TREE_SECONDS: Final = 120.0
_HEALTH_SECONDS: Final = 2.0
#: The agent sends an empty line every 10 s: longer silence means a dead connection.
_SILENCE_SECONDS: Final = 30.0
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0
_ANSWER_BYTES: Final = 16 * 2**20
_EVENT_BYTES: Final = 2**20
#: Base64, and the JSON around each file.
_READ_FACTOR: Final = 1.4
_READ_EXTRA_BYTES: Final = 4096


class Agent:
    """One agent. Calls raise AgentUnreachable, NoAgent, AgentRefused, or what a refusal means."""

    def __init__(self, http: aiohttp.ClientSession, host: str, port: int, token: str) -> None:
        """``http`` stays the caller's; ``host`` is the pod's address."""
        self.endpoint = Endpoint(host, port)
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    def __repr__(self) -> str:
        return f"Agent({self.endpoint})"

    async def healthy(self) -> bool:
        """Whether it takes orders."""
        try:
            answer = await self._call("GET", "/healthz", seconds=_HEALTH_SECONDS)
        except (AgentUnreachable, AgentRefused):
            return False
        return answer.get("ready") is True

    async def state(self, *, digests: bool = False) -> AgentState:
        """What it holds and does."""
        path = "/v1/state" if digests else "/v1/state?digests=false"
        return parse_state(await self._call("GET", path))

    async def push_tree(
        self, session_id: str, *, generation: int, revision: int, files: Mapping[str, bytes]
    ) -> AgentState:
        """Make its files exactly these; whatever ran under an older generation is ended first.

        Raises Fenced for an older generation, RevisionConflict for an older revision, and BadFiles.
        """
        known: Collection[str] = ()
        if sum(map(len, files.values())) > _SMALL_TREE_BYTES:
            known = frozenset((await self.state(digests=True)).digests.values())
        digests = await in_thread(digests_of, files)

        async def push(known: Collection[str]) -> tuple[int, dict[str, Any]]:
            body = {
                "sessionId": session_id,
                "generation": generation,
                "revision": revision,
                "files": file_entries(files, digests, known=known),
            }
            return await self._ask("PUT", "/v1/tree", body, seconds=_TREE_SECONDS)

        status, answer = await push(known)
        if missing_paths(answer) is not None:  # a file changed between the two calls
            status, answer = await push(())
        return parse_state(_accepted(status, answer))

    async def patch_files(
        self,
        *,
        generation: int,
        base_revision: int,
        revision: int,
        write: Mapping[str, bytes],
        delete: Sequence[str] = (),
    ) -> None:
        """Delete, then write. Each file changes at once; nothing is changed if one is refused.

        Raises RevisionConflict if its files are at another revision than ``base_revision``; at
        ``revision`` already is a success. Raises Fenced, and BadFiles.
        """
        body = {
            "generation": generation,
            "baseRevision": base_revision,
            "revision": revision,
            "write": file_entries(write, await in_thread(digests_of, write)),
            "delete": list(delete),
        }
        await self._call("PATCH", "/v1/files", body, seconds=_TREE_SECONDS)

    async def read(self, paths: Collection[str], *, longest: int) -> dict[str, bytes]:
        """What these files hold now. Left out are those that are gone, longer, or no files."""
        body = {"paths": list(paths), "longest": longest}
        most = int(len(paths) * (longest * _READ_FACTOR + _READ_EXTRA_BYTES)) + _READ_EXTRA_BYTES
        found = parse_files(await self._call("POST", "/v1/read", body, most=most), longest=longest)
        return {path: found[path] for path in paths if path in found}

    async def start(self, order: Order) -> bool:
        """Start a dev server, once for each attempt; whether a process that waited takes it on.

        The files of its generation must have been pushed. Raises Fenced.
        """
        answer = await self._call("POST", "/v1/start", order.document())
        return answer.get("warm") is True

    async def warm(self, order: Order) -> None:
        """Install, and start a process that waits for the line of an order."""
        await self._call("POST", "/v1/warm", order.document())

    async def stop(self, *, grace_seconds: float, generation: int | None = None) -> AgentState:
        """End whatever runs; returns when no process is left. Raises Fenced if it is newer."""
        body: dict[str, Any] = {"graceSeconds": grace_seconds}
        if generation is not None:
            body["generation"] = generation
        seconds = grace_seconds + _CALL_SECONDS
        return parse_state(await self._call("POST", "/v1/stop", body, seconds=seconds))

    async def events(
        self, *, after: int = 0, unreachable_seconds: float
    ) -> AsyncGenerator[AgentEvent, None]:
        """All events behind ``after``, for ever; a lost connection is made anew.

        Raises AgentUnreachable once nothing was heard for so long, and whatever refuses at once.
        """
        loop = asyncio.get_running_loop()
        heard, pause = loop.time(), _FIRST_PAUSE_SECONDS
        while True:
            try:
                async with aclosing(self._events_once(after)) as lines:
                    async for line in lines:
                        heard, pause = loop.time(), _FIRST_PAUSE_SECONDS
                        if line:
                            event = parse_event(line, after=after)
                            after = event.number
                            yield event
            except AgentUnreachable:
                if loop.time() - heard + pause > unreachable_seconds:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _events_once(self, after: int) -> AsyncGenerator[bytes, None]:
        """Lines of events, the first one empty, until the connection is lost."""
        timeout = aiohttp.ClientTimeout(
            total=None, connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
        )
        url = self._url(f"/v1/events?after={after}")
        try:
            async with self._http.get(
                url,
                headers=self._headers,
                timeout=timeout,
                allow_redirects=False,
                auto_decompress=False,
                read_bufsize=_EVENT_BYTES,
            ) as response:
                if response.status != 200:
                    document = parse_object(await _limited(response, _EVENT_BYTES))
                    raise refusal(response.status, document)
                yield b""
                async for line in response.content:
                    if not line.endswith(b"\n"):
                        break  # cut off in the middle
                    yield line.strip()
        except LineTooLong as exc:
            raise NoAgent("its events are too long") from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise self._unreachable(exc) from exc
        raise AgentUnreachable(f"the agent at {self.endpoint} has closed its events")

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float = _CALL_SECONDS,
        most: int = _ANSWER_BYTES,
    ) -> dict[str, Any]:
        return _accepted(*await self._ask(method, path, body, seconds=seconds, most=most))

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float,
        most: int = _ANSWER_BYTES,
    ) -> tuple[int, dict[str, Any]]:
        """Status and document of an answer. Raises AgentUnreachable and NoAgent."""
        data, headers = None, dict(self._headers)
        if body is not None:
            data, encoding = await in_thread(_encoded, body)
            headers |= {"Content-Type": "application/json"} | encoding
        try:
            async with asyncio.timeout(seconds):
                try:
                    return await self._ask_once(method, path, data, headers, most)
                except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                    return await self._ask_once(method, path, data, headers, most)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise self._unreachable(exc) from exc

    async def _ask_once(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], most: int
    ) -> tuple[int, dict[str, Any]]:
        async with self._http.request(
            method,
            self._url(path),
            data=data,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
            allow_redirects=False,
            auto_decompress=False,
        ) as response:
            return response.status, parse_object(await _limited(response, most))

    def _url(self, path: str) -> str:
        return f"http://{self.endpoint}{path}"

    def _unreachable(self, exc: Exception) -> AgentUnreachable:
        why = "it did not answer in time" if isinstance(exc, TimeoutError) else str(exc)
        return AgentUnreachable(f"the agent at {self.endpoint} cannot be reached: {why}")


def _accepted(status: int, document: dict[str, Any]) -> dict[str, Any]:
    if status not in {200, 202}:
        raise refusal(status, document)
    return document


def _encoded(body: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A body and the field that tells its encoding."""
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    if len(data) < _ZIPPED_FROM_BYTES:
        return data, {}
    return gzip.compress(data, _ZIP_LEVEL), {"Content-Encoding": "gzip"}


async def _limited(response: aiohttp.ClientResponse, most: int) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > most:
            raise NoAgent("its answer is too long")
        parts.append(part)
    return b"".join(parts)
