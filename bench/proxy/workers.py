"""How far a second data-plane process scales: the gateway in one process, with one and two workers.

Where there are four cores, the gateway has two of them for itself. Where there are fewer, load and
upstream take their part of the same cores, so that the rate says little; then it is the requests
per second of the gateway's own CPU time that tell: as many with two workers as with one is linear.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Final

from bench.proxy.cases import CaseFailed, Effort, Metric, wrk
from bench.proxy.contestants import FAILED_START, Contestant
from bench.proxy.figures import Figure
from bench.proxy.report import CaseResult, Figures
from bench.proxy.running import Cores

KEY: Final = "workers"
_BASE: Final = "1 worker"
_TWO: Final = "2 workers"
_ROWS: Final = {"one process": 0, _BASE: 1, _TWO: 2}
_METRICS: Final = (
    Metric("cpu", "CPU per request", "us"),
    Metric("rate", "requests", "1/s"),
    Metric("scaled", "requests per CPU second", "1/s"),
)


def placed(cores: Cores) -> tuple[Cores, str]:
    """Two cores for the gateway, what is left for load and upstream, and a word about it."""
    used = cores.proxy | cores.load | cores.upstream
    free = sorted(os.sched_getaffinity(0) - used)
    if len(used) == 3 and free:
        return replace(cores, proxy=cores.proxy | {free[0]}), "on two cores of its own"
    proxy = frozenset(os.sched_getaffinity(0))
    return replace(cores, proxy=proxy), f"sharing {len(proxy)} cores with load and upstream"


def run(name: str, port: int, effort: Effort, cores: Cores) -> CaseResult:
    """All rounds of one build, with the upstream at ``port``; the order turns round every time."""
    cores, where = placed(cores)
    values: dict[str, dict[str, list[float]]] = {}
    errors: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        running = {}
        for row, workers in _ROWS.items():
            try:
                more = {"GATEWAY_WORKERS": str(workers)}
                running[row] = contestant = Contestant(name, port, cores, more)
                stack.callback(contestant.stop)
                contestant.await_ready(port)
            except FAILED_START as exc:
                errors[row] = f"{type(exc).__name__}: {exc}"
        for number in range(effort.rounds):
            rows = [row for row in running if row not in errors]
            for row in rows if number % 2 == 0 else rows[::-1]:
                try:
                    measured = _measure(running[row], effort, cores)
                except CaseFailed as exc:
                    errors[row] = str(exc)
                    values.pop(row, None)
                    continue
                for key, value in measured.items():
                    values.setdefault(row, {}).setdefault(key, []).append(value)
    figures = {
        row: {key: Figure(tuple(rounds)) for key, rounds in columns.items()}
        for row, columns in values.items()
    }
    title = f"1 KiB GET, {name} in several processes, {where}"
    return CaseResult(KEY, title, _METRICS, figures, errors, base=_BASE, notes=compared(figures))


def compared(figures: Figures) -> list[str]:
    """How two workers do beside one."""
    if _BASE not in figures or _TWO not in figures:
        return []
    one, two = figures[_BASE], figures[_TWO]
    return [
        f"two workers beside one: {two['rate'].median / one['rate'].median:.2f} x the requests a "
        f"second, {two['scaled'].median / one['scaled'].median:.2f} x those per CPU second "
        "(2 and 1 are linear)"
    ]


def _measure(contestant: Contestant, effort: Effort, cores: Cores) -> dict[str, float]:
    before = contestant.running.cpu_seconds()
    requests = wrk(contestant, cores, effort.seconds, "1k")
    used = contestant.running.cpu_seconds() - before
    return {
        "cpu": used / requests * 1e6,
        "rate": requests / max(1, round(effort.seconds)),
        "scaled": requests / used,
    }
