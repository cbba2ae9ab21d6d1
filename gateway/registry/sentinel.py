"""The primary that sentinels name; found anew when it may have become another one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from gateway.errors import RegistryUnavailable
from gateway.registry.node import Node
from gateway.registry.url import Address

log: Final = logging.getLogger(__name__)


class SentinelPrimary:
    """A topology of one server at a time.

    As "Guidelines for Redis clients with support for Redis Sentinel" asks for: the sentinels are
    asked in turn, one that answered first; each new connection asks the server for its role, so
    that nothing is read from a former primary that has become a replica.
    """

    def __init__(
        self,
        sentinels: Sequence[Node],
        service: str,
        *,
        make: Callable[[Address], Node],
        limit_seconds: float,
    ) -> None:
        """``make`` makes the node of a primary, with ``primary_only`` on its connections."""
        self._sentinels = list(sentinels)
        self._service = service
        self._make = make
        # One sentinel on a machine that is gone must leave time to ask the others.
        self._ask_seconds = limit_seconds / (len(self._sentinels) + 1)
        self._primary: Node | None = None
        self._in_doubt = False
        self._looking = asyncio.Lock()

    async def node(self, key: str | None) -> Node:
        """The primary."""
        if self._primary is None or self._in_doubt:
            async with self._looking:
                if self._primary is None or self._in_doubt:
                    return await self._look()
        return self._primary

    async def nodes(self) -> Sequence[Node]:
        """The primary."""
        return (await self.node(None),)

    async def publishers(self) -> Sequence[Node]:
        """The primary, whoever that is now."""
        async with self._looking:
            return (await self._look(),)

    async def _look(self) -> Node:
        address = await self._named()
        self._in_doubt = False
        former = self._primary
        if former is not None and former.address == address:
            return former
        primary = self._primary = self._make(address)
        if former is not None:
            log.warning("the registry's primary is %s, it was %s", address, former)
            await former.close()
        return primary

    async def _named(self) -> Address:
        """The address that a sentinel names."""
        failures: list[str] = []
        for sentinel in tuple(self._sentinels):
            try:
                (named,) = await sentinel.ask(
                    ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service),
                    limit_seconds=self._ask_seconds,
                )
            except (exceptions.RedisError, OSError, TimeoutError) as exc:
                failures.append(f"{sentinel}: {str(exc) or 'no answer'}")
                continue
            if named is None:
                failures.append(f"{sentinel} knows no service {self._service!r}")
                continue
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
            return Address(named[0].decode(), int(named[1]))
        raise RegistryUnavailable(
            "no sentinel names the registry's primary: check addresses, service and password in "
            f"GATEWAY_REDIS_URL ({'; '.join(failures)})"
        )

    def redirect(self, error: exceptions.AskError, *, asked: Node) -> Node:
        """Only the nodes of a cluster send one on."""
        raise error

    def doubt(self) -> bool:
        """Ask the sentinels before the next call."""
        self._in_doubt = True
        return True

    def addresses(self) -> Collection[Address]:
        """The sentinels, and the primary once it is known."""
        nodes = [*self._sentinels, *([self._primary] if self._primary else [])]
        return [node.address for node in nodes if node.address]

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        for node in (*self._sentinels, *([self._primary] if self._primary else [])):
            await node.close()


async def primary_only(connection: AbstractConnection) -> None:
    """Set a new connection up; ReadOnlyError if it does not lead to a primary."""
    await connection.on_connect()
    await connection.send_command("ROLE")
    role = await connection.read_response()
    if role[0] != b"master":
        raise exceptions.ReadOnlyError("the sentinels name a server that is a replica")
