"""What a fault has cost: counted alike, and told in the same words, by each test of a fault."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Collection
from dataclasses import astuple, dataclass

import aiohttp

from tests.e2e.fleet import Fleet, Load, process_groups, until

#: A session may be starting when it is asked for, and a former dev server may have requests left.
_SETTLE_SECONDS = 20.0


@dataclass(frozen=True)
class Losses:
    """What must not be; every number is counted, none is assumed."""

    #: Do not answer with their own dev server at every replica.
    sessions_lost: int
    #: Answered by two dev servers: of one moment, or an older one after a newer one.
    routed_twice: int
    #: Generations under which two processes have answered or run.
    tokens_reissued: int
    #: Dev servers beside the one of each session.
    processes_left: int

    def __str__(self) -> str:
        return (
            f"{self.sessions_lost} sessions lost, {self.routed_twice} routed to two dev servers, "
            f"{self.tokens_reissued} tokens reissued, {self.processes_left} processes left over"
        )


async def count_losses(
    fleet: Fleet, sessions: Collection[str], *loads: Load, ended: Collection[str] = ()
) -> Losses:
    """Ask every replica that is ready for every session, and look at what runs.

    ``ended``: sessions of which nothing may run any more.
    """
    answers = {name: await _answers(fleet, name) for name in sessions}
    lost = sum(
        any(text.partition(".")[0] != name for text, _ in found) for name, found in answers.items()
    )
    twice = sum(len({text for text, _ in found}) > 1 for found in answers.values())
    processes: dict[str, set[str]] = {}
    for load in loads:
        for mark, found in load.processes.items():
            processes.setdefault(mark, set()).update(found)
    for each in answers.values():
        for mark, process in each:
            processes.setdefault(mark, set()).add(process)
    left = await _left_over(sessions, ended)
    running: dict[str, int] = {}
    for groups in process_groups().values():
        for mark, _ in groups:
            running[mark] = running.get(mark, 0) + 1
    names = {*sessions, *ended}
    reissued = sum(
        (len(processes.get(mark, ())) > 1 or running.get(mark, 0) > 1)
        for mark in {*processes, *running}
        if mark.partition(".")[0] in names
    )
    return Losses(lost, twice + sum(load.outdated for load in loads), reissued, left)


async def _answers(fleet: Fleet, name: str) -> list[tuple[str, str]]:
    """What each replica answers for a session, and which process that was."""
    return [await _answer(fleet, f"{replica.url}/preview/{name}/") for replica in fleet.ready]


async def _answer(fleet: Fleet, url: str) -> tuple[str, str]:
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            async with fleet.http.get(url) as response:
                text = await response.text()
                if response.status == 200:
                    return text, response.headers.get("x-process", "")
        except aiohttp.ClientError as exc:
            text = repr(exc)
        if time.monotonic() > deadline:
            return text, ""
        await asyncio.sleep(0.2)


async def _left_over(sessions: Collection[str], ended: Collection[str]) -> int:
    left = 0

    async def settled() -> bool:
        nonlocal left
        found = process_groups()
        left = sum(max(len(found.get(name, ())) - 1, 0) for name in sessions)
        left += sum(len(found.get(name, ())) for name in ended)
        return left == 0

    try:
        await until(settled, seconds=_SETTLE_SECONDS)
    except TimeoutError:
        return left
    return 0


async def expect_nothing_lost(
    fault: str,
    fleet: Fleet,
    sessions: Collection[str],
    *loads: Load,
    ended: Collection[str] = (),
    more: str = "",
) -> None:
    """Count, tell whoever reads the output, and fail unless all is zero."""
    losses = await count_losses(fleet, sessions, *loads, ended=ended)
    asked = sum(load.asked for load in loads)
    failed = sum(len(load.failures) for load in loads)
    requests = f"; {failed} of {asked} requests failed" if loads else ""
    sys.stdout.write(f"fault {fault}: {losses}{requests}{more and '; '}{more}\n")
    assert not any(astuple(losses)), losses
