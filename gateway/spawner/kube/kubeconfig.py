"""The current context of a kubeconfig file.

Files in JSON are read as they are; for YAML, and for several files, kubectl is asked, which also
merges them and puts certificates in place. So the gateway needs no YAML parser, and a laptop that
has a kubeconfig mostly has kubectl.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.errors import SettingsError
from gateway.spawner.kube.tokens import CommandToken, FileToken, FixedToken, TokenSource

_KUBECTL_SECONDS: Final = 10.0
_REMEDY: Final = "run `kubectl proxy` and set GATEWAY_KUBE_API_URL to its address"
#: What a cluster or a user may hold that changes who or where the gateway would be.
_UNSUPPORTED: Final = ("proxy-url", "auth-provider", "username", "as", "as-uid", "as-groups")


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """What a kubeconfig says about its current context."""

    url: str
    namespace: str
    server_name: str
    tls: ssl.SSLContext | None = field(repr=False)
    tokens: TokenSource | None = field(repr=False)


def read_kubeconfig(given: str, environ: Mapping[str, str]) -> Kubeconfig:
    """The current context of the file ``given``, else of ``KUBECONFIG`` or ``~/.kube/config``.

    Raises SettingsError.
    """
    paths = _paths(given, environ)
    if not paths:
        raise SettingsError(
            "there is no Kubernetes cluster to use: not in a pod, and no kubeconfig in KUBECONFIG "
            "or ~/.kube/config; or set GATEWAY_KUBE_API_URL (with `kubectl proxy`, for example)"
        )
    document = _read_json(paths[0]) if len(paths) == 1 else None
    if document is None:
        document = _ask_kubectl(paths, environ)
    return parse_kubeconfig(document, paths[0].parent)


def _paths(given: str, environ: Mapping[str, str]) -> list[Path]:
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise SettingsError(f"there is no kubeconfig file {path}")
        return [path]
    listed = environ.get("KUBECONFIG") or str(Path(environ.get("HOME", "~"), ".kube", "config"))
    candidates = (Path(name).expanduser() for name in listed.split(os.pathsep) if name)
    return [path for path in candidates if path.is_file()]


def _read_json(path: Path) -> dict[str, Any] | None:
    """The document in a file; None if it is not JSON."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as exc:
        raise SettingsError(f"the kubeconfig {path} cannot be read: {exc}") from exc
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _ask_kubectl(paths: list[Path], environ: Mapping[str, str]) -> dict[str, Any]:
    kubectl = shutil.which("kubectl", path=environ.get("PATH"))
    files = os.pathsep.join(map(str, paths))
    if kubectl is None:
        raise SettingsError(
            f"reading the kubeconfig {files} takes kubectl, which is not on the PATH (without it, "
            f"a single file in JSON will do): install it, or elsewhere {_REMEDY}"
        )
    # Flattened: certificates and keys of files are in the document, whatever folder they are in.
    command = [kubectl, "config", "view", "--raw", "--minify", "--flatten", "-o", "json"]
    try:
        answer = subprocess.run(  # noqa: S603 - found on the PATH, fixed arguments
            command,
            env={**environ, "KUBECONFIG": files},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_KUBECTL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        # Only the command is named: its output holds credentials.
        reason = "it takes too long" if isinstance(exc, subprocess.TimeoutExpired) else str(exc)
        raise SettingsError(f"kubectl cannot read the kubeconfig {files}: {reason}") from exc
    if answer.returncode:
        complaint = answer.stderr.decode(errors="replace").strip()[:300]
        raise SettingsError(f"kubectl cannot read the kubeconfig {files}: {complaint}")
    document: dict[str, Any] = json.loads(answer.stdout)
    return document


def parse_kubeconfig(document: Mapping[str, Any], folder: Path) -> Kubeconfig:
    """The current context of a document whose relative paths start at ``folder``.

    Raises SettingsError.
    """
    context = _entry(document, "context", str(document.get("current-context") or ""))
    cluster = _entry(document, "cluster", str(context.get("cluster") or ""))
    user = _entry(document, "user", str(context["user"])) if context.get("user") else {}
    for name in _UNSUPPORTED:
        if cluster.get(name) or user.get(name):
            raise SettingsError(f"the gateway cannot do {name!r} of a kubeconfig: {_REMEDY}")
    url = str(cluster.get("server") or "").rstrip("/")
    if urlsplit(url).scheme not in ("http", "https"):
        raise SettingsError(f"the kubeconfig names no server for its cluster: {url!r}")
    return Kubeconfig(
        url=url,
        namespace=str(context.get("namespace") or ""),
        server_name=str(cluster.get("tls-server-name") or ""),
        tls=_tls(cluster, user, folder) if url.startswith("https:") else None,
        tokens=_tokens(user, folder),
    )


def _entry(document: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    """The entry of a name among the contexts, clusters or users."""
    if not name:
        raise SettingsError(
            f"the kubeconfig has no current {kind}: choose one with `kubectl config use-context`"
        )
    for entry in document.get(f"{kind}s") or ():
        if isinstance(entry, dict) and entry.get("name") == name:
            return entry.get(kind) or {}
    raise SettingsError(f"the kubeconfig has no {kind} {name!r}")


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any], folder: Path) -> ssl.SSLContext:
    authority = _content(cluster, "certificate-authority", folder)
    try:
        tls = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        _load_own(tls, user, folder)
    except (ssl.SSLError, UnicodeDecodeError) as exc:
        raise SettingsError(f"a certificate or key of the kubeconfig is none: {exc}") from exc
    return tls


