"""Tables for the terminal and the documentation, JSON, and the chart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.proxy.cases import Effort, Metric, Rival
from bench.proxy.chart import Panel, draw
from bench.proxy.contestants import SHIPPED, SUBJECTS
from bench.proxy.figures import Figure, ratios, shown

BASE: Final = "nginx"
DIRECT: Final = "direct"
_BEGIN: Final = "<!-- figures: written by `python -m bench.proxies --record` -->"
_END: Final = "<!-- end of figures -->"

Figures = dict[str, dict[str, Figure]]


@dataclass(slots=True)
class CaseResult:
    """What one case measured, by contestant and metric, and who failed and why."""

    key: str
    title: str
    metrics: tuple[Metric, ...]
    figures: Figures
    errors: dict[str, str]
    #: Who has the ratio 1.
    base: str = BASE
    #: What else is to be known.
    notes: list[str] = field(default_factory=list)

    def ratios(self, metric: Metric, base: str = "") -> dict[str, float]:
        """Ratios to the base, or to another contestant."""
        column = {name: row[metric.key] for name, row in self.figures.items()}
        less = 0.0
        if metric.added and DIRECT in column:
            less = column[DIRECT].median
        return ratios(column, base or self.base, less=less)


@dataclass(slots=True)
class Results:
    """A whole run."""

    machine: dict[str, str]
    effort: Effort
    versions: dict[str, str]
    missing: dict[str, str]
    cases: list[CaseResult] = field(default_factory=list)
    taken_at: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a build has reached of what it is to reach."""

    subject: str
    what: str
    value: float
    #: The unit, or whom it is compared with.
    of: str
    reach: float
    goal: float

    @property
    def word(self) -> str:
        """The verdict itself."""
        if self.value <= self.goal:
            return "goal met"
        return "reached" if self.value <= self.reach else "missed"

    def __str__(self) -> str:
        limits = f"reach {self.reach:g}, goal {self.goal:g}"
        return f"{self.subject}, {self.what}: {shown(self.value)} {self.of}; {limits}: {self.word}"


def verdicts(result: CaseResult) -> Iterator[Verdict]:
    """One for every limit and build, as far as there are figures."""
    for metric in result.metrics:
        if metric.reach is None or metric.goal is None:
            continue
        limits = [Rival(result.base, metric.reach, metric.goal), *metric.rivals]
        for limit in limits:
            ratios = result.ratios(metric, limit.name)
            for subject in SUBJECTS:
                if metric.absolute and subject in result.figures:
                    value, of = result.figures[subject][metric.key].median, metric.unit
                elif not metric.absolute and subject in ratios:
                    value, of = ratios[subject], f"x {limit.name}"
                else:
                    continue
                yield Verdict(subject, metric.title, value, of, limit.reach, limit.goal)


def table(result: CaseResult) -> list[list[str]]:
    """The rows of a case's table, the head first, the cheapest contestant next."""
    head = ["contestant"]
    for metric in result.metrics:
        head.append(f"{metric.title} [{metric.unit}]" if metric.unit else metric.title)
        if not metric.informative:
            head.append("min..max")
        if _compared(metric):
            head.append(f"x {result.base}")
    key = result.metrics[0].key
    names = sorted(result.figures, key=lambda name: result.figures[name][key].median)
    rows = [head]
    for name in names:
        row = [name]
        for metric in result.metrics:
            figure = result.figures[name][metric.key]
            row.append(shown(figure.median))
            if not metric.informative:
                row.append(f"{shown(figure.low)}..{shown(figure.high)}")
            if _compared(metric):
                ratio = result.ratios(metric).get(name)
                row.append("" if ratio is None else f"{ratio:.2f}")
        rows.append(row)
    return rows


def _compared(metric: Metric) -> bool:
    """Whether a metric is given as a multiple, too."""
    return not metric.informative and not metric.absolute


# -- terminal --------------------------------------------------------------------------------------


def print_preamble(results: Results) -> None:
    """What is measured on, and what is missing."""
    for name, text in results.machine.items():
        print(f"{name}: {text}")
    for name, text in results.versions.items():
        print(f"  {name} {text}")
    for name, reason in results.missing.items():
        print(f"  NOT MEASURED: {name}: {reason}")


