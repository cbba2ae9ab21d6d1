"""The cases: what traffic, what is counted, and which ratio to nginx is to be reached."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.proxy.contestants import FAILED_START, Contestant
from bench.proxy.peers import ROOT, debian
from bench.proxy.running import Cores, Peak, pinned
from bench.proxy.upstream import BIG_BYTES

_MARGIN_SECONDS: Final = 90.0
#: Descriptors that a proxy needs besides those of the sockets.
_SPARE_FILES: Final = 200
#: What Chromium sends for a module of a page.
BROWSER_FIELDS: Final = (
    'sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24"',
    "sec-ch-ua-mobile: ?0",
    'sec-ch-ua-platform: "Linux"',
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/140.0.0.0 Safari/537.36",
    "Accept: */*",
    "Sec-Fetch-Site: same-origin",
    "Sec-Fetch-Mode: cors",
    "Sec-Fetch-Dest: script",
    "Referer: http://127.0.0.1:8080/preview/bench-preview/",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: en-GB,en;q=0.9",
    "Cookie: theme=dark; sidebar=open",
    'If-None-Match: W/"300-Zm9vYmFy"',
)


class CaseFailed(Exception):
    """A contestant did not do what the case asks for; its figures do not count."""


#: What may go wrong with a contestant without being the end of the run.
_FAILURES: Final = (*FAILED_START, CaseFailed, subprocess.TimeoutExpired)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how much."""

    rounds: int
    seconds: float
    transfers: int
    sockets: int
    pages: int
    quick: bool = False


FULL: Final = Effort(rounds=3, seconds=2.0, transfers=2, sockets=10_000, pages=7)
QUICK: Final = Effort(rounds=1, seconds=1.0, transfers=1, sockets=2_000, pages=2, quick=True)


@dataclass(frozen=True, slots=True)
class Rival:
    """Another contestant to compare with, and the ratios to it that are to be reached."""

    name: str
    reach: float
    goal: float


@dataclass(frozen=True, slots=True)
class Metric:
    """One column. ``reach`` and ``goal`` are ratios to nginx, or values if ``absolute``.

    With ``added``, what the direct connection takes is taken off before the ratio. ``rivals`` have
    limits of their own.
    """

    key: str
    title: str
    unit: str
    reach: float | None = None
    goal: float | None = None
    absolute: bool = False
    added: bool = False
    rivals: tuple[Rival, ...] = ()

    @property
    def informative(self) -> bool:
        """Whether it says how much was done, not what it cost."""
        return self.key in ("rate", "scaled", "sockets")


Measured = dict[str, float]
#: What one round has measured, by contestant; who failed has the reason instead.
Round = dict[str, Measured | Exception]
Measure = Callable[[Contestant, Effort, Cores], Measured]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of traffic. ``measure`` makes a round, of the contestants in the given order.

    ``once`` has a single round: it measures a fresh process. ``warm`` begins with a second that
    does not count. ``direct`` is measured without a proxy, too. ``times`` as many rounds as others
    are for what differs much from one to the next.
    """

    key: str
    title: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Sequence[Contestant], Effort, Cores], Round]
    direct: bool = False
    once: bool = False
    warm: bool = False
    times: int = 1


# -- traffic ---------------------------------------------------------------------------------------


def load(cores: Cores, kind: str, *arguments: object, seconds: float = 0.0) -> Any:
    """Run one kind of our own load, which takes ``seconds``; what it has printed, decoded."""
    with pinned(cores.load):
        done = subprocess.run(
            [sys.executable, "-m", "bench.proxy.load", kind, *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds + _MARGIN_SECONDS,
            check=False,
        )
    if done.returncode:
        raise CaseFailed(done.stderr.strip().splitlines()[-1][:200])
    return json.loads(done.stdout)


def wrk(contestant: Contestant, cores: Cores, seconds: float, name: str, *fields: str) -> int:
    """Requests that wrk got answered with 200 in ``seconds``; any other answer is an error."""
    command = [str(debian("wrk")), "-t1", "-c32", f"-d{max(1, round(seconds))}s", "--timeout=5s"]
    command += ["-s", str(ROOT / "bench" / "proxy" / "vary.lua")]
    for text in fields:
        command += ["-H", text]
    with pinned(cores.load):
        done = subprocess.run(
            [*command, contestant.url(name)],
            capture_output=True,
            text=True,
            timeout=seconds + _MARGIN_SECONDS,
            check=False,
        )
    return parse_wrk(done.stdout)


def parse_wrk(text: str) -> int:
    """The number of requests in wrk's report. Raises CaseFailed if any of them went wrong."""
    if bad := re.search(r"(Non-2xx.*|Socket errors: .*)", text):
        errors = [int(number) for number in re.findall(r"\d+", bad[1].replace("2xx or 3xx", ""))]
        if any(errors):
            raise CaseFailed(bad[1].strip())
    requests = re.search(r"(\d+) requests in", text)
    if requests is None or not int(requests[1]):
        raise CaseFailed("no request was answered")
    return int(requests[1])


