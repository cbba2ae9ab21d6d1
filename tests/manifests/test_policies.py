"""Each policy finds what it is there for: manifests with one thing wrong."""

from __future__ import annotations

import copy
import re

import pytest

from tests.manifests.changes import CHANGES, KIND, PROD, Change, gateway, spec
from tests.manifests.documents import configuration, find, load, namespace_of, pods_of
from tests.manifests.policy.network import (
    API_SERVERS,
    FORBIDDEN,
    OTHER_PREVIEW,
    PREVIEW,
    Way,
    is_open,
    place_of,
)
from tests.manifests.policy.quantities import quantity
from tests.manifests.policy.resources import is_pinned
from tests.manifests.policy.restricted import of_pod
from tests.manifests.rendering import documents
from tests.manifests.schemas import OLDEST, schema_problems
from tests.manifests.test_kustomizations import POLICIES


@pytest.mark.parametrize(("problem", "name", "change"), CHANGES)
def test_a_change_for_the_worse_is_found(problem: str, name: str, change: Change) -> None:
    changed = copy.deepcopy(list(documents(name)))
    change(changed)
    found = [each for one in POLICIES for each in one(changed)]
    assert [each for each in found if problem in each], found


def test_what_is_changed_here_was_well_before() -> None:
    for name in {name for _problem, name, _change in CHANGES}:
        assert [each for one in POLICIES for each in one(documents(name))] == []


@pytest.mark.parametrize(
    ("problem", "change"),
    [
        ("was unexpected", lambda all_: gateway(all_).update(restartPolcy="Always")),
        ("is not of type", lambda all_: spec(all_, "Deployment").update(replicas="three")),
        ("is a required property", lambda all_: spec(all_, "Deployment").pop("selector")),
        ("find schema", lambda all_: find(all_, "Role", "preview-gateway").update(kind="Rôle")),
        ("find schema", lambda all_: find(all_, "Role", "preview-gateway").update(apiVersion="v9")),
    ],
)
def test_what_the_api_server_would_refuse_is_found(problem: str, change: Change) -> None:
    changed = copy.deepcopy(list(documents(KIND)))
    change(changed)
    found = [each for document in changed for each in schema_problems(document, OLDEST)]
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        ("node:24.11.1-bookworm-slim", True),
        ("registry.example.com:5000/a/b:1", True),
        ("a@sha256:" + "0" * 64, True),
        ("node", False),
        ("node:latest", False),
        ("registry.example.com:5000/a/b", False),
    ],
)
def test_an_image_is_pinned_by_a_tag_or_a_digest(image: str, pinned: bool) -> None:
    assert is_pinned(image) is pinned


def test_quantities_are_numbers() -> None:
    assert quantity("500m") * 4 == 2
    assert quantity("1.5Gi") == 1.5 * 2**30
    assert quantity(3) == 3
    with pytest.raises(ValueError, match="no quantity"):
        quantity("much")


def test_the_readme_of_the_base_names_the_keys_of_its_secret() -> None:
    found = configuration(documents("base"))
    assert found["GATEWAY_REDIS_URL"] == "<secretKeyRef>"
    assert re.search("tokens", found["GATEWAY_API_TOKENS_FILE"])


def test_a_pod_that_no_policy_selects_is_free() -> None:
    way = Way(PREVIEW, API_SERVERS[0], 443, wanted=True)
    assert is_open([], way)
    assert not is_open(documents(KIND), way)


@pytest.mark.parametrize("name", [KIND, PROD])
def test_fault_41_policies_leave_a_preview_no_way_to_anything_inside(name: str) -> None:
    inside = [*FORBIDDEN, *API_SERVERS, OTHER_PREVIEW]
    inside += [place_of(pods, "10.244.1.1") for pods in pods_of(documents(name))]
    for target in inside:
        for port in (80, 443, 5173, 6379, 6443, 8080, 8700, 9090):
            assert not is_open(documents(name), Way(PREVIEW, target, port, wanted=False)), target


def test_the_restricted_standard_is_checked_for_init_containers_too() -> None:
    (pod,) = load("{containers: [], initContainers: [{name: copy}], enableServiceLinks: false}")
    assert any("copy: may run as root" in problem for problem in of_pod(pod))


def test_namespaces_are_not_left_to_kubectl() -> None:
    spaces = {namespace_of(document) for document in documents(KIND)}
    assert spaces == {"", "preview-gateway", "previews"}
