"""What all traffic of the soak test shares: the gateway, dev servers, and the account of it all."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Self

from tests.e2e.conftest import ROOT
from tests.e2e.replicas import Api
from tests.soak.wire import LIMIT_SECONDS, Wire, connected

#: More would not tell more.
_MOST_WRONGS: Final = 20


class DevServer:
    """A dev server in a process of its own, which can be killed."""

    def __init__(self, who: str, process: asyncio.subprocess.Process, port: int) -> None:
        self.who = who
        self.target = f"127.0.0.1:{port}"
        self._process = process

    @classmethod
    async def start(cls, who: str) -> Self:
        """A dev server on a free port."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.soak.server", who),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_SECONDS):
            return cls(who, process, int(await process.stdout.readline()))

    async def kill(self) -> None:
        """SIGKILL: the kernel ends its connections."""
        if self._process.returncode is None:
            self._process.kill()
        async with asyncio.timeout(LIMIT_SECONDS):
            await self._process.wait()


@dataclass
class Preview:
    """A session and the dev server behind it."""

    id: str
    server: DevServer
    #: How often it was begun anew.
    generation: int = 0

    def path(self, rest: str) -> str:
        """A path of its dev server, as a browser asks for it."""
        return f"/preview/{self.id}/{rest}"


@dataclass
class World:
    """The account: what was done, what went wrong, which 5xx were provoked."""

    api: Api
    address: tuple[str, int]
    #: Served by one dev server from beginning to end: nothing may fail here.
    stable: Preview
    #: Its dev server is killed and replaced all the time.
    changing: Preview
    dice: random.Random
    done: Counter[str] = field(default_factory=Counter)
    provoked: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def connect(self) -> AbstractAsyncContextManager[Wire]:
        """A new connection to the gateway."""
        return connected(self.address, self.note)

    def note(self, status: int) -> None:
        """A 5xx came, as it should."""
        self.provoked[status] += 1

    def complain(self, name: str, error: BaseException) -> None:
        """Something went wrong; keeps what, where and when."""
        if len(self.wrong) < _MOST_WRONGS:
            calls = traceback.extract_tb(error.__traceback__)
            where = [call.lineno for call in calls if "soak" in call.filename]
            self.wrong.append(f"{time.strftime('%T')} {name}: {error!r}, lines {where}")

    async def begin(self, preview: Preview) -> None:
        """Register a preview with the dev server that it has now."""
        await self.api.create({"id": preview.id, "target": preview.server.target})

    async def metrics(self, port: int) -> Mapping[str, float]:
        """The samples of the admin port, without the namespace. The connection is closed after."""
        answer = await self.api.ask("GET", "/metrics", port=port, headers={"Connection": "close"})
        lines = (line.rsplit(" ", 1) for line in answer.body.splitlines() if line[:1] != "#")
        return {name.removeprefix("preview_gateway_"): float(value) for name, value in lines}


@asynccontextmanager
async def dev_server(who: str) -> AsyncIterator[DevServer]:
    """A dev server that ends with the context."""
    server = await DevServer.start(who)
    try:
        yield server
    finally:
        await server.kill()