# -- measures --------------------------------------------------------------------------------------


def each(measure: Measure) -> Callable[[Sequence[Contestant], Effort, Cores], Round]:
    """A round that measures one contestant after the other."""

    def measure_each(running: Sequence[Contestant], effort: Effort, cores: Cores) -> Round:
        measured: Round = {}
        for contestant in running:
            try:
                measured[contestant.name] = measure(contestant, effort, cores)
            except _FAILURES as exc:
                measured[contestant.name] = exc
        return measured

    return measure_each


def _requests(name: str, *fields: str) -> Measure:
    def measure(contestant: Contestant, effort: Effort, cores: Cores) -> Measured:
        before = contestant.running.cpu_seconds()
        requests = wrk(contestant, cores, effort.seconds, name, *fields)
        used = contestant.running.cpu_seconds() - before
        return {
            "cpu": used / requests * 1e6,
            "rate": requests / max(1, round(effort.seconds)),
        }

    return measure


def _transfer(kind: str, name: str) -> Measure:
    def measure(contestant: Contestant, effort: Effort, cores: Cores) -> Measured:
        running = contestant.running
        before = running.cpu_seconds()
        arguments = ("--size", BIG_BYTES, "--count", effort.transfers)
        with Peak(running) as peak:
            done = load(cores, kind, contestant.target(name), *arguments)
        used = running.cpu_seconds() - before
        return {
            "cpu": used / done["bytes"] * 1e9,
            "memory": (peak.bytes - contestant.baseline) / 2**20,
            "rate": done["bytes"] / done["seconds"] / 1e6,
        }

    return measure


def _latency(running: Sequence[Contestant], effort: Effort, cores: Cores) -> Round:
    targets = [contestant.target("1k") for contestant in running]
    arguments = (*targets, "--seconds", effort.seconds, "--rate", 500, "--connections", 64)
    results = load(cores, "latency", *arguments, seconds=effort.seconds * len(targets))
    names = [contestant.name for contestant in running]
    return {
        name: CaseFailed(result["error"]) if "error" in result else result
        for name, result in zip(names, results, strict=True)
    }


def _echo(contestant: Contestant, effort: Effort, cores: Cores) -> Measured:
    before = contestant.running.cpu_seconds()
    arguments = ("--seconds", effort.seconds, "--size", 200, "--connections", 32)
    done = load(cores, "echo", contestant.target("echo"), *arguments)
    used = contestant.running.cpu_seconds() - before
    return {
        "cpu": used / done["messages"] * 1e6,
        "rate": done["messages"] / effort.seconds,
    }


def possible_sockets(wanted: int) -> int:
    """As many as the limit of descriptors allows: each needs two of the proxy."""
    return min(wanted, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES) // 2)


