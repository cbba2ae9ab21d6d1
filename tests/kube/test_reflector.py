"""The reflector, against the fake API server."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.errors import KubeUnavailable, SpawnFailed
from gateway.spawner.kube.client import KubeApi, Pod
from gateway.spawner.kube.reflector import Reflector
from tests.kube import statuses
from tests.kube.cluster import FakeCluster
from tests.kube.manifests import pod

SELECTOR = "app=preview"


class Heard:
    """A listener that remembers, and tells who waits."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []
        self._news = asyncio.Event()

    def changed(self, pod: Pod) -> None:
        self._hear("changed", pod)

    def deleted(self, pod: Pod) -> None:
        self._hear("deleted", pod)

    def _hear(self, kind: str, pod: Pod) -> None:
        self.events.append((kind, pod["metadata"]["name"], pod["metadata"]["uid"]))
        self._news.set()

    def kinds(self, name: str) -> list[str]:
        return [kind for kind, other, _ in self.events if other == name]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self._news.clear()
                await self._news.wait()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what nothing tells of."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def reflecting(
    api: KubeApi,
    *,
    relist_seconds: float = 300.0,
    watch_seconds: float | None = None,
) -> AsyncIterator[tuple[Reflector, Heard]]:
    """A reflector that knows the pods there are, and a listener of it."""
    reflector = Reflector(
        api,
        SELECTOR,
        relist_seconds=relist_seconds,
        watch_seconds=watch_seconds,
        longest_pause_seconds=0.5,
    )
    heard = Heard()
    reflector.subscribe(heard)
    async with reflector:
        async with asyncio.timeout(10):
            await reflector.synced.wait()
        yield reflector, heard


def store(
    cluster: FakeCluster, name: str, *, app: str = "preview", metadata: Pod | None = None
) -> Pod:
    """A pod that is just there."""
    new = pod(name, labels={"app": app})
    new["metadata"] |= {"namespace": cluster.namespace, **(metadata or {})}
    new["status"] = {"phase": "Pending"}
    return cluster.api.store.create(new)


def remove(cluster: FakeCluster, name: str) -> None:
    cluster.api.store.delete(cluster.namespace, name, grace=0, uid=None)


def label(cluster: FakeCluster, name: str, **labels: str) -> None:
    cluster.api.store.update(
        cluster.namespace, name, lambda pod: pod["metadata"]["labels"].update(labels)
    )


# -- what is known ---------------------------------------------------------------------------------


async def test_what_there_is_is_known_once_it_is_synced(cluster: FakeCluster, api: KubeApi) -> None:
    there = store(cluster, "a")
    store(cluster, "b", app="other")
    reflector = Reflector(api, SELECTOR)
    assert not reflector.synced.is_set()
    assert reflector.age_seconds == math.inf
    async with reflector:
        async with asyncio.timeout(10):
            await reflector.synced.wait()
        assert [pod["metadata"]["uid"] for pod in reflector.all()] == [there["metadata"]["uid"]]
        found = reflector.get("a")
        assert found is not None
        assert found["metadata"] == there["metadata"]
        assert reflector.get("b") is None
        assert reflector.age_seconds < 5


async def test_changes_are_heard_in_order(cluster: FakeCluster, api: KubeApi) -> None:
    async with reflecting(api) as (reflector, heard):
        store(cluster, "a")
        label(cluster, "a", state="ready")
        remove(cluster, "a")
        await heard.until(lambda: "deleted" in heard.kinds("a"))
        assert heard.kinds("a") == ["changed", "changed", "deleted"]
        assert reflector.get("a") is None


async def test_a_pod_that_is_relabelled_comes_and_goes(cluster: FakeCluster, api: KubeApi) -> None:
    store(cluster, "a", app="other")
    async with reflecting(api) as (_, heard):
        label(cluster, "a", app="preview")
        label(cluster, "a", app="other")
        await heard.until(lambda: heard.kinds("a") == ["changed", "deleted"])


async def test_who_wrote_which_field_is_not_kept(cluster: FakeCluster, api: KubeApi) -> None:
    fields = {"managedFields": [{"manager": "kubelet"}]}
    store(cluster, "listed", metadata=fields)
    async with reflecting(api) as (reflector, heard):
        store(cluster, "watched", metadata=fields)
        await heard.until(lambda: bool(heard.kinds("watched")))
        assert len(reflector.all()) == 2
        assert not [pod for pod in reflector.all() if "managedFields" in pod["metadata"]]


async def test_who_has_unsubscribed_hears_nothing(cluster: FakeCluster, api: KubeApi) -> None:
    async with reflecting(api) as (reflector, heard):
        other = Heard()
        reflector.subscribe(other)()
        store(cluster, "a")
        await heard.until(lambda: bool(heard.events))
        assert not other.events


