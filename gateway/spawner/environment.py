"""The environments of spawned programs, from an allow-list: nothing else of ours reaches them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_LOCALE: Final = frozenset({"LANG", "TZ"})
_CERTIFICATES: Final = frozenset({"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"})
_PROXIES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})
#: So that output is plain text.
PLAIN: Final = {"TERM": "dumb", "NO_COLOR": "1", "FORCE_COLOR": "0"}
_DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


def dev_server_environment(
    ours: Mapping[str, str], *, node: Path | None, app: Path, home: Path, tmp: Path
) -> dict[str, str]:
    """What a dev server sees of our environment ``ours``."""
    path = [str(app / "node_modules" / ".bin")]
    if node:
        path.append(str(node.parent))
    path.append(ours.get("PATH", _DEFAULT_PATH))
    kept = {
        name: value
        for name, value in ours.items()
        if name in _LOCALE or name in _CERTIFICATES or name.startswith("LC_")
    }
    return {
        **kept,
        **PLAIN,
        "PATH": os.pathsep.join(path),
        "HOME": str(home),
        "TMPDIR": str(tmp),
    }


def npm_environment(ours: Mapping[str, str], *, node: Path, fallback_home: Path) -> dict[str, str]:
    """What npm sees of our environment ``ours``.

    ``fallback_home`` stands in, with npm's cache, for a HOME that cannot be written.
    """
    env = {
        name: value
        for name, value in ours.items()
        if name in _LOCALE
        or name in _CERTIFICATES
        or name.startswith("LC_")
        or name.upper() in _PROXIES
        or name.lower().startswith("npm_config_")
    }
    env |= PLAIN
    env["PATH"] = os.pathsep.join([str(node.parent), ours.get("PATH", _DEFAULT_PATH)])
    home = ours.get("HOME", "")
    if home and os.access(home, os.W_OK | os.X_OK):
        env["HOME"] = home
    else:
        env["HOME"] = str(fallback_home)
        env.setdefault("npm_config_cache", str(fallback_home))
    return env
