"""Where the API server is found, and with which credentials it is asked."""

from __future__ import annotations

import base64
import json
import os
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import KubeRefused, KubeUnavailable, SettingsError
from gateway.spawner.kube.client import KubeApi
from gateway.spawner.kube.config import KubeConfig, load_config
from tests.conftest import require_tool
from tests.kube.certificates import SERVER_NAME, Certificates
from tests.kube.cluster import FakeCluster


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def kubeconfig(
    server: str = "https://127.0.0.1:6443",
    *,
    cluster: dict[str, Any] | None = None,
    user: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", **(context or {})}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }


def written(folder: Path, document: dict[str, Any], name: str = "config") -> str:
    path = folder / name
    path.write_text(json.dumps(document))
    return str(path)


def load(folder: Path, document: dict[str, Any], **arguments: Any) -> KubeConfig:
    return load_config(kubeconfig=written(folder, document), environ={}, **arguments)


async def token(config: KubeConfig) -> str:
    assert config.tokens is not None
    return await config.tokens.token()


# -- in this order ---------------------------------------------------------------------------------


def test_an_address_that_is_given_comes_first_and_takes_no_credentials(tmp_path: Path) -> None:
    config = load_config(
        api_url="http://127.0.0.1:8001/",
        kubeconfig=written(tmp_path, kubeconfig(user={"token": "t"})),
        namespace="previews",
        environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    )
    assert config == KubeConfig("http://127.0.0.1:8001", "previews")


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "ftp://x", "http://", "http://x/?a=b"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_KUBE_API_URL"):
        load_config(api_url=url, environ={})


def test_a_file_that_is_given_comes_before_the_pods_account(tmp_path: Path) -> None:
    config = load_config(
        kubeconfig=written(tmp_path, kubeconfig("http://elsewhere")),
        environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    )
    assert config.url == "http://elsewhere"


def test_without_any_cluster_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"GATEWAY_KUBE_API_URL .*kubectl proxy"):
        load_config(environ={"HOME": str(tmp_path)})


def test_a_kubeconfig_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no kubeconfig file .*nowhere"):
        load_config(kubeconfig=str(tmp_path / "nowhere"), environ={})


# -- in a pod --------------------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path: Path, certificates: Certificates) -> Path:
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text("pod-token\n")
    (folder / "namespace").write_text("gateways")
    (folder / "ca.crt").write_bytes((certificates.folder / "ca.pem").read_bytes())
    return folder


async def test_in_a_pod_its_service_account_is_used(mount: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}
    config = load_config(environ=environ, mount=mount)
    assert (config.url, config.namespace) == ("https://10.0.0.1:6443", "gateways")
    assert await token(config) == "pod-token"
    assert config.tls is not None
    assert config.tls.verify_mode == ssl.CERT_REQUIRED
    assert load_config(environ=environ, mount=mount, namespace="other").namespace == "other"


def test_the_api_servers_address_may_be_ipv6(mount: Path) -> None:
    config = load_config(environ={"KUBERNETES_SERVICE_HOST": "fd00::1"}, mount=mount)
    assert config.url == "https://[fd00::1]:443"


def test_a_pod_without_a_token_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="automountServiceAccountToken"):
        load_config(environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, mount=tmp_path)


async def test_a_pods_account_reaches_the_api_server(
    mount: Path, certificates: Certificates
) -> None:
    async with FakeCluster(tls=certificates.server(), nodes=False) as cluster:
        cluster.api.tokens = {"pod-token"}
        host, port = cluster.url.removeprefix("https://").split(":")
        environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        async with KubeApi(load_config(environ=environ, mount=mount, namespace="previews")) as api:
            assert await api.read("a") is None
            # The kubelet replaces the file, and the API server takes the new token only.
            (mount / "token").write_text("next-token")
            cluster.api.tokens = {"next-token"}
            assert await api.read("a") is None


# -- kubeconfig ------------------------------------------------------------------------------------


def test_the_current_context_counts(tmp_path: Path) -> None:
    document = kubeconfig("https://right:6443", context={"namespace": "mine"})
    document["contexts"].insert(0, {"name": "there", "context": {"cluster": "d", "user": "u"}})
    document["clusters"].insert(0, {"name": "d", "cluster": {"server": "https://wrong"}})
    config = load(tmp_path, document)
    assert (config.url, config.namespace) == ("https://right:6443", "mine")
    assert load(tmp_path, document, namespace="previews").namespace == "previews"


