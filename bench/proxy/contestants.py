"""The contestants: how each is started as one process on one core, and under which path it serves.

The same for all: one worker, keep-alive to the upstream, no access log, default buffer sizes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.proxy import peers
from bench.proxy.peers import CACHE, NODE, ROOT, Missing
from bench.proxy.running import Cores, Running, free_port

#: The two builds of the gateway.
SUBJECTS: Final = ("gateway", "gateway-compiled")
#: The one in the images, whose verdicts count.
SHIPPED: Final = "gateway-compiled"
PREVIEW: Final = "bench-preview"
#: The gateway's path mode; the others pass the same path on, so that all parse the same.
BASE: Final = f"/preview/{PREVIEW}/"
_SCRIPTS: Final = Path(__file__).parent / "node"
_START_SECONDS: Final = 30.0
_CONNECTIONS: Final = 40000
#: What may go wrong when a contestant is started.
FAILED_START: Final = (Missing, RuntimeError, OSError)


@dataclass(frozen=True, slots=True)
class Plan:
    """What starts a contestant."""

    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    base: str = BASE
    cwd: Path | None = None


Planner = Callable[[Path, int, int], Plan]


def _nginx(folder: Path, port: int, upstream: int) -> Plan:
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        f"""daemon off; {user} worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
worker_rlimit_nofile {_limit()};
events {{ worker_connections {_CONNECTIONS}; }}
http {{
  access_log off; client_max_body_size 0; keepalive_requests 1000000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream dev {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://dev; proxy_http_version 1.1; proxy_request_buffering off;
      proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade; proxy_read_timeout 600s;
    }}
  }}
}}
"""
    )
    return Plan([str(peers.debian("nginx")), "-p", str(folder), "-c", str(config), "-e", "stderr"])


def _haproxy(folder: Path, port: int, upstream: int) -> Plan:
    config = folder / "haproxy.cfg"
    config.write_text(
        f"""global
  nbthread 1
  maxconn {_limit() // 2 - 50}
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout tunnel 600s
  http-reuse always
frontend f
  bind 127.0.0.1:{port} backlog 4096
  default_backend b
backend b
  server dev 127.0.0.1:{upstream}
"""
    )
    return Plan([str(peers.debian("haproxy")), "-db", "-f", str(config)])


def _traefik(folder: Path, port: int, upstream: int) -> Plan:
    routes = folder / "routes.yml"
    routes.write_text(
        json.dumps(  # YAML's flow style
            {
                "http": {
                    "routers": {"r": {"rule": "PathPrefix(`/`)", "service": "s"}},
                    "services": {
                        "s": {
                            "loadBalancer": {
                                "serversTransport": "t",
                                "servers": [{"url": f"http://127.0.0.1:{upstream}"}],
                            }
                        }
                    },
                    "serversTransports": {"t": {"maxIdleConnsPerHost": 256}},
                }
            }
        )
    )
    flags = (
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
        "--log.level=ERROR",
        f"--entryPoints.web.address=127.0.0.1:{port}",
        f"--providers.file.filename={routes}",
        "--providers.file.watch=false",
    )
    return Plan([str(peers.wheel("traefik")), *flags], {"GOMAXPROCS": "1"})


def _caddy(folder: Path, port: int, upstream: int) -> Plan:
    config = folder / "Caddyfile"
    config.write_text(
        f"""{{
  admin off
  persist_config off
  auto_https off
  log {{
    level ERROR
  }}
}}
http://:{port} {{
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:{upstream} {{
    transport http {{
      keepalive_idle_conns_per_host 256
    }}
  }}
}}
"""
    )
    command = [str(peers.wheel("caddy")), "run", "--adapter", "caddyfile", "--config", str(config)]
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    return Plan(command, {"GOMAXPROCS": "1", **home})


def _configurable_http_proxy(folder: Path, port: int, upstream: int) -> Plan:
    script = NODE / "node_modules" / ".bin" / "configurable-http-proxy"
    command = [
        *(str(peers.npm()), str(script), "--log-level", "error"),
        *("--ip", "127.0.0.1", "--port", str(port)),
        *("--api-ip", "127.0.0.1", "--api-port", str(free_port())),
        *("--default-target", f"http://127.0.0.1:{upstream}"),
    ]
    return Plan(command, {"CONFIGPROXY_AUTH_TOKEN": "bench"})


def _node(name: str) -> Planner:
    def plan(folder: Path, port: int, upstream: int) -> Plan:
        command = [str(peers.npm()), str(_SCRIPTS / f"{name}.mjs"), str(port), str(upstream)]
        return Plan(command, cwd=NODE)

    return plan


def _jupyter(folder: Path, port: int, upstream: int) -> Plan:
    flags = (
        *("--no-browser", "--allow-root", f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1"),
        *("--IdentityProvider.token=", "--ServerApp.password=", "--log-level=ERROR"),
        *("--ServerApp.disable_check_xsrf=True", "--ServerApp.port_retries=0"),
        *("--ServerApp.allow_origin=*", f"--ServerApp.root_dir={folder}"),
    )
    home = {"HOME": str(folder), "JUPYTER_RUNTIME_DIR": str(folder)}
    return Plan([str(peers.jupyter()), *flags], home, f"/proxy/absolute/{upstream}{BASE}")


def _aiohttp(folder: Path, port: int, upstream: int) -> Plan:
    command = [sys.executable, "-m", "bench.proxy.aiohttp_proxy", str(port), str(upstream)]
    return Plan(command, {"PYTHONPATH": str(ROOT)})


def _gateway(folder: Path, port: int, upstream: int) -> Plan:
    settings = {
        "GATEWAY_PORT": str(port),
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
        # The defaults are made for people; 10,000 sockets of one preview are made for this.
        "GATEWAY_MAX_CONNECTIONS": str(_CONNECTIONS),
        "GATEWAY_MAX_CONNECTIONS_PER_PREVIEW": str(_CONNECTIONS),
        "GATEWAY_MAX_TUNNELS_PER_PREVIEW": str(_CONNECTIONS),
    }
    return Plan([sys.executable, "-m", "gateway", "serve"], {"PYTHONPATH": str(ROOT), **settings})


def _gateway_compiled(folder: Path, port: int, upstream: int) -> Plan:
    plan = _gateway(folder, port, upstream)
    return replace(plan, env={**plan.env, "PYTHONPATH": str(peers.compiled())})


PLANNERS: Final[dict[str, Planner]] = {
    "gateway": _gateway,
    "gateway-compiled": _gateway_compiled,
    "nginx": _nginx,
    "haproxy": _haproxy,
    "traefik": _traefik,
    "caddy": _caddy,
    "configurable-http-proxy": _configurable_http_proxy,
    "http-proxy-middleware": _node("http-proxy-middleware"),
    "http-proxy-3": _node("http-proxy-3"),
    "jupyter-server-proxy": _jupyter,
    "aiohttp": _aiohttp,
}


def versions(name: str) -> str:
    """The version of a contestant that is installed."""
    if name == "gateway":
        return version("preview-gateway")
    if name == "gateway-compiled":
        peers.compiled()
        return f"{version('preview-gateway')}, mypyc {version('mypy')}"
    if name == "aiohttp":
        return f"{version('aiohttp')}, uvloop {version('uvloop')}"
    return peers.VERSIONS[name]()


class Contestant:
    """A running contestant. Raises Missing or RuntimeError if it cannot be started."""

    def __init__(
        self,
        name: str,
        upstream: int,
        cores: Cores,
        more: Mapping[str, str] | None = None,
        *,
        under: Sequence[str] = (),
    ) -> None:
        """Start it, with ``more`` in its environment, as arguments of the command ``under``."""
        self.name = name
        self.port = free_port()
        #: Resident memory when it had forwarded its first request.
        self.baseline = 0
        CACHE.mkdir(exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=CACHE))
        environ = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
        try:
            plan = PLANNERS[name](self._folder, self.port, upstream)
            self.base = plan.base
            self.running = Running(
                [*under, *plan.command],
                cores=cores.proxy,
                log=self._folder / "log",
                env={**environ, **plan.env, **(more or {})},
                cwd=plan.cwd,
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def await_ready(self, upstream: int) -> None:
        """Wait until it forwards."""
        self.running.await_port(self.port, seconds=_START_SECONDS)
        if self.name in SUBJECTS:
            self._create_session(upstream)
        deadline = time.monotonic() + _START_SECONDS
        while not self._forwards():
            if time.monotonic() > deadline:
                raise RuntimeError(f"does not forward: {self.running.log_tail()}")
            time.sleep(0.05)  # Traefik listens before it has read its routes
        self.baseline = self.running.rss_bytes()

    def _forwards(self) -> bool:
        try:
            with urllib.request.urlopen(self.url("1k"), timeout=_START_SECONDS) as answer:  # noqa: S310
                return bool(answer.read() == b"x" * 1024)
        except (OSError, urllib.error.HTTPError):
            return False

    def _create_session(self, upstream: int) -> None:
        body = json.dumps({"id": PREVIEW, "target": f"127.0.0.1:{upstream}"}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v1/sessions",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_START_SECONDS) as answer:  # noqa: S310
            answer.read()

    def path(self, name: str) -> str:
        """The path under which it serves what the upstream calls ``name``."""
        return self.base + name

    def target(self, name: str) -> str:
        """The same as bench.proxy.load takes it."""
        return f"{self.port}{self.path(name)}"

    def url(self, name: str) -> str:
        """The URL of the same."""
        return f"http://127.0.0.1:{self.port}{self.path(name)}"

    def stop(self) -> None:
        """End it and remove what it wrote."""
        self.running.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


class Direct(Contestant):
    """The upstream itself, for what a proxy adds."""

    def __init__(self, upstream: int) -> None:
        self.name = "direct"
        self.port = upstream
        self.base = BASE

    def await_ready(self, upstream: int) -> None:
        """It is."""

    def stop(self) -> None:
        """It goes on."""


@contextlib.contextmanager
def upstream(cores: frozenset[int]) -> Iterator[int]:
    """The server behind all contestants; its port."""
    running = Running(
        [sys.executable, "-m", "bench.proxy.upstream"],
        cores=cores,
        log=CACHE / "upstream.log",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        first_line=True,
    )
    try:
        yield int(running.first_line())
    finally:
        running.stop()


@contextlib.contextmanager
def contestants(
    names: Sequence[str], port: int, cores: Cores, errors: dict[str, str], *, direct: bool = False
) -> Iterator[list[Contestant]]:
    """Fresh contestants; they start side by side. Who does not is in ``errors``."""
    started: list[Contestant] = [Direct(port)] if direct else []
    try:
        for name in names:
            try:
                started.append(Contestant(name, port, cores))
            except FAILED_START as exc:
                errors[name] = str(exc)
        ready = []
        for contestant in started:
            try:
                contestant.await_ready(port)
                ready.append(contestant)
            except FAILED_START as exc:
                errors[contestant.name] = str(exc)
        yield ready
    finally:
        for contestant in started:
            contestant.stop()


def _limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
