"""The reference of the API: in docs/api.md as it is in the document."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from gateway.api.catalogue import document
from scripts.api_reference import main, reference

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_the_page_holds_the_reference_of_the_document() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run `make docs`"


def test_every_call_field_and_code_is_in_the_reference() -> None:
    text = reference()
    for path, item in document()["paths"].items():
        for method in item.keys() - {"parameters"}:
            assert f"### `{method.upper()} {path}`" in text
    for name, schema in document()["components"]["schemas"].items():
        if name.endswith(("Body", "Session", "Files", "Event", "Link")):
            for field in schema["properties"]:
                assert field in text
    for code in ("session_conflict", "limit_reached", "idempotency_key_reused", "overloaded"):
        assert f"`{code}`" in text


def test_no_table_is_broken_by_what_stands_in_it() -> None:
    lines = reference().splitlines()
    for before, line in pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert before.replace("\\|", "").count("|") == line.replace("\\|", "").count("|")


def test_it_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert capsys.readouterr().out == reference()
    main([str(tmp_path / "api.md")])
    assert (tmp_path / "api.md").read_text("utf-8") == reference()
