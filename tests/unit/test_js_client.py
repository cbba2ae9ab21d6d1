"""The JavaScript client: its own tests, and what is published of it."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import require_tool

ROOT: Final = Path(__file__).resolve().parents[2]
CLIENT: Final = ROOT / "clients" / "js"
#: Prints the names of all that the module exports, and of the calls of its client.
_NAMES: Final = """
import * as client from "./index.js";
const calls = Object.getOwnPropertyNames(client.Client.prototype);
console.log(JSON.stringify([Object.keys(client), calls]));
"""


def package() -> dict[str, Any]:
    found = json.loads((CLIENT / "package.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.node
def test_the_javascript_client_passes_its_own_tests(node: str) -> None:
    ran = subprocess.run(
        [node, "--test", "test/"], cwd=CLIENT, capture_output=True, text=True, timeout=90
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(re.findall(r"(?m)^\S+ pass (\d+)$", ran.stdout)[0]) >= 18


@pytest.mark.node
def test_types_are_declared_for_all_that_there_is_and_for_nothing_else(node: str) -> None:
    script = [node, "--input-type=module", "-e", _NAMES]
    ran = subprocess.run(script, cwd=CLIENT, capture_output=True, text=True, check=True, timeout=30)
    exported, calls = json.loads(ran.stdout)
    declared = (CLIENT / "index.d.ts").read_text()
    values = re.findall(r"^export (?:class|function) (\w+)", declared, re.MULTILINE)
    assert sorted(values) == sorted(exported)
    body = re.search(r"^export class Client \{\n(.*?)^\}", declared, re.MULTILINE | re.DOTALL)
    assert body is not None
    assert sorted(re.findall(r"^  (\w+)\(", body[1], re.MULTILINE)) == sorted(calls)


def test_the_client_has_the_version_of_the_gateway_and_no_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = package()
    assert (found["name"], found["version"]) == ("preview-gateway-client", project["version"])
    assert found["license"] == project["license"]
    assert not [name for name in found if name.endswith(("ependencies", "scripts"))]


@pytest.mark.node
def test_modules_types_and_licence_are_published_and_nothing_else() -> None:
    ran = subprocess.run(
        [require_tool("npm"), "pack", "--dry-run", "--json", "--offline"],
        cwd=CLIENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    files = {file["path"] for file in json.loads(ran.stdout)[0]["files"]}
    modules = {path.name for path in CLIENT.glob("*.js")}
    assert files == modules | {"index.d.ts", "package.json", "README.md", "LICENSE"}
