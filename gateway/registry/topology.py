"""Which server of the registry holds what: the interface, and the plainest case."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from redis import exceptions

from gateway.errors import RegistryUnavailable
from gateway.registry.node import Node
from gateway.registry.url import Address


class Topology(Protocol):
    """Finds servers. Every call raises what redis-py raises, or RegistryUnavailable."""

    async def node(self, key: str | None) -> Node:
        """The server that holds ``key``; without one, any that takes writes."""

    async def nodes(self) -> Sequence[Node]:
        """Every server that takes writes, as known so far."""

    async def publishers(self) -> Sequence[Node]:
        """The servers at which changes are published now, asked for anew.

        None if there can be no doubt about them.
        """

    def redirect(self, error: exceptions.AskError, *, asked: Node) -> Node:
        """The server to which the one that was asked has sent us on (MOVED, ASK)."""

    def doubt(self) -> bool:
        """Something was not where it should be: look again. Whether that may help."""

    def addresses(self) -> Collection[Address]:
        """The addresses of all servers known so far."""

    async def close(self) -> None:
        """Close every connection. Idempotent."""


class OneServer:
    """A topology without questions."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def node(self, key: str | None) -> Node:
        """The server."""
        return self._node

    async def nodes(self) -> Sequence[Node]:
        """The server."""
        return (self._node,)

    async def publishers(self) -> Sequence[Node]:
        """None: the server a link leads to is the one at which changes are published."""
        return ()

    def redirect(self, error: exceptions.AskError, *, asked: Node) -> Node:
        """Only the nodes of a cluster send one on."""
        raise RegistryUnavailable(
            "the registry is a node of a cluster: set GATEWAY_REDIS_URL to "
            "redis+cluster://host:port,host:port"
        ) from error

    def doubt(self) -> bool:
        """There is no other."""
        return False

    def addresses(self) -> Collection[Address]:
        """Its address, if it has one."""
        return (self._node.address,) if self._node.address else ()

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._node.close()
