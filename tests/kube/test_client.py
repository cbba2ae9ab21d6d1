"""The client of the Kubernetes API, against the fake API server over real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from gateway.errors import (
    KubeAlreadyExists,
    KubeConflict,
    KubeForbidden,
    KubeGone,
    KubeInvalid,
    KubeNotFound,
    KubeRefused,
    KubeUnavailable,
)
from gateway.spawner.kube import client as client_module
from gateway.spawner.kube.client import Event, KubeApi
from gateway.spawner.kube.config import KubeConfig
from tests.kube import statuses
from tests.kube.cluster import FakeCluster
from tests.kube.conftest import client
from tests.kube.manifests import pod

# -- create, read, patch, delete -------------------------------------------------------------------


async def test_a_created_pod_can_be_read(api: KubeApi) -> None:
    created = await api.create(pod("a"))
    assert created["metadata"]["uid"]
    assert await api.read("a") == created


async def test_a_pod_that_is_not_there_reads_as_none(api: KubeApi) -> None:
    assert await api.read("a") is None


async def test_the_second_pod_of_a_name_is_refused(api: KubeApi) -> None:
    await api.create(pod("a"))
    with pytest.raises(KubeAlreadyExists, match='pods "a" already exists') as caught:
        await api.create(pod("a"))
    assert not caught.value.repeated
    assert (caught.value.http_status, caught.value.reason) == (409, "AlreadyExists")


async def test_a_pod_that_makes_no_sense_is_refused_with_the_reason(api: KubeApi) -> None:
    with pytest.raises(KubeInvalid, match=r"spec\.containers: Required value"):
        await api.create({**pod("a"), "spec": {"containers": []}})


async def test_a_namespace_that_is_missing_is_told(cluster: FakeCluster) -> None:
    config = KubeConfig(cluster.url, "elsewhere")
    async with KubeApi(config) as api:
        with pytest.raises(KubeNotFound, match='namespaces "elsewhere" not found'):
            await api.create(pod("a"))


async def test_a_patch_changes_what_it_names(api: KubeApi) -> None:
    await api.create(pod("a", labels={"app": "preview", "state": "warm"}))
    patched = await api.patch("a", {"metadata": {"labels": {"state": None, "id": "x"}}})
    assert patched["metadata"]["labels"] == {"app": "preview", "id": "x"}
    assert await api.read("a") == patched


async def test_of_two_patches_of_the_same_version_one_wins(api: KubeApi) -> None:
    version = (await api.create(pod("a")))["metadata"]["resourceVersion"]

    def claim(by: str) -> Awaitable[object]:
        metadata = {"resourceVersion": version, "annotations": {"claimed-by": by}}
        return api.patch("a", {"metadata": metadata})

    results = await asyncio.gather(claim("x"), claim("y"), return_exceptions=True)
    lost = [result for result in results if isinstance(result, KubeConflict)]
    assert len(lost) == 1
    assert not lost[0].repeated


async def test_a_patch_of_nothing_is_refused(api: KubeApi) -> None:
    with pytest.raises(KubeNotFound):
        await api.patch("a", {"metadata": {"labels": {"x": "y"}}})


async def test_a_delete_says_whether_there_was_a_pod(api: KubeApi) -> None:
    await api.create(pod("a"))
    assert await api.delete("a")
    assert not await api.delete("a")


async def test_a_delete_meant_for_another_pod_of_the_name_is_refused(
    cluster: FakeCluster, api: KubeApi
) -> None:
    uid = (await api.create(pod("a")))["metadata"]["uid"]
    with pytest.raises(KubeConflict, match="Precondition failed: UID in precondition"):
        await api.delete("a", uid="00000000-0000-0000-0000-000000000000")
    assert "a" in cluster.pods
    assert await api.delete("a", uid=uid)


async def test_a_delete_gives_the_pod_the_time_it_is_told(
    cluster: FakeCluster, api: KubeApi
) -> None:
    created = await api.create({**pod("a"), "spec": {**pod("a")["spec"], "nodeName": "node-1"}})
    assert created["spec"]["nodeName"] == "node-1"
    await api.delete("a", grace_seconds=7)
    assert cluster.pods["a"]["metadata"]["deletionGracePeriodSeconds"] == 7
    await api.delete("a", grace_seconds=0)
    assert "a" not in cluster.pods


# -- calls that fail -------------------------------------------------------------------------------


async def test_fault_40_a_create_whose_answer_is_lost_can_tell_its_pod_from_anothers(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.lose_reply("create")
    with pytest.raises(KubeAlreadyExists) as caught:
        await api.create(pod("a"))
    assert caught.value.repeated
    assert list(cluster.pods) == ["a"]


async def test_fault_40_a_patch_whose_answer_is_lost_can_tell_its_change_from_anothers(
    cluster: FakeCluster, api: KubeApi
) -> None:
    version = (await api.create(pod("a")))["metadata"]["resourceVersion"]
    cluster.faults.lose_reply("patch")
    with pytest.raises(KubeConflict) as caught:
        await api.patch("a", {"metadata": {"resourceVersion": version, "labels": {"x": "y"}}})
    assert caught.value.repeated
    assert cluster.pods["a"]["metadata"]["labels"]["x"] == "y"


async def test_fault_40_a_delete_whose_answer_is_lost_succeeds(
    cluster: FakeCluster, api: KubeApi
) -> None:
    await api.create(pod("a"))
    cluster.faults.lose_reply("delete")
    await api.delete("a")
    assert not cluster.pods


@pytest.mark.parametrize("status", [500, 503, 504])
async def test_fault_40_a_call_is_repeated_while_the_api_server_stutters(
    cluster: FakeCluster, api: KubeApi, status: int
) -> None:
    cluster.faults.refuse("create", lambda: statuses.Refusal(status, "", "try later"), times=2)
    await api.create(pod("a"))
    assert cluster.api.count("create") == 3


async def test_fault_40_a_call_is_repeated_when_its_connection_breaks(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.drop("create", times=2)
    await api.create(pod("a"))
    assert cluster.api.count("create") == 3


async def test_fault_40_a_call_is_repeated_when_no_answer_comes(cluster: FakeCluster) -> None:
    async with client(cluster, attempt_seconds=0.2) as api:
        cluster.faults.delay("read", 30)
        assert await api.read("a") is None
    assert cluster.api.count("read") == 2


async def test_fault_40_an_overloaded_api_server_is_left_alone_for_as_long_as_it_asks(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.refuse("create", lambda: statuses.too_many_requests(1))
    begun = time.monotonic()
    await api.create(pod("a"))
    assert time.monotonic() - begun >= 1
    assert cluster.api.count("create") == 2


async def test_fault_40_who_is_to_come_back_later_than_a_call_may_last_is_told_at_once(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.refuse("create", lambda: statuses.too_many_requests(60))
    with pytest.raises(KubeUnavailable) as caught:
        await api.create(pod("a"))
    assert caught.value.retry_after == 60
    assert not caught.value.uncertain
    assert cluster.api.count("create") == 1


async def test_fault_40_a_call_gives_up_in_time_and_says_that_its_end_is_unknown(
    cluster: FakeCluster,
) -> None:
    async with client(cluster, call_seconds=0.6) as api:
        cluster.faults.lose_reply("create")
        cluster.faults.refuse("create", statuses.internal_error, times=100)
        begun = time.monotonic()
        with pytest.raises(KubeUnavailable, match="cannot answer now") as caught:
            await api.create(pod("a"))
    assert time.monotonic() - begun < 2
    assert caught.value.uncertain
    assert cluster.api.count("create") > 2


async def test_fault_40_without_an_api_server_nothing_can_have_happened(
    cluster: FakeCluster,
) -> None:
    async with client(cluster, call_seconds=0.3) as api:
        await cluster.api.stop()
        with pytest.raises(KubeUnavailable, match="does not answer") as caught:
            await api.create(pod("a"))
    assert not caught.value.uncertain


async def test_fault_40_an_api_server_that_comes_back_is_found_again(
    cluster: FakeCluster, api: KubeApi
) -> None:
    await api.create(pod("a"))
    await cluster.api.stop()
    reading = asyncio.create_task(api.read("a"))
    await asyncio.sleep(0)
    await cluster.api.start()
    assert await reading == cluster.pods["a"]


async def test_fault_40_a_quota_that_is_used_up_is_told_apart_and_not_tried_again(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.quota = ("previews", 1)
    await api.create(pod("a"))
    with pytest.raises(KubeForbidden, match="exceeded quota: previews") as caught:
        await api.create(pod("b"))
    assert caught.value.quota_exceeded
    assert cluster.api.count("create") == 2


async def test_a_refusal_by_rbac_is_no_quota(cluster: FakeCluster, api: KubeApi) -> None:
    cluster.faults.refuse("create", lambda: statuses.forbidden("a", "no RBAC policy matched"))
    with pytest.raises(KubeForbidden, match="no RBAC policy") as caught:
        await api.create(pod("a"))
    assert not caught.value.quota_exceeded


async def test_fault_40_creates_that_meet_at_the_quotas_counter_are_tried_again(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.refuse("create", lambda: statuses.modified("previews", "resourcequotas"))
    await api.create(pod("a"))
    assert cluster.api.count("create") == 2


async def test_a_call_that_is_cancelled_ends_at_once(cluster: FakeCluster, api: KubeApi) -> None:
    cluster.faults.delay("read", 30)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await api.read("a")


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
    assert 1.1 < time.monotonic() - begun < 3


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
    assert time.monotonic() - begun < 3


# -- who is asked, and with what -------------------------------------------------------------------


class Tokens:
    """A source whose tokens are refused until it has been asked for another."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)

    async def token(self) -> str:
        return self.tokens[0]

    def refused(self) -> None:
        if len(self.tokens) > 1:
            del self.tokens[0]


