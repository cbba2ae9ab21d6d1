"""Lists and watches of the client, against the fake API server over real sockets."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from gateway.errors import KubeGone, KubeUnavailable
from gateway.spawner.kube import client as client_module
from gateway.spawner.kube.client import Event, KubeApi
from tests.kube import statuses
from tests.kube.cluster import FakeCluster
from tests.kube.conftest import client
from tests.kube.manifests import pod

# -- lists -----------------------------------------------------------------------------------------


def fill(cluster: FakeCluster, number: int, prefix: str = "p") -> None:
    for index in range(number):
        new = pod(f"{prefix}{index:04}")
        new["metadata"]["namespace"] = cluster.namespace
        new["status"] = {"phase": "Pending"}
        cluster.api.store.create(new)


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_CHUNK", 3)


@pytest.mark.usefixtures("short_chunks")
async def test_a_list_in_chunks_is_of_one_moment(cluster: FakeCluster, api: KubeApi) -> None:
    fill(cluster, 7)
    version = cluster.api.store.version
    cluster.faults.delay("list", 0.3, times=3)
    listing = asyncio.create_task(api.list())
    await cluster.api.until_called("list", 2)
    fill(cluster, 1, prefix="z")
    cluster.api.store.delete(cluster.namespace, "p0006", grace=0, uid=None)
    pods, at = await listing
    assert [pod["metadata"]["name"] for pod in pods] == [f"p{index:04}" for index in range(7)]
    assert at == str(version)
    assert cluster.api.count("list") == 3


@pytest.mark.usefixtures("short_chunks")
async def test_fault_40_a_list_whose_moment_is_forgotten_begins_anew(
    cluster: FakeCluster, api: KubeApi
) -> None:
    fill(cluster, 7)
    cluster.faults.refuse("list", statuses.continue_expired, after=1)
    assert len((await api.list()).pods) == 7
    assert cluster.api.count("list") == 5


@pytest.mark.usefixtures("short_chunks")
async def test_fault_40_a_list_that_is_never_fast_enough_is_asked_for_in_one_piece(
    cluster: FakeCluster, api: KubeApi
) -> None:
    fill(cluster, 7)
    for after in (1, 2, 3):
        cluster.faults.refuse("list", statuses.continue_expired, after=after)
    assert len((await api.list()).pods) == 7
    assert "limit" not in cluster.api.calls[-1].query


async def test_a_list_holds_what_is_selected(api: KubeApi) -> None:
    await api.create(pod("a", labels={"app": "preview"}))
    await api.create(pod("b", labels={"app": "other"}))
    pods, _ = await api.list("app=preview")
    assert [pod["metadata"]["name"] for pod in pods] == ["a"]


async def test_a_list_not_older_than_a_version_holds_what_happened_until_then(api: KubeApi) -> None:
    created = await api.create(pod("a"))
    version = created["metadata"]["resourceVersion"]
    assert len((await api.list(resource_version=version)).pods) == 1


async def test_fault_40_a_version_that_is_too_old_for_a_list_is_not_asked_for_again(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.refuse("list", lambda: statuses.expired(1, 2))
    await api.list(resource_version=str(cluster.api.store.version))
    first, second = (call.query for call in cluster.api.calls)
    assert first["resourceVersion"] == str(cluster.api.store.version)
    assert "resourceVersion" not in second


# -- watches ---------------------------------------------------------------------------------------


async def test_a_watch_tells_what_happens_after_a_version(
    cluster: FakeCluster, api: KubeApi
) -> None:
    before = await api.create(pod("before"))
    async with aclosing(api.watch("", before["metadata"]["resourceVersion"])) as events:
        created = await api.create(pod("a"))
        assert await anext(events) == Event("ADDED", created)
        changed = await api.patch("a", {"metadata": {"labels": {"x": "y"}}})
        assert await anext(events) == Event("MODIFIED", changed)
        await api.delete("a", grace_seconds=0)
        kind, last = await anext(events)
        assert kind == "DELETED"
        assert last["metadata"]["uid"] == created["metadata"]["uid"]
        assert int(last["metadata"]["resourceVersion"]) > int(
            changed["metadata"]["resourceVersion"]
        )


async def test_a_pod_that_is_no_longer_selected_is_told_as_deleted(api: KubeApi) -> None:
    created = await api.create(pod("a", labels={"state": "warm"}))
    version = created["metadata"]["resourceVersion"]
    async with aclosing(api.watch("state=warm", version)) as events:
        await api.patch("a", {"metadata": {"labels": {"state": "claimed"}}})
        kind, last = await anext(events)
        assert kind == "DELETED"
        assert last["metadata"]["labels"]["state"] == "warm"


async def test_a_watch_ends_by_itself_with_a_bookmark(cluster: FakeCluster, api: KubeApi) -> None:
    version = str(cluster.api.store.version)
    async with aclosing(api.watch("", version, seconds=1)) as events:
        kinds = [event.type async for event in events]
    assert set(kinds) == {"BOOKMARK"}


async def test_an_event_may_be_long(cluster: FakeCluster, api: KubeApi) -> None:
    version = str(cluster.api.store.version)
    new = pod("a")
    new["metadata"]["annotations"] = {"long": "x" * 500_000}
    async with aclosing(api.watch("", version)) as events:
        await api.create(new)
        assert len((await anext(events)).pod["metadata"]["annotations"]["long"]) == 500_000


async def test_fault_40_a_watch_that_breaks_says_so(cluster: FakeCluster, api: KubeApi) -> None:
    version = str(cluster.api.store.version)
    async with aclosing(api.watch("", version)) as events:
        await api.create(pod("a"))
        await anext(events)
        cluster.faults.drop_watches()
        with pytest.raises(KubeUnavailable):
            await anext(events)


@pytest.mark.parametrize("as_status", [True, False])
async def test_fault_40_a_watch_from_a_forgotten_version_is_gone(
    cluster: FakeCluster, api: KubeApi, as_status: bool
) -> None:
    version = str(cluster.api.store.version)
    await api.create(pod("a"))
    cluster.faults.gone_as_status = as_status
    cluster.faults.compact()
    async with aclosing(api.watch("", version)) as events:
        with pytest.raises(KubeGone, match="too old resource version"):
            await anext(events)


async def test_fault_40_an_open_watch_may_expire(cluster: FakeCluster, api: KubeApi) -> None:
    version = str(cluster.api.store.version)
    async with aclosing(api.watch("", version)) as events:
        await api.create(pod("a"))
        await anext(events)
        cluster.faults.expire_watches()
        with pytest.raises(KubeGone):
            await anext(events)


async def test_fault_40_a_watch_that_falls_silent_is_given_up(cluster: FakeCluster) -> None:
    cluster.faults.silence = True
    # As when the other side is gone without a word: the watch is not even ended in time.
    cluster.faults.hold_watches = True
    async with (
        client(cluster, watch_margin_seconds=0.2) as api,
        aclosing(api.watch("", str(cluster.api.store.version), seconds=1)) as events,
    ):
        begun = time.monotonic()
        with pytest.raises(KubeUnavailable, match="does not answer"):
            await anext(events)
    assert 1.1 < time.monotonic() - begun < 10


async def test_fault_40_a_watch_whose_head_does_not_come_is_given_up_sooner(
    cluster: FakeCluster,
) -> None:
    cluster.faults.delay("watch", 30)
    async with (
        client(cluster, attempt_seconds=0.2) as api,
        aclosing(api.watch("", str(cluster.api.store.version), seconds=30)) as events,
    ):
        begun = time.monotonic()
        with pytest.raises(KubeUnavailable):
            await anext(events)
    assert time.monotonic() - begun < 10
