"""How much code a request goes through: what its first microseconds after a pause depend on.

``python -m bench.proxy.footprint`` runs the compiled gateway under callgrind (Debian: valgrind) and
counts the lines of cache whose instructions every request executes. Unlike a latency it does not
differ from one run to the next, so that it shows what a small change does. ``--functions 40`` says
where they are.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.proxy.contestants import FAILED_START, SHIPPED, SUBJECTS, Contestant, upstream
from bench.proxy.load import complete, request
from bench.proxy.running import Cores

_LINE_BYTES: Final = 64
_PAGE_BYTES: Final = 4096
_WARMING: Final = 50
_REQUESTS: Final = 200
#: Between two requests, so that each has a turn of the event loop for itself.
_PAUSE_SECONDS: Final = 0.005
#: What nearly every request executes; the rest is what comes by from time to time.
_NEARLY_ALL: Final = 0.9
_SECONDS: Final = 60.0
_NAME: Final = re.compile(r"(c?ob|c?fn)=\((\d+)\)(?: (.*))?")
_COST: Final = re.compile(r"(0x[0-9a-f]+|[+-]\d+|\*) \S+ (\d+)")

#: An object file and an address in it.
Place = tuple[str, int]


@dataclass
class Footprint:
    """Instructions by where they are, of which function, and how often each was executed."""

    counts: Counter[Place] = field(default_factory=Counter)
    functions: dict[Place, str] = field(default_factory=dict)

    def of_every_request(self, requests: int) -> list[Place]:
        """The instructions that nearly every one of so many requests has executed."""
        return [at for at, count in self.counts.items() if count >= requests * _NEARLY_ALL]


def parse(lines: Iterable[str]) -> Footprint:
    """What callgrind has written with ``--dump-instr=yes`` (its manual, "Callgrind Format")."""
    found = Footprint()
    names: dict[tuple[str, str], str] = {}
    here = {"ob": "", "fn": ""}
    address, is_call = 0, False
    for line in lines:
        if match := _NAME.match(line):
            kind = match[1].removeprefix("c")
            name = names.setdefault((kind, match[2]), match[3] or "")
            if match[1] == kind:  # not of what is called from here
                here[kind] = name
        elif line.startswith("calls="):
            is_call = True
        elif match := _COST.match(line):
            text = match[1]
            if text.startswith("0x"):
                address = int(text, 16)
            elif text != "*":
                address += int(text)
            if not is_call:  # else: what was called has cost so much
                found.counts[here["ob"], address] += int(match[2])
                found.functions[here["ob"], address] = here["fn"]
            is_call = False
    return found


def blocks(places: Iterable[Place], size: int) -> Counter[str]:
    """How many different blocks of ``size`` bytes the places are in, by object file."""
    return Counter(name for name, _ in {(name, address // size) for name, address in places})


def report(found: Footprint, requests: int, functions: int) -> list[str]:
    """What is printed; ``functions`` is how many of them are named."""
    every = found.of_every_request(requests)
    lines, pages = blocks(every, _LINE_BYTES), blocks(every, _PAGE_BYTES)
    executed = sum(found.counts[place] for place in every) / requests
    rows = [
        f"{executed:,.0f} instructions per request, {len(every):,} of them different",
        f"{lines.total():,} lines of {_LINE_BYTES} bytes, {pages.total():,} pages",
    ]
    rows += [
        f"  {count:5,} lines  {pages[name]:4} pages  {Path(name).name}"
        for name, count in sorted(lines.items(), key=lambda item: (-item[1], item[0]))
    ]
    by_function: dict[tuple[str, str], set[int]] = {}
    for name, address in every:
        key = (name, found.functions[name, address])
        by_function.setdefault(key, set()).add(address // _LINE_BYTES)
    most = sorted(by_function.items(), key=lambda item: -len(item[1]))[:functions]
    rows += [f"  {len(numbers):5,} lines  {function}" for (_, function), numbers in most]
    return rows


def measure(name: str) -> Footprint:
    """Run one build under callgrind and ask it. Raises what is in FAILED_START."""
    if shutil.which("valgrind") is None:
        raise RuntimeError("valgrind is missing: apt-get install valgrind")
    cores = Cores.of_this_machine()
    with (
        tempfile.TemporaryDirectory(prefix="footprint-") as folder,
        upstream(cores.upstream) as port,
    ):
        out = Path(folder) / "out"
        callgrind = ("valgrind", "--tool=callgrind", "--instr-atstart=no", "--dump-instr=yes")
        contestant = Contestant(
            name, port, cores, under=(*callgrind, f"--callgrind-out-file={out}")
        )
        try:
            contestant.await_ready(port)
            _ask(contestant)
        finally:
            contestant.stop()
        return parse(out.with_name("out.1").read_text().splitlines())


def _ask(contestant: Contestant) -> None:
    with socket.create_connection(("127.0.0.1", contestant.port), timeout=_SECONDS) as sock:
        for number in range(_WARMING + _REQUESTS):
            if number == _WARMING:
                _control(contestant, "--instr=on")
            sock.sendall(request(f"{contestant.path('1k')}?{number}", contestant.port))
            received = b""
            while not complete(received):
                received += sock.recv(65536)
            time.sleep(_PAUSE_SECONDS)
    _control(contestant, "--dump")
    _control(contestant, "--instr=off")


def _control(contestant: Contestant, command: str) -> None:
    subprocess.run(
        ["callgrind_control", command, str(contestant.running.pid)],
        check=True,
        capture_output=True,
        timeout=_SECONDS,
    )


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", nargs="?", choices=SUBJECTS, default=SHIPPED)
    parser.add_argument("--functions", type=int, default=0, help="how many to name")
    options = parser.parse_args()
    try:
        found = measure(options.build)
    except FAILED_START as exc:
        raise SystemExit(f"footprint: {exc}") from exc
    print("\n".join(report(found, _REQUESTS, options.functions)))


if __name__ == "__main__":
    main()
