"""The replica tests' own parts, as far as they need no cluster."""

from __future__ import annotations

import asyncio
import json
import runpy
import subprocess
from pathlib import Path
from typing import Final

import pytest

from gateway.session import SessionId
from gateway.spawner.kube.manifest import SESSION_LABEL, Manifests, Purpose
from gateway.spawner.kube.template import Template
from tests.conftest import require_tool
from tests.k8s.cluster import OVERLAY, Cluster, dump, is_ready, until, without_secrets
from tests.k8s.kubectl import (
    ContextRefused,
    Kubectl,
    KubectlFailed,
    allowed_context,
    forwarded_port,
)
from tests.k8s.load import SCRIPT, parse_report, way_out
from tests.k8s.manifests import Names, confined_pod, fitted, namespaces
from tests.k8s.previews import PROBE
from tests.kube.apiserver import ApiServer
from tests.manifests.documents import find, gateway_of
from tests.manifests.policy import configured, network, references
from tests.manifests.policy.resources import of_container
from tests.manifests.policy.restricted import of_pod
from tests.manifests.rendering import ROOT, documents
from tests.manifests.schemas import OLDEST, VERSIONS, schema_problems

NAMES: Final = Names("0a1b2c3d", token="a" * 48, password="b" * 48, image="r.example/g:1-gateway")


def test_a_context_that_is_not_there_for_tests_is_refused() -> None:
    assert allowed_context({}, "kind-preview") == "kind-preview"
    assert allowed_context({"PREVIEW_K8S_CONTEXTS": "a, stage-*"}, "stage-eu") == "stage-eu"
    for environ in ({}, {"PREVIEW_K8S_CONTEXTS": "kind-a"}, {"PREVIEW_K8S_CONTEXTS": ""}):
        with pytest.raises(ContextRefused, match="PREVIEW_K8S_CONTEXTS=production"):
            allowed_context(environ, "production")


def test_what_is_bound_comes_before_the_arguments() -> None:
    kubectl = Kubectl("/bin/kubectl", "kind-a").within("there")
    assert kubectl.command("exec", "pod", "--", "node", "-n") == [
        *("/bin/kubectl", "--context", "kind-a", "-n", "there"),
        *("exec", "pod", "--", "node", "-n"),
    ]


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("Forwarding from 127.0.0.1:43211 -> 8080\n", 43211),
        ("Forwarding from [::1]:43211 -> 8080\n", None),
        ("Handling connection for 43211\n", None),
        ("error: unable to forward port because pod is not running\n", None),
    ],
)
def test_the_port_of_a_forward_is_read_from_what_kubectl_says(line: str, port: int | None) -> None:
    assert forwarded_port(line) == port


def test_kubectl_that_fails_says_why() -> None:
    kubectl = Kubectl(require_tool("kubectl"), server="http://127.0.0.1:1")
    with pytest.raises(KubectlFailed, match=r"kubectl get pods: .*refused"):
        kubectl.run("get", "pods")
    with (
        pytest.raises(KubectlFailed, match="port-forward"),
        kubectl.forward("pod/a", 8080),
    ):
        pass


def test_the_overlay_is_moved_as_a_whole() -> None:
    moved = fitted(documents(OVERLAY), NAMES)
    spaces = {"pgw-test-0a1b2c3d-preview-gateway", "pgw-test-0a1b2c3d-previews"}
    assert set(namespaces(moved)) == spaces
    assert {each["metadata"].get("namespace") for each in moved} == {None, *spaces}
    assert list(references.problems(moved)) == []
    assert [each for each in moved if schema_problems(each, OLDEST)] == []
    found = configured.settings(moved)
    assert found.kube_namespace == "pgw-test-0a1b2c3d-previews"
    assert found.pod_agent_image == gateway_of(moved).spec["containers"][0]["image"] == NAMES.image
    (subject,) = find(moved, "RoleBinding", "preview-gateway")["subjects"]
    assert subject["namespace"] == "pgw-test-0a1b2c3d-preview-gateway"


def test_the_policies_of_the_moved_overlay_name_the_moved_namespaces() -> None:
    moved = fitted(documents(OVERLAY), NAMES)
    policies = [each for each in moved if each["kind"] == "NetworkPolicy"]
    named = {
        space
        for policy in policies
        for space in str(policy).split("'kubernetes.io/metadata.name': '")[1:]
    }
    assert {space.split("'")[0] for space in named} == {*namespaces(moved), "kube-system"}


