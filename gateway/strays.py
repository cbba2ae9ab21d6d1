"""Dev servers that nobody wants any more, where they outlast the replicas that started them.

The registry knows what is wanted; what runs is seen by the spawner. What is pending there is never
stopped, and nothing at all while the registry may have lost what its owners are about to restore.
"""

from __future__ import annotations

import logging
from typing import Final

from gateway.registry.base import Registry, Replica
from gateway.session import HELD, Session
from gateway.spawner.base import Running, Spawner
from gateway.takeover import order, spawning

log: Final = logging.getLogger(__name__)


class Strays:
    """Stops them, its part of them: every replica sees all. Owns no task itself."""

    def __init__(self, registry: Registry, replica: Replica) -> None:
        self._registry = registry
        self._replica = replica

    async def stop(self, spawner: Spawner, *, seen_seconds: float) -> None:
        """Stop those seen for so long that nobody wants. Raises RegistryUnavailable."""
        running = spawner.seen(seconds=seen_seconds)
        if not running or await self._registry.recovering_seconds() > 0:
            return
        survivors = spawning(await self._registry.replicas())
        for one in running:
            if order(one.session_id, survivors).get(self._replica.owner) != 0:
                continue
            session = await self._registry.session(one.session_id)
            if not _is_wanted(session, one):
                log.warning(
                    "a dev server of session %s, generation %d, is nobody's: it is stopped",
                    *(one.session_id, one.generation),
                )
                await spawner.stop(one.session_id, generation=one.generation)


def _is_wanted(session: Session | None, running: Running) -> bool:
    """Whether the registry knows the dev server, or will: an heir's is not entered yet."""
    if session is None or session.state not in HELD:
        return False
    return running.generation in {session.generation, session.heir_generation}
