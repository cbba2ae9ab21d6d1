"""The images as containers that may write to nothing but their data and temporary folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.replicas import project
from tests.image.conftest import APP, Start
from tests.image.container import USER, Container

pytestmark = pytest.mark.timeout(240)

_PUBLIC: Final = 8080
_ADMIN: Final = 9090
_AGENT: Final = 8700
_TOKEN: Final = "a-token-of-this-test-alone"
_SESSIONS: Final = "/api/v1/sessions"
_AUTHORIZED: Final = {"Authorization": f"Bearer {_TOKEN}"}
#: terminationGracePeriodSeconds of k8s/base.
_GRACE_SECONDS: Final = 60.0


def serve(start: Start, target: str, **more: Any) -> Container:
    """A gateway that is ready, by the image's own settings and a token."""
    environ = {"GATEWAY_API_TOKENS": _TOKEN, **more.pop("environ", {})}
    container = start(target, environ=environ, **more)
    container.until(lambda: container.answers(_ADMIN, "/readyz"))
    return container


def healthy(container: Container) -> bool:
    """What the image's own health check says."""
    return container.run(*container.image.config["Healthcheck"]["Test"][1:]).returncode == 0


def call(container: Container, method: str, target: str, body: Any = None) -> dict[str, Any]:
    """An API call that succeeds."""
    status, content = container.ask(
        _PUBLIC, target, method=method, json_body=body, headers=_AUTHORIZED
    )
    assert status in (200, 201), content
    answer: dict[str, Any] = json.loads(content)
    return answer


@pytest.mark.parametrize("target", ["gateway", "process"])
def test_a_gateway_lives_is_ready_healthy_and_ends_in_time(start: Start, target: str) -> None:
    container = serve(start, target)
    assert container.ask(_ADMIN, "/livez")[0] == 200
    assert healthy(container)
    assert container.ask(_PUBLIC, _SESSIONS)[0] == 401
    assert "data plane: compiled" in container.run("preview-gateway", "--version").stdout
    container.signal("TERM")
    assert container.ended(_GRACE_SECONDS) == 0, container.log


def test_a_gateway_without_tokens_does_not_listen_to_others(start: Start) -> None:
    container = start("gateway")
    assert container.ended() != 0
    assert "GATEWAY_API_TOKENS" in container.log


def test_a_gateway_that_hangs_is_not_healthy(start: Start) -> None:
    container = serve(start, "gateway")
    script = (
        "import os, pathlib, signal\n"
        "for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    if b'/preview-gateway\\0serve' in path.read_bytes():\n"
        "        os.kill(int(path.parent.name), signal.SIGSTOP)\n"
    )
    assert container.run("python", "-c", script).returncode == 0
    assert not healthy(container)


def test_a_container_is_confined_as_the_manifests_confine_it(start: Start) -> None:
    container = serve(start, "gateway")
    script = (
        "import json, os, pathlib\n"
        "status = dict(l.split(':\\t', 1) for l in open('/proc/self/status') if ':\\t' in l)\n"
        "refused = []\n"
        "for folder in ('/', '/opt/gateway', '/etc', '/usr', '/data', '/tmp', '/dev/shm'):\n"
        "    try: pathlib.Path(folder, 'x').touch()\n"
        "    except OSError as exc: refused.append([folder, exc.strerror])\n"
        "first = pathlib.Path('/proc/1/comm').read_text().strip()\n"
        "keys = ('CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp')\n"
        "print(json.dumps([os.getuid(), os.getgid(), refused, first]"
        " + [status[k].strip() for k in keys]))\n"
    )
    done = container.run("python", "-c", script)
    read_only = "Read-only file system"
    assert json.loads(done.stdout) == [
        USER,
        USER,
        [[folder, read_only] for folder in ("/", "/opt/gateway", "/etc", "/usr")],
        "tini",
        "0" * 16,
        "0" * 16,
        "1",
        "2",
    ]


def test_the_process_image_shows_a_real_vite_app_and_an_edit_of_it(
    start: Start, npm_cache: Path, work: Path
) -> None:
    data = work / "data-of-vite"
    shutil.copytree(npm_cache, data / "npm")
    for path in [data, *data.rglob("*")]:
        shutil.chown(path, USER, USER)
    # The container has no network: npm finds what it needs in its cache.
    container = serve(
        start, "process", folders={"/data": data}, environ={"npm_config_cache": "/data/npm"}
    )
    body = {"id": "image-check", "files": project(APP), "visibility": "public"}
    assert call(container, "POST", f"{_SESSIONS}?wait=ready&timeout=60", body)["state"] == "ready"
    status, page = container.ask(_PUBLIC, "/preview/image-check/")
    assert (status, b"/@vite/client" in page) == (200, True)
    edit = {"write": [{"path": "src/main.jsx", "content": "console.log('edited, in a container')"}]}
    call(container, "PATCH", f"{_SESSIONS}/image-check/files", edit)
    source = "/preview/image-check/src/main.jsx"
    container.until(lambda: b"edited, in a container" in container.ask(_PUBLIC, source)[1])
    assert any((data / "valkey").rglob("*")) or any(data.rglob("*.aof*"))
    container.signal("TERM")
    assert container.ended(_GRACE_SECONDS) == 0, container.log


def test_the_gateway_image_brings_the_agent_that_the_preview_image_runs(
    start: Start, work: Path
) -> None:
    agent = {"/agent": work / "agent"}
    init = start("gateway", command=["preview-gateway", "install-agent", "/agent"], folders=agent)
    assert init.ended() == 0, init.log
    ours = work / "context" / "gateway" / "spawner" / "launchers" / "agent.mjs"
    assert (work / "agent" / "agent.mjs").read_bytes() == ours.read_bytes()
    pod = start(
        "preview",
        command=["node", "/agent/agent.mjs"],
        environ={"PREVIEW_AGENT_TOKEN": _TOKEN, "PREVIEW_AGENT_PORT": str(_AGENT)},
        folders={**agent, "/preview": work / "preview"},
    )
    pod.until(lambda: pod.answers(_AGENT, "/healthz"))
    assert pod.ask(_AGENT, "/v1/state")[0] == 401
    assert pod.ask(_AGENT, "/v1/state", headers=_AUTHORIZED)[0] == 200
    said = pod.run("sh", "-c", "npm --version && node -p 'os.userInfo().username' && id -u")
    assert said.stdout.split()[1:] == ["preview", str(USER)], said
    pod.signal("TERM")
    assert pod.ended() == 0, pod.log