def allow_sockets(wanted: int) -> None:
    """Raise the limit of descriptors, which all processes inherit, as far as this user may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = 2 * wanted + _SPARE_FILES
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, needed), max(hard, needed)))
    except (ValueError, PermissionError):  # only with CAP_SYS_RESOURCE, and not in every container
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limited_sockets(wanted: int) -> str:
    """What keeps a proxy from as many sockets as are ``wanted``; empty if nothing does."""
    possible = possible_sockets(wanted)
    if possible == wanted:
        return ""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return (
        f"{possible:,} instead of {wanted:,} sockets: this machine allows a process {limit:,} "
        "descriptors, and a proxy needs two for each socket"
    )


def _idle(contestant: Contestant, effort: Effort, cores: Cores) -> Measured:
    running = contestant.running
    count = possible_sockets(effort.sockets)
    before = contestant.baseline
    command = ["idle", contestant.target("echo"), "--connections", str(count)]
    with pinned(cores.load):
        sockets = subprocess.Popen(
            [sys.executable, "-m", "bench.proxy.load", *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        assert sockets.stdout is not None
        opened = sockets.stdout.readline()
        grown = running.rss_bytes() - before
        said, errors = sockets.communicate("done\n", timeout=_MARGIN_SECONDS)
    finally:
        sockets.kill()
        sockets.wait()
    if not opened or not said:
        raise CaseFailed(f"{count} sockets: {errors.strip().splitlines()[-1][:200]}")
    return {"memory": grown / count / 1024, "sockets": count}


_CPU: Final = ("cpu", "CPU per request", "us")
_RATE: Final = Metric("rate", "requests", "1/s")

CASES: Final = (
    Case(
        "get-1k",
        "1 KiB GET, keep-alive, 32 connections",
        (
            Metric(
                *(*_CPU, 1.5, 1.0),
                rivals=(Rival("traefik", 0.6, 0.4), Rival("configurable-http-proxy", 0.17, 0.1)),
            ),
            _RATE,
        ),
        each(_requests("1k")),
        warm=True,
    ),
    Case(
        "get-1k-browser",
        "1 KiB GET with the 14 header fields of a browser",
        (Metric(*_CPU), _RATE),
        each(_requests("1k", *BROWSER_FIELDS)),
        warm=True,
    ),
    Case(
        "get-100k",
        "100 KiB GET, keep-alive, 32 connections",
        (Metric(*_CPU, 1.5, 1.0), _RATE),
        each(_requests("100k")),
        warm=True,
    ),
    Case(
        "download",
        "200 MB download",
        (
            Metric("cpu", "CPU per GB", "s", 0.8, 0.5),
            Metric("memory", "memory grown", "MiB", 16, 16, absolute=True),
            Metric("rate", "rate", "MB/s"),
        ),
        each(_transfer("download", "big")),
    ),
    Case(
        "upload",
        "200 MB upload",
        (
            Metric("cpu", "CPU per GB", "s", 0.8, 0.5),
            Metric("memory", "memory grown", "MiB", 16, 16, absolute=True),
            Metric("rate", "rate", "MB/s"),
        ),
        each(_transfer("upload", "sink")),
    ),
    Case(
        "latency",
        "Latency at 500 requests a second",
        (
            Metric("p50", "p50", "us", 1.3, 1.0, added=True),
            Metric("p99", "p99", "us", 1.5, 1.0, added=True),
        ),
        _latency,
        direct=True,
        times=3,
    ),
    Case(
        "websocket",
        "WebSocket echo, 200-byte messages, 32 sockets",
        (Metric("cpu", "CPU per echo", "us", 1.2, 0.8), Metric("rate", "echoes", "1/s")),
        each(_echo),
        warm=True,
        times=3,
    ),
    Case(
        "idle",
        "Idle WebSockets",
        (
            Metric("memory", "memory per socket pair", "KiB", 8, 4, absolute=True),
            Metric("sockets", "opened", ""),
        ),
        each(_idle),
        once=True,
    ),
    Case(
        "connect",
        "1 KiB GET, a connection per request",
        (Metric(*_CPU, 2.5, 1.5), _RATE),
        each(_requests("1k", "Connection: close")),
        warm=True,
    ),
)
