"""Calls of the Kubernetes API: the pods of one namespace, as dicts.

``docs/kubernetes-client.md`` says why this is no library.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

import aiohttp

from gateway.errors import KubeGone, KubeNotFound, KubeRefused, KubeUnavailable
from gateway.spawner.kube.config import KubeConfig
from gateway.spawner.kube.pauses import pause_seconds
from gateway.spawner.kube.refusals import from_status, refusal

#: A pod as the API server writes it.
Pod = dict[str, Any]

_ATTEMPT_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 30.0
_LONGEST_PAUSE_SECONDS: Final = 5.0
#: kubectl takes 500, but parsing those holds the event loop for 105 ms; these for 10.
_CHUNK: Final = 100
#: So many lists in chunks are begun anew before one is asked for in one piece.
_CHUNKED_TRIES: Final = 3
#: The API server ends watches after this; see docs/kubernetes-client.md for the choice.
_WATCH_SECONDS: Final = (30, 60)
#: How much later than the server a watch is given up.
_WATCH_MARGIN_SECONDS: Final = 10.0
#: The API server takes no object of more than 1.5 MiB.
_LONGEST_LINE_BYTES: Final = 8 << 20
_MERGE_PATCH: Final = "application/merge-patch+json"


class Listing(NamedTuple):
    """All pods of a selector at one resource version."""

    pods: tuple[Pod, ...]
    resource_version: str


class Event(NamedTuple):
    """One event of a watch: ADDED, MODIFIED, DELETED or BOOKMARK.

    The pod of DELETED is its last state. A bookmark's holds nothing but a resource version.
    """

    type: str
    pod: Pod


class KubeApi:
    """The pods of one namespace. Use as an async context manager.

    Every call raises KubeRefused if the API server says no, and KubeUnavailable if it does not
    answer: for calls that may be repeated, after they were, for ``call_seconds`` at most.
    """

    def __init__(
        self,
        config: KubeConfig,
        *,
        attempt_seconds: float = _ATTEMPT_SECONDS,
        call_seconds: float = _CALL_SECONDS,
        watch_margin_seconds: float = _WATCH_MARGIN_SECONDS,
    ) -> None:
        self._config = config
        self._attempt_seconds = attempt_seconds
        self._watch_margin_seconds = watch_margin_seconds
        self._call_seconds = call_seconds
        namespace = quote(config.namespace, safe="")
        self._pods = f"{config.url}/api/v1/namespaces/{namespace}/pods"

    async def __aenter__(self) -> Self:
        # The limit is no queue for creates behind watches: those of a gateway are one or two.
        connector = aiohttp.TCPConnector(ssl=self._config.tls or True, limit=32)
        self._http = aiohttp.ClientSession(
            connector=connector, headers={"User-Agent": "preview-gateway"}
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._http.close()

    @property
    def namespace(self) -> str:
        """The namespace of the pods."""
        return self._config.namespace

    async def create(self, pod: Pod) -> Pod:
        """Create a pod; returns it as the API server holds it.

        The pod has a name of its own, so that a repetition creates no second one. Raises
        KubeAlreadyExists if the name is taken; with ``repeated`` set it may have been taken by an
        earlier try of this call, whose answer was lost.
        """
        return await self._call("POST", self._pods, body=pod)

    async def read(self, name: str) -> Pod | None:
        """The newest state of a pod; None if there is none."""
        try:
            return await self._call("GET", self._path(name))
        except KubeNotFound:
            return None

    async def patch(self, name: str, change: Mapping[str, Any]) -> Pod:
        """Merge ``change`` into a pod (RFC 7396); returns it as it is then.

        With ``metadata.resourceVersion`` in it this is a compare-and-set: KubeConflict if the pod
        has changed since, or (``repeated``) by an earlier try of this call. KubeNotFound without
        a pod.
        """
        return await self._call("PATCH", self._path(name), body=change, content_type=_MERGE_PATCH)

    async def delete(
        self, name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> bool:
        """Have a pod ended; False if there is none, which is success as well.

        The pod is there until its processes have ended. KubeConflict if ``uid`` is given and the
        name belongs to another pod.
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._call("DELETE", self._path(name), body=options)
        except KubeNotFound:
            return False
        return True

    async def watch(
        self, selector: str, resource_version: str, *, seconds: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """What happens to the pods of a selector after a resource version, as it happens.

        Ends by itself after a while (``seconds``, else 30 to 60): go on from the last resource
        version seen, bookmarks included. Raises KubeGone if that is too old: list again. Any
        other error says nothing about the pods; no call of this is repeated here. Close it
        (``contextlib.aclosing``) when done.
        """
        lasts = max(1, round(seconds if seconds is not None else random.uniform(*_WATCH_SECONDS)))  # noqa: S311
        query = {
            **({"labelSelector": selector} if selector else {}),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(lasts),
        }
        limit = lasts + self._watch_margin_seconds
        async with self._exchange("GET", self._pods, query=query, seconds=limit) as response:
            async for line in _lines(response.content.iter_any()):
                yield _event(line)

    async def list(self, selector: str = "", *, resource_version: str = "") -> Listing:
        """All pods of a selector at one moment, asked for in chunks.

        Without ``resource_version`` the newest state; with one, any that is not older.
        """
        for _ in range(_CHUNKED_TRIES):
            try:
                return await self._list(selector, resource_version, chunk=_CHUNK)
            except KubeGone:
                # The moment was forgotten between two chunks, or is too old to begin with.
                resource_version = ""
        return await self._list(selector, resource_version, chunk=0)

    async def _list(self, selector: str, resource_version: str, *, chunk: int) -> Listing:
        found: tuple[Pod, ...] = ()
        query = {"labelSelector": selector} if selector else {}
        if chunk:
            query["limit"] = str(chunk)
        if resource_version:
            query |= {"resourceVersion": resource_version, "resourceVersionMatch": "NotOlderThan"}
        while True:
            page = await self._call("GET", self._pods, query=query)
            found += tuple(page.get("items") or ())
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return Listing(found, str(metadata.get("resourceVersion", "")))
            query["continue"] = metadata["continue"]
            # The token holds the version; the API server refuses both together.
            query.pop("resourceVersion", None)
            query.pop("resourceVersionMatch", None)

    # -- one call ------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._pods}/{quote(name, safe='')}"

    async def _call(
        self,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """The object that a call answers. Repeated while the API server cannot answer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._call_seconds
        failures, uncertain = 0, False
        while True:
            try:
                left = max(deadline - loop.time(), 0.01)
                return await self._attempt(
                    method, url, query, body, content_type, min(left, self._attempt_seconds)
                )
            except KubeRefused as exc:
                exc.repeated = uncertain
                raise
            except KubeUnavailable as exc:
                failures += 1
                exc.uncertain = uncertain = uncertain or exc.uncertain
                pause = pause_seconds(
                    failures, asked=exc.asked_seconds, longest=_LONGEST_PAUSE_SECONDS
                )
                untrusted = isinstance(exc.__cause__, aiohttp.ClientConnectorCertificateError)
                if untrusted or loop.time() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)

    async def _attempt(
        self,
        method: str,
        url: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        seconds: float,
    ) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        async with self._exchange(
            method, url, query=query, data=data, content_type=content_type, seconds=seconds
        ) as response:
            text = await response.read()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise KubeUnavailable(f"what answers at {self._config.url} is no Kubernetes API server")
        return answer

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        data: bytes | None = None,
        content_type: str = "application/json",
        seconds: float,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful answer, whose content is yet to be read. A second try after 401."""
        # Not compressed: the way is short, and the event loop would unpack it.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if data is not None:
            headers["Content-Type"] = content_type
        tokens = self._config.tokens
        for last in (tokens is None, True):
            if tokens is not None:
                headers["Authorization"] = f"Bearer {await tokens.token()}"
            with _translated(self._config.url):
                response = await self._open(method, url, query, data, headers, seconds)
                async with response:
                    if response.status < 300:
                        yield response
                        return
                    text = await response.read()
            if response.status == 401 and tokens is not None:
                tokens.refused()
                if not last:
                    continue
            raise refusal(
                response.status, text, retry_after=response.headers.get("Retry-After", "")
            )

    async def _open(
        self,
        method: str,
        url: str,
        query: Mapping[str, str] | None,
        data: bytes | None,
        headers: Mapping[str, str],
        seconds: float,
    ) -> aiohttp.ClientResponse:
        """The head of an answer, whatever it says. Raises what aiohttp raises."""
        # A watch may last, but even its head comes at once.
        async with asyncio.timeout(min(seconds, self._attempt_seconds)):
            return await self._http.request(
                method,
                url,
                params=query,
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,
                server_hostname=self._config.server_name or None,
            )


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Errors of the connection as KubeUnavailable."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as exc:
        raise KubeUnavailable(
            f"the certificate of the Kubernetes API server at {url} is not one of its CA: "
            f"{exc.certificate_error}",
            uncertain=False,
        ) from exc
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        # Without a connection nothing can have happened.
        unsent = isinstance(exc, (aiohttp.ClientConnectorError, aiohttp.InvalidURL))
        raise KubeUnavailable(
            f"the Kubernetes API server at {url} does not answer: {str(exc) or type(exc).__name__}",
            uncertain=not unsent,
        ) from exc


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of any length up to 8 MiB: aiohttp's own reader takes none beyond 128 KiB."""
    open_parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*open_parts, line])
            open_parts, size = [], 0
        open_parts.append(rest)
        size += len(rest)
        if size > _LONGEST_LINE_BYTES:
            raise KubeUnavailable("an event of the Kubernetes API server is too long")


def _event(line: bytes) -> Event:
    try:
        event = json.loads(line)
        kind, thing = str(event["type"]), event["object"]
    except (ValueError, LookupError, TypeError) as exc:
        raise KubeUnavailable("an event of the Kubernetes API server is none") from exc
    if kind == "ERROR":
        raise from_status(thing)
    return Event(kind, thing)
