"""When a call is tried again, and for how long."""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Final

import aiohttp

from gateway.client.errors import ApiError, NoGateway, Unreachable
from gateway.errors import GatewayError

_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 5.0
#: After so long without a failure the next one is a first one.
_CALM_SECONDS: Final = 60.0
#: What a later try can mend.
_PASSING: Final = frozenset({429, 502, 503, 504})


class Patience:
    """How often, and for how long, something is tried again."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._failures = 0
        self._failed_at = -math.inf

    def worked(self) -> None:
        """It has worked once: from now on it is tried for as long as anybody wants it."""
        self._deadline = math.inf

    def calm(self) -> None:
        """All is well: the next failure is the first one."""
        self._failures = 0

    async def pause(self, error: GatewayError) -> None:
        """Wait before the next try; raises ``error`` if there is to be none."""
        if not _is_passing(error):
            raise error
        now = time.monotonic()
        if now - self._failed_at > _CALM_SECONDS:
            self.calm()
        self._failed_at = now
        most = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        # Jitter, so that those whom one replica lost do not all come back at the same moment.
        seconds = (error.retry_after or 0) + most * random.uniform(0.5, 1.0)  # noqa: S311
        if now + seconds > self._deadline:
            raise error
        await asyncio.sleep(seconds)


def was_not_done(error: GatewayError) -> bool:
    """Whether the gateway has certainly done nothing for a call."""
    if isinstance(error, ApiError):
        return error.http_status == 429 or error.problem_code == "overloaded"
    return isinstance(error.__cause__, aiohttp.ClientConnectorError)


def _is_passing(error: GatewayError) -> bool:
    if isinstance(error, ApiError):
        return error.http_status in _PASSING
    return isinstance(error, Unreachable) and not isinstance(error, NoGateway)
