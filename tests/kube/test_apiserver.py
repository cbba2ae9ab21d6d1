"""The fake API server, held against what the Kubernetes API promises.

What is checked here is described in "API concepts" and "API reference" of the Kubernetes
documentation; the same calls may be made to a real cluster.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import require_tool
from tests.kube import statuses
from tests.kube.cluster import FakeCluster
from tests.kube.manifests import pod
from tests.kube.selectors import parse_labels
from tests.kube.statuses import Refusal

MERGE = {"Content-Type": "application/merge-patch+json"}


class Raw:
    """HTTP calls as they are."""

    def __init__(self, cluster: FakeCluster, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.pods = f"{cluster.url}/api/v1/namespaces/{cluster.namespace}/pods"

    async def __call__(
        self, method: str, path: str = "", body: Any = None, **query: str
    ) -> tuple[int, dict[str, Any]]:
        headers = MERGE if method == "PATCH" else {}
        async with self._http.request(
            method,
            self.pods + path,
            data=None if body is None else json.dumps(body),
            headers=headers,
            params=query,
        ) as response:
            return response.status, await response.json()

    async def names(self, **query: str) -> list[str]:
        _, answer = await self("GET", **query)
        return [item["metadata"]["name"] for item in answer["items"]]

    async def watch(self, **query: str) -> list[tuple[str, dict[str, Any]]]:
        """All events of a short watch."""
        params = {"watch": "true", "timeoutSeconds": "0.2", **query}
        async with self._http.get(self.pods, params=params) as response:
            assert response.status == 200
            lines = (await response.read()).splitlines()
        events = [json.loads(line) for line in lines]
        return [(event["type"], event["object"]) for event in events]


@pytest.fixture
async def call(cluster: FakeCluster) -> AsyncIterator[Raw]:
    async with aiohttp.ClientSession() as http:
        yield Raw(cluster, http)


# -- objects ---------------------------------------------------------------------------------------


async def test_a_new_pod_gets_uid_version_time_and_defaults(call: Raw) -> None:
    status, created = await call("POST", body=pod("a"))
    assert status == 201
    metadata = created["metadata"]
    assert len(metadata["uid"]) == 36
    assert metadata["creationTimestamp"].endswith("Z")
    assert created["status"]["phase"] == "Pending"
    assert created["spec"]["terminationGracePeriodSeconds"] == 30
    _, second = await call("POST", body=pod("b"))
    assert int(second["metadata"]["resourceVersion"]) > int(metadata["resourceVersion"])


async def test_refusals_are_status_objects(call: Raw) -> None:
    status, answer = await call("GET", "/a")
    assert status == 404
    assert answer == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'pods "a" not found',
        "reason": "NotFound",
        "details": {"name": "a", "kind": "pods"},
        "code": 404,
    }


@pytest.mark.parametrize(
    ("change", "code", "complaint"),
    [
        ({"kind": "Service"}, 400, "cannot be handled as a Pod"),
        ({"metadata": {"name": "A_b"}}, 422, "RFC 1123"),
        ({"metadata": {"name": "a", "namespace": "other"}}, 400, "does not match the namespace"),
        ({"metadata": {"name": "a", "resourceVersion": "1"}}, 400, "should not be set"),
        ({"spec": {"containers": []}}, 422, "Required value"),
        ({"spec": {"containers": [{"name": "main"}]}}, 422, "image: Required value"),
        ({"spec": {"containers": [{"name": "a", "image": "i"}] * 2}}, 422, "Duplicate value"),
        ({"spec": {"containers": [{"name": "a", "image": "i", "x": 1}]}}, 400, "strict decoding"),
        ({"spec": {"containers": [{"name": "a", "image": 1}]}}, 400, "strict decoding"),
        (
            {
                "spec": {
                    "containers": [
                        {
                            "name": "a",
                            "image": "i",
                            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                        }
                    ]
                }
            },
            422,
            'Not found: "v"',
        ),
    ],
)
async def test_what_is_no_pod_is_refused(
    call: Raw, change: dict[str, Any], code: int, complaint: str
) -> None:
    status, answer = await call("POST", body={**pod("a"), **change})
    assert (status, answer["code"]) == (code, code)
    assert complaint in answer["message"]


async def test_a_name_is_given_once(call: Raw) -> None:
    await call("POST", body=pod("a"))
    status, answer = await call("POST", body=pod("a"))
    assert (status, answer["reason"]) == (409, "AlreadyExists")


async def test_a_patch_with_an_old_version_is_a_conflict(call: Raw) -> None:
    _, created = await call("POST", body=pod("a"))
    version = created["metadata"]["resourceVersion"]
    change = {"metadata": {"resourceVersion": version, "labels": {"x": "y"}}}
    status, patched = await call("PATCH", "/a", change)
    assert (status, patched["metadata"]["labels"]["x"]) == (200, "y")
    status, answer = await call("PATCH", "/a", change)
    assert (status, answer["reason"]) == (409, "Conflict")
    assert "the object has been modified" in answer["message"]


async def test_a_patch_without_a_change_writes_nothing(call: Raw) -> None:
    _, created = await call("POST", body=pod("a"))
    _, patched = await call("PATCH", "/a", {"metadata": {"labels": {"app": "preview"}}})
    assert patched == created


async def test_a_patch_can_change_neither_status_nor_most_of_the_spec(call: Raw) -> None:
    await call("POST", body=pod("a"))
    status, patched = await call("PATCH", "/a", {"status": {"phase": "Running"}})
    assert (status, patched["status"]["phase"]) == (200, "Pending")
    status, answer = await call("PATCH", "/a", {"spec": {"restartPolicy": "Always"}})
    assert (status, answer["reason"]) == (422, "Invalid")
    status, _ = await call("PATCH", "/a", {"spec": {"activeDeadlineSeconds": 60}})
    assert status == 200


async def test_a_delete_with_another_uid_is_a_conflict(call: Raw) -> None:
    await call("POST", body=pod("a"))
    status, answer = await call("DELETE", "/a", {"preconditions": {"uid": "x"}})
    assert (status, answer["reason"]) == (409, "Conflict")
    assert "Precondition failed: UID in precondition: x, UID in object meta: " in answer["message"]


async def test_a_pod_on_no_node_is_deleted_at_once(cluster: FakeCluster, call: Raw) -> None:
    await call("POST", body=pod("a"))
    status, answer = await call("DELETE", "/a")
    assert (status, answer["kind"], cluster.pods) == (200, "Pod", {})


async def test_a_pod_on_a_node_is_marked_and_its_time_can_be_shortened_only(
    cluster: FakeCluster, call: Raw
) -> None:
    await call("POST", body=pod("a", nodeName="node-1"))
    _, marked = await call("DELETE", "/a")
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
    assert marked["metadata"]["deletionTimestamp"] > marked["metadata"]["creationTimestamp"]
    _, longer = await call("DELETE", "/a", gracePeriodSeconds="60")
    assert longer == marked
    _, shorter = await call("DELETE", "/a", {"gracePeriodSeconds": 5})
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    await call("DELETE", "/a", {"gracePeriodSeconds": 0})
    assert cluster.pods == {}


# -- selectors and pages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("", ["none", "warm", "used"]),
        ("state=warm", ["warm"]),
        ("state==warm", ["warm"]),
        ("state!=warm", ["none", "used"]),
        ("state in (warm, used)", ["warm", "used"]),
        ("state notin (warm)", ["none", "used"]),
        ("state", ["warm", "used"]),
        ("!state", ["none"]),
        ("state in (warm,used),app/id=1", ["used"]),
    ],
)
def test_label_selectors(selector: str, names: list[str]) -> None:
    pods: dict[str, dict[str, str]] = {
        "none": {},
        "warm": {"state": "warm"},
        "used": {"state": "used", "app/id": "1"},
    }
    selected = parse_labels(selector)
    assert [name for name, labels in pods.items() if selected(labels)] == names


def test_a_selector_that_is_none_is_refused() -> None:
    with pytest.raises(Refusal, match="unable to parse requirement"):
        parse_labels("state ~ warm")


async def test_lists_can_be_selected_by_name(call: Raw) -> None:
    for name in ("a", "b"):
        await call("POST", body=pod(name))
    assert await call.names(fieldSelector="metadata.name=b") == ["b"]
    assert await call.names(fieldSelector="metadata.name!=b") == ["a"]
    status, _ = await call("GET", fieldSelector="spec.image=x")
    assert status == 400


async def test_pages_are_of_the_version_of_the_first(call: Raw) -> None:
    for name in ("a", "b", "c"):
        await call("POST", body=pod(name))
    _, first = await call("GET", limit="2")
    assert first["metadata"]["remainingItemCount"] == 1
    await call("DELETE", "/c")
    await call("POST", body=pod("d"))
    _, second = await call("GET", **{"limit": "2", "continue": first["metadata"]["continue"]})
    assert [item["metadata"]["name"] for item in second["items"]] == ["c"]
    assert second["metadata"] == {"resourceVersion": first["metadata"]["resourceVersion"]}
    # Items of a list do not say what they are.
    assert "kind" not in second["items"][0]


async def test_a_page_of_a_forgotten_version_is_gone(cluster: FakeCluster, call: Raw) -> None:
    for name in ("a", "b", "c"):
        await call("POST", body=pod(name))
    _, first = await call("GET", limit="2")
    await call("POST", body=pod("d"))
    cluster.faults.compact()
    status, answer = await call("GET", **{"continue": first["metadata"]["continue"]})
    assert (status, answer["reason"]) == (410, "Expired")


async def test_a_version_of_the_future_is_not_waited_for(call: Raw) -> None:
    status, answer = await call("GET", resourceVersion="99999")
    assert (status, answer["reason"]) == (504, "Timeout")
    assert "Too large resource version" in answer["message"]


# -- watches ---------------------------------------------------------------------------------------


async def test_a_watch_begins_after_its_version(call: Raw) -> None:
    _, first = await call("POST", body=pod("a"))
    _, second = await call("POST", body=pod("b"))
    events = await call.watch(resourceVersion=first["metadata"]["resourceVersion"])
    assert events == [("ADDED", second)]


async def test_a_watch_without_a_version_begins_with_what_is_there(call: Raw) -> None:
    for name in ("a", "b"):
        await call("POST", body=pod(name))
    events = await call.watch()
    assert [(kind, thing["metadata"]["name"]) for kind, thing in events] == [
        ("ADDED", "a"),
        ("ADDED", "b"),
    ]


async def test_a_watch_may_begin_with_a_list(cluster: FakeCluster, call: Raw) -> None:
    await call("POST", body=pod("a"))
    events = await call.watch(
        sendInitialEvents="true",
        allowWatchBookmarks="true",
        resourceVersionMatch="NotOlderThan",
    )
    assert [kind for kind, _ in events[:2]] == ["ADDED", "BOOKMARK"]
    assert events[1][1]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_bookmarks_come_to_who_asks_for_them(cluster: FakeCluster, call: Raw) -> None:
    await call("POST", body=pod("a"))
    version = str(cluster.api.store.version)
    assert await call.watch(resourceVersion=version) == []
    events = await call.watch(resourceVersion=version, allowWatchBookmarks="true")
    assert events
    assert {kind for kind, _ in events} == {"BOOKMARK"}
    assert events[-1][1]["metadata"]["resourceVersion"] == version


async def test_pods_come_into_and_leave_the_view_of_a_watch(call: Raw) -> None:
    _, created = await call("POST", body=pod("a", labels={"state": "cold"}))
    for state in ("warm", "hot", "cold"):
        await call("PATCH", "/a", {"metadata": {"labels": {"state": state}}})
    events = await call.watch(
        resourceVersion=created["metadata"]["resourceVersion"], labelSelector="state!=cold"
    )
    shown = [(kind, thing["metadata"]["labels"]["state"]) for kind, thing in events]
    assert shown == [("ADDED", "warm"), ("MODIFIED", "hot"), ("DELETED", "hot")]
    versions = [int(thing["metadata"]["resourceVersion"]) for _, thing in events]
    assert versions == sorted(set(versions))


async def test_a_version_beyond_the_history_is_gone() -> None:
    async with FakeCluster(nodes=False, history=2) as cluster, aiohttp.ClientSession() as http:
        call = Raw(cluster, http)
        _, first = await call("POST", body=pod("a"))
        for name in ("b", "c"):
            await call("POST", body=pod(name))
        version = first["metadata"]["resourceVersion"]
        assert len(await call.watch(resourceVersion=version)) == 2
        await call("POST", body=pod("d"))
        [(kind, status)] = await call.watch(resourceVersion=version)
        assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
        assert status["message"].startswith("too old resource version: ")


# -- faults ----------------------------------------------------------------------------------------


async def test_a_refusal_with_a_time_says_it_in_both_places(
    cluster: FakeCluster, call: Raw
) -> None:
    cluster.faults.refuse("list", lambda: statuses.too_many_requests(7))
    async with aiohttp.ClientSession() as http, http.get(call.pods) as response:
        answer = await response.json()
        assert (response.status, response.headers["Retry-After"]) == (429, "7")
    assert answer["details"]["retryAfterSeconds"] == 7
    assert await call.names() == []


async def test_a_lost_reply_is_of_a_call_that_took_effect(cluster: FakeCluster, call: Raw) -> None:
    cluster.faults.lose_reply("create")
    with pytest.raises(aiohttp.ClientError):
        await call("POST", body=pod("a"))
    assert list(cluster.pods) == ["a"]


async def test_a_dropped_call_took_no_effect(cluster: FakeCluster, call: Raw) -> None:
    cluster.faults.drop("create")
    with pytest.raises(aiohttp.ClientError):
        await call("POST", body=pod("a"))
    assert not cluster.pods


async def test_a_quota_counts_what_has_not_ended(cluster: FakeCluster, call: Raw) -> None:
    cluster.faults.quota = ("previews", 1)
    await call("POST", body=pod("a"))
    status, answer = await call("POST", body=pod("b"))
    assert (status, answer["reason"]) == (403, "Forbidden")
    assert answer["message"] == (
        'pods "b" is forbidden: exceeded quota: previews, requested: pods=1, used: pods=1, '
        "limited: pods=1"
    )
    cluster.api.store.update(
        cluster.namespace, "a", lambda pod: pod["status"].update(phase="Failed")
    )
    assert (await call("POST", body=pod("b")))[0] == 201


# -- kubectl ---------------------------------------------------------------------------------------


async def test_kubectl_takes_it_for_an_api_server(cluster: FakeCluster, tmp_path: Path) -> None:
    program = require_tool("kubectl")

    async def kubectl(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            program,
            *("--server", cluster.url, "--namespace", cluster.namespace),
            *("--cache-dir", str(tmp_path / "cache"), "--kubeconfig", "/dev/null"),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
        return output.decode()

    manifest = tmp_path / "pod.json"
    manifest.write_text(json.dumps(pod("a")))
    assert await kubectl("apply", "--validate=false", "-f", str(manifest)) == "pod/a created\n"
    assert await kubectl("apply", "--validate=false", "-f", str(manifest)) == "pod/a unchanged\n"
    assert await kubectl("get", "pods", "-l", "app=preview", "-o", "name") == "pod/a\n"
    assert "a " in await kubectl("get", "pods")
    assert json.loads(await kubectl("get", "pod", "a", "-o", "json"))["kind"] == "Pod"
    merge = ("--type", "merge", "-p", '{"metadata": {"labels": {"x": "y"}}}')
    assert "pod/a patched" in await kubectl("patch", "pod", "a", *merge)
    assert "condition met" in await kubectl(
        "wait", "pod", "a", "--for=jsonpath={.metadata.labels.x}=y", "--timeout=5s"
    )
    assert 'pod "a" deleted' in await kubectl("delete", "pod", "a")
    assert "Error from server (NotFound)" in await kubectl("get", "pod", "a")
