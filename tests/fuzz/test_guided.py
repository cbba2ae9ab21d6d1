"""A short run of the coverage-guided fuzzer for each parser; ``make fuzz`` is the long one."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
#: Where there is a wheel: the marker in pyproject.toml.
HAS_WHEEL: Final = (
    sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)
)
SECONDS: Final = 12 if os.environ.get("CI") else 4


@pytest.fixture
def atheris() -> None:
    """Coverage-guided fuzzing is possible."""
    if importlib.util.find_spec("atheris") is not None:
        return
    if HAS_WHEEL and os.environ.get("CI"):
        pytest.fail("atheris is not installed; in CI nothing is skipped")
    pytest.skip(
        "atheris is not installed: run `make setup`" if HAS_WHEEL else "no wheel of atheris"
    )


@pytest.mark.usefixtures("atheris")
@pytest.mark.parametrize("side", ["requests", "responses", "frames"])
def test_nothing_is_found_in_a_short_time(side: str, tmp_path: Path) -> None:
    corpus, found = tmp_path / "corpus", tmp_path / "found"
    corpus.mkdir()
    found.mkdir()
    options = [f"-max_total_time={SECONDS}", "-seed=1", f"-artifact_prefix={found}/", str(corpus)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", side, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + 60,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert done.returncode == 0, "\n".join(lines) or done.stdout + done.stderr
    # It did run, and it got further than the seeds.
    assert "Done " in done.stderr
    assert len(list(corpus.iterdir())) > 10
