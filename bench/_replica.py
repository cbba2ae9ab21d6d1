"""One replica of the registry's benchmark, in a process of its own.

It is what a gateway has of the registry: route table and life cycle, with dev servers that start at
once. Reads commands from stdin and answers on stdout, JSON by the line; times are CLOCK_MONOTONIC,
which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import psutil
import uvloop

from gateway.errors import SpawnFailed
from gateway.lifecycle import Lifecycle
from gateway.proxy.routes import RouteTable
from gateway.registry.base import NewSession, Replica, Subscriber
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Endpoint, Hmr, Recipe, Route, SessionId, State
from gateway.settings import Settings
from gateway.spawner.base import DevServer, Found, Job, Reports, Running

LEASE_SECONDS = 2.0
_PATIENCE_SECONDS = 30.0


class InstantSpawner:
    """Dev servers that are ready at once, and that nobody asks for anything."""

    outlasting = False

    async def open(self) -> None: ...

    async def tidy(self, *, grace_seconds: float) -> None: ...

    def seen(self, *, seconds: float) -> Collection[Running]:
        return []

    async def close(self) -> None: ...

    async def adopt(self, running: Running, reports: Reports) -> Found:
        raise SpawnFailed("it ended with its replica")

    async def release(self, session_id: SessionId, *, generation: int) -> None: ...

    async def start(self, job: Job, reports: Reports) -> DevServer:
        return DevServer(Endpoint("127.0.0.1", 5173), Hmr("", "vite-hmr"))

    async def write(
        self,
        session_id: SessionId,
        *,
        write: Mapping[str, bytes],
        delete: Sequence[str] = (),
        revision: int = 0,
    ) -> None: ...

    async def read(self, session_id: SessionId, paths: Collection[str]) -> dict[str, bytes]:
        return {}

    async def stop(self, session_id: SessionId, *, generation: int | None = None) -> None: ...


def new_session(session_id: str) -> NewSession:
    """A session without files; those are what its owner makes them."""
    return NewSession(
        id=SessionId(session_id),
        digest="0" * 64,
        recipe=Recipe(framework="vite"),
        files={},
        base=f"/preview/{session_id}/",
        ttl_seconds=3600,
        idle_seconds=1800,
    )


async def spread(ids: Sequence[str], work: Callable[[str], Awaitable[Any]], width: int) -> float:
    """Seconds that ``work`` needs for all, ``width`` at a time."""
    left = iter(ids)

    async def worker() -> None:
        for session_id in left:
            await work(session_id)

    started = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(width)))
    return time.monotonic() - started


class Member:
    """Commands by name; each answers something that JSON can hold."""

    def __init__(self, name: str, url: str) -> None:
        values = {"lease_seconds": LEASE_SECONDS, "route_max_age_seconds": 600}
        settings = Settings.model_validate(values)
        self.owner = Replica(name, "1").owner
        self.registry = RedisRegistry(settings, url=url)
        self.table = RouteTable(
            self.registry,
            wait_seconds=2,
            max_age_seconds=600,
            clock=time.monotonic,
            lookups_per_second=1e6,
        )
        self.life = Lifecycle(settings, self.registry, InstantSpawner(), Replica(name, "1"))
        #: When a change was in the route table, by session and version.
        self.heard: dict[str, list[tuple[int, str, str, float]]] = {}

    async def open(self) -> None:
        await self.registry.open()
        self.table.open()
        self.registry.subscribe(Subscriber(self._changed, lambda: None, lambda: None))

    def _changed(self, route: Route) -> None:
        now = time.monotonic()
        if (entry := self.table.known(route.id)) and entry.route.version >= route.version:
            seen = (route.version, str(route.state), route.owner, now)
            self.heard.setdefault(route.id, []).append(seen)

    async def live(self) -> None:
        """Begin the life cycle; its registry is open already."""
        await self.life.open()

    async def read(self, ids: list[str]) -> dict[str, float]:
        """Read routes that are in no cache: what a miss costs, in time and memory."""
        process = psutil.Process()
        before, cpu = process.memory_info().rss, resource.getrusage(resource.RUSAGE_SELF)
        seconds = await spread(ids, lambda i: self.table.resolve(SessionId(i)), 32)
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
        return {"seconds": seconds, "bytes": process.memory_info().rss - before, "cpu": used}

    async def register(self, ids: list[str]) -> float:
        """Seconds for the registrations alone, as a create call makes them."""
        # How many there are in a second is measured, not whether each is in time on a busy machine.
        self.registry._client.limit_seconds = _PATIENCE_SECONDS
        return await spread(
            ids, lambda i: self.registry.register(new_session(i), owner=self.owner), 32
        )

    async def settle(self, ids: list[str]) -> float:
        """Move what was registered to READY, as a start does."""

        async def start(session_id: str) -> None:
            session = await self.registry.session(SessionId(session_id))
            assert session is not None
            for state in (State.STARTING, State.READY):
                await self.registry.move(
                    session.id, state, owner=self.owner, generation=session.generation
                )

        return await spread(ids, start, 32)

    async def touch(self, ids: list[str]) -> None:
        """Note traffic, as a data plane does once a second."""
        await self.registry.touch([SessionId(session_id) for session_id in ids])

    async def create(self, ids: list[str]) -> float:
        """Create through the life cycle; seconds until all are ready."""

        async def create(session_id: str) -> None:
            await self.life.create(new_session(session_id))
            await self.life.wait(
                SessionId(session_id), lambda s: s.state is State.READY, seconds=20
            )

        return await spread(ids, create, 8)

    async def change(self, session_id: str, number: int) -> tuple[float, int]:
        """When the change began, and which version it made."""
        started = time.monotonic()
        session = await self.registry.patch(
            SessionId(session_id), metadata=lambda _: json.dumps({"number": number})
        )
        return started, session.version

    async def sleep(self, session_id: str) -> int:
        """Put a session to sleep; its generation."""
        session = await self.registry.session(SessionId(session_id))
        assert session is not None
        await self.registry.move(
            session.id, State.SLEEPING, owner=session.owner, generation=session.generation
        )
        return session.generation

    async def wake(self, session_id: str, generation: int) -> float:
        """Seconds from a request's wake to a route that is ready.

        Not while owners may still restore what a registry that has just begun does not know.
        """
        await asyncio.sleep(await self.registry.recovering_seconds())
        started = time.monotonic()
        assert await self.life.wake(SessionId(session_id), generation=generation)
        awake = await self.life.wait(
            SessionId(session_id), lambda s: s.state is State.READY, seconds=20
        )
        assert awake.generation > generation
        return time.monotonic() - started

    async def versions(self) -> dict[str, list[tuple[int, str, str, float]]]:
        """What was heard since this was asked last."""
        heard, self.heard = self.heard, {}
        return heard


async def serve(name: str, url: str) -> None:
    """Answer commands until stdin ends."""
    member = Member(name, url)
    await member.open()
    reader = asyncio.StreamReader(limit=2**26)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps("open"), flush=True)
    while line := await reader.readline():
        command, *arguments = json.loads(line)
        answer = await getattr(member, command)(*arguments)
        print(json.dumps(answer), flush=True)
    await member.life.close()
    await member.table.close()
    await member.registry.close()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:]))
