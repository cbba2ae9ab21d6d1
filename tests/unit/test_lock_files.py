"""The lock files: complete, hashed, and silent about where packages came from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN: Final[list[str]] = PROJECT["project"]["dependencies"]
_HOOKS: Final = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
BUILD: Final[list[str]] = [
    *PROJECT["build-system"]["requires"],
    *_HOOKS["custom"]["dependencies"],
    "editables",
]
NODE: Final[list[str]] = PROJECT["project"]["optional-dependencies"]["node"]
DEV: Final[list[str]] = PROJECT["dependency-groups"]["dev"]

WANTED: Final = {
    "requirements.lock": RUN,
    "requirements-build.lock": BUILD,
    "requirements-node.lock": NODE,
    "requirements-dev.lock": [*RUN, *BUILD, *DEV],
}


def name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def locked(lock: str) -> dict[str, str]:
    """The packages of a lock file with their versions."""
    text = (ROOT / lock).read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)(?:\[[a-z0-9,-]+\])?==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", WANTED)
def test_everything_the_project_names_is_locked(lock: str) -> None:
    missing = {name(requirement) for requirement in WANTED[lock]} - locked(lock).keys()
    assert not missing, "run `make lock`"


@pytest.mark.parametrize("lock", WANTED)
def test_every_package_has_a_hash(lock: str) -> None:
    entries = re.split(r"^(?=[a-z])", (ROOT / lock).read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked(lock))
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("lock", WANTED)
def test_no_address_and_no_path_is_in_a_lock_file(lock: str) -> None:
    assert not re.search(r"://|index-url|find-links|/", (ROOT / lock).read_text())


def test_what_is_tested_is_what_runs() -> None:
    tested = locked("requirements-dev.lock")
    for lock in ("requirements.lock", "requirements-build.lock"):
        assert locked(lock).items() <= tested.items()