@pytest.mark.parametrize("change", [{"current-context": ""}, {"current-context": "no"}])
def test_a_context_that_is_missing_is_told(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="context"):
        load(tmp_path, {**kubeconfig(), **change})


async def test_a_certificate_of_the_user_is_shown_to_the_server(
    tmp_path: Path, certificates: Certificates
) -> None:
    def encoded(name: str) -> str:
        return base64.b64encode((certificates.folder / name).read_bytes()).decode()

    async with FakeCluster(tls=certificates.server(clients=True), nodes=False) as cluster:
        in_files = kubeconfig(
            cluster.url,
            cluster={"certificate-authority": str(certificates.folder / "ca.pem")},
            # Relative to the file.
            user={"client-certificate": "client.pem", "client-key": "client.key"},
        )
        for name in ("client.pem", "client.key"):
            (tmp_path / name).write_bytes((certificates.folder / name).read_bytes())
        in_place = kubeconfig(
            cluster.url,
            cluster={"certificate-authority-data": encoded("ca.pem")},
            user={
                "client-certificate-data": encoded("client.pem"),
                "client-key-data": encoded("client.key"),
            },
        )
        for document in (in_files, in_place):
            async with KubeApi(load(tmp_path, document, namespace="previews")) as api:
                assert await api.read("a") is None
        anonymous = kubeconfig(
            cluster.url, cluster={"certificate-authority-data": encoded("ca.pem")}
        )
        config = load(tmp_path, anonymous, namespace="previews")
        async with KubeApi(config, call_seconds=0.1) as api:
            with pytest.raises(KubeUnavailable):
                await api.read("a")


