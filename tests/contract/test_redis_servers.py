"""What differs between one server, sentinels and a cluster: finding them, losing them, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Any, Final

import pytest

from gateway.errors import RegistryUnavailable, SettingsError
from gateway.registry.keys import session_key
from gateway.registry.push import PushLink
from gateway.registry.redis_client import RedisClient
from gateway.registry.redis_store import RedisRegistry
from gateway.session import SessionId, State
from gateway.settings import Settings, load_settings
from tests.contract.conftest import ID, Opener, Watcher, new_session
from tests.contract.servers import (
    HOST,
    AclStore,
    ClusterStore,
    SentinelStore,
    Server,
    TlsStore,
    find_server,
    free_port,
    listening_server,
)

A: Final = "a/1"


@pytest.fixture
def redis() -> str:
    """The program of a Redis server."""
    return find_server("redis")


async def refusal(url: str, **settings: Any) -> str:
    """What the operator is told when a gateway with this URL starts."""
    values = {"registry_timeout_seconds": 1.0, **settings}
    registry = RedisRegistry(Settings(**values), url=url)
    try:
        with pytest.raises(RegistryUnavailable) as caught:
            await registry.open()
    finally:
        await registry.close()
    return str(caught.value)


# -- a start that is refused says what to do -----------------------------------------------------


async def test_nothing_there_is_said_with_the_address() -> None:
    port = free_port()
    said = await refusal(f"redis://{HOST}:{port}")
    assert "cannot be reached" in said
    assert str(port) in said


@asynccontextmanager
async def no_redis() -> AsyncIterator[int]:
    """The port of something else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, HOST, 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def test_what_is_no_redis_is_named_so() -> None:
    async with no_redis() as port:
        assert "no Redis" in await refusal(f"redis://{HOST}:{port}")


async def test_a_wrong_or_missing_password_is_named(redis: str) -> None:
    with closing(Server(redis, "--requirepass", "right")) as server:
        for url in (server.url, server.url.replace("unix://", "unix://:wrong@")):
            said = await refusal(url)
            assert "credentials" in said
            assert "GATEWAY_REDIS_URL" in said


async def test_a_missing_permission_is_named_with_the_place_of_the_rule(redis: str) -> None:
    with closing(AclStore(redis)) as store:
        await store.settled()
        await store.ask("ACL", "SETUSER", "gateway", "-script|load")
        said = await refusal(store.url)
        assert "docs/redis.md" in said
        assert "script" in said


async def test_tls_that_does_not_fit_is_named(redis: str) -> None:
    with closing(TlsStore(redis)) as store:
        assert "ssl_ca_certs" in await refusal(store.plain_url)
        assert "cannot be reached" in await refusal(f"redis://{HOST}:{store.port}")
    async with no_redis() as port:
        assert "does not speak TLS" in await refusal(f"rediss://{HOST}:{port}")


async def test_a_node_of_a_cluster_is_no_single_server(redis: str) -> None:
    with closing(ClusterStore(redis)) as store:
        await store.settled()
        address = next(iter(store.nodes))
        registry = RedisRegistry(load_settings(), url=f"redis://{address}")
        await registry.open()
        calls = (registry.session(SessionId(f"some-session-{n}")) for n in range(9))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refused = {str(answer) for answer in answers if answer is not None}
        assert len(refused) > 0
        assert all("redis+cluster://" in said for said in refused)
        await registry.close()


async def test_no_node_of_a_cluster_says_what_to_check(redis: str) -> None:
    said = await refusal(f"redis+cluster://{HOST}:{free_port()},{HOST}:{free_port()}")
    assert "CLUSTER INFO" in said
    server, port = listening_server(redis)
    with closing(server):
        assert "cluster support disabled" in await refusal(f"redis+cluster://{HOST}:{port}")


async def test_no_sentinel_says_what_to_check(redis: str) -> None:
    assert "no sentinel" in await refusal(f"redis+sentinel://{HOST}:{free_port()}/previews")
    with closing(SentinelStore(redis)) as store:
        said = await refusal(store.url.replace("/previews", "/other"))
        assert "knows no service 'other'" in said


@pytest.mark.parametrize(
    "url",
    [
        "redis://a?no_such_option=1",
        "redis+cluster://a?no_such_option=1",
        "redis://a?db=x",
        "rediss://a?ssl_cert_reqs=perhaps",
        "redis+sentinel://a/s?no_such_option=1",
    ],
)
def test_options_that_there_are_not_are_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_REDIS_URL"):
        RedisRegistry(load_settings(), url=url)


