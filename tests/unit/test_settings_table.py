"""The settings table: complete, and in the README as it is in the class."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from gateway.settings import PREFIX, Settings
from scripts.settings_table import BEGIN, END, main, settings_table, with_table

README: Final = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_holds_the_table_of_the_settings_class() -> None:
    text = README.read_text("utf-8")
    assert with_table(text) == text, "run `make docs`"


def test_every_setting_is_in_the_table_with_a_meaning() -> None:
    rows = settings_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [
        f"{PREFIX}{name.upper()}" for name in Settings.model_fields
    ]
    assert not [row for row in rows if row.split("|")[3].strip() == ""]


def test_defaults_are_written_as_an_operator_would_write_them() -> None:
    table = settings_table()
    assert "| `GATEWAY_PORT` | `8080` |" in table
    assert "| `GATEWAY_INSECURE` | `false` |" in table
    assert "| `GATEWAY_LEASE_SECONDS` | `15` |" in table
    assert "| `GATEWAY_API_TOKENS` | none |" in table


def test_the_table_does_not_depend_on_the_machine() -> None:
    assert str(Path.home()) not in settings_table()


def test_an_old_table_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main([str(file)])
    assert file.read_text() == f"before\n{BEGIN}\n{settings_table()}\n{END}\nafter\n"


@pytest.mark.parametrize(
    "text", ["", BEGIN, END + BEGIN, f"{BEGIN}{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"]
)
def test_a_text_without_one_pair_of_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wants exactly one"):
        with_table(text)


def test_without_a_file_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert capsys.readouterr().out == settings_table() + "\n"
