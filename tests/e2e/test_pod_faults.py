"""Fault 40 of the reference, and whatever else befalls pods and the API server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.conftest import run_store
from tests.e2e.fleet import STATIC, run_fleet, until
from tests.e2e.pods import Pods, gone, settings, text_of
from tests.kube.cluster import FakeCluster
from tests.kube.failures import Kind
from tests.kube.statuses import internal_error, too_many_requests

pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lone(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pods]:
    """One replica that does not wait long for a pod."""
    async with (
        run_store() as store,
        FakeCluster() as cluster,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        folder = tmp_path_factory.mktemp("pods")
        environ = settings(store, cluster, folder, GATEWAY_POD_START_SECONDS="10")
        async with run_fleet(http, data_dir, environ, count=1) as fleet:
            yield Pods(fleet, cluster)


@pytest.fixture(autouse=True)
def all_is_well(lone: Pods) -> Iterator[None]:
    """What one test lets happen does not happen to the next."""
    yield
    lone.cluster.faults.clear()


START_FAILURES: Final = {
    "unschedulable": "no node has room for its pod",
    "image": "cannot be had",
    "config": "its container cannot be started",
    "init": "the agent could not be brought into its pod",
    "oom": "ran out of memory",
}


@pytest.mark.parametrize(("kind", "sentence"), START_FAILURES.items())
async def test_fault_40_a_pod_that_cannot_start_fails_its_session_with_a_sentence(
    lone: Pods, kind: Kind, sentence: str
) -> None:
    lone.cluster.kubelet.failures.add(kind)
    status, session = await lone.api(0).call(
        "POST", "/api/v1/sessions?wait=ready&timeout=30", STATIC
    )
    assert (status, session["state"]) == (201, "failed"), session
    assert sentence in session["reason"]
    await gone(lone, session["id"])
    again = await lone.api(0).create({**STATIC, "id": session["id"]}, ready=True)
    assert again["generation"] > session["generation"]


async def test_fault_40_a_quota_that_is_used_up_is_told_in_a_sentence(lone: Pods) -> None:
    lone.cluster.faults.quota = ("previews", 0)
    _, session = await lone.api(0).call("POST", "/api/v1/sessions?wait=ready&timeout=30", STATIC)
    assert session["state"] == "failed"
    assert "the quota of the namespace is used up" in session["reason"]


async def test_fault_40_what_ends_a_pod_that_serves_is_told_and_the_preview_starts_again(
    lone: Pods,
) -> None:
    session = await lone.api(0).create(STATIC, ready=True)
    name = session["id"]
    (pod,) = lone.of(name)
    lone.cluster.kubelet.oom_kill(pod["metadata"]["name"])
    assert "ran out of memory" in (await ended(lone, name, "failed"))["reason"]
    # Of these the preview is innocent: the next request has another pod.
    for befall in (evict, remove_by_hand):
        other = (await lone.api(0).create(STATIC, ready=True))["id"]
        (pod,) = lone.of(other)
        await befall(lone, pod["metadata"]["name"])
        assert (await ended(lone, other, "sleeping"))["reason"].startswith("its pod was ")
        assert await text_of(lone, lone.fleet.replicas[0], other)


async def evict(pods: Pods, name: str) -> None:
    await pods.cluster.kubelet.evict(name)


async def remove_by_hand(pods: Pods, name: str) -> None:
    url = f"{pods.cluster.url}/api/v1/namespaces/{pods.cluster.namespace}/pods/{name}"
    async with pods.fleet.http.delete(url) as response:
        assert response.status == 200


async def ended(pods: Pods, session_id: str, state: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def there() -> bool:
        nonlocal found
        found = (await pods.api(0).call("GET", f"/api/v1/sessions/{session_id}"))[1]
        return bool(found["state"] == state)

    await until(there, seconds=20)
    return found


async def test_fault_40_creates_and_stops_ride_out_an_api_server_that_stumbles(lone: Pods) -> None:
    faults = lone.cluster.faults
    troubles: tuple[Callable[[], None], ...] = (
        lambda: faults.refuse(None, lambda: too_many_requests(1), times=2),
        lambda: faults.refuse(None, internal_error, times=2),
        lambda: faults.lose_reply("create"),
        lambda: faults.drop(None),
        faults.drop_watches,
        faults.expire_watches,
    )
    for trouble in troubles:
        trouble()
        name = (await lone.api(0).create(STATIC, ready=True))["id"]
        assert len(lone.of(name)) == 1
        status, stopped = await lone.api(0).call("POST", f"/api/v1/sessions/{name}/stop")
        assert (status, stopped["state"]) == (200, "stopped")
        await gone(lone, name)
