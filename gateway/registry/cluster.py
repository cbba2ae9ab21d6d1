"""A Redis Cluster: which node holds which slot.

The map is read from any node that answers, and again when a node does not answer or says that the
cluster is down; a node that sends a caller on (MOVED) corrects it at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from redis import exceptions
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from gateway.errors import RegistryUnavailable
from gateway.registry.node import Node
from gateway.registry.url import Address


class Cluster:
    """A topology of primaries that share 16384 slots."""

    def __init__(
        self,
        seeds: Sequence[Address],
        *,
        make: Callable[[Address], Node],
        limit_seconds: float,
    ) -> None:
        """``seeds`` are asked for the map until one has answered; ``make`` makes a node."""
        self._seeds = seeds
        self._make = make
        self._ask_seconds = limit_seconds / 4
        self._known: dict[Address, Node] = {}
        #: None where no node serves a slot; empty before the map was read.
        self._slots: list[Node | None] = []
        self._in_doubt = False
        self._looking = asyncio.Lock()

    async def node(self, key: str | None) -> Node:
        """The node that serves the slot of ``key``; without one, any."""
        await self._look_if_in_doubt()
        if key is None:
            return random.choice(self._primaries())  # noqa: S311 - spreads load
        slot = key_slot(key.encode())
        node = self._slots[slot]
        if node is None:
            raise exceptions.ClusterDownError(f"slot {slot} is served by no node")
        return node

    async def nodes(self) -> Sequence[Node]:
        """Every node that serves slots."""
        await self._look_if_in_doubt()
        return self._primaries()

    async def publishers(self) -> Sequence[Node]:
        """Every node that serves slots, asked for anew."""
        self._in_doubt = True
        return await self.nodes()

    def _primaries(self) -> list[Node]:
        return [node for node in dict.fromkeys(self._slots) if node is not None]

    async def _look_if_in_doubt(self) -> None:
        if not self._slots or self._in_doubt:
            async with self._looking:
                if not self._slots or self._in_doubt:
                    await self._look()

    async def _look(self) -> None:
        known = list(self._known.values())
        random.shuffle(known)
        failures: list[str] = []
        for node in (*known, *map(self._at, self._seeds)):
            try:
                (found,) = await node.ask(("CLUSTER", "SLOTS"), limit_seconds=self._ask_seconds)
                ranges = list(_ranges(found, node))
                await self._learn(ranges)
            except (exceptions.RedisError, OSError, TimeoutError, ValueError) as exc:
                failures.append(f"{node}: {str(exc) or 'no answer'}")
            else:
                return
        raise RegistryUnavailable(
            "no node of the registry's cluster tells who serves what: check addresses and "
            f"password in GATEWAY_REDIS_URL, and CLUSTER INFO ({'; '.join(failures)})"
        )

    async def _learn(self, ranges: Iterable[tuple[int, int, Address]]) -> None:
        slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, address in ranges:
            slots[first : last + 1] = [self._at(address)] * (last + 1 - first)
        if not any(slots):
            raise ValueError("it serves no slot and knows nobody who does")
        self._slots, self._in_doubt = slots, False
        for address in self._known.keys() - {node.address for node in self._primaries()}:
            await self._known.pop(address).close()

    def _at(self, address: Address) -> Node:
        node = self._known.get(address)
        if node is None:
            node = self._known[address] = self._make(address)
        return node

    def redirect(self, error: exceptions.AskError, *, asked: Node) -> Node:
        """The node named; MOVED holds for every later caller too."""
        node = self._at(_address(error.host, error.port, asked))
        if isinstance(error, exceptions.MovedError) and self._slots:
            self._slots[error.slot_id] = node
        return node

    def doubt(self) -> bool:
        """Read the map anew before the next call."""
        self._in_doubt = True
        return True

    def addresses(self) -> Collection[Address]:
        """The seeds, and every node heard of."""
        return {*self._seeds, *self._known}

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        for node in self._known.values():
            await node.close()


def _ranges(found: Any, asked: Node) -> Iterable[tuple[int, int, Address]]:
    """(first slot, last slot, primary) as CLUSTER SLOTS answers them."""
    for first, last, primary, *_ in found:
        host = (primary[0] or b"").decode()
        yield int(first), int(last), _address(host, int(primary[1]), asked)


def _address(host: str, port: int, asked: Node) -> Address:
    """A node that does not know its host (or hides it) means the one at which it was asked."""
    if host in {"", "?"} and asked.address is not None:
        host = asked.address.host
    return Address(host, port)
