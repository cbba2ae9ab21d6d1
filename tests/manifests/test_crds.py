"""Gateway, HTTPRoute and ServiceMonitor are what their CRDs say."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import require_tool
from tests.manifests.changes import PROD, WHOLE, spec
from tests.manifests.crds import crd_problems
from tests.manifests.documents import Document, find, kind_of
from tests.manifests.rendering import ROOT, documents
from tests.manifests.schemas import CUSTOM

FIXTURE: Final = ROOT / "tests/fixtures/crds"
#: Between them they have every object with a CRD, as components have them and as patched.
RENDERED: Final = (WHOLE, PROD)

BAD: Final[dict[str, tuple[str, Any]]] = {
    "unknown_field": ("HTTPRoute", lambda it: it["rules"][0]["timeouts"].update(requst="0s")),
    "bad_duration": ("HTTPRoute", lambda it: it["rules"][0]["timeouts"].update(request="1 h")),
    "bad_match": ("HTTPRoute", lambda it: it["rules"][0]["matches"][0]["path"].update(type="P")),
    "bad_host": ("HTTPRoute", lambda it: it.update(hostnames=["https://a"])),
    "bad_protocol": ("Gateway", lambda it: it["listeners"][0].update(port="http")),
    "unknown_listener_field": ("Gateway", lambda it: it["listeners"][0].update(host="a")),
    "no_class": ("Gateway", lambda it: it.pop("gatewayClassName")),
    "unknown_endpoint_field": ("ServiceMonitor", lambda it: it["endpoints"][0].update(prot="a")),
    "bad_interval": ("ServiceMonitor", lambda it: it["endpoints"][0].update(interval="often")),
    "no_selector": ("ServiceMonitor", lambda it: it.pop("selector")),
}


def customs() -> dict[str, Document]:
    """Every object with a CRD that can be rendered, once, by a name that says what it is."""
    every = itertools.chain.from_iterable(documents(name) for name in RENDERED)
    chosen = [each for each in every if (each["apiVersion"], kind_of(each)) in CUSTOM]
    unique = {json.dumps(each, sort_keys=True): each for each in chosen}.values()
    return {f"good_{number}_{kind_of(each)}": each for number, each in enumerate(unique)}


def damaged() -> dict[str, Document]:
    found = {}
    for name, (kind, change) in BAD.items():
        changed = copy.deepcopy(list(documents(WHOLE)))
        change(spec(changed, kind))
        found[name] = find(changed, kind, "preview-gateway")
    return found


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with the packages of the fixture."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(FIXTURE / name, tmp_path)
    npm = [require_tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(npm, cwd=tmp_path, check=True, capture_output=True, timeout=100)
    return tmp_path


@pytest.mark.node
@pytest.mark.timeout(240)
def test_objects_are_what_their_crds_say_and_what_is_not_is_found(packages: Path) -> None:
    # All in one go: the packages take longer to come than everything else.
    assert set(crd_problems(packages, customs() | damaged())) == set(BAD)


def test_every_kind_with_a_crd_is_among_them() -> None:
    assert {kind_of(each) for each in customs().values()} == {kind for _group, kind in CUSTOM}


def test_the_lock_file_does_not_say_where_packages_came_from() -> None:
    text = (FIXTURE / "package-lock.json").read_text()
    assert not re.search(r'"resolved"|registry', text)
    packages = json.loads(text)["packages"]
    assert all("integrity" in packages[name] for name in packages if name)
