"""The images that scripts/check-image has built: looked at, and run as containers.

Only with ``--images``: they are no part of ``pytest`` alone, which cannot build them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import pytest

from tests.conftest import require_tool
from tests.image.container import Container, Image

ROOT: Final = Path(__file__).resolve().parents[2]
APP: Final = ROOT / "examples" / "vite-react"


class Start(Protocol):
    """Starts a container of a target's image; see ``Container``."""

    def __call__(
        self,
        target: str,
        *,
        command: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
        folders: Mapping[str, Path] | None = None,
    ) -> Container: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--images", type=Path, help="the folder of scripts/check-image")
    parser.addoption("--canary", default="", help="a word that was in every secret of the build")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.getoption("images", default=None) else True


@pytest.fixture(scope="session")
def work(pytestconfig: pytest.Config) -> Path:
    """The folder of the run, on the disk on which the images are."""
    return Path(pytestconfig.getoption("images"))


@pytest.fixture(scope="session")
def images(work: Path) -> dict[str, Image]:
    """The images by the name of their target."""
    return {
        folder.name: Image(
            folder.name,
            root=(folder / "root").resolve(),
            described=json.loads((folder / "image.json").read_text())["Docker"],
        )
        for folder in (work / "images").iterdir()
    }


@pytest.fixture(params=("gateway", "process", "preview"))
def image(request: pytest.FixtureRequest, images: dict[str, Image]) -> Image:
    """Each image in turn."""
    return images[request.param]


@pytest.fixture
def start(work: Path, images: dict[str, Image]) -> Iterator[Start]:
    """Starts containers, and ends those that a test has left."""
    running: list[Container] = []

    def start(
        target: str,
        *,
        command: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
        folders: Mapping[str, Path] | None = None,
    ) -> Container:
        container = Container(
            images[target], work, command=command, environ=environ, folders=folders
        )
        running.append(container)
        container.start()
        return container

    yield start
    for container in running:
        container.end()


@pytest.fixture(scope="session")
def npm_cache(work: Path, pytestconfig: pytest.Config) -> Path:
    """What npm needs to install the example without a network. Kept from run to run."""
    npm = require_tool("npm")
    cache = ROOT / "build" / "image" / "npm"
    folder = work / "npm"
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(APP / name, folder)
    subprocess.run(
        [npm, "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund",
         "--loglevel=error", f"--cache={cache}"],
        cwd=folder, check=True, timeout=240,
    )  # fmt: skip
    shutil.rmtree(folder)
    return cache