async def test_a_listener_that_fails_hurts_nobody(
    cluster: FakeCluster, api: KubeApi, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Heard):
        def changed(self, pod: Pod) -> None:
            raise ValueError("broken")

    reflector = Reflector(api, SELECTOR)
    heard = Heard()
    reflector.subscribe(Broken())
    reflector.subscribe(heard)
    async with reflector:
        store(cluster, "a")
        await heard.until(lambda: heard.kinds("a") == ["changed"])
    assert "a listener to pods failed" in caplog.text


# -- waits -----------------------------------------------------------------------------------------


async def test_a_wait_ends_with_the_change_it_waits_for(cluster: FakeCluster, api: KubeApi) -> None:
    async with reflecting(api) as (reflector, _):
        waiting = asyncio.create_task(
            reflector.wait(
                "a",
                lambda pod: pod is not None and pod["metadata"]["labels"].get("state") == "ready",
                10,
            )
        )
        store(cluster, "a")
        label(cluster, "a", state="ready")
        found = await waiting
        assert found is not None
        assert found["metadata"]["labels"]["state"] == "ready"


async def test_a_wait_for_what_holds_already_returns_at_once(
    cluster: FakeCluster, api: KubeApi
) -> None:
    store(cluster, "a")
    async with reflecting(api) as (reflector, _):
        assert await reflector.wait("a", lambda pod: pod is not None, 0.001)
        assert await reflector.wait("b", lambda pod: pod is None, 0.001) is None


async def test_a_wait_hears_of_the_end(cluster: FakeCluster, api: KubeApi) -> None:
    store(cluster, "a")
    async with reflecting(api) as (reflector, _):
        waiting = asyncio.create_task(reflector.wait("a", lambda pod: pod is None, 10))
        remove(cluster, "a")
        assert await waiting is None


async def test_a_wait_has_a_limit_and_leaves_nothing(cluster: FakeCluster, api: KubeApi) -> None:
    async with reflecting(api) as (reflector, _):
        with pytest.raises(TimeoutError):
            await reflector.wait("a", lambda pod: pod is not None, 0.05)
        assert not reflector._waiters


async def test_what_a_predicate_raises_ends_the_wait(cluster: FakeCluster, api: KubeApi) -> None:
    def ready(pod: Pod | None) -> bool:
        if pod is not None:
            raise SpawnFailed("the image cannot be pulled")
        return False

    async with reflecting(api) as (reflector, _):
        waiting = asyncio.create_task(reflector.wait("a", ready, 10))
        store(cluster, "a")
        with pytest.raises(SpawnFailed, match="cannot be pulled"):
            await waiting


# -- when something goes wrong ---------------------------------------------------------------------


async def test_fault_40_a_watch_that_breaks_is_resumed_without_a_list(
    cluster: FakeCluster, api: KubeApi
) -> None:
    async with reflecting(api) as (reflector, heard):
        store(cluster, "a")
        await heard.until(lambda: bool(heard.kinds("a")))
        cluster.faults.drop_watches()
        store(cluster, "b")
        await heard.until(lambda: bool(heard.kinds("b")))
        assert heard.kinds("a") == ["changed"]
        assert cluster.api.count("list") == 1
        assert reflector.failure is None


async def test_fault_40_what_happens_while_the_watch_is_broken_is_made_up_for(
    cluster: FakeCluster, api: KubeApi
) -> None:
    store(cluster, "gone")
    async with reflecting(api) as (reflector, heard):
        await cluster.api.until_called("watch", 1)
        await cluster.api.stop()
        store(cluster, "new")
        remove(cluster, "gone")
        await until(lambda: reflector.failure is not None)
        assert reflector.get("gone") is not None, "an outage says nothing about pods"
        await cluster.api.start()
        await heard.until(lambda: "deleted" in heard.kinds("gone") and bool(heard.kinds("new")))


@pytest.mark.parametrize("as_status", [True, False])
async def test_fault_40_a_version_that_is_forgotten_leads_to_a_list(
    cluster: FakeCluster, api: KubeApi, as_status: bool
) -> None:
    store(cluster, "stays")
    store(cluster, "goes")
    cluster.faults.gone_as_status = as_status
    # So that the watch cannot have seen what is forgotten.
    cluster.faults.delay("watch", 0.2)
    async with reflecting(api) as (reflector, heard):
        remove(cluster, "goes")
        store(cluster, "comes")
        cluster.faults.compact()
        await heard.until(lambda: bool(heard.kinds("comes")))
        assert heard.kinds("goes") == ["changed", "deleted"]
        assert heard.kinds("stays") == ["changed"], "a list of what is known is no news"
        assert {pod["metadata"]["name"] for pod in reflector.all()} == {"stays", "comes"}
        assert cluster.api.count("list") == 2


async def test_fault_40_an_open_watch_that_expires_leads_to_a_list(
    cluster: FakeCluster, api: KubeApi
) -> None:
    async with reflecting(api) as (_, heard):
        await cluster.api.until_called("watch", 1)
        store(cluster, "a")
        await heard.until(lambda: bool(heard.kinds("a")))
        cluster.faults.expire_watches()
        await cluster.api.until_called("list", 2)
        store(cluster, "b")
        await heard.until(lambda: bool(heard.kinds("b")))


