"""A real agent, as it runs in a pod: a process with an address, a token and folders of its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.agent.pods import NewPod, Pod, marked, running_pod


@pytest.fixture
def mark() -> Iterator[str]:
    """How marks of this test's processes begin; what is left of them is a failure, and is ended."""
    mark = f"agent-{secrets.token_hex(8)}"
    yield mark
    left = marked(mark)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert not left, f"left over: {left}"


@pytest.fixture
async def new_pod(node: str, mark: str, tmp_path: Path) -> AsyncIterator[NewPod]:
    async with AsyncExitStack() as stack:
        count = 0

        async def new(**settings: str) -> Pod:
            nonlocal count
            count += 1
            root, name = tmp_path / f"preview{count}", f"{mark}.{count}."
            return await stack.enter_async_context(running_pod(node, root, name, **settings))

        yield new


@pytest.fixture
async def pod(new_pod: NewPod) -> Pod:
    return await new_pod()
