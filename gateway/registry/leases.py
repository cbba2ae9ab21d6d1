"""Leases of replicas: who is alive, by the registry's clock alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from gateway.errors import RegistryUnavailable
from gateway.registry import records, scripts
from gateway.registry.base import Lapsed, Replica
from gateway.registry.exchange import Exchange
from gateway.registry.keys import OWNERS, PULSE, REPLICAS, owner_key, replica_key
from gateway.registry.node import Argument
from gateway.registry.redis_client import RedisClient

_log = logging.getLogger(__name__)

#: A replica that has held no lease for so long is dropped from the list of names.
_FORGET_AFTER_MS: Final = 24 * 3600 * 1000
#: An owner without a lease that holds nothing is forgotten after this: a write may be under way.
_FORGET_OWNER_AFTER_MS: Final = 60_000


class Leases:
    """A lease is a key that expires by itself; sorted sets list the names that had one.

    Only the key says who is alive. The sets say whom to ask about. When the registry comes back
    after an outage, or has lost its data, nobody counts as lost until all had time to renew: see
    ``lua/renew.lua``.
    """

    def __init__(self, client: RedisClient, *, lease_seconds: float) -> None:
        self._client = client
        self._lease_ms = int(lease_seconds * 1000)
        #: Longer than between two heartbeats; a lease lasts for this and one more of them.
        self._longest_silence_ms = self._lease_ms // 2
        #: Until every replica has beaten once more, each with a call that ran into its limit.
        self._held_ms = self._lease_ms // 3 + int(client.limit_seconds * 1000)

    async def renew(self, replica: Replica) -> int:
        """Hold the lease for its full time from now; returns the registry's epoch."""
        keys = [REPLICAS, OWNERS, replica_key(replica.id), PULSE]
        arguments: list[Argument] = [
            replica.id,
            replica.owner,
            records.encode_replica(replica),
            self._lease_ms,
            self._longest_silence_ms,
            self._held_ms,
        ]
        epoch: bytes = await self._client.ask(
            f"renew {keys[2]}", lambda exchange: exchange.run(scripts.RENEW, keys, arguments)
        )
        return int(epoch)

    async def end(self, replica: Replica) -> None:
        """Give the lease up, unless another incarnation holds it."""
        key = replica_key(replica.id)

        await self._client.ask(
            f"resign {key}",
            lambda exchange: exchange.run(
                scripts.RESIGN, [key, OWNERS], [replica.incarnation, replica.owner]
            ),
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
        """Whether ``<replica id>/<incarnation>`` holds its lease, or may not be called lost."""
        return await self.left_of(owner) > 0

    async def left_of(self, owner: str) -> float:
        """Seconds until it may be called lost; 0 if it is."""
        key = replica_key(owner.partition("/")[0])

        async def read(exchange: Exchange) -> float:
            value, left_ms, end = await exchange.batch(
                [("GET", key), ("PTTL", key), ("ZSCORE", OWNERS, owner)]
            )
            if value is not None:
                # Less than a millisecond is not nothing: whoever asks for the key still finds it.
                left_ms = max(left_ms, 1) if _holder(owner, value) else 0
            elif end is not None and float(end) < 0:
                left_ms = 0  # it gave it up
            else:
                left_ms = await self._read_held(exchange)
            return float(max(left_ms, 0)) / 1000

        return await self._client.ask(f"read {key}", read)

    async def held_seconds(self) -> float:
        """For how long nobody counts as lost, because the registry was away."""
        held_ms = await self._client.ask(f"read {PULSE}", self._read_held)
        return held_ms / 1000

    async def _read_held(self, exchange: Exchange) -> int:
        """For how many ms an owner without a lease may not be called lost."""
        arguments = [self._longest_silence_ms, self._held_ms]
        held: int = await exchange.run(scripts.HELD, [PULSE], arguments)
        return held

    async def enlist(self, owner: str) -> None:
        """Let ``lapsed`` ask about this owner."""
        await self._client.ask(
            f"write {OWNERS}",
            lambda exchange: exchange.run(scripts.INDEX, [OWNERS], [owner, "0"]),
        )

    async def lapsed(self) -> Lapsed:
        """The owners without a lease that may still hold sessions."""
        return await self._client.ask(f"read {OWNERS}", self._read_lapsed)

    async def _read_lapsed(self, exchange: Exchange) -> Lapsed:
        (seconds, microseconds), listed = await exchange.batch(
            [("TIME",), ("ZRANGE", OWNERS, 0, -1, "WITHSCORES")]
        )
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        names = (name.decode() for name in listed[::2])
        ends = dict(zip(names, map(float, listed[1::2]), strict=True))
        suspects, next_ms = suspected(ends, now_ms=now_ms, lease_ms=self._lease_ms)
        answers = await exchange.batch(
            [
                command
                for owner in suspects
                for command in (
                    ("GET", replica_key(owner.partition("/")[0])),
                    ("PTTL", replica_key(owner.partition("/")[0])),
                    ("ZCARD", owner_key(owner)),
                )
            ]
        )
        held_ms = await self._read_held(exchange) if suspects else 0
        found: list[str] = []
        gone: list[str | bytes] = []
        for owner, lease, left_ms, sessions in zip(
            suspects, answers[::3], answers[1::3], answers[2::3], strict=True
        ):
            if lease is None:
                if held_ms > 0 and ends[owner] >= 0:
                    continue
            elif _holder(owner, lease):
                # The lease is written a moment after its end was entered here.
                next_ms = min(next_ms, max(left_ms, 0))
                continue
            if sessions:
                found.append(owner)
            elif abs(ends[owner]) < now_ms - _FORGET_OWNER_AFTER_MS:
                gone += (owner, f"{ends[owner]:.0f}")
        if gone:
            await exchange.run(scripts.PRUNE, [OWNERS], gone)
        return Lapsed(found, (min(next_ms, held_ms) if held_ms else next_ms) / 1000)


def suspected(ends: Mapping[str, float], *, now_ms: int, lease_ms: int) -> tuple[list[str], float]:
    """The owners who cannot have a lease by these ends of leases, and ms until the next one ends.

    A replica that has begun anew is another owner, and the former one is no more. Pure.
    """
    newest: dict[str, str] = {}
    for owner, end in ends.items():
        replica_id = owner.partition("/")[0]
        if replica_id not in newest or end > ends[newest[replica_id]]:
            newest[replica_id] = owner
    current = {owner for owner in newest.values() if ends[owner] > now_ms}
    next_ms = min((ends[owner] - now_ms for owner in current), default=float(lease_ms))
    return [owner for owner in ends if owner not in current], next_ms


def _holder(owner: str, lease: bytes) -> bool:
    replica_id, _, incarnation = owner.partition("/")
    return records.decode_replica(replica_id, lease).incarnation == incarnation


def _readable(name: str, value: bytes) -> list[Replica]:
    try:
        return [records.decode_replica(name, value)]
    except RegistryUnavailable as exc:
        # One damaged lease must not hide the other replicas.
        _log.error("a replica is left out of the list: %s", exc)
        return []
