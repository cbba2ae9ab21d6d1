"""The composition root: the only module that names concrete registries and spawners."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web
from pydantic import SecretStr

from gateway import __version__
from gateway.api.application import make_application
from gateway.api.health import Health
from gateway.errors import SettingsError
from gateway.lifecycle import Lifecycle
from gateway.proxy.build import BUILD
from gateway.proxy.serving import Serving
from gateway.registry.base import Registry, Replica
from gateway.registry.embedded import EmbeddedValkey
from gateway.registry.redis_store import RedisRegistry
from gateway.session import Recipe
from gateway.settings import Settings
from gateway.spawner.process import ProcessSpawner
from gateway.spawner.recipes import choose
from gateway.spawner.workspace import check_files
from gateway.telemetry import Metrics, Sample, Source
from gateway.workers.supervisor import Workers

if TYPE_CHECKING:
    from gateway.spawner.kubernetes import KubernetesSpawner

log: Final = logging.getLogger(__name__)

_EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
#: A key that nobody has set outlives every link.
_KEY_SECONDS: Final = 10 * 365 * 86400


class Gateway:
    """One replica: data plane and control plane, in one process or (``workers``) in several."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stack = AsyncExitStack()
        self._health = Health()
        self._grace_seconds = 0.0

    @property
    def url(self) -> str:
        """Where this replica answers; one that listens everywhere does so where others reach it."""
        host = self.settings.host
        if host in _EVERYWHERE:
            host = self.settings.advertise_host
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.settings.port}"

    async def open(self) -> None:
        """Start everything; on failure, what was started is closed again."""
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise

    async def close(self, *, grace_seconds: float = 0.0) -> None:
        """Drain, put sessions to sleep, stop everything. Idempotent.

        Connections are still accepted for ``grace_seconds``, but the replica is not ready at once.
        """
        self._health.ready = False
        self._grace_seconds = grace_seconds
        await self._stack.aclose()

    async def _drain(self, serving: Serving | Workers, lifecycle: Lifecycle) -> None:
        """Let clients go, and hand sessions over meanwhile. Event streams, which never end by
        themselves, do so after the grace.
        """
        grace, closing = self._grace_seconds, self._health.closing
        ending = asyncio.get_running_loop().call_later(grace, closing.set)
        lifecycle.leave()
        try:
            await serving.close(grace_seconds=grace, drain_seconds=self.settings.drain_seconds)
        finally:
            ending.cancel()
            closing.set()

    async def _open(self) -> None:
        stack = self._stack
        sock = _bind(self.settings.host, self.settings.port)
        stack.callback(sock.close)
        # Port 0 took a free one; the replica's name is made of the real one.
        settings = self.settings.model_copy(update={"port": sock.getsockname()[1]})
        self.settings = settings

        registry, url = await self._open_registry(settings)
        settings = self.settings = await _with_key(settings, registry)
        spawner = _make_spawner(settings)
        replica = Replica(settings.replica, secrets.token_hex(4), url=self.url)
        lifecycle = Lifecycle(settings, registry, spawner, replica)
        stack.push_async_callback(lifecycle.close)
        await lifecycle.open()

        control_socket = await self._open_control(settings, registry, lifecycle)
        serving: Serving | Workers
        if settings.workers:
            joined = settings.model_copy(update={"redis_url": url})
            serving = Workers(joined, lifecycle, control_socket=str(control_socket))
        else:
            serving = Serving(settings, registry, lifecycle, control_socket=str(control_socket))
        if settings.admin_port:
            sources = [serving.samples, *([spawner.samples] if spawner else [])]
            await self._open_admin(settings, sources, lifecycle)
        stack.push_async_callback(self._drain, serving, lifecycle)
        await serving.open(sock)
        self._health.ready = True
        log.info(
            "replica %s serves %s (version %s, data plane: %s)",
            *(settings.replica, self.url, __version__, BUILD),
        )

    async def _open_registry(self, settings: Settings) -> tuple[Registry, str]:
        """The registry, and the URL at which it is reached."""
        url = settings.redis_url
        if not url:
            embedded = EmbeddedValkey(settings.data_dir)
            self._stack.push_async_callback(embedded.close)
            url = await embedded.start()
        registry = RedisRegistry(settings, url=url)
        self._stack.push_async_callback(registry.close)
        await registry.open()
        return registry, url

    async def _open_control(
        self, settings: Settings, registry: Registry, lifecycle: Lifecycle
    ) -> Path:
        """The control plane behind a socket that only this user can reach."""
        folder = Path(tempfile.mkdtemp(prefix="preview-gateway-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        application = make_application(
            settings,
            registry,
            lifecycle,
            self._health,
            check_files=lambda files: check_files(files, settings),
            check_project=_check_project,
        )
        path = folder / "control.sock"
        try:
            await self._open_site(application, lambda runner: web.UnixSite(runner, str(path)))
        except OSError as exc:
            raise SettingsError(
                f"the socket {path} cannot be made ({exc}): set TMPDIR to a folder that can be "
                "written, with a short path"
            ) from exc
        return path

    async def _open_admin(
        self, settings: Settings, sources: Sequence[Source], lifecycle: Lifecycle
    ) -> None:
        metrics = Metrics()
        for source in sources:
            metrics.add(source)
        metrics.add(lambda: _lifecycle_samples(lifecycle))

        async def show(_: web.Request) -> web.Response:
            return web.Response(body=metrics.text(), content_type="text/plain", charset="utf-8")

        application = web.Application()
        application.add_routes([*self._health.routes(), web.get("/metrics", show)])
        try:
            await self._open_site(
                application,
                lambda runner: web.TCPSite(runner, settings.host, settings.admin_port),
            )
        except OSError as exc:
            raise SettingsError(
                f"cannot listen on {settings.host}:{settings.admin_port} "
                f"({os.strerror(exc.errno or 0)}): set GATEWAY_ADMIN_PORT to a port that is free"
            ) from exc

    async def _open_site(
        self, application: web.Application, make: Callable[[web.AppRunner], web.BaseSite]
    ) -> None:
        # Bodies come as they are: the API says what it does not take, before anything is unfolded.
        runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=1.0, auto_decompress=False
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await make(runner).start()


async def _with_key(settings: Settings, registry: Registry) -> Settings:
    """With the key that signs links: as set, or a random one that all replicas share."""
    if settings.secret_key.get_secret_value():
        return settings
    key = await registry.remember("secret-key", secrets.token_hex(32), seconds=_KEY_SECONDS)
    return settings.model_copy(update={"secret_key": SecretStr(key)})


def _make_spawner(settings: Settings) -> ProcessSpawner | KubernetesSpawner | None:
    match settings.spawner:
        case "process":
            return ProcessSpawner(settings)
        case "kubernetes":
            # Not above: who has no cluster starts a tenth of a second faster.
            from gateway.spawner.kubernetes import KubernetesSpawner

            return KubernetesSpawner(settings)
        case "none":
            return None


def _check_project(recipe: Recipe, files: Mapping[str, bytes]) -> None:
    """Raise UnsupportedProject for what no recipe can start."""
    choose(recipe, files)


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket; listening begins when everything behind it is ready."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise SettingsError(
            f"cannot listen on {host}:{port} ({os.strerror(exc.errno or 0)}): set GATEWAY_PORT or "
            "GATEWAY_HOST to an address that is free"
        ) from exc
    sock.setblocking(False)
    return sock


def _lifecycle_samples(lifecycle: Lifecycle) -> Iterator[Sample]:
    build = {"version": __version__, "data_plane": BUILD}
    yield ("build_info", "What runs here.", "gauge", [(build, 1)])
    yield ("owned_sessions", "Dev servers run here.", "gauge", [({}, lifecycle.owned)])


async def serve(settings: Settings, *, ready: Callable[[Gateway], None]) -> None:
    """Run a replica until SIGTERM or SIGINT; a second signal does not wait for the drain.

    SIGTERM comes from a machine, which has to tell others that the replica leaves: they get the
    grace period. At a SIGINT a person is waiting, who gets none.
    """
    gateway = Gateway(settings)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    grace_seconds = 0.0
    main = asyncio.current_task()

    def stopped(seconds: float) -> None:
        nonlocal grace_seconds
        if stop.is_set() and main is not None:
            main.cancel()
        grace_seconds = seconds
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stopped, settings.drain_grace_seconds)
    loop.add_signal_handler(signal.SIGINT, stopped, 0.0)
    await gateway.open()
    try:
        ready(gateway)
        await stop.wait()
        log.info("draining")
    finally:
        await gateway.close(grace_seconds=grace_seconds)
    log.info("stopped")
