"""Previews in pods of their own: three replicas, a fake API server, the real agent, real Vite.

What runs on a cluster in ``tests/k8s`` runs here without one: its pods are processes.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from gateway.spawner.kube.manifest import GENERATION_LABEL, SESSION_LABEL, SLOT_LABEL
from tests.e2e.conftest import Store
from tests.e2e.fleet import STATIC, Load, run_fleet, until
from tests.e2e.pods import Pods, gone, settings, text_of
from tests.e2e.replicas import ReplicaProcess
from tests.kube.cluster import FakeCluster

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

VITE: Final[dict[str, Any]] = {
    "packageJson": {"type": "module", "devDependencies": {"vite": "^8"}},
    "files": [
        {"path": "index.html", "content": "<h1>Hi</h1><script type=module src=/main.js></script>"},
        {"path": "main.js", "content": "import.meta.hot.accept(); export const shade = 'red'"},
    ],
}


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """A cluster with one node."""
    async with FakeCluster() as cluster:
        yield cluster


@pytest.fixture
async def pods(
    store: Store,
    cluster: FakeCluster,
    data_dir: Path,
    tmp_path: Path,
    http: aiohttp.ClientSession,
) -> AsyncIterator[Pods]:
    """Three replicas on one Valkey and one cluster."""
    environ = settings(store, cluster, tmp_path)
    async with run_fleet(http, data_dir, environ, count=3) as fleet:
        yield Pods(fleet, cluster)


async def test_a_preview_in_a_pod_is_served_by_every_replica_and_stopped_by_any(
    pods: Pods,
) -> None:
    session = await pods.api(0).create(STATIC, ready=True)
    name = session["id"]
    (pod,) = pods.of(name)
    assert pod["metadata"]["labels"][GENERATION_LABEL] == str(session["generation"])
    for replica in pods.fleet.replicas:
        assert await text_of(pods, replica, name)
    status, stopped = await pods.api(1).call("POST", f"/api/v1/sessions/{name}/stop")
    assert (status, stopped["state"]) == (200, "stopped")
    assert pods.of(name) == []


# -- the scenario of tests/k8s ---------------------------------------------------------------------


@asynccontextmanager
async def hmr_socket(pods: Pods, number: int, session_id: str) -> AsyncIterator[Any]:
    """Vite's HMR socket through one replica, as a program opens it."""
    replica = pods.fleet.replicas[number]
    url = f"{replica.url}/preview/{session_id}/hmr"
    async with pods.fleet.http.ws_connect(url, max_msg_size=0) as socket:
        assert (await socket.receive_json(timeout=10))["type"] == "connected"
        yield socket


async def updated(socket: Any) -> dict[str, Any]:
    """The next update that a page is told of."""
    async with asyncio.timeout(20):
        while True:
            message = await socket.receive_json()
            if message["type"] == "update":
                return dict(message)


async def edited(pods: Pods, number: int, session_id: str, shade: str) -> None:
    content = f"import.meta.hot.accept(); export const shade = '{shade}'"
    status, answer = await pods.api(number).call(
        "PATCH",
        f"/api/v1/sessions/{session_id}/files",
        {"write": [{"path": "main.js", "content": content}]},
    )
    assert status == 200, answer


async def shade_at(pods: Pods, number: int, session_id: str) -> str:
    url = f"{pods.fleet.replicas[number].url}/preview/{session_id}/main.js"
    async with pods.fleet.http.get(url) as response:
        assert response.status == 200
        return (await response.text()).partition("shade = '")[2].partition("'")[0]


async def test_a_preview_survives_the_replica_that_made_it_with_socket_and_pod(pods: Pods) -> None:
    session = await pods.api(0).create(VITE, ready=True)
    name, uids = session["id"], pods.uids(session["id"])
    for number in range(3):
        assert await shade_at(pods, number, name) == "red"
    async with hmr_socket(pods, 1, name) as socket:
        await edited(pods, 2, name, "green")
        assert (await updated(socket))["updates"][0]["path"] == "/main.js"
        assert await shade_at(pods, 1, name) == "green"
        lost = pods.fleet.replicas[0]
        pods.fleet.ready.remove(lost)
        lost.kill(signal.SIGKILL)
        adopted = await until_adopted(pods, 1, session)
        assert adopted["generation"] == session["generation"]
        # The former owner's part is done by another: edits arrive, on the same open socket.
        await edited(pods, 1, name, "blue")
        await updated(socket)
        assert await shade_at(pods, 2, name) == "blue"
    assert pods.uids(name) == uids, "the same pod, and no other"


async def until_adopted(pods: Pods, number: int, session: dict[str, Any]) -> dict[str, Any]:
    """The session, once it has another owner than it had."""
    found = session

    async def moved() -> bool:
        nonlocal found
        _, found = await pods.api(number).call("GET", f"/api/v1/sessions/{session['id']}")
        return bool(found["owner"] != session["owner"])

    await until(moved, seconds=30)
    assert found["state"] == "ready"
    return found


