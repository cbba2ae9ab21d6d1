"""Of a project's folder, what can decide about its dependencies is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import BadFiles
from gateway.spawner.prefetch import npm_inputs


def lay_out(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def test_manifests_lock_files_and_packed_packages_are_found(tmp_path: Path) -> None:
    wanted = {
        "package.json",
        "package-lock.json",
        ".npmrc",
        "packages/a/package.json",
        "packed/b.tgz",
    }
    others = ("src/main.js", "node_modules/vite/package.json", ".git/package.json")
    lay_out(tmp_path, *wanted, *others)
    (tmp_path / "yarn.lock").symlink_to(tmp_path / "src" / "main.js")
    assert npm_inputs(tmp_path, 1000) == {path: path.encode() for path in wanted}


def test_a_folder_without_a_manifest_is_no_project(tmp_path: Path) -> None:
    lay_out(tmp_path, "inner/package.json")
    with pytest.raises(BadFiles, match=r"holds no package\.json: name the folder of a project"):
        npm_inputs(tmp_path, 1000)


def test_a_file_that_no_session_could_have_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, "package.json")
    size = len("package.json")
    assert npm_inputs(tmp_path, size)
    with pytest.raises(BadFiles, match=f"larger than {size - 1} bytes"):
        npm_inputs(tmp_path, size - 1)