def test_the_credentials_of_the_moved_overlay_are_its_own() -> None:
    text = str(fitted(documents(OVERLAY), NAMES))
    assert configured.THROW_AWAY not in text
    assert Names.fresh({}).token != Names.fresh({}).token


def test_the_pods_that_tests_make_are_let_in_and_valid() -> None:
    pod = confined_pod("load-1", "space", "node:24.11.1-bookworm-slim", SCRIPT, labels={"a": "b"})
    assert list(of_pod(pod["spec"])) == []
    assert list(of_container(pod["spec"]["containers"][0])) == []
    policy = way_out("load-1", "space", {"a": "b"})
    assert [
        each for each in (pod, policy) for version in VERSIONS if schema_problems(each, version)
    ] == []
    source = network.Place("load", "10.244.3.1", "space", {"a": "b"})
    assert network.is_open([policy], network.Way(source, network.INTERNET[0], 80, wanted=True))


@pytest.mark.node
@pytest.mark.parametrize("script", [SCRIPT, PROBE["files"][0]["content"]], ids=["load", "probe"])
def test_scripts_that_run_on_the_cluster_are_javascript(script: str, tmp_path: Path) -> None:
    (tmp_path / "script.cjs").write_text(script)
    command = [require_tool("node"), "--check", str(tmp_path / "script.cjs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""


def test_the_newest_report_of_a_load_counts() -> None:
    line = '{"requests": %d, "failed": {"502": 1}, "replicas": {}, "sockets": 2, "lost": 1%s}\n'
    assert parse_report("npm warn\n") is None
    seen = parse_report("x\n" + line % (1, "") + line % (2, ', "done": true'))
    assert seen is not None
    assert (seen.requests, seen.failed, seen.done) == (2, {"502": 1}, True)


def test_a_pod_on_its_way_out_is_not_ready() -> None:
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}, "metadata": {}}
    assert is_ready(ready)
    assert not is_ready(ready | {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    assert not is_ready({"status": {}, "metadata": {}})


@pytest.mark.parametrize(
    "text",
    [
        "      PREVIEW_AGENT_TOKEN:  0123abcd\n",
        "    - name: PREVIEW_AGENT_TOKEN\n      value: 0123abcd\n",
    ],
)
def test_dumps_hold_no_tokens(text: str) -> None:
    assert "0123abcd" not in without_secrets(text)
    assert "PREVIEW_AGENT_TOKEN" in without_secrets(text)


def test_the_replica_tests_are_not_even_collected_unless_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ignored() -> object:
        return runpy.run_path(str(ROOT / "tests/k8s/conftest.py"))["collect_ignore_glob"]

    monkeypatch.delenv("PREVIEW_K8S_TEST", raising=False)
    assert ignored() == ["test_*.py"]
    monkeypatch.setenv("PREVIEW_K8S_TEST", "1")
    assert ignored() == []


async def test_pods_are_found_taken_away_and_dumped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECACHEDIR", str(tmp_path / "cache"))
    spaces = [NAMES.namespace(name) for name in ("preview-gateway", "previews")]
    server = ApiServer(namespaces=spaces)
    await server.start()
    try:
        kubectl = Kubectl(require_tool("kubectl"), server=server.url)
        cluster = Cluster(NAMES, kubectl, fitted(documents(OVERLAY), NAMES))
        await asyncio.to_thread(look_and_delete, cluster)
        await asyncio.to_thread(dump, cluster, tmp_path / "dump")
    finally:
        await server.stop()
    dumped = {path.name: path.read_text() for path in (tmp_path / "dump").iterdir()}
    assert "previews-preview-slow-fox-2.log" in dumped
    # The fake one knows no such kind: what cannot be had is said in its place.
    assert "kubectl get pods,deployments" in dumped["previews.txt"]


def look_and_delete(cluster: Cluster) -> None:
    manifests = Manifests(configured.settings(cluster.documents), Template())
    for name in ("quick-fox-1", "slow-fox-2"):
        pod = manifests.pod(Purpose.session(SessionId(name), 1))
        # The fake one has no schemas to validate by.
        apply = ("apply", "--validate=false", "-f", "-")
        cluster.previews.run(*apply, text=json.dumps(pod))
    (found,) = cluster.pods_of("quick-fox-1")
    assert found["metadata"]["labels"][SESSION_LABEL] == "quick-fox-1"
    assert len(cluster.previews.items("pods")) == 2
    assert cluster.gateway_pods() == []
    cluster.previews.run("delete", "pod/preview-quick-fox-1", "--wait=false")
    assert until(20, [], lambda: cluster.pods_of("quick-fox-1")) == []
