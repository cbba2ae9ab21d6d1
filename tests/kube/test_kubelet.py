"""The fake kubelet: real processes, and the statuses that a real cluster shows."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from gateway.spawner.kube.client import KubeApi
from tests.kube import failures
from tests.kube.cluster import FakeCluster
from tests.kube.conftest import client
from tests.kube.failures import Kind
from tests.kube.manifests import (
    POD_IP,
    Pod,
    condition,
    is_ready,
    phase,
    pod,
    python,
    serving,
    state,
)
from tests.kube.rendering import expanded

VOLUME = {"name": "work", "emptyDir": {}}
MOUNT = {"name": "work", "mountPath": "/workspace"}


@pytest.fixture
async def kube(node: FakeCluster) -> Any:
    async with client(node) as api:
        yield api


def has(kind: str, reason: str) -> Callable[[Pod | None], bool]:
    """Whether the first container is in a state, with a reason."""
    return lambda found: state(found).get(kind, {}).get("reason") == reason


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            places = [process.cwd(), *process.environ().values()]
        except (psutil.Error, OSError):
            continue
        if any(str(folder) in place for place in places) and process.pid != os.getpid():
            found.append(process)
    return found


# -- what runs -------------------------------------------------------------------------------------


async def test_a_pod_serves_at_an_address_of_its_own_once_it_is_ready(
    node: FakeCluster, kube: KubeApi
) -> None:
    addresses = set()
    for name in ("a", "b"):
        await kube.create(serving(name))
        found = await node.until(name, is_ready)
        assert found is not None
        assert phase(found) == "Running"
        addresses.add(found["status"]["podIP"])
    assert len(addresses) == 2
    async with aiohttp.ClientSession() as http:
        for address in addresses:
            assert address.startswith("127.1.")
            async with http.get(f"http://{address}:8080/") as response:
                assert response.status == 200


async def test_a_pod_is_not_ready_before_it_answers(node: FakeCluster, kube: KubeApi) -> None:
    begin = "import os, time\nwhile not os.path.exists('/workspace/go'): time.sleep(0.01)\n"
    serve = serving("a")["spec"]["containers"][0]["command"][-1]
    container = {
        **serving("a")["spec"]["containers"][0],
        "command": python(begin + serve),
        "volumeMounts": [MOUNT],
    }
    await kube.create(pod("a", container=container, volumes=[VOLUME]))
    running = await node.until("a", lambda found: "running" in state(found))
    assert condition(running, "Ready") == {
        "type": "Ready",
        "status": "False",
        "lastProbeTime": None,
        "lastTransitionTime": condition(running, "Ready")["lastTransitionTime"],
        "reason": "ContainersNotReady",
        "message": "containers with unready status: [main]",
    }
    (node.kubelet.folder("a") / "volumes" / "work" / "go").touch()
    await node.until("a", is_ready)


async def test_init_containers_run_in_order_before_and_share_volumes(
    node: FakeCluster, kube: KubeApi
) -> None:
    def init(name: str, text: str) -> dict[str, Any]:
        command = ["sh", "-c", f"echo {text} >> $WHERE/steps"]
        env = [{"name": "WHERE", "value": "/workspace"}]
        return {
            "name": name,
            "image": "i",
            "command": command,
            "env": env,
            "volumeMounts": [MOUNT],
        }

    container = {"volumeMounts": [{**MOUNT, "mountPath": "/else"}], "workingDir": "/else/sub"}
    await kube.create(
        pod(
            "a",
            *("sh", "-c", "cat ../steps; pwd"),
            container=container,
            initContainers=[init("one", "1"), init("two", "2")],
            volumes=[VOLUME],
        )
    )
    ended = await node.until("a", lambda found: phase(found) == "Succeeded")
    assert state(ended)["terminated"]["reason"] == "Completed"
    assert condition(ended, "Ready")["reason"] == "PodCompleted"
    folder = node.kubelet.folder("a")
    assert node.kubelet.log("a").splitlines() == ["1", "2", f"{folder}/volumes/work/sub"]


async def test_a_container_has_what_its_pod_says_and_nothing_of_this_process(
    node: FakeCluster, kube: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_SECRET", "x")
    field = {"valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    container = {
        "env": [
            POD_IP,
            {"name": "UID", **field},
            {"name": "BOTH", "value": "$(POD_IP)/$(UID)/$(NONE)"},
        ],
        "args": ["-c", "import json, os; print(json.dumps(dict(os.environ)))"],
    }
    await kube.create(pod("a", "python3", container=container))
    ended = await node.until("a", lambda found: phase(found) == "Succeeded")
    assert ended is not None
    env = json.loads(node.kubelet.log("a"))
    uid, ip = ended["metadata"]["uid"], ended["status"]["podIP"]
    assert env["BOTH"] == f"{ip}/{uid}/$(NONE)"
    assert env["HOSTNAME"] == "a"
    assert "GATEWAY_SECRET" not in env


async def test_paths_of_an_image_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("hello")
    async with FakeCluster(images={"/opt/image": tmp_path}) as node, client(node) as kube:
        await kube.create(pod("a", "cat", "/opt/image/hello.txt"))
        await node.until("a", lambda found: phase(found) == "Succeeded")
        assert node.kubelet.log("a") == "hello"


def test_references_to_variables() -> None:
    assert expanded("$(A)-$$(A)-$(B)-$A", {"A": "1"}) == "1-$(A)-$(B)-$A"


# -- how it ends -----------------------------------------------------------------------------------


async def test_a_deleted_pod_may_end_in_order_and_is_gone_then(
    node: FakeCluster, kube: KubeApi
) -> None:
    code = (
        "import signal, sys, time\n"
        "def end(*_): print('in order', flush=True); time.sleep(0.2); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)"
    )
    await kube.create(pod("a", *python(code)))
    await node.until("a", is_ready)
    log = node.kubelet.folder("a") / "main.log"
    async with asyncio.timeout(10):
        while "up" not in log.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await kube.delete("a", grace_seconds=10)
    ended = await node.until("a", lambda found: "terminated" in state(found) or found is None)
    assert log.exists() is (ended is not None)
    await node.until("a", lambda found: found is None)


async def test_a_pod_that_does_not_end_is_killed_with_all_it_started(
    node: FakeCluster, kube: KubeApi
) -> None:
    code = (
        "import signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        # In a session of its own, with nothing of the pod in its variables.
        "subprocess.Popen(['sleep', '600'], start_new_session=True, env={})\n"
        "time.sleep(600)"
    )
    await kube.create(pod("a", *python(code)))
    await node.until("a", is_ready)
    folder = node.kubelet.folder("a")
    async with asyncio.timeout(10):
        while len(processes_of(folder)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await kube.delete("a", grace_seconds=1)
    await node.until("a", lambda found: found is None)
    assert not processes_of(folder)


async def test_a_pod_that_is_deleted_without_grace_is_gone_at_once(
    node: FakeCluster, kube: KubeApi
) -> None:
    await kube.create(pod("a"))
    await node.until("a", is_ready)
    await kube.delete("a", grace_seconds=0)
    assert await kube.read("a") is None


async def test_nothing_is_left_of_a_cluster() -> None:
    async with FakeCluster() as node, client(node) as kube:
        await kube.create(serving("a"))
        found = await node.until("a", is_ready)
        assert found is not None
        folder = node.kubelet.folder("a")
    assert not processes_of(folder)
    assert not folder.exists()
    with socket.socket() as connection:
        assert connection.connect_ex((found["status"]["podIP"], 8080)) != 0


async def test_a_pod_that_is_restarted_counts_its_restarts(
    node: FakeCluster, kube: KubeApi
) -> None:
    await kube.create(pod("a", "false", restartPolicy="Always"))
    waiting = await node.until("a", has("waiting", "CrashLoopBackOff"))
    assert waiting is not None
    [container] = waiting["status"]["containerStatuses"]
    assert container["lastState"]["terminated"]["exitCode"] == 1
    assert container["restartCount"] >= 1
    assert phase(waiting) == "Running"


async def test_a_pod_that_is_too_old_is_ended(node: FakeCluster, kube: KubeApi) -> None:
    await kube.create(pod("a", activeDeadlineSeconds=1))
    ended = await node.until("a", lambda found: phase(found) == "Failed")
    assert ended is not None
    assert ended["status"]["reason"] == "DeadlineExceeded"


# -- what befalls it -------------------------------------------------------------------------------


async def befallen(
    node: FakeCluster, kube: KubeApi, kind: Kind, seen: Callable[[Pod | None], bool], **spec: Any
) -> Pod:
    node.kubelet.failures.add(kind)
    await kube.create(pod("a", **spec))
    found = await node.until("a", seen)
    assert found is not None
    return found


async def test_an_unschedulable_pod(node: FakeCluster, kube: KubeApi) -> None:
    found = await befallen(
        node, kube, "unschedulable", lambda found: bool(condition(found, "PodScheduled"))
    )
    assert phase(found) == "Pending"
    assert condition(found, "PodScheduled")["reason"] == "Unschedulable"
    assert condition(found, "PodScheduled")["message"] == failures.UNSCHEDULABLE
    assert "containerStatuses" not in found["status"]
    await kube.delete("a")
    assert await kube.read("a") is None, "on no node there is nothing to wait for"


async def test_an_image_that_cannot_be_pulled(node: FakeCluster, kube: KubeApi) -> None:
    found = await befallen(node, kube, "image", has("waiting", "ErrImagePull"))
    assert "failed to pull" in state(found)["waiting"]["message"]
    assert phase(found) == "Pending"
    found = (await node.until("a", has("waiting", "ImagePullBackOff"))) or {}
    assert state(found)["waiting"]["message"].startswith("Back-off pulling image")


async def test_a_container_that_cannot_be_made(node: FakeCluster, kube: KubeApi) -> None:
    found = await befallen(node, kube, "config", has("waiting", "CreateContainerConfigError"))
    assert state(found)["waiting"]["message"] == failures.MISSING_SECRET


async def test_a_secret_that_is_missing_makes_no_container(
    node: FakeCluster, kube: KubeApi
) -> None:
    env = [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "token", "key": "t"}}}]
    await kube.create(pod("a", container={"env": env}))
    found = await node.until("a", has("waiting", "CreateContainerConfigError"))
    assert state(found)["waiting"]["message"] == 'secret "token" not found'


async def test_an_init_container_that_fails(node: FakeCluster, kube: KubeApi) -> None:
    init = {"name": "install", "image": "i", "command": ["true"]}
    found = await befallen(
        node, kube, "init", lambda found: phase(found) == "Failed", initContainers=[init]
    )
    assert state(found, kind="initContainerStatuses")["terminated"]["exitCode"] == 1
    assert state(found)["waiting"]["reason"] == "PodInitializing"
    assert condition(found, "Initialized")["message"] == (
        "containers with incomplete status: [install]"
    )


@pytest.mark.parametrize(
    ("kind", "code", "reason"), [("exit", 1, "Error"), ("oom", 137, "OOMKilled")]
)
async def test_a_container_that_ends(
    node: FakeCluster, kube: KubeApi, kind: Kind, code: int, reason: str
) -> None:
    found = await befallen(node, kube, kind, lambda found: phase(found) == "Failed")
    terminated = state(found)["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (code, reason)
    assert condition(found, "Ready")["reason"] == "PodFailed"


async def test_a_program_that_does_not_exist(node: FakeCluster, kube: KubeApi) -> None:
    await kube.create(pod("a", "/no/such/program"))
    found = await node.until("a", lambda found: phase(found) == "Failed")
    terminated = state(found)["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (128, "StartError")


async def test_a_pod_that_is_never_ready(node: FakeCluster, kube: KubeApi) -> None:
    node.kubelet.failures.add("never-ready")
    await kube.create(serving("a"))
    await node.until("a", lambda found: "running" in state(found))
    with pytest.raises(TimeoutError):
        await node.until("a", is_ready, seconds=0.5)


async def test_a_running_pod_that_runs_out_of_memory(node: FakeCluster, kube: KubeApi) -> None:
    await kube.create(pod("a"))
    await node.until("a", is_ready)
    node.kubelet.oom_kill("a")
    found = await node.until("a", lambda found: phase(found) == "Failed")
    assert state(found)["terminated"]["reason"] == "OOMKilled"


async def test_a_running_pod_that_is_evicted(node: FakeCluster, kube: KubeApi) -> None:
    await kube.create(pod("a"))
    await node.until("a", is_ready)
    folder = node.kubelet.folder("a")
    await node.kubelet.evict("a")
    found = await node.until("a", lambda found: phase(found) == "Failed")
    assert found is not None
    assert (found["status"]["reason"], found["status"]["message"]) == ("Evicted", failures.EVICTED)
    assert condition(found, "DisruptionTarget")["reason"] == "TerminationByKubelet"
    assert not processes_of(folder)


async def test_a_pod_whose_node_is_lost_stays_listed_until_it_is_forced_out(
    node: FakeCluster, kube: KubeApi
) -> None:
    await kube.create(serving("a"))
    await node.until("a", is_ready)
    folder = node.kubelet.folder("a")
    await node.kubelet.lose_node("a")
    found = node.pods["a"]
    assert (phase(found), is_ready(found)) == ("Running", False)
    assert not processes_of(folder)
    node.kubelet.evict_lost("a")
    found = node.pods["a"]
    assert found["metadata"]["deletionTimestamp"]
    assert found["status"]["reason"] == "NodeLost"
    assert condition(found, "DisruptionTarget")["reason"] == "DeletionByTaintManager"
    await kube.delete("a", grace_seconds=0)
    assert not node.pods
