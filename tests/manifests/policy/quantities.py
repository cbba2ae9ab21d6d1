"""Quantities of Kubernetes as numbers."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_UNITS: Final = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T"), 1)},
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), 1)},
}


def quantity(text: object) -> Decimal:
    """``500m`` is 0.5, ``2Gi`` is 2 * 1024**3; ValueError for what is none."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    if not match or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is no quantity")
    return Decimal(match[1]) * _UNITS[match[2]]
