"""The two builds of the data plane; `make test` runs this, as most tests here, on each of them."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Final

import pytest

from gateway.proxy.build import BUILD

ROOT: Final = Path(__file__).resolve().parents[2]
_WHEEL: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
MODULES: Final[list[str]] = _WHEEL["targets"]["wheel"]["hooks"]["custom"]["modules"]


def waits_in_handlers(source: str) -> list[int]:
    """The lines at which a coroutine or generator pauses while it handles an exception.

    In a module that mypyc has compiled, the exception is then at hand for whatever runs meanwhile:
    it becomes the context of other exceptions, and a bare ``raise`` would raise it.
    """
    return sorted({node.lineno for node in _pauses(ast.parse(source), within=False)})


def _pauses(node: ast.AST, *, within: bool) -> Iterator[ast.expr | ast.stmt]:
    if within and isinstance(
        node, ast.Await | ast.Yield | ast.YieldFrom | ast.AsyncFor | ast.AsyncWith
    ):
        yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                held = isinstance(child, ast.ExceptHandler) or name == "finalbody"
                yield from _pauses(child, within=within or held)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_the_list_is_of_the_build_under_test(module: str) -> None:
    file = importlib.import_module(module).__file__
    assert file is not None
    assert file.endswith(".py") == (BUILD == "pure")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_the_list_holds_no_exception_while_it_waits(module: str) -> None:
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    assert waits_in_handlers(source) == []


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("try:\n  await a\nexcept E:\n  b()\n await c", []),
        ("try:\n  await a\nexcept E:\n  if b:\n   c(await d)", [6]),
        ("try:\n  a()\nfinally:\n  await b", [5]),
        ("try:\n  a()\nexcept E:\n  async with b:\n   c()", [5]),
        ("try:\n  a()\nexcept E:\n  b()\nelse:\n  await c", []),
    ],
)
def test_such_a_wait_is_found(body: str, lines: list[int]) -> None:
    source = "async def f():\n " + body.replace("\nexcept", "\n except").replace(
        "\nfinally", "\n finally"
    ).replace("\nelse", "\n else")
    assert waits_in_handlers(source) == lines


def test_a_command_that_a_test_starts_is_of_the_build_under_test() -> None:
    command = [sys.executable, "-m", "gateway", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=30)
    assert done.stdout == f"{version('preview-gateway')} (data plane: {BUILD})\n"


def test_the_wheel_of_the_build_under_test_is_for_any_platform_only_if_pure() -> None:
    wheel = distribution("preview-gateway").read_text("WHEEL") or ""
    assert f"Root-Is-Purelib: {str(BUILD == 'pure').lower()}\n" in wheel
    assert ("Tag: py3-none-any" in wheel) == (BUILD == "pure")


def test_a_wheel_is_pure_unless_the_other_is_asked_for(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HATCH_")}
    flags = ("-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", str(tmp_path), str(ROOT)],
        env={**environ, "CC": "no-compiler"},
        check=True,
        timeout=60,
    )
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")


def test_no_binary_lies_beside_the_sources() -> None:
    """It would be imported instead of the source, whatever has been edited since."""
    found = [path for path in (ROOT / "gateway").rglob("*") if path.suffix in {".so", ".pyd"}]
    assert found == []


def test_what_the_image_is_made_of_is_not_kept_from_it() -> None:
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        name
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from=" not in line
        for name in line.split()[1:-1]
    }
    assert "hatch_build.py" in copied
    assert copied <= {line.removeprefix("!") for line in kept if line.startswith("!")}
