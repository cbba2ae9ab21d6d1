"""What of a project decides about its dependencies: the files npm is given, and their key. Pure.

npm never sees the project itself, only these files reduced to what an install depends on. So
equal keys mean equal installs, an edit of a name or a script changes nothing, and the only
scripts that could run are those of dependencies.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.spawner.package_json import (
    DEPENDENCIES,
    NAME,
    dependency_names,
    parse_json_object,
    read_package,
)

#: npm prefers the first.
LOCK_FILES: Final = ("npm-shrinkwrap.json", "package-lock.json")
_RELEVANT: Final = (
    *DEPENDENCIES,
    "peerDependenciesMeta",
    "bundleDependencies",
    "bundledDependencies",
    "overrides",
    "workspaces",
    "engines",
    "os",
    "cpu",
)
#: What other packages of the same project must show besides.
_IDENTITY: Final = ("name", "version", "bin")
_LOCAL: Final = re.compile(r"(?:file|link|workspace):|\.{0,2}/|~/")
_NPM_FLAGS: Final = (
    "--no-audit",
    "--no-fund",
    "--no-progress",
    "--no-update-notifier",
    "--color=false",
    "--include=dev",
    "--logs-max=0",
)
#: Settings of a project's .npmrc that say what is installed. Others name programs to run and files
#: to read with the operator's rights.
_NPMRC: Final = re.compile(
    r"(?:registry|@[\w.-]+:registry|//[^=\s]+:(?:_authToken|_auth|username|_password)|"
    r"legacy-peer-deps|strict-peer-deps|force|engine-strict|install-strategy|omit|include|"
    r"prefer-dedupe|install-links|os|cpu|libc)\s*=.*",
    re.IGNORECASE,
)


def npm_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files to install from; empty if nothing is to be installed. Raises UnsupportedProject."""
    package = read_package(files)
    if not dependency_names(package) and not package.get("workspaces"):
        return {}
    given = {NAME: _reduced(package, _RELEVANT)}
    lock = next((name for name in LOCK_FILES if name in files), "yarn.lock")
    if lock in LOCK_FILES:
        parse_json_object(lock, files[lock])
    if lock in files:
        given[lock] = files[lock]
    if rules := _npmrc(files.get(".npmrc", b"")):
        given[".npmrc"] = rules
    if _has_local(package):
        given |= _local_packages(files)
    return given


def npm_arguments(given: Mapping[str, bytes], *, scripts: bool) -> list[str]:
    """How npm is asked to install: exactly what a lock file says, where there is one.

    ``scripts``: whether the install scripts of dependencies run, which is arbitrary code.
    """
    has_lock = any(name in given for name in LOCK_FILES)
    return [
        *(["ci", "--prefer-offline"] if has_lock else ["install"]),
        *([] if scripts else ["--ignore-scripts"]),
        *_NPM_FLAGS,
    ]


def cache_key(given: Mapping[str, bytes], *, circumstances: Sequence[str]) -> str:
    """Name of the cache entry for these files, installed under these circumstances."""
    digest = hashlib.sha256()
    for part in (*circumstances, *(part for item in sorted(given.items()) for part in item)):
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _reduced(package: Mapping[str, Any], fields: Sequence[str]) -> bytes:
    kept = {name: package[name] for name in fields if package.get(name)}
    return json.dumps(kept, indent=2, sort_keys=True).encode()


def _has_local(package: Mapping[str, Any]) -> bool:
    return bool(package.get("workspaces")) or any(
        _LOCAL.match(version)
        for field in DEPENDENCIES
        for version in package.get(field, {}).values()
    )


def _local_packages(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The other packages of a project, to which npm makes links, and packed ones."""
    return {
        path: _reduced(parse_json_object(path, content), (*_IDENTITY, *_RELEVANT))
        if path.endswith(f"/{NAME}")
        else content
        for path, content in files.items()
        if path.endswith((f"/{NAME}", ".tgz"))
    }


def _npmrc(content: bytes) -> bytes:
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
    # npm replaces ${NAME} by the environment, which is the operator's.
    kept = [line for line in lines if _NPMRC.fullmatch(line) and "${" not in line]
    return "".join(f"{line}\n" for line in kept).encode()