async def test_fault_40_a_deletion_that_no_watch_told_is_found_by_the_next_list(
    cluster: FakeCluster, api: KubeApi
) -> None:
    store(cluster, "a")
    async with reflecting(api, relist_seconds=0.5) as (reflector, heard):
        cluster.faults.silence = True
        remove(cluster, "a")
        await heard.until(lambda: heard.kinds("a") == ["changed", "deleted"])
        assert reflector.get("a") is None


async def test_fault_40_a_watch_that_falls_silent_is_replaced(
    cluster: FakeCluster, api: KubeApi
) -> None:
    async with reflecting(api, watch_seconds=1) as (reflector, heard):
        await cluster.api.until_called("watch", 1)
        cluster.faults.silence = cluster.faults.hold_watches = True
        store(cluster, "a")
        await cluster.api.until_called("watch", 2)
        assert reflector.age_seconds > 1, "how old it is can be seen"
        cluster.faults.clear()
        cluster.faults.drop_watches()
        await heard.until(lambda: bool(heard.kinds("a")))


async def test_fault_40_another_pod_of_the_same_name_is_told_as_such(
    cluster: FakeCluster, api: KubeApi
) -> None:
    first = store(cluster, "a")
    cluster.faults.delay("watch", 0.2)
    async with reflecting(api) as (_, heard):
        remove(cluster, "a")
        second = store(cluster, "a")
        cluster.faults.compact()
        await heard.until(lambda: len(heard.events) == 3)
    assert heard.events == [
        ("changed", "a", first["metadata"]["uid"]),
        ("deleted", "a", first["metadata"]["uid"]),
        ("changed", "a", second["metadata"]["uid"]),
    ]


async def test_fault_40_an_api_server_that_cuts_watches_off_is_not_overrun(
    cluster: FakeCluster, api: KubeApi
) -> None:
    # Each watch ends in order, at once, as behind a proxy that does not stream.
    cluster.faults.cut_watches = True
    async with reflecting(api):
        await asyncio.sleep(1)
        calls = cluster.api.count("watch") + cluster.api.count("list")
    assert calls <= 14


async def test_fault_40_versions_that_are_always_too_old_do_not_make_a_storm_of_lists(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.refuse("watch", lambda: statuses.expired(1, 2), times=1000)
    async with reflecting(api):
        await asyncio.sleep(1)
        lists = cluster.api.count("list")
    assert lists <= 8


async def test_fault_40_an_overloaded_api_server_is_not_watched_before_it_asks_for_it(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.refuse("watch", lambda: statuses.too_many_requests(1))
    async with reflecting(api) as (reflector, heard):
        await cluster.api.until_called("watch", 1)
        begun = asyncio.get_running_loop().time()
        await cluster.api.until_called("watch", 2)
        assert asyncio.get_running_loop().time() - begun >= 0.9
        store(cluster, "a")
        await heard.until(lambda: bool(heard.kinds("a")))
        assert reflector.failure is None


async def test_fault_40_who_may_not_list_goes_on_trying_and_says_why(
    cluster: FakeCluster, api: KubeApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    denied = 'User "system:serviceaccount:preview:gateway" cannot list resource "pods"'
    cluster.faults.refuse("list", lambda: statuses.forbidden("", denied), times=4)
    async with reflecting(api):
        assert cluster.api.count("list") == 5
    assert caplog.text.count("cannot list resource") == 1, "one line, not one for every try"
    assert "pods are heard of again" in caplog.text


async def test_bookmarks_move_the_version_on(cluster: FakeCluster, api: KubeApi) -> None:
    async with reflecting(api, watch_seconds=1):
        await cluster.api.until_called("watch", 1)
        store(cluster, "unselected", app="other")
        # The next watch starts where the last one ended, though no pod of ours has changed.
        await cluster.api.until_called("watch", 2)
        began_at = cluster.api.calls[-1].query["resourceVersion"]
        assert began_at == str(cluster.api.store.version)
        assert cluster.api.count("list") == 1


async def test_it_lists_from_time_to_time(cluster: FakeCluster, api: KubeApi) -> None:
    async with reflecting(api, relist_seconds=0.4):
        await cluster.api.until_called("list", 3)


async def test_closing_it_ends_its_task_and_its_watch(cluster: FakeCluster, api: KubeApi) -> None:
    async with reflecting(api) as (reflector, _):
        await cluster.api.until_called("watch", 1)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "kubernetes reflector"]
    await reflector.close()
    await until(lambda: not cluster.api.store.watches)


async def test_a_defect_does_not_end_it(
    cluster: FakeCluster,
    api: KubeApi,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    listing = api.list

    async def broken(*arguments: str) -> object:
        monkeypatch.setattr(api, "list", listing)
        raise ValueError("a defect")

    monkeypatch.setattr(api, "list", broken)
    async with reflecting(api) as (reflector, _):
        assert reflector.failure is None
    assert "a defect" in caplog.text
    assert KubeUnavailable.__name__ not in caplog.text
