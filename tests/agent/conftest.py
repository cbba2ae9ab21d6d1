"""A real agent, as it runs in a pod: a process with an address, a token and folders of its own."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import pytest

from gateway.spawner.kube.agent import Agent
from tests.agent.pods import LAUNCHERS, MARK, NewPod, Pod, marked

AGENT: Final = LAUNCHERS / "agent.mjs"


@pytest.fixture
def mark() -> Iterator[str]:
    """The mark of this test's processes; what is left of them is a failure, and is ended."""
    mark = f"agent-{secrets.token_hex(8)}"
    yield mark
    left = marked(mark)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert not left, f"left over: {left}"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def new_pod(
    node: str, mark: str, http: aiohttp.ClientSession, tmp_path: Path
) -> AsyncIterator[NewPod]:
    made: list[Pod] = []

    async def new(**settings: str) -> Pod:
        # An address of its own, like a pod's: nothing here may depend on 127.0.0.1.
        host = f"127.1.{random.randrange(1, 255)}.{random.randrange(1, 255)}"  # noqa: S311
        token, root = secrets.token_hex(32), tmp_path / f"preview{len(made)}"
        process = await asyncio.create_subprocess_exec(
            node,
            str(AGENT),
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
        agent = Agent(http, host, int(ready.split()[-1]), token)
        made.append(Pod(agent, process, root, token, mark))
        return made[-1]

    yield new
    for pod in made:
        if pod.process.returncode is None:
            pod.process.terminate()
        assert pod.process.stderr
        async with asyncio.timeout(20):
            said = (await pod.process.stderr.read()).decode()
            assert await pod.process.wait() in {0, -signal.SIGKILL}  # the latter by a test
        sys.stderr.write(said)
        assert "    at " not in said, "an error that nobody expected"


@pytest.fixture
async def pod(new_pod: NewPod) -> Pod:
    return await new_pod()
