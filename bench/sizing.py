"""What a number of previews takes in a cluster: a calculation from what has been measured.

``python -m bench.sizing [--previews N]`` prints it; ``--record`` writes the usual sizes into
docs/deploy.md. Nothing is run: it takes no time.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from bench.proxy.figures import shown
from bench.proxy.peers import ROOT
from bench.scale import Costs, Load, calculate
from gateway.settings import Settings
from gateway.spawner.kube.manifest import Manifests, Purpose
from gateway.spawner.kube.template import Template

BEGIN: Final = "<!-- sizing: written by `python -m bench.sizing --record` -->"
END: Final = "<!-- end of sizing -->"
#: The least for a roll-out that nobody notices, and for the loss of a zone.
REPLICAS: Final = 3
#: Replicas that get requests of one preview, as bench.scale assumes.
_SPREAD: Final = 4
USUAL: Final = (50, 500, 5000)


@dataclass(frozen=True, slots=True)
class Use:
    """What is assumed of previews and of who looks at them."""

    #: Previews that run at a time.
    previews: int
    #: Sessions that sleep, for each one that runs.
    asleep: int = 9
    #: Browsers, each with one HMR socket, for each preview.
    browsers: int = 1
    #: Page loads of a browser in a minute, and the requests of one.
    loads_per_minute: float = 1.0
    requests_per_load: int = 200
    #: How much of its core a replica should use at most, so that there is room for a rush.
    busy: float = 0.5


@dataclass(frozen=True, slots=True)
class Measured:
    """Microseconds of a replica's CPU for a request, KiB of its memory for a socket."""

    request: float
    socket: float
    registry: Costs

    @classmethod
    def recorded(cls, folder: Path = ROOT / "docs") -> Measured:
        """From the figures of the benchmarks."""
        cases = json.loads((folder / "performance.json").read_text())["cases"]
        measured = {case["key"]: case["contestants"].get("gateway-compiled") for case in cases}
        return cls(
            request=measured["get-1k-browser"]["cpu"]["median"],
            socket=measured["idle"]["memory"]["median"],
            registry=Costs.of(json.loads((folder / "registry.json").read_text())["figures"]),
        )


def reserved(settings: Settings) -> dict[str, dict[str, Decimal]]:
    """What a preview's pod asks for and may take, in cores and bytes."""
    pod = Manifests(settings, Template()).pod(Purpose("preview-a"))
    (container,) = pod["spec"]["containers"]
    resources: dict[str, dict[str, str]] = container["resources"]
    return {
        what: {name: _number(text) for name, text in of_kind.items()}
        for what, of_kind in resources.items()
    }


def _number(text: str) -> Decimal:
    units = {"m": Decimal("0.001"), "Mi": Decimal(2**20), "Gi": Decimal(2**30)}
    for unit, factor in units.items():
        if text.endswith(unit):
            return Decimal(text.removesuffix(unit)) * factor
    return Decimal(text)


def size(use: Use, costs: Measured, settings: Settings) -> list[tuple[str, str]]:
    """What a use takes: title and value."""
    browsers = use.previews * use.browsers
    requests = browsers * use.loads_per_minute * use.requests_per_load / 60
    cores = requests * costs.request / 1e6
    replicas = max(REPLICAS, math.ceil(cores / use.busy))
    sessions = use.previews * (1 + use.asleep)
    active = use.previews / sessions
    load = Load(replicas, sessions, active=active, spread=min(replicas, _SPREAD))
    registry = {title: value for title, value, _unit in calculate(load, costs.registry)}
    pods = reserved(settings)
    return [
        ("sessions, those that sleep included", f"{sessions:,}"),
        ("requests to previews", f"{shown(requests)} 1/s"),
        ("**pods of previews**: reserved", _amount(pods["requests"], use.previews)),
        ("at most", _amount(pods["limits"], use.previews)),
        ("**gateway**: CPU for these requests", f"{shown(cores)} cores"),
        ("replicas", str(replicas)),
        (
            "memory of a replica for sockets and routes",
            f"{shown(browsers / replicas * costs.socket / 1024 + registry['routes in a replica'])}"
            " MiB",
        ),
        ("**Redis**: CPU at most", f"{shown(registry['CPU of the primary'])} % of a core"),
        (
            "memory, without files",
            f"{shown(registry['memory of the primary, without files'] * 1024)} MiB",
        ),
    ]


def _amount(resources: dict[str, Decimal], count: int) -> str:
    cpu, memory, disk = (resources[name] * count for name in ("cpu", "memory", "ephemeral-storage"))
    gib = 2**30
    return f"{_plain(cpu)} cores, {_plain(memory / gib)} GiB, disk {_plain(disk / gib)} GiB"


def _plain(number: Decimal) -> str:
    return f"{number:,.1f}".removesuffix(".0")


def table(uses: list[Use], costs: Measured, settings: Settings) -> str:
    """One column for each use."""
    columns = [size(use, costs, settings) for use in uses]
    heads = " | ".join(f"{use.previews:,} previews run" for use in uses)
    rows = [
        f"| {row[0][0]} | {' | '.join(value for _title, value in row)} |"
        for row in zip(*columns, strict=True)
    ]
    return "\n".join([f"| | {heads} |", "|---|" + "---:|" * len(uses), *rows]) + "\n"


def usual() -> str:
    """The table of docs/deploy.md."""
    return table([Use(previews) for previews in USUAL], Measured.recorded(), defaults())


def defaults() -> Settings:
    """The settings as they come, whatever the environment says."""
    fields: dict[str, Any] = {
        name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in Settings.model_fields.items()
    }
    return Settings.model_construct(**fields)


def with_table(text: str) -> str:
    """``text`` with the table between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"wants {BEGIN} and, after it, {END}")
    return f"{before}{begin}\n\n{usual()}\n{end}{after}"


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--previews", type=int, default=USUAL[-1])
    parser.add_argument("--record", action="store_true", help="write the usual sizes into docs/")
    parser.add_argument("--quick", action="store_true", help="as without: a calculation is quick")
    options = parser.parse_args()
    print(table([Use(options.previews)], Measured.recorded(), defaults()))
    if options.record:
        page = ROOT / "docs" / "deploy.md"
        page.write_text(with_table(page.read_text()))


if __name__ == "__main__":
    main()
