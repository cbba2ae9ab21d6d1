"""What the agent promises, through the gateway's client of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import pytest

from gateway.errors import (
    AgentRefused,
    AgentUnreachable,
    BadFiles,
    Fenced,
    PayloadTooLarge,
    RevisionConflict,
)
from gateway.spawner.kube.agent import Agent
from gateway.spawner.kube.agent_wire import (
    AgentEvent,
    AgentState,
    ExitEvent,
    GapEvent,
    Install,
    LogEvent,
    Order,
    PhaseEvent,
)
from tests.agent.conftest import NewPod, Pod

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


async def push(pod: Pod, files: dict[str, bytes] = FILES, **given: int) -> AgentState:
    given = {"generation": 1, "revision": 1, **given}
    return await pod.agent.push_tree(ID, files=files, **given)


def order(pod: Pod, *arguments: str, generation: int = 1, attempt: int = 1) -> Order:
    command = ("node", "say.mjs", *arguments)
    return Order(generation=generation, command=command, env=pod.env, attempt=attempt, title="it")


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


# -- files -----------------------------------------------------------------------------------------


async def test_the_tree_becomes_exactly_what_was_pushed(pod: Pod) -> None:
    state = await push(pod)
    assert (state.session_id, state.generation, state.revision, state.state) == (ID, 1, 1, "idle")
    held = {p.relative_to(pod.app).as_posix(): p for p in pod.app.rglob("*") if p.is_file()}
    assert {path: file.read_bytes() for path, file in held.items()} == FILES
    assert [path for path, file in held.items() if file.stat().st_mode & 0o100] == ["run"]

    (pod.app / "made.txt").write_text("by the dev server")
    (pod.app / "node_modules/vite").mkdir(parents=True)
    await push(pod, {"src/deep": b"now a file", "b.bin/c": b"now a folder"}, revision=2)
    left = sorted(path.relative_to(pod.app).as_posix() for path in pod.app.rglob("*"))
    assert left == ["b.bin", "b.bin/c", "node_modules", "node_modules/vite", "src", "src/deep"]
    assert (await pod.agent.state(digests=True)).digests.keys() == {"src/deep", "b.bin/c"}
    assert list((pod.root / "staging").iterdir()) == []


async def test_start_sees_exactly_its_environment_and_nothing_of_the_agents(pod: Pod) -> None:
    await push(pod)
    async with listening(pod.agent) as heard:
        assert not await pod.agent.start(order(pod, "hello", "you"))
        await heard.until(lambda: heard.said("said"))
    env = json.loads(heard.said("env")[0])
    assert env.pop("PREVIEW_RUN")
    assert env.pop("PATH").startswith(f"{pod.app}/node_modules/.bin:")
    assert env == {"HOME": f"{pod.root}/home", "TMPDIR": f"{pod.root}/tmp", **pod.env}
    assert heard.said("cwd") == [str(pod.app)]
    assert heard.said("said") == ["hello you"]
    assert heard.phases == [("starting", "it")]
    assert (await pod.agent.state()).state == "running"
