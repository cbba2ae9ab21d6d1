"""The table of faults names the tests that there are, and those of the data plane have one each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from scripts.fault_table import TESTS, collect, faults_of, main, with_tests

PAGE: Final = TESTS.parent / "docs" / "faults.md"
#: The faults that the data plane meets: each has a test, whatever else is still to come.
DATA_PLANE: Final = range(1, 25)
#: The same for replicas and their registry.
REPLICA: Final = range(25, 34)

Found = dict[int, dict[str, list[str]]]


@pytest.fixture(scope="module")
def found() -> Found:
    """The tests that there are: all files are parsed once."""
    return collect()


def test_the_page_names_the_tests_that_there_are(found: Found) -> None:
    text = PAGE.read_text("utf-8")
    assert with_tests(text, found) == text, "run `make docs`"


@pytest.mark.parametrize("number", [*DATA_PLANE, *REPLICA])
def test_every_fault_has_a_test_of_its_own(found: Found, number: int) -> None:
    assert found.get(number)


def test_every_fault_has_one_row() -> None:
    rows = re.findall(r"(?m)^\| (\d+) \|", PAGE.read_text("utf-8"))
    assert list(map(int, rows)) == list(range(1, 42))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("test_fault_5_bad_chunks", [5]),
        ("test_fault_14_reset", [14]),
        ("test_faults_1_to_3_are_refused", [1, 2, 3]),
        ("test_default_5_of_something", []),
        ("fault_5_is_no_test", []),
    ],
)
def test_a_name_says_which_faults_a_test_is_about(name: str, numbers: list[int]) -> None:
    assert list(faults_of(name)) == numbers


def test_tests_are_found_in_all_folders_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "test_x.py").write_text(
        "async def test_fault_2_b(): ...\ndef test_fault_2_a(): ...\ndef test_other(): ...\n"
    )
    (tmp_path / "test_y.py").write_text("def test_faults_1_to_2_c(): ...\n")
    (tmp_path / "helper.py").write_text("def test_fault_9_not_collected(): ...\n")
    assert collect(tmp_path) == {
        1: {"test_y.py": ["test_faults_1_to_2_c"]},
        2: {
            "a/test_x.py": ["test_fault_2_b", "test_fault_2_a"],
            "test_y.py": ["test_faults_1_to_2_c"],
        },
    }


def test_the_last_column_is_written_anew_and_the_others_stay() -> None:
    found = {2: {"a.py": ["test_fault_2_x", "test_fault_2_y"], "b.py": ["test_fault_2_z"]}}
    text = "# T\n\n| No. | F | E | Tests |\n| 1 | a \\* b | c | `old` |\n| 2 | d | e | |\n"
    cell = "`a.py`: `test_fault_2_x`, `test_fault_2_y`; `b.py`: `test_fault_2_z`"
    written = with_tests(text, found)
    assert written == text.replace("| `old` |", "| none yet |").replace(
        "| e | |", f"| e | {cell} |"
    )
    assert with_tests(written, found) == written


def test_a_test_of_a_fault_without_a_row_is_noticed() -> None:
    with pytest.raises(ValueError, match=r"\[42\]"):
        with_tests("| 1 | a | b | |\n", {42: {"a.py": ["test_fault_42_x"]}})


def test_the_command_writes_into_the_files_it_is_given(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(re.sub(r"`[^|]*test_fault_8_[^|]*", "", PAGE.read_text("utf-8")), "utf-8")
    assert "test_fault_8_" not in page.read_text("utf-8")
    main([str(page)])
    assert page.read_text("utf-8") == PAGE.read_text("utf-8")
