"""Where the Kubernetes API server is, and who the gateway is to it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gateway.errors import SettingsError
from gateway.spawner.kube.kubeconfig import Kubeconfig, read_kubeconfig
from gateway.spawner.kube.tokens import FileToken, TokenSource

#: Where the kubelet mounts what a pod's service account needs.
_MOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class KubeConfig:
    """How to reach the pods of one namespace.

    ``tls`` is None for a URL without TLS. ``server_name`` is the name in the certificate if it is
    not the URL's host.
    """

    url: str
    namespace: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    tokens: TokenSource | None = field(default=None, repr=False)
    server_name: str = ""


def load_config(
    *,
    api_url: str = "",
    kubeconfig: str = "",
    namespace: str = "",
    environ: Mapping[str, str] = os.environ,
    mount: Path = _MOUNT,
) -> KubeConfig:
    """Find the API server. Raises SettingsError that says what to do.

    In this order: ``api_url``, which is asked without credentials (``kubectl proxy``); the file
    ``kubeconfig`` if one is given; the service account of the pod; the kubeconfig files that
    kubectl would take. Reads files and may run kubectl: up to ten seconds, not for an event loop.
    """
    if api_url:
        return _from_url(api_url, namespace)
    if not kubeconfig and (host := environ.get("KUBERNETES_SERVICE_HOST")):
        return _from_mount(host, environ.get("KUBERNETES_SERVICE_PORT") or "443", namespace, mount)
    return _from_kubeconfig(read_kubeconfig(kubeconfig, environ), namespace)


def _from_url(url: str, namespace: str) -> KubeConfig:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise SettingsError(
            "GATEWAY_KUBE_API_URL is no address of an API server: use http://127.0.0.1:8001, for "
            "example, which is where `kubectl proxy` listens"
        )
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    return KubeConfig(url.rstrip("/"), namespace or "default", tls)


def _from_mount(host: str, port: str, namespace: str, mount: Path) -> KubeConfig:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    token = mount / "token"
    if not token.is_file():
        raise SettingsError(
            f"this pod has no service account token in {mount}: set automountServiceAccountToken "
            "in the pod and its service account, or GATEWAY_KUBE_API_URL"
        )
    try:
        tls = ssl.create_default_context(cafile=str(mount / "ca.crt"))
        own = "" if namespace else (mount / "namespace").read_text("utf-8").strip()
    except OSError as exc:
        raise SettingsError(
            f"the service account's files in {mount} cannot be read: {exc}"
        ) from exc
    return KubeConfig(f"https://{authority}", namespace or own, tls, FileToken(token))


def _from_kubeconfig(found: Kubeconfig, namespace: str) -> KubeConfig:
    return KubeConfig(
        found.url,
        namespace or found.namespace or "default",
        found.tls,
        found.tokens,
        found.server_name,
    )
