"""Three replicas on a cluster: what one knows all know, and what one loses nobody does.

The same without a cluster is in ``tests/e2e/test_pods.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import aiohttp
import pytest

from tests.k8s.cluster import REPLICAS, Cluster, is_ready, until
from tests.k8s.load import Report, load_on
from tests.k8s.previews import APP
from tests.k8s.replica import Replica, replicas

pytestmark = pytest.mark.timeout(900)


async def next_update(socket: aiohttp.ClientWebSocketResponse) -> list[str]:
    """The paths that the next update on an HMR socket is about."""
    async with asyncio.timeout(30):
        async for message in socket:
            said = json.loads(message.data)
            if said["type"] == "update":
                return [update["path"] for update in said["updates"]]
    raise AssertionError("the socket was closed")


def uids(cluster: Cluster, session_id: str) -> list[str]:
    """The pods of a session, by what tells one from a later one of the same name."""
    return [str(pod["metadata"]["uid"]) for pod in cluster.pods_of(session_id)]


async def test_a_preview_made_on_one_pod_is_served_by_every_pod_at_once(
    cluster: Cluster, pods: list[Replica]
) -> None:
    session_id = await pods[0].create(APP)
    for replica in pods:
        status, text, served_by = await replica.get(session_id)
        assert (status, served_by) == (200, replica.name)
        assert "<h1>Hi</h1>" in text
    assert len(uids(cluster, session_id)) == 1


async def test_an_edit_through_one_pod_is_seen_on_the_hmr_socket_of_another(
    pods: list[Replica],
) -> None:
    session_id = await pods[0].create(APP)
    assert (await pods[1].get(session_id, "main.js"))[0] == 200  # Vite watches what it has served
    async with pods[1].hmr(session_id) as socket:
        edit = {"write": [{"path": "main.js", "content": "import.meta.hot.accept(); 'blue'"}]}
        await pods[2].call("PATCH", f"/sessions/{session_id}/files", edit)
        assert await next_update(socket) == ["/main.js"]
    for replica in pods:
        assert "'blue'" in (await replica.get(session_id, "main.js"))[1]


async def test_a_pod_that_is_lost_takes_no_preview_along_and_none_is_doubled(
    cluster: Cluster, pods: list[Replica]
) -> None:
    lost, *others = pods
    session_id = await lost.create(APP)
    before = uids(cluster, session_id)
    kill = ("delete", f"pod/{lost.name}", "--grace-period=0", "--force")
    await asyncio.to_thread(cluster.gateway.run, *kill)
    for _ in range(20):
        for replica in others:
            assert (await replica.get(session_id))[0] == 200
        assert uids(cluster, session_id) == before
        await asyncio.sleep(1)  # past the lease of the lost one: that is when others take over
    async with replicas(cluster) as now:
        assert lost.name not in {replica.name for replica in now}
        for replica in now:
            assert (await replica.get(session_id))[0] == 200
    assert uids(cluster, session_id) == before


async def test_a_preview_outlives_all_replicas(cluster: Cluster, pods: list[Replica]) -> None:
    session_id = await pods[0].create(APP)
    before = uids(cluster, session_id)
    scale = ("scale", "deployment/preview-gateway")
    await asyncio.to_thread(cluster.gateway.run, *scale, "--replicas=0")
    gone = await asyncio.to_thread(until, 120, [], cluster.gateway_pods)
    assert gone == []
    assert [is_ready(pod) for pod in cluster.pods_of(session_id)] == [True]
    await asyncio.to_thread(cluster.gateway.run, *scale, f"--replicas={REPLICAS}")
    async with replicas(cluster) as now:
        for replica in now:
            assert (await replica.get(session_id))[0] == 200
    assert uids(cluster, session_id) == before


async def test_a_roll_out_under_load_fails_no_request(
    cluster: Cluster, pods: list[Replica], record_property: Callable[[str, object], None]
) -> None:
    session_id = await pods[0].create(APP)
    before = {replica.name for replica in pods}

    def roll_out() -> Report:
        with load_on(cluster, session_id) as load:
            cluster.gateway.run("rollout", "restart", "deployment/preview-gateway")
            cluster.rolled_out()
            # The last of the old ones is told to go only now.
            until(120, True, lambda: not before & set(all_pods(cluster)))
            return load.stop()

    report = await asyncio.to_thread(roll_out)
    record_property("load", repr(report))
    assert not report.failed, report
    assert len(set(report.replicas) - before) == REPLICAS, report
    assert report.sockets > 1, report


def all_pods(cluster: Cluster) -> list[str]:
    """The gateway's pods, those on their way out included."""
    pods = cluster.gateway.items("pods", "app.kubernetes.io/component=gateway")
    return [str(pod["metadata"]["name"]) for pod in pods]
