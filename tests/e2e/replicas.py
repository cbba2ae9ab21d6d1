"""Real replicas for tests: separate processes on 127.0.0.2, 127.0.0.3, ... stand for pods."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from tests.e2e import nursery

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_BANNER: Final = "preview-gateway serves "


class ReplicaFailed(Exception):
    """A replica did not start; the message holds what it printed."""


class ReplicaProcess:
    """One ``preview-gateway serve``. Use as an async context manager; stopped by SIGTERM."""

    def __init__(
        self, *, host: str, data_dir: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.host = host
        self.url = ""
        self.lines: list[str] = []
        self._environ = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")
            },
            "GATEWAY_HOST": host,
            "GATEWAY_PORT": "0",
            "GATEWAY_DATA_DIR": str(data_dir),
            "GATEWAY_DRAIN_GRACE_SECONDS": "0",
            "GATEWAY_DRAIN_SECONDS": "1",
            **(environ or {}),
        }
        self._process: nursery.Born | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        self._process = await nursery.serve(self._environ)
        serving = asyncio.Event()
        self._reader = asyncio.create_task(self._read(serving), name=f"output of {self.host}")
        async with asyncio.timeout(_START_SECONDS):
            await serving.wait()
        if not self.url:
            raise ReplicaFailed("\n".join(self.lines))

    async def _read(self, serving: asyncio.Event) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self.lines.append(line)
            if line.startswith(_BANNER):
                self.url = line.removeprefix(_BANNER)
                serving.set()
        serving.set()

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to this replica only."""
        assert self._process is not None
        self._process.send_signal(number)

    async def exited(self) -> int:
        """The exit status, once it has ended and all its output was read."""
        assert self._process is not None
        assert self._reader is not None
        async with asyncio.timeout(_STOP_SECONDS):
            status = await self._process.wait()
            await self._reader
        return status

    async def stop(self) -> int:
        """SIGTERM, and the exit status. Stopping twice is fine."""
        assert self._process is not None
        if self._process.returncode is None:
            self.kill(signal.SIGTERM)
        try:
            return await self.exited()
        except TimeoutError:
            self._process.kill()
            await self.exited()
            raise


@dataclass(frozen=True)
class Answer:
    """A response; ``body`` is decoded if it is JSON, and bytes if it is an archive."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Api:
    """The HTTP API of one replica, as a test calls it."""

    def __init__(self, http: aiohttp.ClientSession, replica: ReplicaProcess) -> None:
        self._http = http
        self.replica = replica
        self.url = replica.url

    async def call(
        self, method: str, path: str, body: Any = None, *, token: str = "", seconds: float = 60.0
    ) -> tuple[int, Any]:
        """(status, decoded body) of a call; ``body`` is sent as JSON."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = await self.ask(method, path, json=body, headers=headers, seconds=seconds)
        return answer.status, answer.body

    async def ask(
        self, method: str, path: str, *, port: int = 0, seconds: float = 60.0, **options: Any
    ) -> Answer:
        """A call, perhaps to another port, with further options of aiohttp's ``request``."""
        timeout = aiohttp.ClientTimeout(total=seconds)
        url = f"http://{self.replica.host}:{port}" if port else self.url
        async with self._http.request(method, url + path, timeout=timeout, **options) as response:
            body: Any = await response.read()
            if "gzip" not in response.content_type:
                body = body.decode(response.charset or "utf-8")
            if "json" in response.content_type:
                body = json.loads(body)
            return Answer(response.status, response.headers, body)

    async def create(self, body: Any, *, ready: bool = False) -> dict[str, Any]:
        """A new session; with ``ready``, once its preview answers."""
        query = "?wait=ready&timeout=120" if ready else ""
        status, session = await self.call("POST", f"/api/v1/sessions{query}", body, seconds=130)
        assert status in (200, 201), session
        assert isinstance(session, dict)
        if ready:
            assert session["state"] == "ready", session
        return session


def project(folder: Path) -> list[dict[str, str]]:
    """The files of an app as the API takes them."""
    return [
        {"path": path.relative_to(folder).as_posix(), "content": path.read_text()}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "node_modules" not in path.parts
    ]
