"""A thin client: one limit per call, nothing repeated unasked, every error in the gateway's words.

redis-py's own client retries writes (ten times by default), so an INCR across a stall ran twice.
Here a call is repeated at most once, only if the connection broke or led to the wrong server, and
only if its caller says that repeating it is safe. Every foreign error leaves as
RegistryUnavailable.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, TypeVar

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from gateway.errors import RegistryUnavailable, SettingsError
from gateway.registry.cluster import Cluster
from gateway.registry.exchange import Exchange
from gateway.registry.node import Command, Node
from gateway.registry.redis_errors import explain
from gateway.registry.sentinel import SentinelPrimary, primary_only
from gateway.registry.topology import OneServer, Topology
from gateway.registry.url import Address, parse_redis_url

T = TypeVar("T")

#: What a slow but healthy link moves in a second; large file sets get that much more time.
_BYTES_PER_SECOND: Final = 8 * 2**20

#: The server's answer says that this connection leads to the wrong place: open a new one.
_WRONG_SERVER: Final = (
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
)
_FOREIGN: Final = (exceptions.RedisError, OSError, TimeoutError)
#: ConnectionErrors that are answers; repeating them at once helps nobody.
_ANSWERS: Final = (exceptions.AuthenticationError, exceptions.BusyLoadingError)


def make_topology(url: str, *, limit_seconds: float) -> Topology:
    """The servers that a URL means; SettingsError if it means none."""
    try:
        parsed = parse_redis_url(url)
    except ValueError as exc:
        raise SettingsError(f"GATEWAY_REDIS_URL cannot be used: {exc}") from exc
    make = functools.partial(Node, parsed.plain, limit_seconds=limit_seconds)
    if parsed.kind == "cluster":
        # Made here for the sake of a wrong option, which is to be found at once.
        make(parsed.addresses[0])
        return Cluster(parsed.addresses, make=make, limit_seconds=limit_seconds)
    if parsed.kind == "sentinel":
        sentinels = [
            Node(parsed.plain_sentinel, address, limit_seconds=limit_seconds)
            for address in parsed.addresses
        ]
        return SentinelPrimary(
            sentinels,
            parsed.service,
            make=functools.partial(make, on_connect=primary_only),
            limit_seconds=limit_seconds,
        )
    return OneServer(make(parsed.addresses[0] if parsed.addresses else None))


class RedisClient:
    """Exchanges with the servers of a registry, over bounded pools of connections.

    ``limit_seconds`` bounds each call as a whole: finding the server, waiting for a connection,
    connecting, sending, the answer. Answers are bytes, in the form of RESP2.
    """

    def __init__(self, url: str, *, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self._topology = make_topology(url, limit_seconds=limit_seconds)

    async def ask(
        self,
        about: str,
        exchange: Callable[[Exchange], Awaitable[T]],
        *,
        repeatable: bool = True,
        size: int = 0,
        more_seconds: float = 0.0,
    ) -> T:
        """The result of ``exchange``, within the limit.

        ``about`` says in errors what was asked; ``size`` (bytes to move) and ``more_seconds``
        extend the limit. Raises RegistryUnavailable, whatever went wrong.
        """
        limit = self.limit_seconds + size / _BYTES_PER_SECOND + more_seconds
        try:
            async with asyncio.timeout(limit):
                try:
                    return await self._exchange(exchange)
                except (exceptions.ConnectionError, *_WRONG_SERVER) as exc:
                    if not (repeatable and self._may_help(exc)):
                        raise
                    return await self._exchange(exchange)
        except _FOREIGN as exc:
            if isinstance(exc, TimeoutError):
                self._topology.doubt()
            raise RegistryUnavailable(f"{explain(exc, limit)}; asked to {about}") from exc

    def _may_help(self, error: Exception) -> bool:
        """Whether to ask once more after ``error``, perhaps elsewhere."""
        if isinstance(error, _ANSWERS):
            return False
        return self._topology.doubt() or isinstance(error, exceptions.ConnectionError)

    async def _exchange(self, work: Callable[[Exchange], Awaitable[T]]) -> T:
        exchange = Exchange(self._topology)
        # An answer may still be under way: it must not reach the next caller.
        broken = True
        try:
            result = await work(exchange)
            broken = False
        except exceptions.ResponseError as exc:
            broken = isinstance(exc, _WRONG_SERVER)
            raise
        finally:
            await exchange.release(broken=broken)
        return result

    async def everywhere(self, about: str, commands: Sequence[Command]) -> None:
        """Send commands without keys to every server that takes writes; errors as in ``ask``."""
        try:
            async with asyncio.timeout(self.limit_seconds):
                for node in await self._topology.nodes():
                    await node.ask(*commands, limit_seconds=self.limit_seconds)
        except _FOREIGN as exc:
            raise RegistryUnavailable(
                f"{explain(exc, self.limit_seconds)}; asked to {about}"
            ) from exc

    async def dial(self) -> AbstractConnection:
        """A connection of its own to a server that publishes and answers; the caller ends it."""
        try:
            async with asyncio.timeout(self.limit_seconds):
                node = await self._topology.node(None)
                return await node.dial()
        except _FOREIGN as exc:
            self._topology.doubt()
            raise RegistryUnavailable(explain(exc, self.limit_seconds)) from exc

    async def echo(self, channel: str) -> set[str]:
        """Publish on ``channel`` at every server whose changes a link may fail to hear.

        Returns what was published: the name of each server that took it. Those that do not answer
        publish nothing else either. None where one link can only lead to the one server.
        """
        limit = self.limit_seconds
        sent: set[str] = set()
        try:
            async with asyncio.timeout(limit):
                for node in await self._topology.publishers():
                    with contextlib.suppress(*_FOREIGN):
                        await node.ask(("PUBLISH", channel, str(node)), limit_seconds=limit / 4)
                        sent.add(str(node))
        except _FOREIGN as exc:
            raise RegistryUnavailable(explain(exc, limit)) from exc
        return sent

    def addresses(self) -> Collection[Address]:
        """The addresses of all servers known so far."""
        return self._topology.addresses()

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._topology.close()
