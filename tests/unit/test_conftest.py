"""The rule for missing programs: skip with a reason, but never in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import find_tool, require_tool


def test_a_missing_tool_skips_and_says_why() -> None:
    with pytest.raises(pytest.skip.Exception, match="no-such-tool is not installed"):
        require_tool("no-such-tool", {"PATH": ""})


def test_a_missing_tool_fails_in_ci() -> None:
    with pytest.raises(pytest.fail.Exception, match="in CI nothing is skipped"):
        require_tool("no-such-tool", {"PATH": "", "CI": "true"})


def test_a_variable_of_the_tools_name_comes_first(tmp_path: Path) -> None:
    chrome = tmp_path / "my-chrome"
    chrome.touch(mode=0o755)
    assert find_tool("chromium", {"PATH": "", "CHROMIUM": str(chrome)}) == str(chrome)


def test_other_names_of_a_tool_are_tried(tmp_path: Path) -> None:
    chrome = tmp_path / "google-chrome"
    chrome.touch(mode=0o755)
    assert find_tool("chromium", {"PATH": str(tmp_path)}) == str(chrome)