async def test_the_addresses_of_all_servers_are_known(redis: str, connect: Opener) -> None:
    with closing(SentinelStore(redis)) as store:
        registry = await connect(store.url)
        assert (HOST, store.port) in registry.addresses()
        assert len(registry.addresses()) == 4
        await registry.close()
    with closing(ClusterStore(redis)) as cluster:
        await cluster.settled()
        (first, *_) = cluster.nodes
        registry = await connect(f"redis+cluster://{first}")
        await registry.session(ID)
        assert set(registry.addresses()) == set(cluster.nodes)
        await registry.close()


# -- a failover ------------------------------------------------------------------------------------


@pytest.fixture
async def sentinels(redis: str) -> AsyncIterator[SentinelStore]:
    """A primary that is replaced a second after it is gone."""
    with closing(SentinelStore(redis, down_after_ms=1000)) as store:
        await store.settled()
        yield store


async def answered(call: Callable[[], Any], *, seconds: float = 20.0) -> Any:
    """The answer of the registry once it gives one."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await call()
            except RegistryUnavailable:
                await asyncio.sleep(0.1)


async def test_everything_follows_the_primary(sentinels: SentinelStore, connect: Opener) -> None:
    registry, other = await connect(sentinels.url), await connect(sentinels.url)
    watcher = Watcher()
    other.subscribe(watcher.subscriber)
    await registry.register(new_session(), owner=A)
    await watcher.until(lambda: bool(watcher.seen))
    async with registry.events(ID) as events:
        assert (await anext(events)).type == "state"
        sentinels.primary.kill()
        with pytest.raises(RegistryUnavailable):
            await anext(events)
    await answered(lambda: registry.patch(ID, public=False))
    async with asyncio.timeout(20):
        while watcher.synced < 2:
            await watcher.until(lambda: watcher.synced >= 2)
    await registry.request_stop(ID, reason="enough")
    await watcher.until(lambda: watcher.seen[-1].state is State.STOPPING)
    assert await sentinels.replica.ask("HGET", session_key(ID), "state") == b"stopping"


async def test_a_former_primary_that_became_a_replica_is_left(
    sentinels: SentinelStore, connect: Opener
) -> None:
    registry = await connect(sentinels.url)
    await registry.register(new_session(), owner=A)
    await sentinels.sentinels[0].ask("SENTINEL", "FAILOVER", sentinels.service)
    named = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinels.service)
    async with asyncio.timeout(20):
        while int((await sentinels.sentinels[0].ask(*named))[1]) == sentinels.port:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while (await sentinels.replica.ask("ROLE"))[0] != b"master":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    # The sentinels tell the former primary too, when they look at it next: after up to 10 s.
    port = next(port for port in sentinels.servers if port != sentinels.port)
    await sentinels.primary.ask("REPLICAOF", HOST, port)
    await answered(lambda: registry.patch(ID, public=False))
    assert await sentinels.replica.ask("HGET", session_key(ID), "public") == b"0"


async def test_a_link_to_a_primary_that_was_replaced_unnoticed_is_left(
    sentinels: SentinelStore,
) -> None:
    """Cut off from the sentinels only, the old primary goes on, as far as its clients see."""
    client = RedisClient(sentinels.url, limit_seconds=0.5)
    link = PushLink(client, ping_seconds=0.3)
    watcher = Watcher()
    link.subscribe(watcher.subscriber)
    await link.open()
    new = sentinels.replica
    await new.ask("REPLICAOF", "NO", "ONE")
    port = next(port for port, server in sentinels.servers.items() if server is new)
    for sentinel in sentinels.sentinels:
        await sentinel.ask("SENTINEL", "REMOVE", sentinels.service)
        await sentinel.ask("SENTINEL", "MONITOR", sentinels.service, HOST, port, 2)
    await watcher.until(lambda: (watcher.lost, watcher.synced) == (1, 2))
    assert len(await new.ask("PUBSUB", "CHANNELS", "preview:*")) == 2
    await link.close()
    await client.close()


# -- a cluster ------------------------------------------------------------------------------------


@pytest.fixture
async def cluster(redis: str) -> AsyncIterator[ClusterStore]:
    """A cluster of a test's own."""
    with closing(ClusterStore(redis)) as store:
        await store.settled()
        yield store