def print_case(result: CaseResult) -> None:
    """One table, and the verdicts."""
    print(f"\n{result.title}")
    rows = table(result)
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        print("  " + "  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    for line in (*verdicts(result), *result.notes):
        print(f"  -> {line}")
    for name, error in result.errors.items():
        print(f"  NOT MEASURED: {name}: {error}", flush=True)


# -- files -----------------------------------------------------------------------------------------


def as_json(results: Results) -> dict[str, Any]:
    """The whole run."""
    return {
        "taken_at": results.taken_at,
        "machine": results.machine,
        "effort": asdict(results.effort),
        "versions": results.versions,
        "missing": results.missing,
        "cases": [
            {
                "key": result.key,
                "title": result.title,
                "metrics": [asdict(metric) for metric in result.metrics],
                "contestants": {
                    name: {
                        metric.key: {
                            "median": row[metric.key].median,
                            "min": row[metric.key].low,
                            "max": row[metric.key].high,
                            "rounds": row[metric.key].values,
                            "ratio": result.ratios(metric).get(name),
                        }
                        for metric in result.metrics
                    }
                    for name, row in result.figures.items()
                },
                "verdicts": list(map(str, verdicts(result))),
                "notes": result.notes,
                "errors": result.errors,
            }
            for result in results.cases
        ],
    }


def write(results: Results, path: Path) -> None:
    """Write JSON, and the chart beside it."""
    path.write_text(json.dumps(as_json(results), indent=1) + "\n")
    path.with_suffix(".svg").write_text(draw(panels(results), own=SUBJECTS))
    print(f"\nwritten: {path.name} and {path.with_suffix('.svg').name} in {path.parent.name}/")


def record(results: Results, docs: Path) -> None:
    """Put the run into the documentation."""
    (docs / "performance.json").write_text(json.dumps(as_json(results), indent=1) + "\n")
    (docs / "performance.svg").write_text(draw(panels(results), own=SUBJECTS))
    page = docs / "performance.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{markdown(results)}\n{_END}{after}")


#: What the chart shows: case, metric, title.
_CHART: Final = (
    ("get-1k", "cpu", "CPU per request, 1 KiB GET", "us"),
    ("websocket", "cpu", "CPU per WebSocket echo", "us"),
    ("download", "cpu", "CPU per GB downloaded", "s"),
    ("idle", "memory", "memory per idle WebSocket", "KiB"),
)


def panels(results: Results) -> list[Panel]:
    """The panels of the chart, as far as they were measured."""
    by_key = {result.key: result for result in results.cases}
    found = []
    for key, metric, title, unit in _CHART:
        if key in by_key and by_key[key].figures:
            bars = [(name, row[metric].median) for name, row in by_key[key].figures.items()]
            found.append(Panel(title, unit, sorted(bars, key=lambda bar: bar[1])))
    return found


def summary(results: Results) -> list[str]:
    """What was to be reached and what was: a table for the build that is shipped."""
    rows = [
        f"| {result.title}: {verdict.what} | {shown(verdict.value)} {verdict.of} "
        f"| {verdict.reach:g} | {verdict.goal:g} | {verdict.word} |"
        for result in results.cases
        for verdict in verdicts(result)
        if verdict.subject == SHIPPED
    ]
    if not rows:
        return []
    head = f"| `{SHIPPED}`, as shipped in the images | measured | reach | goal | |"
    return [head, "|---|---:|---:|---:|---|", *rows]


def markdown(results: Results) -> str:
    """Machine, versions and one table for each case."""
    effort = results.effort
    lines = [
        f"Measured on {results.taken_at}: {effort.rounds} rounds, windows of "
        f"{effort.seconds:g} s; medians.",
        "",
    ]
    lines += [f"- {name}: {text}" for name, text in results.machine.items()]
    named = (f"{name} {text}" for name, text in results.versions.items())
    lines.append(f"- contestants: {'; '.join(named)}")
    lines += [f"- **not measured**: {name}: {text}" for name, text in results.missing.items()]
    lines += ["", *summary(results)]
    for result in results.cases:
        head, *rows = table(result)
        lines += ["", f"### {result.title}", ""]
        lines.append(f"| {' | '.join(head)} |")
        lines.append("|---|" + "---:|" * (len(head) - 1))
        for row in rows:
            cells = [f"**{text}**" if row[0] in SUBJECTS and text else text for text in row]
            lines.append(f"| {' | '.join(cells)} |")
        found = [*map(str, verdicts(result)), *result.notes]
        lines += ["", *(f"- {line}" for line in found)] if found else []
        if result.errors:
            lines += ["", *(f"- not measured: {n}: {e}" for n, e in result.errors.items())]
    return "\n".join(lines) + "\n"
