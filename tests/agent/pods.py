"""What the tests of the agent share: a pod, what it is asked for, and what is heard of it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import os
import random
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from gateway.spawner.kube.agent import Agent
from gateway.spawner.kube.agent_wire import (
    AgentEvent,
    AgentState,
    ExitEvent,
    LogEvent,
    Order,
    PhaseEvent,
)

ROOT: Final = Path(__file__).resolve().parents[2]
LAUNCHERS: Final = ROOT / "gateway/spawner/launchers"
#: A variable that what a test starts, and has started, carries.
MARK: Final = "PREVIEW_SESSION"
ID: Final = "a-preview-of-one"

#: Says what it is told to, then waits; ends as it is told to.
SAY: Final = b"""
process.stdin.resume()
console.log('env ' + JSON.stringify(process.env))
console.log('cwd ' + process.cwd())
console.log('said ' + process.argv.slice(2).join(' '))
"""
FILES: Final = {
    "say.mjs": SAY,
    "src/deep/a.txt": b"a",
    "b.bin": b"\xff\x00b",
    "run": b"#!/bin/sh\n",
}


@dataclass
class Pod:
    """What stands for a pod: the agent's process and folders, and a client of it."""

    agent: Agent
    process: asyncio.subprocess.Process
    root: Path
    token: str
    mark: str

    @property
    def host(self) -> str:
        return self.agent.endpoint.host

    @property
    def port(self) -> int:
        return self.agent.endpoint.port

    @property
    def app(self) -> Path:
        return self.root / "app"

    @property
    def env(self) -> dict[str, str]:
        """The environment of a dev server whose processes are to be found."""
        return {MARK: self.mark}

    def others(self) -> list[psutil.Process]:
        """All processes with the mark that are not the agent."""
        return [one for one in marked(self.mark) if one.pid != self.process.pid]

    def held(self) -> dict[str, bytes]:
        """The files below ``app``."""
        files = (path for path in self.app.rglob("*") if path.is_file())
        return {path.relative_to(self.app).as_posix(): path.read_bytes() for path in files}

    async def raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        authorization: str | None = None,
        data: bytes | None = None,
        encoding: str = "",
    ) -> tuple[int, dict[str, Any]]:
        """One call, put together by hand."""
        given = f"Bearer {self.token}" if authorization is None else authorization
        headers = {"Authorization": given}
        if encoding:
            headers["Content-Encoding"] = encoding
        data = json.dumps(body).encode() if body is not None else data
        url = f"http://{self.agent.endpoint}{path}"
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, url, data=data, headers=headers) as response,
        ):
            return response.status, json.loads(await response.read())


NewPod = Callable[..., Awaitable[Pod]]


@asynccontextmanager
async def running_pod(node: str, root: Path, mark: str, **settings: str) -> AsyncIterator[Pod]:
    """An agent that runs, and has ended at the end, by SIGTERM if not before."""
    # An address of its own, like a pod's: nothing here may depend on 127.0.0.1.
    host = f"127.1.{random.randrange(1, 255)}.{random.randrange(1, 255)}"  # noqa: S311
    token = secrets.token_hex(32)
    process = await asyncio.create_subprocess_exec(
        node,
        str(LAUNCHERS / "agent.mjs"),
        env={
            "PATH": os.environ["PATH"],
            "PREVIEW_AGENT_TOKEN": token,
            "PREVIEW_AGENT_HOST": host,
            "PREVIEW_AGENT_PORT": "0",
            "PREVIEW_ROOT": str(root),
            MARK: mark,
            **settings,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    async with asyncio.timeout(20):
        ready = (await process.stderr.readline()).decode()
    assert ready.startswith("agent: ready on "), ready
    async with aiohttp.ClientSession() as http:
        agent = Agent(http, host, int(ready.split()[-1]), token)
        try:
            yield Pod(agent, process, root, token, mark)
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(20):
                said = (await process.stderr.read()).decode()
                status = await process.wait()
    assert status in {0, -signal.SIGKILL}, said  # the latter by a test
    assert "    at " not in said, f"an error that nobody expected: {said}"


def marked(mark: str) -> list[psutil.Process]:
    """All living processes whose mark begins so."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() != psutil.STATUS_ZOMBIE:
                found += [process] if process.environ().get(MARK, "").startswith(mark) else []
    return found


def entry(path: str, content: bytes) -> dict[str, str]:
    """A file as a call has it."""
    digest = hashlib.sha256(content).hexdigest()
    text = base64.b64encode(content).decode()
    return {"path": path, "sha256": digest, "content": text, "encoding": "base64"}


def tree(*entries: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """The body of a call that pushes a tree."""
    return {"sessionId": ID, "generation": 1, "revision": 1, "files": list(entries), **given}


async def push(pod: Pod, files: Mapping[str, bytes] = FILES, **given: int) -> AgentState:
    """Push a tree, of generation and revision 1 if nothing else is said."""
    generation, revision = given.get("generation", 1), given.get("revision", 1)
    return await pod.agent.push_tree(ID, files=files, generation=generation, revision=revision)


def order(pod: Pod, *command: str, generation: int = 1, **given: Any) -> Order:
    """An order to run something whose processes are to be found."""
    return Order(generation=generation, command=command, env=pod.env, title="it", **given)


class Heard:
    """The events of an agent, collected."""

    def __init__(self) -> None:
        self.events: list[AgentEvent] = []
        self._news = asyncio.Event()

    def take(self, event: AgentEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._news.clear()
                await self._news.wait()

    @property
    def lines(self) -> list[str]:
        return [line for e in self.events if isinstance(e, LogEvent) for line in e.lines]

    @property
    def phases(self) -> list[tuple[str, str]]:
        return [(e.phase, e.detail) for e in self.events if isinstance(e, PhaseEvent)]

    @property
    def exits(self) -> list[ExitEvent]:
        return [event for event in self.events if isinstance(event, ExitEvent)]

    def said(self, word: str) -> list[str]:
        return [line.removeprefix(word).strip() for line in self.lines if line.startswith(word)]


@asynccontextmanager
async def listening(agent: Agent, *, after: int = 0) -> AsyncIterator[Heard]:
    heard = Heard()

    async def listen() -> None:
        async with aclosing(agent.events(after=after, unreachable_seconds=5)) as events:
            async for event in events:
                heard.take(event)

    task = asyncio.create_task(listen(), name="listen")
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(condition: Callable[[], object]) -> None:
    """Return when something that nobody tells has become true."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def zipped(body: Any) -> bytes:
    """A body as gzip."""
    return gzip.compress(json.dumps(body).encode(), 1)
