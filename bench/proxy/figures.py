"""Medians, ratios, spreads. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Figure:
    """What several rounds measured of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The least of the rounds."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The most of the rounds."""
        return max(self.values)


def ratios(figures: Mapping[str, Figure], base: str, *, less: float = 0.0) -> dict[str, float]:
    """Each median as a multiple of that of ``base``; empty if base is absent or not positive.

    ``less`` is taken off both first: with it, what is compared is what a proxy adds.
    """
    if base not in figures or figures[base].median - less <= 0:
        return {}
    unit = figures[base].median - less
    return {name: (figure.median - less) / unit for name, figure in figures.items()}


def shown(value: float) -> str:
    """A number with three digits that count."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
