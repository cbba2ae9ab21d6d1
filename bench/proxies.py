"""The gateway beside other proxies: CPU, memory and latency on the same machine in one run.

``python -m bench.proxies`` takes about half an hour, with ``--quick`` about 2. Peers are installed
into ``.bench/``; results go to ``.bench/results.json``, with ``--record`` to ``docs/``, too.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from bench.proxy import browser, machine, report, workers
from bench.proxy.cases import (
    CASES,
    FULL,
    QUICK,
    Case,
    Effort,
    allow_sockets,
    limited_sockets,
)
from bench.proxy.contestants import (
    PLANNERS,
    SHIPPED,
    SUBJECTS,
    contestants,
    upstream,
    versions,
)
from bench.proxy.figures import Figure
from bench.proxy.peers import CACHE, ROOT, Missing
from bench.proxy.report import CaseResult, Results
from bench.proxy.running import Cores

#: The contestants of a quick run: those that the figures to reach name, and the plain one.
_QUICK: Final = (
    "gateway",
    "gateway-compiled",
    "nginx",
    "haproxy",
    "traefik",
    "caddy",
    "configurable-http-proxy",
    "aiohttp",
)
_KEYS: Final = [*(case.key for case in CASES), workers.KEY, browser.KEY]


def _rounds(case: Case, effort: Effort) -> Iterator[tuple[Effort, bool]]:
    """What each round takes, and whether it counts."""
    if case.warm and not effort.quick:
        yield replace(effort, seconds=1.0), False
    for _ in range(1 if case.once else effort.rounds * case.times):
        yield effort, True


def run_case(
    case: Case, names: Sequence[str], effort: Effort, port: int, cores: Cores
) -> CaseResult:
    """All rounds of one case; the order turns round every time."""
    values: dict[str, dict[str, list[float]]] = {}
    errors: dict[str, str] = {}
    with contestants(names, port, cores, errors, direct=case.direct) as running:
        for number, (of_round, counts) in enumerate(_rounds(case, effort)):
            left = [contestant for contestant in running if contestant.name not in errors]
            measured = case.measure(left if number % 2 == 0 else left[::-1], of_round, cores)
            for name, columns in measured.items():
                if isinstance(columns, Exception):
                    errors[name] = f"{type(columns).__name__}: {columns}"
                    values.pop(name, None)
                elif counts:
                    for key, value in columns.items():
                        values.setdefault(name, {}).setdefault(key, []).append(value)
    figures = {
        name: {key: Figure(tuple(rounds)) for key, rounds in columns.items()}
        for name, columns in values.items()
    }
    limit = limited_sockets(effort.sockets) if case.key == "idle" else ""
    notes = [limit] if limit else []
    return CaseResult(case.key, case.title, case.metrics, figures, errors, notes=notes)


def installed(names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the contestants there are, reasons for those there are not."""
    found, missing = {}, {}
    for name in PLANNERS:
        if name not in names:
            missing[name] = "left out by --quick or --only"
            continue
        try:
            found[name] = versions(name)
        except (Missing, OSError, LookupError) as exc:
            missing[name] = str(exc)
    return found, missing


def run(options: argparse.Namespace) -> Results:
    """Everything that the command line asks for."""
    effort = QUICK if options.quick else FULL
    effort = replace(effort, rounds=options.rounds or effort.rounds)
    effort = replace(effort, seconds=options.seconds or effort.seconds)
    cores = Cores.of_this_machine()
    CACHE.mkdir(exist_ok=True)
    found, missing = installed(options.only or (_QUICK if options.quick else list(PLANNERS)))
    results = Results(machine.describe(cores), effort, found, missing)
    report.print_preamble(results)
    wanted = options.cases or _KEYS
    with upstream(cores.upstream) as port:
        for case in CASES:
            if case.key in wanted:
                results.cases.append(run_case(case, list(found), effort, port, cores))
                report.print_case(results.cases[-1])
        builds = [name for name in (SHIPPED, *SUBJECTS) if name in found]
        if workers.KEY in wanted and builds:
            results.cases.append(workers.run(builds[0], port, effort, cores))
            report.print_case(results.cases[-1])
        if browser.KEY in wanted:
            results.cases.append(browser.run(list(found), effort, cores))
            report.print_case(results.cases[-1])
    return results


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 2 minutes: one short round")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0, help="of each measured window")
    parser.add_argument("--cases", nargs="+", choices=_KEYS, metavar="CASE", help=" ".join(_KEYS))
    parser.add_argument(
        "--only", nargs="+", choices=PLANNERS, metavar="NAME", help=" ".join(PLANNERS)
    )
    parser.add_argument("--record", action="store_true", help="write the figures into docs/")
    options = parser.parse_args()
    allow_sockets(FULL.sockets)
    # Ended from outside, it takes its contestants along.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    results = run(options)
    report.write(results, CACHE / "results.json")
    if options.record:
        report.record(results, ROOT / "docs")


if __name__ == "__main__":
    main()