async def test_a_token_that_is_refused_is_replaced_at_once(cluster: FakeCluster) -> None:
    cluster.api.tokens = {"new"}
    config = KubeConfig(cluster.url, cluster.namespace, tokens=Tokens("old", "new"))
    async with KubeApi(config) as api:
        assert (await api.create(pod("a")))["metadata"]["name"] == "a"
        cluster.api.tokens = {"newer"}
        config.tokens.tokens.append("newer")  # type: ignore[union-attr]
        async with aclosing(api.watch("", "1000")) as events:
            assert (await anext(events)).type == "ADDED"


async def test_without_a_good_token_the_error_says_so_without_the_token(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    cluster.api.tokens = {"good"}
    config = KubeConfig(cluster.url, cluster.namespace, tokens=Tokens("top-secret-token"))
    async with KubeApi(config) as api:
        with pytest.raises(
            KubeRefused, match="does not accept the gateway's credentials"
        ) as caught:
            await api.read("a")
    assert caught.value.http_status == 401
    assert "top-secret" not in f"{caught.value} {config!r} {caplog.text}"


@asynccontextmanager
async def answering(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> AsyncIterator[KubeApi]:
    """A client of a server that is no API server."""
    server = web.Server(handler)
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        config = KubeConfig(f"http://127.0.0.1:{runner.addresses[0][1]}", "previews")
        async with KubeApi(config, attempt_seconds=1, call_seconds=0.3) as api:
            yield api
    finally:
        await runner.cleanup()


async def test_what_is_no_api_server_is_named_so() -> None:
    async def page(_: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>hello</html>")

    async with answering(page) as api:
        with pytest.raises(KubeUnavailable, match="is no Kubernetes API server"):
            await api.read("a")


async def test_a_page_of_a_load_balancer_is_an_outage() -> None:
    async def page(_: web.BaseRequest) -> web.Response:
        return web.Response(status=502, text="<html>bad gateway</html>")

    async with answering(page) as api:
        with pytest.raises(KubeUnavailable, match=r"\(502\): <html>bad gateway"):
            await api.read("a")


async def test_credentials_are_not_taken_elsewhere() -> None:
    asked: list[str] = []

    async def redirect(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with answering(redirect) as api:
        with pytest.raises(KubeRefused, match="307"):
            await api.read("a")
    assert asked == ["/api/v1/namespaces/previews/pods/a"]


async def test_events_that_are_none_are_an_outage() -> None:
    async def gibberish(_: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>\n</html>\n")

    async with answering(gibberish) as api, aclosing(api.watch("", "1")) as events:
        with pytest.raises(KubeUnavailable, match="an event of the Kubernetes API server is none"):
            await anext(events)


async def test_the_client_leaves_no_connection_behind(cluster: FakeCluster) -> None:
    api = client(cluster)
    async with api:
        await api.read("a")
    with pytest.raises((aiohttp.ClientError, RuntimeError)):
        await api.read("a")