async def test_changes_at_every_node_are_heard_over_one_link(
    cluster: ClusterStore, connect: Opener
) -> None:
    registry, other = await connect(cluster.url), await connect(cluster.url)
    watcher = Watcher()
    other.subscribe(watcher.subscriber)
    names = [f"session-{n:02}" for n in range(30)]
    nodes = {(await cluster.server_of(session_key(SessionId(name)))).url for name in names}
    assert len(nodes) == 3
    for name in names:
        await registry.register(new_session(name), owner=A)
    await watcher.until(lambda: len(watcher.seen) == len(names))
    assert {route.id for route in watcher.seen} == set(names)


async def test_a_slot_is_followed_to_another_node(cluster: ClusterStore, connect: Opener) -> None:
    registry = await connect(cluster.url)
    await registry.register(new_session(), owner=A)
    source = await cluster.server_of(session_key(ID))
    target = next(server for server in cluster.nodes.values() if server is not source)
    slot = await source.ask("CLUSTER", "KEYSLOT", session_key(ID))
    ids = {server: await server.ask("CLUSTER", "MYID") for server in (source, target)}
    await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    keys = await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10)
    assert len(keys) == 3
    port = next(address.port for address, server in cluster.nodes.items() if server is target)
    # All keys have moved and the slot has not: ASK.
    await source.ask("MIGRATE", HOST, port, "", 0, 5000, "KEYS", *keys)
    found = await registry.session(ID)
    assert found is not None
    assert (await registry.patch(ID, public=False)).public is False
    # The slot has moved, too: MOVED.
    for server in cluster.nodes.values():
        await server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    assert (await registry.patch(ID, public=True)).public is True
    assert (await registry.session(ID)) is not None
    assert await target.ask("HGET", session_key(ID), "public") == b"1"


async def test_a_part_of_a_slot_under_way_is_waited_for(
    cluster: ClusterStore, connect: Opener
) -> None:
    registry = await connect(cluster.url)
    await registry.register(new_session(), owner=A)
    source = await cluster.server_of(session_key(ID))
    target = next(server for server in cluster.nodes.values() if server is not source)
    slot = await source.ask("CLUSTER", "KEYSLOT", session_key(ID))
    ids = {server: await server.ask("CLUSTER", "MYID") for server in (source, target)}
    await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    keys = await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10)
    port = next(address.port for address, server in cluster.nodes.items() if server is target)
    await source.ask("MIGRATE", HOST, port, "", 0, 5000, "KEYS", keys[0])
    patch = asyncio.create_task(registry.patch(ID, public=False))
    await asyncio.sleep(0.1)
    assert not patch.done(), "TRYAGAIN"
    await source.ask("MIGRATE", HOST, port, "", 0, 5000, "KEYS", *keys[1:])
    assert (await patch).public is False


async def test_a_node_that_is_down_is_not_the_others_fault(
    cluster: ClusterStore, connect: Opener
) -> None:
    for server in cluster.nodes.values():
        await server.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    registry = await connect(cluster.url)
    names = [SessionId(f"session-{n}") for n in range(9)]
    for name in names:
        await registry.register(new_session(name), owner=A)
    lost = await cluster.server_of(session_key(names[0]))
    places = {name: await cluster.server_of(session_key(name)) for name in names}
    assert set(places.values()) == set(cluster.nodes.values())
    lost.kill()
    for name, place in places.items():
        if place is lost:
            with pytest.raises(RegistryUnavailable):
                await registry.session(name)
        else:
            assert await answered(partial(registry.session, name)) is not None


async def test_what_a_node_publishes_and_nobody_else_hears_breaks_the_link(
    cluster: ClusterStore,
) -> None:
    """A node cut off from the others' bus: one that stands still hears nothing, either."""
    client = RedisClient(cluster.url, limit_seconds=0.5)
    link = PushLink(client, ping_seconds=0.3)
    watcher = Watcher()
    link.subscribe(watcher.subscriber)
    await link.open()
    await asyncio.sleep(1)
    assert (watcher.synced, watcher.lost) == (1, 0), "echoes of all nodes are heard"
    link._echoes = "another channel"
    await watcher.until(lambda: watcher.lost == 1)
    await link.close()
    await client.close()
