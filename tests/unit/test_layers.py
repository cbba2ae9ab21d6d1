"""Layers import downward only: DESIGN.md, "The shape", as a table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

#: How high a module stands. The longest matching prefix counts, so a file may be split into a
#: package, or get a neighbour within its package, without a new line here.
RANKS: Final[dict[str, int]] = {
    "gateway.errors": 0,
    "gateway.session": 1,
    "gateway.registry.url": 0,
    "gateway.settings": 1,
    "gateway.findings": 1,
    "gateway.archive": 1,
    "gateway.telemetry": 1,
    "gateway.usage": 2,
    "gateway.signing": 2,
    "gateway.tokens": 1,
    "gateway.proxy.fields": 1,
    "gateway.proxy.authority": 1,
    "gateway.proxy.handshake": 1,
    "gateway.proxy.http1": 1,
    "gateway.proxy.lines": 1,
    "gateway.proxy.messages": 1,
    "gateway.proxy.requests": 1,
    "gateway.proxy.responses": 1,
    "gateway.proxy.trailers": 1,
    "gateway.registry.base": 2,
    "gateway.spawner.base": 2,
    "gateway.spawner.manifest": 2,
    "gateway.proxy": 3,
    "gateway.registry": 3,
    "gateway.spawner": 3,
    "gateway.lifecycle": 3,
    "gateway.reports": 3,
    "gateway.sweep": 3,
    "gateway.heartbeat": 3,
    "gateway.holding": 3,
    "gateway.takeover": 3,
    "gateway.handover": 3,
    "gateway.watchers": 3,
    "gateway.stopping": 3,
    "gateway.strays": 3,
    "gateway.proxy.connection": 4,
    "gateway.proxy.exchange": 4,
    "gateway.proxy.hmr": 4,
    "gateway.proxy.listener": 4,
    "gateway.proxy.plane": 4,
    "gateway.proxy.serving": 4,
    "gateway.api": 4,
    "gateway.workers": 4,
    "gateway.workers.pauses": 1,
    "gateway.workers.tally": 2,
    # The composition root of a data-plane process.
    "gateway.workers.main": 5,
    # What commands are made of: they talk to a gateway over HTTP and know nothing of its inside.
    "gateway.client": 4,
    "gateway.folder": 4,
    "gateway.install_agent": 1,
    "gateway.doctor": 5,
    "gateway.up": 5,
    "gateway.app": 5,
    "gateway.cli": 6,
    "gateway.__main__": 6,
}

#: Modules of one group may import each other within a rank; others may not.
GROUPS: Final = (
    "gateway.proxy",
    "gateway.registry",
    "gateway.spawner",
    "gateway.api",
    "gateway.workers",
)

#: Single imports within a rank and across groups.
ALLOWED: Final = {
    ("gateway.settings", "gateway.tokens"),
    ("gateway.__main__", "gateway.cli"),
    ("gateway.lifecycle", "gateway.handover"),
    ("gateway.lifecycle", "gateway.heartbeat"),
    ("gateway.lifecycle", "gateway.holding"),
    ("gateway.lifecycle", "gateway.stopping"),
    ("gateway.lifecycle", "gateway.strays"),
    ("gateway.strays", "gateway.takeover"),
    ("gateway.lifecycle", "gateway.sweep"),
    ("gateway.lifecycle", "gateway.takeover"),
    ("gateway.lifecycle", "gateway.watchers"),
    ("gateway.holding", "gateway.reports"),
    ("gateway.takeover", "gateway.heartbeat"),
    ("gateway.handover", "gateway.holding"),
    ("gateway.handover", "gateway.takeover"),
    ("gateway.sweep", "gateway.takeover"),
    ("gateway.stopping", "gateway.takeover"),
    ("gateway.stopping", "gateway.watchers"),
}

#: What a package never imports, of ours or of others'.
FORBIDDEN: Final[dict[str, tuple[str, ...]]] = {
    "gateway.proxy": ("aiohttp", "redis", "valkey", "gateway.spawner"),
    "gateway.api": ("gateway.proxy", "redis", "valkey"),
    **dict.fromkeys(
        ("gateway.client", "gateway.folder", "gateway.up", "gateway.doctor"),
        (
            "gateway.proxy",
            "gateway.registry",
            "gateway.spawner",
            "gateway.lifecycle",
            "gateway.api",
        ),
    ),
}

#: Implementations, which only the composition roots and their own package know.
CONCRETE: Final = (
    "gateway.registry.redis_store",
    "gateway.registry.embedded",
    "gateway.spawner.process",
    "gateway.spawner.kubernetes",
)

#: The modules that put a process together: the gateway, and a data-plane process of it.
ROOTS: Final = ("gateway.app", "gateway.workers.main")


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer(module: str) -> str | None:
    """The entry of RANKS that counts for a module."""
    return max((prefix for prefix in RANKS if is_within(module, prefix)), key=len, default=None)


def rank(module: str) -> int | None:
    name = layer(module)
    return None if name is None else RANKS[name]


def group(module: str) -> str | None:
    packages = (package for package in GROUPS if is_within(module, package))
    return next(packages, layer(module))


def violations(module: str, imported: str) -> Iterator[str]:
    """What is wrong with ``module`` importing ``imported``."""
    for package, others in FORBIDDEN.items():
        if is_within(module, package) and any(is_within(imported, other) for other in others):
            yield f"{module} imports {imported}: {package} must not know it"
    # The package itself holds the version and nothing else.
    if not is_within(imported, "gateway") or imported == "gateway":
        return
    if (
        any(is_within(imported, concrete) for concrete in CONCRETE)
        and module not in ROOTS
        and group(module) != group(imported)
    ):
        yield f"{module} imports {imported}: only composition roots name implementations"
    here, there = rank(module), rank(imported)
    if here is None or there is None:
        yield f"{module} imports {imported}: give both a rank in RANKS"
    elif there > here:
        yield f"{module} imports {imported}: upward, from rank {here} to {there}"
    elif (
        there == here
        and group(module) != group(imported)
        and (layer(module), layer(imported)) not in ALLOWED
    ):
        yield f"{module} imports {imported}: a neighbour of the same rank"


def imports(source: str, module: str, known: frozenset[str]) -> Iterator[str]:
    """The modules that ``source`` imports anywhere, by their full names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            origin = node.module or ""
            # `from package import module` imports the module.
            names = {f"{origin}.{alias.name}" for alias in node.names} & known
            yield from names or {origin}


