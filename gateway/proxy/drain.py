"""When tunnels are closed as a replica leaves. Pure.

Each closed HMR socket makes a page load again, hundreds of modules at once; all at the same moment
they would hit the replicas that stay (and those that start) like a stampede.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

#: No more tunnels are closed in a second, as far as the time allows.
TUNNELS_PER_SECOND: Final = 20
#: Of the time that there is; the rest is for the last ones to end.
_SHARE: Final = 0.8


def closing_times(
    count: int, *, budget_seconds: float, draw: Callable[[], float] = random.random
) -> list[float]:
    """When each of ``count`` tunnels is closed: ascending, in seconds from now.

    Each has a part of the time to itself and a random moment in it, so that neither two of this
    replica nor those of several meet. ``draw`` gives numbers from 0 to below 1.
    """
    part = min(1 / TUNNELS_PER_SECOND, budget_seconds * _SHARE / max(count, 1))
    return [part * (number + draw()) for number in range(count)]
