"""How the registry scales: a calculation from what bench/registry.py has measured.

``python -m bench.scale [--replicas N] [--sessions N] ...`` prints what one primary bears, and how
well a straight line describes the measured cost of a push. ``--record`` writes the default cases
into docs/consistency.md. Nothing is run: it takes no time.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.proxy.figures import shown
from bench.proxy.peers import ROOT
from gateway.proxy.routes import MAX_ROUTES

_BEGIN: Final = "<!-- scale: written by `python -m bench.scale --record` -->"
_END: Final = "<!-- end of scale -->"
#: A route as JSON, with the RESP around it.
_PUSH_BYTES: Final = 450


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the registry."""

    replicas: int
    sessions: int
    #: Share of the sessions that have traffic at a time.
    active: float = 0.01
    #: Replicas that get requests of one session, behind a load balancer without affinity.
    spread: int = 4
    #: Changes that are pushed, for each active session and minute: edits, wakes, sleeps.
    changes_per_minute: float = 1.0
    #: How long a session stays, which sets how many are made.
    life_seconds: float = 86_400
    lease_seconds: float = 15.0
    route_max_age_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured, in microseconds of the server's CPU and in bytes."""

    create: float
    start: float
    read: float
    touch: float
    change: float
    push: float
    session_bytes: float
    route_bytes: float
    #: Measured cost of a change by the number of replicas that listen.
    points: dict[int, float]
    #: Of a replica, for each change that it hears; None: older figures do not have it.
    heard: float | None = None

    @classmethod
    def of(cls, figures: dict[str, dict[str, float]]) -> Costs:
        """From the JSON of bench/registry.py."""
        value = {key: figure["value"] for key, figure in figures.items()}
        points = {
            int(key.removeprefix("change-cpu-")): cost
            for key, cost in value.items()
            if key.startswith("change-cpu-")
        }
        change, push = line(points)
        return cls(
            create=value["create-cpu"],
            start=value["move-cpu"],
            read=value["miss-cpu"],
            touch=value["touch-cpu"],
            change=change,
            push=push,
            heard=value.get("heard-cpu"),
            session_bytes=value["session-bytes"],
            route_bytes=value["route-bytes"],
            points=points,
        )


def line(points: dict[int, float]) -> tuple[float, float]:
    """Where the straight line of least squares begins, and how steep it is."""
    count = len(points)
    mean_x, mean_y = sum(points) / count, sum(points.values()) / count
    steep = sum((x - mean_x) * (y - mean_y) for x, y in points.items())
    steep /= sum((x - mean_x) ** 2 for x in points)
    return mean_y - steep * mean_x, steep


def calculate(load: Load, costs: Costs) -> list[tuple[str, float, str]]:
    """What comes of a load: title, value, unit."""
    active = load.sessions * load.active
    creates = load.sessions / load.life_seconds
    # A start is two changes and an end two more, besides those of its use.
    changes = active * load.changes_per_minute / 60 + 4 * creates
    reads = active * load.spread / load.route_max_age_seconds
    # Each replica notes the traffic of each session that it serves once a second. A heartbeat is a
    # script that writes a few more fields: counted as two notes.
    touches = active * load.spread
    beats = 3 * load.replicas / load.lease_seconds
    parts = [
        ("creates and starts", creates * (costs.create + costs.start)),
        ("changes, without their pushes", changes * costs.change),
        ("pushes", changes * load.replicas * costs.push),
        ("routes read again", reads * costs.read),
        ("notes of traffic", touches * costs.touch),
        ("heartbeats", beats * 2 * costs.touch),
    ]
    heard = [] if costs.heard is None else [changes * costs.heard / 10_000]
    routes = min(MAX_ROUTES, active * load.spread / load.replicas)
    return [
        ("sessions with traffic", active, ""),
        ("creates", creates, "1/s"),
        ("changes", changes, "1/s"),
        ("pushes to all replicas", changes * load.replicas, "1/s"),
        ("pushes, bytes", changes * load.replicas * _PUSH_BYTES / 2**20, "MiB/s"),
        *((f"CPU: {title}", cost / 10_000, "% of a core") for title, cost in parts),
        ("CPU of the primary", sum(cost for _, cost in parts) / 10_000, "% of a core"),
        (
            "memory of the primary, without files",
            load.sessions * costs.session_bytes / 2**30,
            "GiB",
        ),
        *(("CPU of each replica: changes it hears", cpu, "% of a core") for cpu in heard),
        ("routes in a replica", routes * costs.route_bytes / 2**20, "MiB"),
    ]


def fit(costs: Costs) -> list[str]:
    """How far the measured points are from the line, in words."""
    words = [
        f"A change costs {shown(costs.change)} us, and {shown(costs.push)} us for each listener."
    ]
    for listeners, measured in sorted(costs.points.items()):
        modelled = costs.change + listeners * costs.push
        off = (measured / modelled - 1) * 100
        words.append(
            f"{listeners} listeners: measured {shown(measured)} us, "
            f"by the line {shown(modelled)} us ({off:+.0f} %)."
        )
    return words


def table(loads: list[Load], costs: Costs) -> str:
    """One column for each load."""
    columns = [calculate(load, costs) for load in loads]
    heads = [f"{load.replicas:,} replicas, {load.sessions:,} sessions" for load in loads]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for row in zip(*columns, strict=True):
        cells = [f"{shown(value)} {unit}".strip() for _, value, unit in row]
        lines.append(f"| {row[0][0]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {words}" for words in fit(costs))]) + "\n"


def record(text: str, page: Path) -> None:
    """Put the table into the documentation."""
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{text}\n{_END}{after}")


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "registry.json")
    parser.add_argument("--record", action="store_true", help="write the default cases into docs/")
    parser.add_argument("--quick", action="store_true", help="as without: a calculation is quick")
    load = Load(replicas=100, sessions=1_000_000)
    for name, kind in (
        ("replicas", int),
        ("sessions", int),
        ("active", float),
        ("spread", int),
        ("changes_per_minute", float),
        ("life_seconds", float),
    ):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=getattr(load, name))
    options = parser.parse_args()
    costs = Costs.of(json.loads(options.figures.read_text())["figures"])
    names = ("replicas", "sessions", "active", "spread", "changes_per_minute", "life_seconds")
    asked = replace(load, **{name: getattr(options, name) for name in names})
    small = [Load(2, 1000), Load(10, 100_000)]
    text = table([*small, load] if options.record else [asked], costs)
    print(text)
    if options.record:
        record(text, ROOT / "docs" / "consistency.md")


if __name__ == "__main__":
    main()
