"""How long to wait before another try. Pure but for the dice."""

from __future__ import annotations

import random
from typing import Final

_FIRST_SECONDS: Final = 0.1


def pause_seconds(failures: int, *, asked: float = 0.0, longest: float) -> float:
    """The pause after so many failures in a row (1 or more).

    It doubles from 0.1 s up to ``longest``, with half of it left to chance, so that replicas that
    failed together do not come back together. What the server ``asked`` for counts in full, with
    chance on top of it.
    """
    # The exponent is bounded because a float is not: 2.0**1024 raises.
    grown = min(_FIRST_SECONDS * 2.0 ** min(failures - 1, 30), longest)
    return max(grown * random.uniform(0.5, 1.0), asked * random.uniform(1.0, 1.2))  # noqa: S311