async def test_a_rolling_restart_fails_no_request_and_touches_no_pod(pods: Pods) -> None:
    sessions = [(await pods.api(n % 3).create(STATIC, ready=True))["id"] for n in range(4)]
    before = {name: pods.uids(name) for name in sessions}
    old = list(pods.fleet.replicas)
    async with Load(pods.fleet, sessions).running() as load:
        for replica in old:
            await pods.fleet.add()
            assert await replica.stop() == 0
    assert load.failures == []
    assert {name: pods.uids(name) for name in sessions} == before
    assert {len(load.seen[name]) for name in sessions} == {1}, "one generation each"
    for replica in old:
        assert not [line for line in replica.lines if "Traceback" in line]


async def test_previews_survive_the_loss_of_all_replicas(pods: Pods) -> None:
    session = await pods.api(0).create(STATIC, ready=True)
    name, uids = session["id"], pods.uids(session["id"])
    for replica in pods.fleet.replicas:
        replica.kill(signal.SIGKILL)
        await replica.exited()
    pods.fleet.ready.clear()
    newcomer = await pods.fleet.add()
    assert await text_of(pods, newcomer, name) == f"{name}.{session['generation']}"
    await until_stopped_by(pods, newcomer, name)
    assert uids
    await gone(pods, name)


async def until_stopped_by(pods: Pods, replica: ReplicaProcess, session_id: str) -> None:
    api = pods.fleet.api(replica)

    async def stopped() -> bool:
        answer = await api.call("POST", f"/api/v1/sessions/{session_id}/stop")
        return bool(answer[1]["state"] == "stopped")

    await until(stopped, seconds=20)


# -- sleep, waking, and what is left over ----------------------------------------------------------


async def test_a_sleeping_preview_has_no_pod_and_is_woken_by_a_request(pods: Pods) -> None:
    session = await pods.api(0).create({**STATIC, "idleSeconds": 1}, ready=True)
    name, uids = session["id"], pods.uids(session["id"])

    async def asleep() -> bool:
        found = (await pods.api(1).call("GET", f"/api/v1/sessions/{name}"))[1]
        return bool(found["state"] == "sleeping") and not pods.of(name)

    await until(asleep, seconds=20)
    assert await text_of(pods, pods.fleet.replicas[2], name) != f"{name}.{session['generation']}"
    assert len(pods.of(name)) == 1
    assert pods.uids(name) != uids


async def test_a_pod_that_no_session_wants_is_removed_and_a_wanted_one_is_not(pods: Pods) -> None:
    wanted = (await pods.api(0).create(STATIC, ready=True))["id"]
    (pod,) = pods.of(wanted)
    stray = json.loads(json.dumps(pod))
    stray["metadata"] = {
        "name": "preview-never-registered",
        "labels": {**pod["metadata"]["labels"], SESSION_LABEL: "never-registered"},
        "annotations": pod["metadata"]["annotations"],
    }
    stray.pop("status")
    stray["spec"].pop("nodeName", None)
    async with pods.fleet.http.post(
        f"{pods.cluster.url}/api/v1/namespaces/{pods.cluster.namespace}/pods", json=stray
    ) as response:
        assert response.status == 201, await response.text()
    await pods.cluster.until("preview-never-registered", lambda pod: pod is None, seconds=30)
    assert pods.of(wanted)


# -- pods that wait --------------------------------------------------------------------------------


async def test_a_pod_that_waited_is_taken_once_and_replaced(
    store: Store, cluster: FakeCluster, data_dir: Path, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    environ = settings(store, cluster, tmp_path, GATEWAY_WARM_PODS="2")
    async with run_fleet(http, data_dir, environ, count=2) as fleet:
        pods = Pods(fleet, cluster)

        async def two_wait() -> bool:
            return len(waiting(pods)) == 2

        await until(two_wait, seconds=30)
        first = set(waiting(pods))
        names = [
            session["id"]
            for session in await asyncio.gather(
                *(pods.api(n).create(STATIC, ready=True) for n in (0, 1))
            )
        ]
        taken = {pod["metadata"]["name"] for name in names for pod in pods.of(name)}
        assert taken == first
        await until(two_wait, seconds=30)
        for name in names:
            assert await text_of(pods, fleet.replicas[0], name)
            await pods.api(1).call("POST", f"/api/v1/sessions/{name}/stop")
            await gone(pods, name)


def waiting(pods: Pods) -> list[str]:
    """The pods that wait, and whose agents answer."""
    return [
        pod["metadata"]["name"]
        for pod in pods.cluster.pods.values()
        if SLOT_LABEL in pod["metadata"]["labels"]
        and SESSION_LABEL not in pod["metadata"]["labels"]
        and any(each["ready"] for each in pod["status"].get("containerStatuses", ()))
    ]
