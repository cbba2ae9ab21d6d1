"""What the tests of the API have in common."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import psutil
import redis.asyncio

from tests.e2e.conftest import ROOT, Pair
from tests.e2e.replicas import Answer, project

SESSIONS: Final = "/api/v1/sessions"
#: The smallest real app.
APP: Final = project(ROOT / "tests" / "fixtures" / "vite5")


def fresh_id() -> str:
    """An id that no other test uses."""
    return f"t-{secrets.token_hex(6)}"


def without_urls(session: dict[str, Any]) -> dict[str, Any]:
    """What all replicas show alike: each gives the URLs under which it was asked."""
    return {name: value for name, value in session.items() if not name.endswith("Url")}


def expect_problem(answer: Answer, status: int, code: str) -> str:
    """Check the form of a refusal; its sentence."""
    assert (answer.status, answer.body["code"]) == (status, code), answer.body
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.body["status"] == status
    assert answer.body["title"]
    return str(answer.body["detail"])


async def stored(pair: Pair, session_id: str) -> list[bytes]:
    """Every trace of a session in the registry."""
    async with redis.asyncio.from_url(pair.store.url) as client:
        found = cast("list[bytes]", await client.keys(f"*{session_id}*"))
        listed = await client.zscore("preview:index", session_id)
    return found + ([b"index"] if listed is not None else [])


def dev_servers(session_id: str) -> list[psutil.Process]:
    """The first process of each dev server of a session, by what its environment says."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return process.environ().get("PREVIEW_SESSION", "").startswith(session_id)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    found = {process.pid: process for process in psutil.process_iter() if belongs(process)}
    return [process for process in found.values() if process.ppid() not in found]


async def rounds(count: int, width: int, once: Callable[[int], Awaitable[Any]]) -> Counter[Any]:
    """``once`` for 0..count-1, ``width`` at a time; how often each result came."""
    results: Counter[Any] = Counter()
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            results[await once(number)] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(width):
            tasks.create_task(work())
    return results
