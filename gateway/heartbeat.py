"""The lease of this replica: renewed, and doubted after a stall.

Time is measured by this process's own monotonic clock only. Two silences look alike from outside
and differ here. If the registry does not answer, nobody else can claim anything either, so what
runs goes on, for ``outage_seconds``. If this process itself stood still (SIGSTOP, a paused machine)
for longer than a lease, others may have claimed what it holds, and it asks before it goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gateway.errors import RegistryUnavailable
from gateway.registry.base import Registry, Replica
from gateway.settings import Settings

log: Final = logging.getLogger(__name__)

#: Heartbeats per lease: two may be lost before the lease is.
BEATS: Final = 3


class Heartbeat:
    """Renews the lease of one replica. Owns no task itself."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        replica: Replica,
        *,
        stood_still: Callable[[float], None],
        cut_off: Callable[[float], None],
        recovered: Callable[[], None],
    ) -> None:
        """``stood_still`` is told after how many seconds this process went on, ``cut_off`` since
        how many seconds the registry has not answered, once that is too long; ``recovered`` when
        it answers after a lease has run out, was away for long, or has lost its data.
        """
        self._lease_seconds = settings.lease_seconds
        self._outage_seconds = settings.outage_seconds
        self._registry = registry
        self._replica = replica
        self._stood_still = stood_still
        self._cut_off = cut_off
        self._recovered = recovered
        self._epoch: int | None = None
        self._tried_at = self._renewed_at = time.monotonic()
        self._is_cut_off = False

    @property
    def seconds(self) -> float:
        """Between two heartbeats."""
        return self._lease_seconds / BEATS

    async def renew(self) -> None:
        """Renew the lease once. Raises RegistryUnavailable."""
        tried_at = self._tried_at = time.monotonic()
        epoch = await self._registry.heartbeat(self._replica)
        had_lapsed = time.monotonic() - self._renewed_at > self._lease_seconds
        # The lease runs from some moment after that one.
        self._renewed_at = tried_at
        self._is_cut_off = False
        former, self._epoch = self._epoch, epoch
        if former not in {None, epoch}:
            log.warning("the registry was away, or has lost its data: what runs here is compared")
            self._recovered()
        elif had_lapsed:
            # Others may have reached the registry all the time, and taken over what runs here.
            log.warning("the lease had run out: what runs here is compared with the registry")
            self._recovered()

    async def beat(self) -> None:
        """Renew the lease until cancelled."""
        while True:
            await asyncio.sleep(self.seconds)
            still = time.monotonic() - self._tried_at
            if still > self._lease_seconds:
                log.warning("this replica stood still for %.1f s; its lease has run out", still)
                self._stood_still(still)
            try:
                await self.renew()
            except RegistryUnavailable as exc:
                self._missed(exc)

    def _missed(self, exc: RegistryUnavailable) -> None:
        silence = time.monotonic() - self._renewed_at
        log.warning("heartbeat failed: %s", exc)
        if silence > self._outage_seconds and not self._is_cut_off:
            self._is_cut_off = True
            self._cut_off(silence)

    async def announce(self, *, spawns: bool) -> None:
        """Tell the others whether this replica starts dev servers. Raises RegistryUnavailable."""
        info = {name: value for name, value in self._replica.info.items() if name != "spawns"}
        if spawns:
            info["spawns"] = "yes"
        self._replica = replace(self._replica, info=info)
        await self.renew()
