"""Leases of replicas: who is alive, by the registry's clock alone."""

from __future__ import annotations

import logging
from typing import Any, Final

from gateway.errors import RegistryUnavailable
from gateway.registry import records, scripts
from gateway.registry.base import Replica
from gateway.registry.keys import REPLICAS, replica_key
from gateway.registry.redis_client import Exchange, RedisClient

_log = logging.getLogger(__name__)

#: A replica that has held no lease for so long is dropped from the list of names.
_FORGET_AFTER_MS: Final = 24 * 3600 * 1000


class Leases:
    """A lease is a key that expires by itself; a sorted set lists the names that had one."""

    def __init__(self, client: RedisClient, *, lease_seconds: float) -> None:
        self._client = client
        self._lease_ms = int(lease_seconds * 1000)

    async def renew(self, replica: Replica) -> None:
        """Hold the lease for its full time from now."""
        key, value = replica_key(replica.id), records.encode_replica(replica)

        async def write(exchange: Exchange) -> None:
            # Listed before it is held, so that no crash in between can hide a replica.
            await exchange.run(scripts.INDEX, [REPLICAS], [replica.id, "1"])
            await exchange.command("SET", key, value, "PX", self._lease_ms)

        await self._client.ask(f"renew {key}", write)

    async def end(self, replica: Replica) -> None:
        """Give the lease up, unless another incarnation holds it."""
        key = replica_key(replica.id)
        await self._client.ask(
            f"resign {key}",
            lambda exchange: exchange.run(scripts.RESIGN, [key], [replica.incarnation]),
        )

    async def holders(self) -> list[Replica]:
        """The replicas with a lease, by name."""
        return await self._client.ask(f"read {REPLICAS}", self._read_holders)

    async def _read_holders(self, exchange: Exchange) -> list[Replica]:
        (seconds, _), listed = await exchange.batch(
            [("TIME",), ("ZRANGE", REPLICAS, 0, -1, "WITHSCORES")]
        )
        scores = dict(zip((name.decode() for name in listed[::2]), listed[1::2], strict=True))
        names = sorted(scores)
        values = await exchange.batch([("GET", replica_key(name)) for name in names])
        found: list[Replica] = []
        gone: list[str | bytes] = []
        for name, value in zip(names, values, strict=True):
            if value is not None:
                found += _readable(name, value)
            elif float(scores[name]) < int(seconds) * 1000 - _FORGET_AFTER_MS:
                gone += (name, scores[name])
        if gone:
            await exchange.run(scripts.PRUNE, [REPLICAS], gone)
        return found

    async def is_held_by(self, owner: str) -> bool:
        """Whether ``<replica id>/<incarnation>`` holds its lease."""
        replica_id, _, incarnation = owner.partition("/")
        key = replica_key(replica_id)
        value: Any = await self._client.ask(
            f"read {key}", lambda exchange: exchange.command("GET", key)
        )
        if value is None:
            return False
        return records.decode_replica(replica_id, value).incarnation == incarnation


def _readable(name: str, value: bytes) -> list[Replica]:
    try:
        return [records.decode_replica(name, value)]
    except RegistryUnavailable as exc:
        # One damaged lease must not hide the other replicas.
        _log.error("a replica is left out of the list: %s", exc)
        return []
