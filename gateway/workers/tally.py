"""The samples of several processes as one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.telemetry import Kind, Sample

_Labels = tuple[tuple[str, str], ...]


class Tally:
    """What the workers report, added up; a counter never goes back when a worker is replaced."""

    def __init__(self) -> None:
        self._living: dict[int, list[Sample]] = {}
        #: The counters of workers that are gone.
        self._gone: list[Sample] = []

    def report(self, worker: int, samples: list[Sample]) -> None:
        """Take the samples of a worker, counted since its start; they replace its last ones."""
        self._living[worker] = samples

    def gone(self, worker: int) -> None:
        """A worker has ended: its counters stay, what it held is gone with it."""
        counters = [sample for sample in self._living.pop(worker, []) if sample[2] == "counter"]
        self._gone = merged([self._gone, counters])

    def samples(self) -> list[Sample]:
        """All of it as if one process had served."""
        return merged([self._gone, *self._living.values()])


def merged(reports: Iterable[Iterable[Sample]]) -> list[Sample]:
    """One sample for each name, one value for each set of labels: see ``telemetry.Kind``."""
    families: dict[str, tuple[str, Kind, dict[_Labels, float]]] = {}
    for report in reports:
        for name, text, kind, values in report:
            known = families.setdefault(name, (text, kind, {}))[2]
            for labels, value in values:
                _add(known, labels, value, kind)
    return [
        (name, text, kind, [(dict(labels), value) for labels, value in values.items()])
        for name, (text, kind, values) in families.items()
    ]


def _add(known: dict[_Labels, float], labels: Mapping[str, str], value: float, kind: Kind) -> None:
    key = tuple(sorted(labels.items()))
    if key not in known:
        known[key] = value
    elif kind == "flag":
        known[key] = min(known[key], value)
    else:
        known[key] += value
