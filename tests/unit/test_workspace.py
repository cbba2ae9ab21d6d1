"""Paths, limits and writing of workspaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadFiles
from gateway.settings import load_settings
from gateway.spawner.workspace import Workspace, check_files, check_path


@pytest.mark.parametrize(
    "path",
    ["a", "src/App.jsx", ".npmrc", "a b/ü.js", "...", "a/node_modules/x", "x" * 255, "gitignore"],
)
def test_ordinary_relative_paths_are_allowed(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("C:/x", "absolute"),
        ("c:x", "absolute"),
        ("..", "segment"),
        ("../x", "segment"),
        ("a/../../x", "segment"),
        ("./a", "segment"),
        ("a//b", "segment"),
        ("a/", "segment"),
        ("a\\b", "backslash"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x7f", "control"),
        ("a\ud800", "surrogate"),
        ("x" * 256, "255"),
        ("ü" * 128, "255"),
        ("/".join(["x" * 200] * 6), "1024"),
        ("node_modules/x/index.js", "node_modules"),
        ("node_modules", "node_modules"),
        (".git/config", ".git"),
        ("a/.GIT/hooks/x", ".git"),
    ],
)
def test_every_other_path_is_refused_and_says_why(path: str, why: str) -> None:
    with pytest.raises(BadFiles, match=why):
        check_path(path)


@given(st.text(alphabet="ab./\\\0:", max_size=12))
def test_an_allowed_path_never_leads_out_of_its_folder(path: str) -> None:
    try:
        check_path(path)
    except BadFiles:
        return
    assert os.path.normpath(f"/app/{path}") == f"/app/{path}"


def test_each_limit_is_named_with_its_setting() -> None:
    settings = load_settings({"max_files": 2, "max_file_bytes": 4, "max_session_bytes": 6})
    check_files({"a": b"1234", "b": b"12"}, settings)
    with pytest.raises(BadFiles, match="GATEWAY_MAX_FILES"):
        check_files({"a": b"", "b": b"", "c": b""}, settings)
    with pytest.raises(BadFiles, match=r"'a'.*GATEWAY_MAX_FILE_BYTES"):
        check_files({"a": b"12345"}, settings)
    with pytest.raises(BadFiles, match="GATEWAY_MAX_SESSION_BYTES"):
        check_files({"a": b"1234", "b": b"123"}, settings)


def test_a_file_that_is_also_a_folder_is_refused() -> None:
    with pytest.raises(BadFiles, match="'a/b' is a file and"):
        check_files({"a/b": b"", "a/b/c/d": b""}, load_settings())
    check_files({"a/b": b"", "a/bc": b"", "a-b/c": b""}, load_settings())


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "workspaces", "session-1.7", owner="me")
    workspace.make()
    return workspace


def test_files_are_written_and_deleted_and_emptied_folders_go(workspace: Workspace) -> None:
    workspace.write({"a/b/c.txt": b"1", "a/d.txt": b"2"})
    assert (workspace.app / "a/b/c.txt").read_bytes() == b"1"
    workspace.write({"a/d.txt": b"3"}, ["a/b/c.txt", "never/was.txt"])
    assert not (workspace.app / "a/b").exists()
    assert (workspace.app / "a/d.txt").read_bytes() == b"3"
    workspace.write({}, ["a/d.txt"])
    assert list(workspace.app.iterdir()) == []
    assert list((workspace.folder / "staging").iterdir()) == []


def test_a_deleted_file_can_give_way_to_a_folder_in_the_same_edit(workspace: Workspace) -> None:
    workspace.write({"a": b"1"})
    workspace.write({"a/b": b"2"}, ["a"])
    assert (workspace.app / "a/b").read_bytes() == b"2"


def test_a_written_file_is_a_new_one_so_that_nobody_reads_half_of_it(workspace: Workspace) -> None:
    workspace.write({"a": b"old"})
    with (workspace.app / "a").open("rb") as reader:
        workspace.write({"a": b"new"})
        assert reader.read() == b"old"
    assert (workspace.app / "a").read_bytes() == b"new"


def test_a_script_is_executable(workspace: Workspace) -> None:
    workspace.write({"run.sh": b"#!/bin/sh\n", "a.txt": b""})
    assert os.access(workspace.app / "run.sh", os.X_OK)
    assert (workspace.app / "a.txt").stat().st_mode & 0o111 == 0


@pytest.mark.parametrize("where", ["link", "deep/link"])
def test_a_link_in_the_way_cannot_lead_a_write_or_a_delete_outside(
    workspace: Workspace, tmp_path: Path, where: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    link = workspace.app / where
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(BadFiles, match="no folder in the workspace"):
        workspace.write({f"{where}/new.txt": b"x"})
    with pytest.raises(BadFiles, match="no folder in the workspace"):
        workspace.write({}, [f"{where}/kept.txt"])
    assert [path.name for path in outside.iterdir()] == ["kept.txt"]


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (workspace.app / "a").symlink_to(tmp_path / "secret")
    workspace.write({"a": b"mine"})
    assert (tmp_path / "secret").read_text() == "secret"
    assert not (workspace.app / "a").is_symlink()


def test_exchanged_folders_of_the_workspace_itself_lead_nowhere(
    workspace: Workspace, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("app", "staging"):
        (workspace.folder / name).rename(workspace.folder / f"old-{name}")
        (workspace.folder / name).symlink_to(outside)
    workspace.write({"a": b"1"})
    assert list(outside.iterdir()) == []


def test_a_folder_in_the_place_of_a_file_is_refused_and_nothing_is_left(
    workspace: Workspace,
) -> None:
    (workspace.app / "a").mkdir()
    with pytest.raises(BadFiles, match="'a' is a folder"):
        workspace.write({"a": b"1"})
    assert list((workspace.folder / "staging").iterdir()) == []


def test_removing_works_twice_and_on_what_was_made_read_only(workspace: Workspace) -> None:
    workspace.write({"a/b": b"1"})
    (workspace.app / "a").chmod(0o500)
    workspace.remove()
    workspace.remove()
    assert list(workspace.folder.parent.iterdir()) == []


def test_a_workspace_of_the_same_name_is_replaced(workspace: Workspace) -> None:
    workspace.write({"old": b"1"})
    again = Workspace(workspace.folder.parent, "session-1.7", owner="other")
    again.make()
    assert list(again.app.iterdir()) == []
    assert (again.folder / "owner").read_text() == "other"
    workspace.remove()
    again.remove()


def test_files_are_read_as_they_are_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not yours")
    workspace = Workspace(tmp_path / "root", "s.1", owner="o")
    workspace.make()
    workspace.write({"a": b"1", "src/b": b"2", "c/d": b"3", "long": b"x" * 11, "gone": b""})
    app = workspace.app
    (app / "a").write_bytes(b"changed")
    (app / "gone").unlink()
    (app / "c" / "d").unlink()
    (app / "c").rmdir()
    (app / "c").symlink_to(tmp_path)
    (app / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(app / "pipe")
    paths = ["a", "src/b", "src", "c/d", "c/secret", "link", "pipe", "long", "gone", "never/was"]
    assert workspace.read(paths, 10) == {"a": b"changed", "src/b": b"2"}
    workspace.remove()
