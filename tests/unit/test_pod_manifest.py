"""The pod of a preview: confined whatever the settings, its token known to replicas only."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from gateway.errors import SettingsError
from gateway.session import SessionId
from gateway.settings import Settings
from gateway.spawner.kube.manifest import (
    COMPONENT_LABEL,
    GENERATION_LABEL,
    NONCE,
    SESSION_LABEL,
    SLOT_LABEL,
    Manifests,
    Purpose,
    bound,
    part_of,
)
from gateway.spawner.kube.template import Template, parse_template

KEY: Final = "k" * 32
SESSION: Final = Purpose.session(SessionId("quick-fox-1"), 7)


def manifests(template: Template | None = None, **settings: Any) -> Manifests:
    given = {"pod_image": "node:1", "pod_agent_image": "gateway:1", "secret_key": KEY, **settings}
    return Manifests(Settings(spawner="kubernetes", **given), template or Template())


def test_the_name_of_a_sessions_pod_is_the_same_for_every_generation() -> None:
    later = Purpose.session(SessionId("quick-fox-1"), 8)
    assert SESSION.name == later.name == "preview-quick-fox-1"
    assert len(Purpose.session(SessionId("a" * 40), 1).name) <= 63


def test_a_pod_tells_its_session_and_generation_by_its_labels() -> None:
    labels = manifests().pod(SESSION)["metadata"]["labels"]
    assert labels[COMPONENT_LABEL] == "preview"
    assert (labels[SESSION_LABEL], labels[GENERATION_LABEL]) == ("quick-fox-1", "7")
    assert SLOT_LABEL not in labels


def test_a_pod_that_waits_is_bound_by_labels_at_the_version_that_was_seen() -> None:
    pod = manifests().pod(Purpose("warm-0-1", slot=0))
    assert pod["metadata"]["labels"][SLOT_LABEL] == "0"
    assert SESSION_LABEL not in pod["metadata"]["labels"]
    pod["metadata"]["resourceVersion"] = "41"
    assert bound(SESSION, pod) == {
        "metadata": {
            "resourceVersion": "41",
            "labels": {SESSION_LABEL: "quick-fox-1", GENERATION_LABEL: "7"},
        }
    }


def test_replicas_of_one_key_know_a_pods_token_and_others_do_not() -> None:
    pod = manifests().pod(SESSION)
    container = pod["spec"]["containers"][0]
    (given,) = (e["value"] for e in container["env"] if e["name"] == "PREVIEW_AGENT_TOKEN")
    assert manifests().token(pod) == given
    assert manifests(secret_key="x" * 32).token(pod) != given
    again = manifests().pod(SESSION)
    assert again["metadata"]["annotations"][NONCE] != pod["metadata"]["annotations"][NONCE]
    assert manifests().token(again) != given


def test_pods_of_one_version_have_one_mark_and_those_of_other_settings_another() -> None:
    mark = manifests().spec_label
    assert manifests(secret_key="x" * 32).spec_label == mark
    assert manifests(pod_memory="2Gi").spec_label != mark
    assert manifests(pod_image="node:2").spec_label != mark


def test_a_runtime_class_is_asked_for_where_one_is_set() -> None:
    assert "runtimeClassName" not in manifests().pod(SESSION)["spec"]
    assert manifests(pod_runtime_class="gvisor").pod(SESSION)["spec"]["runtimeClassName"] == (
        "gvisor"
    )


def test_a_pod_meets_the_restricted_standard_and_has_no_account() -> None:
    template = parse_template(
        json.dumps({"spec": {"nodeSelector": {"pool": "previews"}, "tolerations": [{}]}})
    )
    spec = manifests(template).pod(SESSION)["spec"]
    assert spec["nodeSelector"] == {"pool": "previews"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() == {"cpu", "memory", "ephemeral-storage"}
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"])


@pytest.mark.parametrize(
    ("quantity", "share", "part"),
    [
        ("1", "0.1", "100m"),
        ("500m", "0.1", "50m"),
        ("1.5", "0.5", "750m"),
        ("20", "0.1", "2"),
        ("1Gi", "0.25", str(2**28)),
        ("1k", "0.3", "300"),
        ("10001", "0.25", "2501"),
    ],
)
def test_a_share_of_a_quantity_is_a_quantity(quantity: str, share: str, part: str) -> None:
    assert part_of(quantity, share) == part


# -- the operator's template -----------------------------------------------------------------------


def test_a_template_adds_where_pods_run_and_what_they_find_there() -> None:
    template = parse_template(
        json.dumps(
            {
                "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
                "spec": {"volumes": [{"name": "cache", "emptyDir": {}}]},
                "container": {
                    "env": [{"name": "npm_config_registry", "value": "http://npm.internal"}],
                    "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
                },
            }
        )
    )
    pod = manifests(template).pod(SESSION)
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["metadata"]["annotations"]["note"] == "b"
    assert pod["spec"]["volumes"][-1] == {"name": "cache", "emptyDir": {}}
    container = pod["spec"]["containers"][0]
    assert container["env"][-1]["name"] == "npm_config_registry"
    assert container["volumeMounts"][-1]["mountPath"] == "/cache"


REFUSED: Final = {
    "no JSON": "{",
    "no object": "[]",
    "hostNetwork": {"spec": {"hostNetwork": True}},
    "hostPID": {"spec": {"hostPID": True}},
    "serviceAccountName": {"spec": {"serviceAccountName": "admin"}},
    "automountServiceAccountToken": {"spec": {"automountServiceAccountToken": True}},
    "securityContext": {"spec": {"securityContext": {"runAsUser": 0}}},
    "containers": {"spec": {"containers": []}},
    "nodeName": {"spec": {"nodeName": "node-1"}},
    "hostPath": {"spec": {"volumes": [{"name": "disk", "hostPath": {"path": "/"}}]}},
    "secret": {"spec": {"volumes": [{"name": "s", "secret": {"secretName": "s"}}]}},
    "projected": {"spec": {"volumes": [{"name": "p", "projected": {}}]}},
    "'agent'": {"spec": {"volumes": [{"name": "agent", "emptyDir": {}}]}},
    "spec.volumes": {"spec": {"volumes": {}}},
    "command": {"container": {"command": ["sh"]}},
    "image": {"container": {"image": "other"}},
    "PREVIEW_AGENT_TOKEN": {"container": {"env": [{"name": "PREVIEW_AGENT_TOKEN", "value": ""}]}},
    "`value` only": {"container": {"env": [{"name": "A", "valueFrom": {}}]}},
    "/agent/agent.mjs": {
        "container": {"volumeMounts": [{"name": "x", "mountPath": "/agent/agent.mjs"}]}
    },
    "propagated": {
        "container": {
            "volumeMounts": [{"name": "x", "mountPath": "/x", "mountPropagation": "Bidirectional"}]
        }
    },
    "app.kubernetes.io/component": {
        "metadata": {"labels": {"app.kubernetes.io/component": "gateway"}}
    },
    "preview-gateway.dev/session": {
        "metadata": {"annotations": {"preview-gateway.dev/session": "other"}}
    },
    "texts": {"metadata": {"labels": {"a": 1}}},
    "finalizers": {"metadata": {"finalizers": ["x"]}},
}


@pytest.mark.parametrize(("named", "document"), REFUSED.items())
def test_what_would_weaken_a_pod_is_refused_by_name(named: str, document: object) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(SettingsError, match="POD_TEMPLATE_FILE") as caught:
        parse_template(text)
    assert named in str(caught.value)
