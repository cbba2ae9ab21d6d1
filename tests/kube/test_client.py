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
    KubeInvalid,
    KubeNotFound,
    KubeRefused,
    KubeUnavailable,
)
from gateway.spawner.kube.client import KubeApi
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
    assert cluster.api.count("read") >= 2


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
    async with client(cluster, call_seconds=1.0) as api:
        cluster.faults.lose_reply("create")
        cluster.faults.refuse("create", statuses.internal_error, times=100)
        begun = time.monotonic()
        with pytest.raises(KubeUnavailable, match="cannot answer now") as caught:
            await api.create(pod("a"))
    assert time.monotonic() - begun < 5
    assert caught.value.uncertain
    assert cluster.api.count("create") >= 2


async def test_fault_40_a_lost_answer_is_not_forgotten_when_nothing_happens_afterwards(
    cluster: FakeCluster, api: KubeApi
) -> None:
    cluster.faults.lose_reply("create")
    # Says for itself that nothing has happened.
    cluster.faults.refuse("create", lambda: statuses.too_many_requests(60))
    with pytest.raises(KubeUnavailable) as caught:
        await api.create(pod("a"))
    assert caught.value.uncertain


async def test_fault_40_without_an_api_server_nothing_can_have_happened(
    cluster: FakeCluster,
) -> None:
    async with client(cluster, call_seconds=1.0) as api:
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
        async with KubeApi(config, attempt_seconds=1, call_seconds=1) as api:
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
