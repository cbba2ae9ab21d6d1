"""How calls are made: one connection pool, time limits, tries."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import aiohttp

from gateway.client.errors import ApiError, NoGateway, Unreachable
from gateway.client.events import Event, EventParser
from gateway.client.waiting import Patience, was_not_done
from gateway.errors import GatewayError

T = TypeVar("T")

#: Beyond what the gateway itself may wait before it answers.
CALL_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it is sent. ``once``: not again if its answer is lost."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    archive: bytes | None = None
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = CALL_SECONDS
    once: bool = False

    def options(self) -> dict[str, Any]:
        """For aiohttp."""
        headers = dict(self.headers)
        if self.archive is not None:
            headers["Content-Type"] = "application/gzip"
        return {
            "json": self.json,
            "data": self.archive,
            "params": list(self.query),
            "timeout": aiohttp.ClientTimeout(total=self.seconds),
            "headers": headers,
        }


class Transport:
    """Calls of one gateway, as they go over the wire. Open between ``open`` and ``close``."""

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str],
        patience_seconds: float,
        silence_seconds: float,
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._silence_seconds = silence_seconds
        self.patience_seconds = patience_seconds

    async def open(self) -> None:
        """Make the connection pool. Cookies are none of its business."""
        self._http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """Let go of all connections."""
        await self._http.close()

    async def ask(self, call: Call, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        """One call, tried until it succeeds, is refused for good, or patience is at its end."""
        trying = Patience(self.patience_seconds)
        while True:
            try:
                return await self.once(call, read)
            except (ApiError, Unreachable) as exc:
                if call.once and not was_not_done(exc):
                    raise
                await trying.pause(exc)

    async def once(self, call: Call, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        options = call.options()
        options["headers"] |= self._authorization()
        with self._translated():
            async with self._http.request(
                call.method, self._url + call.path, **options
            ) as response:
                await _check(response)
                return await read(response)

    async def events(
        self, path: str, *, after: str, trying: Patience
    ) -> AsyncGenerator[Event, None]:
        """The events of one connection."""
        parser = EventParser()
        with self._translated():
            async with self._http.get(
                self._url + path,
                headers={"Last-Event-ID": after, **self._authorization()},
                timeout=aiohttp.ClientTimeout(total=None, sock_read=self._silence_seconds),
            ) as response:
                await _check(response)
                trying.worked()
                async for data in response.content.iter_any():
                    for event in parser.feed(data):
                        yield event

    def _authorization(self) -> dict[str, str]:
        token = self._token if isinstance(self._token, str) else self._token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def text(self, response: aiohttp.ClientResponse) -> str:
        """A body as text."""
        return await response.text()

    async def json(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """The JSON object in a body; raises Unreachable if there is none: it is no gateway."""
        answer = _object(await response.text())
        if answer is None:
            raise NoGateway(f"what answers at {self._url} is no preview gateway")
        return answer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the connection as Unreachable."""
        try:
            yield
        except GatewayError:
            raise
        except (aiohttp.ClientError, TimeoutError) as exc:
            reason = str(exc) or type(exc).__name__
            raise Unreachable(
                f"no gateway answers at {self._url} ({reason}): start one with `preview-gateway "
                "serve`, or name another with --url"
            ) from exc


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raise ApiError for a refusal."""
    if response.status < 400:
        return
    text = await response.text()
    retry_after = response.headers.get("Retry-After", "")
    raise ApiError(
        response.status,
        _object(text) or {"detail": text[:500]},
        retry_after=int(retry_after) if retry_after.isdecimal() else None,
    )


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
