"""One gateway for all examples of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.stage import Stage


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    stage.runner.run(stage.open())
    yield stage
    stage.runner.run(stage.forget())
    stage.runner.run(stage.gateway.close())
    stage.runner.close()