def _load_own(tls: ssl.SSLContext, user: Mapping[str, Any], folder: Path) -> None:
    """Load the user's certificate and key, if it has them."""
    certificate = _content(user, "client-certificate", folder)
    key = _content(user, "client-key", folder)
    if certificate is None or key is None:
        return
    # Python takes them from files only. The folder is for the owner alone and gone in a moment.
    with tempfile.TemporaryDirectory(prefix="kube-") as private:
        path = Path(private, "client.pem")
        path.touch(0o600)
        path.write_bytes(certificate + b"\n" + key)
        tls.load_cert_chain(path)


def _content(entry: Mapping[str, Any], name: str, folder: Path) -> bytes | None:
    """What ``<name>-data`` holds in base64, or the file ``<name>``; None without both."""
    try:
        if data := entry.get(f"{name}-data"):
            return base64.b64decode(data, validate=True)
        return (folder / entry[name]).read_bytes() if entry.get(name) else None
    except (binascii.Error, TypeError) as exc:
        raise SettingsError(f"{name}-data of the kubeconfig is no base64") from exc
    except OSError as exc:
        raise SettingsError(f"{name} of the kubeconfig cannot be read: {exc}") from exc


def _tokens(user: Mapping[str, Any], folder: Path) -> TokenSource | None:
    # The file wins, as with kubectl: it is the one that is kept up to date.
    if path := user.get("tokenFile"):
        return FileToken(folder / path)
    if token := user.get("token"):
        return FixedToken(str(token))
    return _plugin(user["exec"], folder) if user.get("exec") else None


def _plugin(plugin: Mapping[str, Any], folder: Path) -> CommandToken:
    command = str(plugin.get("command") or "")
    if plugin.get("provideClusterInfo") or plugin.get("interactiveMode") == "Always":
        raise SettingsError(
            f"the credential plugin {command} of the kubeconfig wants a terminal or the cluster's "
            f"data: {_REMEDY}"
        )
    if "/" in command:
        command = str(folder / command)
    elif not shutil.which(command):
        hint = str(plugin.get("installHint") or "install it").strip()
        raise SettingsError(
            f"the credential plugin {command!r} of the kubeconfig is missing: {hint}"
        )
    return CommandToken(
        [command, *map(str, plugin.get("args") or ())],
        api_version=str(plugin.get("apiVersion") or "client.authentication.k8s.io/v1"),
        environment={item["name"]: str(item["value"]) for item in plugin.get("env") or ()},
    )
