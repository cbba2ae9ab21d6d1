"""Logs and metrics."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

NAMESPACE: Final = "preview_gateway"
#: ``extra={FIELDS: {...}}`` of a log call: members of its JSON line, beside those of every line.
FIELDS: Final = "fields"
#: ``auto``: for a person on a terminal, else for a program.
LogFormat = Literal["auto", "json", "text"]

#: How the values of several processes make one: a counter and a gauge are added up, a flag is 1
#: only where it is 1 everywhere.
Kind = Literal["counter", "gauge", "flag"]
#: (name, help, kind, [(labels, value)])
Sample = tuple[str, str, Kind, list[tuple[dict[str, str], float]]]
Source = Callable[[], Iterable[Sample]]


class _JsonLines(logging.Formatter):
    """One JSON object a line, with the name of the process if it has one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._process,
            "message": record.getMessage(),
            **vars(record).get(FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(level: str, *, process: str = "", form: LogFormat = "auto") -> None:
    """Log to standard error, in JSON lines or in plain ones.

    ``process`` is what one of a gateway's several processes calls itself.
    """
    handler = logging.StreamHandler(sys.stderr)
    if form == "text" or (form == "auto" and sys.stderr.isatty()):
        name = f"{process}: " if process else ""
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s %(levelname)-7s {name}%(message)s", "%H:%M:%S")
        )
    else:
        handler.setFormatter(_JsonLines(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Calls are logged by the API itself, without what is secret in an address.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


class Metrics(Collector):
    """Metrics in Prometheus' text format, read from plain counters when asked for.

    Names are given without the namespace. No label ever holds a session id.
    """

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def add(self, source: Source) -> None:
        """Ask this source too."""
        self._sources.append(source)

    def collect(self) -> Iterator[Metric]:
        """Implements ``prometheus_client.registry.Collector``."""
        for source in self._sources:
            for name, text, kind, values in source():
                labels = sorted(values[0][0]) if values else []
                family: CounterMetricFamily | GaugeMetricFamily
                make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                family = make(f"{NAMESPACE}_{name}", text, labels=labels)
                for value_labels, value in values:
                    family.add_metric([value_labels[label] for label in labels], value)
                yield family

    def text(self) -> bytes:
        """All metrics, in the text exposition format."""
        return generate_latest(self._registry)