def modules(root: Path) -> dict[str, Path]:
    """All modules of the package ``gateway`` below ``root``, with their files."""
    found: dict[str, Path] = {}
    for path in sorted((root / "gateway").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def problems(root: Path) -> list[str]:
    """Everything below ``root`` that breaks the layers."""
    found = modules(root)
    known = frozenset(found)
    wrong = [
        f"{module} has no rank: add it to RANKS"
        for module in found
        if rank(module) is None and module != "gateway"
    ]
    for module, path in found.items():
        for imported in imports(path.read_text(), module, known):
            wrong += violations(module, imported)
    return wrong


def test_layers_import_downward_only() -> None:
    assert problems(ROOT) == []


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("errors.py", "import gateway.settings", "upward"),
        ("registry/base.py", "from gateway.registry import redis_store", "upward"),
        ("settings.py", "from gateway.session import State", "neighbour"),
        ("registry/base.py", "from gateway.spawner.base import Job", "neighbour"),
        ("lifecycle.py", "from gateway.proxy.routes import Routes", "neighbour"),
        ("proxy/routes.py", "from gateway.lifecycle import Lifecycle", "neighbour"),
        ("proxy/routes.py", "from gateway.registry import redis_store", "name implementations"),
        ("proxy/tunnel.py", "def late():\n    import aiohttp.web", "must not know"),
        ("proxy/access.py", "from redis.asyncio import Redis", "must not know"),
        ("proxy/listener.py", "from gateway.spawner.base import Job", "must not know"),
        ("api/routes.py", "from gateway.proxy.http1 import Head", "must not know"),
        ("cli.py", "from gateway.registry.embedded import Embedded", "name implementations"),
        ("helpers.py", "import json", "has no rank"),
        ("app.py", "from gateway.helpers import help", "give both a rank"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, path: str, line: str, complaint: str) -> None:
    for module in ("registry/redis_store.py", path):
        file = tmp_path / "gateway" / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "gateway" / path).write_text(line)
    found = problems(tmp_path)
    assert any(complaint in problem for problem in found), found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("session.py", "from gateway.errors import BadSessionId"),
        ("proxy/responses.py", "from gateway.proxy.http1 import MessageParser"),
        ("proxy/listener.py", "from gateway.proxy import pages"),
        ("proxy/upstream.py", "from gateway.proxy.pool import Pool"),
        ("spawner/process.py", "from gateway.spawner.workspace import Workspace"),
        ("api/routes.py", "from gateway.lifecycle import Lifecycle\nimport aiohttp"),
        ("app.py", "from gateway.registry.redis_store import RedisStore"),
        ("cli.py", "from gateway import __version__\nfrom gateway.app import run"),
        ("__main__.py", "from gateway.cli import main"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, path: str, line: str) -> None:
    file = tmp_path / "gateway" / path
    file.parent.mkdir(parents=True)
    file.write_text(line)
    assert problems(tmp_path) == []


def test_a_relative_import_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "app.py").write_text("from . import errors")
    with pytest.raises(AssertionError, match="relative import"):
        problems(tmp_path)