async def test_a_server_of_another_ca_is_not_trusted_unless_that_is_asked_for(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with FakeCluster(tls=certificates.server(), nodes=False) as cluster:
        strict = load(tmp_path, kubeconfig(cluster.url), namespace="previews")
        async with KubeApi(strict) as api:
            with pytest.raises(KubeUnavailable, match="is not one of its CA") as caught:
                await api.read("a")
            assert not caught.value.uncertain
        document = kubeconfig(cluster.url, cluster={"insecure-skip-tls-verify": True})
        async with KubeApi(load(tmp_path, document, namespace="previews")) as api:
            assert await api.read("a") is None


@pytest.mark.parametrize(("name", "trusted"), [(SERVER_NAME, True), ("other.test", False)])
async def test_the_name_in_the_servers_certificate_may_be_another(
    tmp_path: Path, certificates: Certificates, name: str, trusted: bool
) -> None:
    async with FakeCluster(tls=certificates.server(), nodes=False) as cluster:
        document = kubeconfig(
            cluster.url,
            cluster={
                "certificate-authority": str(certificates.folder / "ca.pem"),
                "tls-server-name": name,
            },
        )
        config = load(tmp_path, document, namespace="previews")
        async with KubeApi(config) as api:
            if trusted:
                assert await api.read("a") is None
            else:
                with pytest.raises(KubeUnavailable, match="is not one of its CA"):
                    await api.read("a")


def test_a_key_does_not_stay_on_the_disk(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    user = {
        "client-certificate": str(certificates.folder / "client.pem"),
        "client-key": str(certificates.folder / "client.key"),
    }
    load(tmp_path, kubeconfig(user=user))
    assert os.listdir(tmp_path) == ["config"]


@pytest.mark.parametrize(
    ("cluster", "complaint"),
    [
        ({"certificate-authority-data": "!"}, "no base64"),
        ({"certificate-authority-data": base64.b64encode(b"x").decode()}, "is none"),
        ({"certificate-authority": "missing.pem"}, "cannot be read"),
        ({"proxy-url": "http://proxy"}, "cannot do 'proxy-url'.*kubectl proxy"),
        ({"server": "here"}, "names no server"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused(
    tmp_path: Path, cluster: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        load(tmp_path, kubeconfig(cluster=cluster))


@pytest.mark.parametrize("name", ["auth-provider", "username", "as"])
def test_a_user_that_would_be_somebody_else_here_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=f"cannot do '{name}'.*kubectl proxy"):
        load(tmp_path, kubeconfig(user={name: "x"}))


async def test_a_token_of_a_file_comes_before_one_in_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-the-file")
    assert await token(load(tmp_path, kubeconfig(user={"token": "t"}))) == "t"
    both = {"token": "t", "tokenFile": "token"}
    assert await token(load(tmp_path, kubeconfig(user=both))) == "of-the-file"


async def test_a_token_is_not_shown(tmp_path: Path) -> None:
    config = load(tmp_path, kubeconfig(user={"token": "top-secret"}))
    assert "top-secret" not in repr(config)
    assert "top-secret" not in repr(config.tokens)


async def test_yaml_and_several_files_are_read_with_kubectl(
    tmp_path: Path, certificates: Certificates
) -> None:
    kubectl = require_tool("kubectl")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "ca.pem").write_bytes((certificates.folder / "ca.pem").read_bytes())
    # Relative to the file in which it is named.
    (folder / "one").write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n"
        "contexts:\n- name: here\n  context: {cluster: c, user: u, namespace: mine}\n"
        "clusters:\n- name: c\n  cluster:\n    server: https://one:6443\n"
        "    certificate-authority: ca.pem\n"
    )
    (tmp_path / "two").write_text(
        "apiVersion: v1\nkind: Config\nusers:\n- name: u\n  user:\n    token: t\n"
    )
    environ = {
        "KUBECONFIG": f"{tmp_path / 'two'}:{tmp_path / 'missing'}:{folder / 'one'}",
        "PATH": str(Path(kubectl).parent),
    }
    config = load_config(environ=environ)
    assert (config.url, config.namespace) == ("https://one:6443", "mine")
    assert await token(config) == "t"
    assert config.tls is not None
    assert len(config.tls.get_ca_certs()) == 1


def test_yaml_without_kubectl_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text("apiVersion: v1\nkind: Config\n")
    environ = {"HOME": str(tmp_path), "PATH": str(tmp_path)}
    with pytest.raises(SettingsError, match=r"takes kubectl.*GATEWAY_KUBE_API_URL"):
        load_config(environ=environ)


def test_what_kubectl_complains_about_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("apiVersion: v1\nkind: Config\n")
    environ = {"KUBECONFIG": str(path), "PATH": str(Path(require_tool("kubectl")).parent)}
    with pytest.raises(SettingsError, match="current-context must exist"):
        load_config(environ=environ)


def test_a_kubectl_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.spawner.kube.kubeconfig._KUBECTL_SECONDS", 0.2)
    script(tmp_path / "kubectl", "sleep 30")
    (tmp_path / "config").write_text("kind: Config\n")
    environ = {"KUBECONFIG": str(tmp_path / "config"), "PATH": f"{tmp_path}:{os.defpath}"}
    with pytest.raises(SettingsError, match="it takes too long"):
        load_config(environ=environ)


# -- credential plugins ----------------------------------------------------------------------------


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def plugin(command: str = "./plugin", **fields: Any) -> dict[str, Any]:
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": command,
            "interactiveMode": "Never",
            **fields,
        }
    }


async def test_a_plugin_makes_the_token(tmp_path: Path) -> None:
    # It is found beside the kubeconfig, and gets what the protocol promises.
    script(
        tmp_path / "plugin",
        'case "$KUBERNETES_EXEC_INFO" in *\'"kind": "ExecCredential"\'*) ;; *) exit 9;; esac\n'
        'printf \'{"kind":"ExecCredential","status":{"token":"%s-%s"}}\' "$1" "$REGION"',
    )
    user = plugin(args=["for-me"], env=[{"name": "REGION", "value": "north"}])
    assert await token(load(tmp_path, kubeconfig(user=user))) == "for-me-north"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"command": "no-such-plugin", "installHint": "get it there"}, "missing: get it there"),
        ({"provideClusterInfo": True}, "kubectl proxy"),
        ({"interactiveMode": "Always"}, "kubectl proxy"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused(
    tmp_path: Path, fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        load(tmp_path, kubeconfig(user=plugin(**fields)))


async def test_a_refused_token_of_a_plugin_is_replaced(tmp_path: Path) -> None:
    script(
        tmp_path / "plugin",
        f'echo x >> {tmp_path}/runs\nprintf \'{{"status":{{"token":"%s"}}}}\' '
        f"$(wc -l < {tmp_path}/runs)",
    )
    async with FakeCluster(nodes=False) as cluster:
        document = kubeconfig(cluster.url, user=plugin())
        async with KubeApi(load(tmp_path, document, namespace="previews")) as api:
            cluster.api.tokens = {"1"}
            await api.read("a")
            cluster.api.tokens = {"2"}
            await api.read("a")
            cluster.api.tokens = {"never"}
            with pytest.raises(KubeRefused, match="credentials"):
                await api.read("a")
