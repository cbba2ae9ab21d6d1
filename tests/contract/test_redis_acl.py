"""The access rule of docs/redis.md: enough for everything the gateway does, and nothing more.

``test_registry.py`` runs as a user of this rule as well; here each command in it has to be needed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import pytest

from gateway.errors import GatewayError, LimitReached, NotAcknowledged
from gateway.registry.base import Change, Charge, Limits, Replica
from gateway.registry.keys import INDEX, OWNERS, session_key
from gateway.registry.node import Node
from gateway.registry.redis_store import RedisRegistry
from gateway.session import SessionId, State
from gateway.settings import load_settings
from tests.contract.conftest import ENDPOINT, ID, Watcher, new_session
from tests.contract.servers import (
    HOST,
    ROOT,
    AclStore,
    ClusterStore,
    SentinelStore,
    Store,
    acl_rule,
    find_server,
)

RULE: Final = acl_rule("gateway")
ALLOWED: Final = {word.removeprefix("+") for word in RULE if word.startswith("+")}
A, B = Replica("a", "1"), Replica("b", "1")


async def use_everything(url: str, store: Store) -> None:
    """Make every call of a registry, in each way that takes other commands."""
    registry = RedisRegistry(load_settings({"lease_seconds": 1.0}), url=url)
    hasty_settings = load_settings({"registry_timeout_seconds": 0.2, "registry_replicas": 9})
    hasty = RedisRegistry(hasty_settings, url=url)
    try:
        await registry.open()
        await registry.ping()
        await live(registry)
        await look_around(registry, store)
        with contextlib.suppress(NotAcknowledged):
            await hasty.register(new_session("hasty-fox-1"), owner=A.owner)
    finally:
        await registry.close()
        await hasty.close()


async def live(registry: RedisRegistry) -> None:
    """A session's life, and its stream."""
    watcher = Watcher()
    registry.subscribe(watcher.subscriber)
    made = (await registry.register(new_session(), owner=A.owner)).session
    generation, owner = made.generation, A.owner
    async with registry.events(ID) as events:
        assert (await anext(events)).type == "state"
    await registry.move(ID, State.STARTING, owner=owner, generation=generation)
    change = Change(endpoint=ENDPOINT)
    ready = await registry.move(ID, State.READY, owner=owner, generation=generation, change=change)
    with contextlib.suppress(GatewayError):
        await registry.restore(ready, {"a": b"1"})
    await registry.offer(ID, owner=owner, generation=generation, heir=B.owner)
    offered = await registry.session(ID)
    assert offered is not None
    held = await registry.succeed(
        ID, heir=B.owner, generation=offered.heir_generation, change=change
    )
    claimed = await registry.claim(ID, owner=owner, generation=held.generation)
    await registry.edit_files(ID, write={"b": b"2"}, delete=["b", "none"])
    await registry.files(ID)
    await registry.patch(ID, public=False, ttl_seconds=60)
    await registry.touch([ID, SessionId("never-there")])
    await registry.append(ID, "log", {}, generation=claimed.generation)
    await registry.note(ID, {}, late_seconds=1)
    await registry.recent_events(ID, count=3)
    await registry.request_stop(ID, reason="enough")
    await registry.move(ID, State.STOPPED, owner=owner, generation=claimed.generation)
    await registry.forget(ID)
    await watcher.until(lambda: watcher.seen[-1].state is State.STOPPED)


async def look_around(registry: RedisRegistry, store: Store) -> None:
    """Lists, leases, and leftovers in them."""
    await store.ask("ZADD", INDEX, 1000, "leftover-1")
    await registry.sessions()
    await registry.heartbeat(A)
    await registry.resign(A)
    await registry.heartbeat(B)
    await registry.replicas()
    await store.ask("ZADD", OWNERS, 1000, "gone/1")
    await registry.lapsed()
    session = await registry.session(ID)
    assert session is not None
    await registry.enlist(session)
    await registry.held_by(A.owner)
    await registry.is_alive(A.owner)
    await registry.lease_left(B.owner)
    await registry.remember("a call", "its answer", seconds=5)
    await registry.recall("a call")
    for session_id in (ID, SessionId("quick-fox-2")):
        charge = Charge(session_id, files=1, bytes=1, creates=True)
        with contextlib.suppress(LimitReached):
            await registry.charge("builder", charge, Limits(creates_per_minute=9, sessions=1))


