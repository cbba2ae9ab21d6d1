"""A project folder as ``up`` sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.errors import BadFiles
from gateway.folder import Edits, Folder


def put(root: Path, *names: str, **contents: str) -> None:
    """Write files: ``a="1"`` is a file ``a.js``."""
    for name, content in [*((name, "") for name in names), *contents.items()]:
        path = root / (name if name in names else f"{name}.js")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_the_first_look_finds_everything_and_the_next_what_has_changed(tmp_path: Path) -> None:
    put(tmp_path, a="1", **{"src/b": "2"})
    folder = Folder(tmp_path)
    assert folder.edits() == Edits({"a.js": b"1", "src/b.js": b"2"})
    assert not folder.edits()
    put(tmp_path, a="one", c="3")
    (tmp_path / "src" / "b.js").unlink()
    assert folder.edits() == Edits({"a.js": b"one", "c.js": b"3"}, ["src/b.js"])
    assert not folder.edits()


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    put(tmp_path, a="1", b="2")
    for name in ("a.js", "b.js"):
        os.utime(tmp_path / name, (1, 1))
    folder = Folder(tmp_path)
    folder.edits()
    (tmp_path / "b.js").rename(tmp_path / "a.js")
    assert folder.edits() == Edits({"a.js": b"2"}, ["b.js"])


def test_what_git_ignores_and_what_is_made_from_sources_stays_here(tmp_path: Path) -> None:
    put(tmp_path, "debug.log", "keep.log", "dist/index.html", "src/dist.js", a="1")
    put(tmp_path, ".git/config", "src/__pycache__/a.pyc", "note.txt~")
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\n/dist/\n")
    assert set(Folder(tmp_path).edits().write) == {
        ".gitignore",
        "a.js",
        "keep.log",
        "src/dist.js",
    }


def test_node_modules_are_never_sent(tmp_path: Path) -> None:
    put(tmp_path, "node_modules/x/index.js", "packages/one/node_modules/y.js", a="1")
    assert set(Folder(tmp_path).edits().write) == {"a.js"}


def test_an_edit_of_gitignore_counts_at_once(tmp_path: Path) -> None:
    put(tmp_path, a="1", b="2")
    folder = Folder(tmp_path)
    folder.edits()
    (tmp_path / ".gitignore").write_text("b.js\n")
    assert folder.edits() == Edits({".gitignore": b"b.js\n"}, ["b.js"])
    assert not folder.belongs(tmp_path / "b.js")
    assert folder.belongs(tmp_path / "a.js")
    assert not folder.belongs(tmp_path.parent / "a.js")


def test_symbolic_links_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "project"
    put(root, a="1")
    put(tmp_path, "secret.txt", "other/b.js")
    (root / "secret").symlink_to(tmp_path / "secret.txt")
    (root / "other").symlink_to(tmp_path / "other")
    assert Folder(root).edits() == Edits({"a.js": b"1"})


def test_edits_that_did_not_arrive_come_again(tmp_path: Path) -> None:
    put(tmp_path, a="1", b="2", c="3")
    folder = Folder(tmp_path)
    folder.edits()
    put(tmp_path, a="one")
    (tmp_path / "b.js").unlink()
    lost = folder.edits()
    folder.forget(lost)
    assert folder.edits() == lost == Edits({"a.js": b"one"}, ["b.js"])
    assert not folder.edits()


def test_edits_are_said_in_a_line() -> None:
    assert str(Edits({"a": b""}, ["b"])) == "a, b (deleted)"
    assert str(Edits(dict.fromkeys("abcdefg", b""))) == "a, b, c, d, e and 2 more"


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFiles, match="is no folder"):
        Folder(tmp_path / "none")
