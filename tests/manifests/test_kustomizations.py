"""Everything in ``k8s`` that can be deployed, held against schemas and against policies."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.manifests.documents import Document, kind_of, load
from tests.manifests.policy import (
    configured,
    leaving,
    network,
    references,
    resources,
    restricted,
    rights,
)
from tests.manifests.rendering import K8S, KUSTOMIZATIONS, OVERLAYS, ROOT, documents, kustomize
from tests.manifests.schemas import VERSIONS, schema_problems

Policy = Callable[[Sequence[Document]], Iterator[str]]

POLICIES: Final[tuple[Policy, ...]] = (
    configured.problems,
    leaving.problems,
    network.problems,
    references.problems,
    resources.problems,
    restricted.problems,
    rights.problems,
)


def names(folder: str, marker: str) -> set[str]:
    return {path.parent.name for path in (K8S / folder).glob(f"*/{marker}")}


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_a_kustomization_is_valid_and_keeps_every_policy(name: str) -> None:
    rendered = documents(name)
    found = [problem for policy in POLICIES for problem in policy(rendered)]
    for document, version in itertools.product(rendered, VERSIONS):
        found += schema_problems(document, version)
    assert found == []


def test_every_component_and_every_overlay_is_among_them() -> None:
    assert {f"overlays/{name}" for name in names("overlays", "kustomization.yaml")} == set(OVERLAYS)
    combined = {part for name in KUSTOMIZATIONS for part in name.split("+")[1:]}
    assert combined == names("components", "kustomization.yaml")


def test_the_manifests_are_tidy_yaml() -> None:
    command = [sys.executable, "-m", "yamllint", "--strict", "-c", str(K8S / ".yamllint"), str(K8S)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_no_file_lies_about_that_no_kustomization_reads() -> None:
    unread = set()
    for folder in {path.parent for path in K8S.rglob("kustomization.yaml")}:
        text = (folder / "kustomization.yaml").read_text()
        for path in folder.iterdir():
            if path.is_file() and path.name != "kustomization.yaml" and path.name not in text:
                unread.add(path.relative_to(ROOT))
    assert unread == set[Path]()


def test_the_rights_are_those_of_all_calls_that_the_client_makes() -> None:
    assert rights.calls_of_the_client() == set(rights.VERBS)


def test_what_is_commented_out_of_prod_goes_with_it(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    prod = tmp_path / "k8s/overlays/prod"
    text = (prod / "kustomization.yaml").read_text()
    whole, count = re.subn(r"(?m)^  # (- \.\./\.\./components/)", r"  \1", text)
    assert count == 2
    (prod / "kustomization.yaml").write_text(whole)
    rendered = load(kustomize(prod))
    assert [problem for policy in POLICIES for problem in policy(rendered)] == []
    assert {"ServiceMonitor", "Gateway"} <= {kind_of(document) for document in rendered}