async def used(store: Store) -> set[str]:
    """The commands that the server has run since its statistics began anew."""
    lines = (await store.ask("INFO", "commandstats")).decode().splitlines()
    return {line.partition(":")[0].removeprefix("cmdstat_") for line in lines if ":" in line}


@pytest.fixture(scope="module")
def running() -> Iterator[AclStore]:
    """One server for the tests of this module that change nothing but the gateway's user."""
    with closing(AclStore(find_server("redis"))) as store:
        yield store


@pytest.fixture
async def limited(running: AclStore) -> AclStore:
    """An empty server, the gateway's user as the documentation has it, nothing refused so far."""
    await running.ask("ACL", "DELUSER", "gateway")
    await running.settled()
    await running.ask("FLUSHALL")
    await running.ask("ACL", "LOG", "RESET")
    return running


async def test_each_command_of_the_rule_is_needed(limited: AclStore) -> None:
    await limited.ask("CONFIG", "RESETSTAT")
    await use_everything(limited.url, limited)
    assert ALLOWED - await used(limited) == set(), "in docs/redis.md and never used"
    assert await limited.ask("ACL", "LOG") == []


@pytest.mark.parametrize("word", sorted(ALLOWED - {"unsubscribe"}))
async def test_without_a_command_of_the_rule_something_is_refused(
    limited: AclStore, word: str
) -> None:
    """Also what is run within a script counts: the refusal is in the server's own log."""
    await limited.ask("ACL", "SETUSER", "gateway", f"-{word}")
    with contextlib.suppress(GatewayError, TimeoutError):
        async with asyncio.timeout(10):
            await use_everything(limited.url, limited)
    refused = await limited.ask("ACL", "LOG")
    facts = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in refused]
    assert word.encode() in {fact[b"object"].lower() for fact in facts}


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "other:key"),
        ("SET", "previews", "x"),
        ("SUBSCRIBE", "other"),
        ("PUBLISH", "other", "x"),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("EVAL", "return 1", "0"),
        ("SCRIPT", "FLUSH"),
        ("ACL", "LIST"),
        ("MONITOR",),
        ("DEBUG", "SLEEP", "0"),
        ("CLIENT", "LIST"),
    ],
)
async def test_everything_else_is_refused(limited: AclStore, command: tuple[str, ...]) -> None:
    node = Node(limited.url, None, limit_seconds=5)
    with pytest.raises(Exception, match="permissions"):
        await node.ask(command, limit_seconds=5)
    await node.close()


def said_to_add(where: str) -> list[str]:
    """What docs/redis.md adds to the rule behind Sentinel, or in a cluster."""
    text = (ROOT / "docs" / "redis.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("Behind Sentinel add")]
    behind, within = line.split("; in a cluster add ")
    part = behind.removeprefix("Behind Sentinel add ") if where == "sentinel" else within
    return part.strip("`.").split()


async def test_behind_sentinel_the_rule_is_enough() -> None:
    with closing(SentinelStore(find_server("redis"))) as store:
        extra = said_to_add("sentinel")
        assert extra == ["+role"]
        rule = ["on", ">word", *RULE, *extra]
        for server in store.servers.values():
            await server.ask("ACL", "SETUSER", "gateway", *rule)
        await store.settled()
        await use_everything(store.url.replace("://", "://gateway:word@"), store)
        assert await store.ask("ACL", "LOG") == []


async def test_in_a_cluster_the_rule_is_enough() -> None:
    with closing(ClusterStore(find_server("redis"))) as store:
        extra = said_to_add("cluster")
        assert extra == ["+cluster|slots", "+asking"]
        for server in store.nodes.values():
            await server.ask("ACL", "SETUSER", "gateway", "on", ">word", *RULE, *extra)
        await store.settled()
        url = store.url.replace("://", "://gateway:word@")
        await use_everything(url, store)
        source = await store.server_of(session_key(ID))
        target = next(server for server in store.nodes.values() if server is not source)
        slot = await source.ask("CLUSTER", "KEYSLOT", session_key(ID))
        ids = {server: await server.ask("CLUSTER", "MYID") for server in (source, target)}
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        port = next(at.port for at, server in store.nodes.items() if server is target)
        keys = await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10)
        await source.ask("MIGRATE", HOST, port, "", 0, 5000, "KEYS", *keys)
        registry = RedisRegistry(load_settings(), url=url)
        assert await registry.session(ID) is not None
        await registry.close()
        for server in store.nodes.values():
            assert await server.ask("ACL", "LOG") == []
