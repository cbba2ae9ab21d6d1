"""docs/deploy.md says what is there: its commands, its paths, its sizes."""

from __future__ import annotations

import re
from typing import Final

import pytest

from bench.sizing import USUAL, defaults, reserved, usual, with_table
from tests.manifests.documents import configuration, find, load, name_of
from tests.manifests.policy.leaving import seconds_to_leave
from tests.manifests.rendering import K8S, ROOT, documents
from tests.manifests.schemas import VERSIONS, schema_problems

PAGE: Final = (ROOT / "docs/deploy.md").read_text("utf-8")
KIND: Final = "overlays/kind"


def test_the_sizes_are_those_that_the_figures_give() -> None:
    assert with_table(PAGE) == PAGE, "run `python -m bench.sizing --record`"


def test_a_text_without_the_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="wants"):
        with_table("")


def test_sizes_follow_the_pods_and_the_assumptions() -> None:
    (head, _line, *rows) = usual().splitlines()
    assert head.count("previews run") == len(USUAL)
    (pods,) = [row for row in rows if "pods of previews" in row]
    cores = reserved(defaults())["requests"]["cpu"] * USUAL[0]
    assert f"| {cores:,.0f} cores, " in pods


def test_a_live_preview_is_fewer_than_ten_commands_away() -> None:
    (script,) = re.findall(r"## From an empty cluster.*?```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    commands = [line for line in script.splitlines() if re.match(r"[a-z]", line)]
    assert len(commands) < 10
    token = "throw-away-token-of-the-kind-overlay"
    assert token in script
    assert token in (K8S / KIND / "kustomization.yaml").read_text()
    for image in re.findall(r"-t (preview-gateway:\w+)", script):
        assert image in str(documents(KIND))


def test_every_component_and_every_folder_that_is_named_exists() -> None:
    listed = set(re.findall(r"^\| `([a-z-]+)` \|.*\|.*\|$", PAGE, flags=re.MULTILINE))
    assert listed == {path.name for path in (K8S / "components").iterdir()}
    for path in re.findall(r"`?((?:k8s|tests|docs)/[\w./-]+)`?", PAGE):
        assert (ROOT / path.rstrip(".")).exists(), path
    for link in re.findall(r"\]\((\w+\.md)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_what_it_tells_to_apply_is_valid() -> None:
    given = re.findall(r"<<'END'\n(.*?)END\n", PAGE, flags=re.DOTALL)
    assert given
    for document in (each for text in given for each in load(text)):
        assert [each for version in VERSIONS for each in schema_problems(document, version)] == []
        runtime = configuration(documents("base+kubernetes-spawner+gvisor"))
        assert name_of(document) == runtime["GATEWAY_POD_RUNTIME_CLASS"]


def test_the_numbers_in_its_sentences_are_those_of_the_manifests() -> None:
    found = documents("overlays/prod")
    pods = find(found, "Deployment", "preview-gateway")["spec"]["template"]["spec"]
    total, given = seconds_to_leave(found), pods["terminationGracePeriodSeconds"]
    assert f"their sum is {total:g} s, and {given} s are given" in PAGE
    scaler = find(found, "HorizontalPodAutoscaler", "preview-gateway")["spec"]
    assert f"{scaler['minReplicas']} to {scaler['maxReplicas']} replicas by CPU" in PAGE
    quota = find(found, "ResourceQuota", "previews")["spec"]["hard"]
    assert f"quota is for {quota['pods']} pods" in PAGE
    assert configuration(found)["GATEWAY_SPAWNER"] == "kubernetes"
