"""Whose move it is in a request under way, how long that may take, and what is said after it. Pure.

Only who is to act and does not has a deadline, and it is put off by whatever moves: a slow client,
a slow upload and a slow dev server live, one that has stopped does not. Nobody has to act once a
response has begun and the client takes what there is: an event stream may be silent for days.
"""

from __future__ import annotations

from typing import Final

from gateway.errors import GatewayError
from gateway.settings import Settings

#: A response has begun, or the gateway itself is at work, which has limits of its own.
NOBODY: Final = 0
#: The client is to take what waits for it.
CLIENT_TAKES: Final = 1
#: The client is to send the rest of its request.
CLIENT_SENDS: Final = 2
#: The dev server is to take the request, or to answer it.
UPSTREAM: Final = 3
#: The dev server is to answer an upgrade.
UPGRADE: Final = 4
#: The client has ended its side; most have just left.
HALF_CLOSED: Final = 5
#: All is said, and what the client still sends is thrown away so that it gets to see it.
LINGERING: Final = 6

_LINGER_SECONDS: Final = 5.0
_HALF_CLOSED_SECONDS: Final = 10.0
_FOREVER: Final = float("inf")


class UploadStalled(GatewayError):
    """The client stopped sending the content of its request."""

    status = 408
    code = "upload_stalled"
    title = "Upload stopped"


class ResponseTimeout(GatewayError):
    """The dev server did not answer, or stopped taking the request."""

    status = 504
    code = "response_timeout"
    title = "Dev server does not answer"


class UpgradeTimeout(GatewayError):
    """The dev server did not answer an upgrade request."""

    status = 504
    code = "upgrade_timeout"
    title = "Upgrade not answered"


class Limits:
    """Seconds that each may take, by whose move it is."""

    __slots__ = ("seconds",)

    def __init__(self, settings: Settings) -> None:
        self.seconds: tuple[float, ...] = (
            _FOREVER,
            settings.write_idle_seconds,
            settings.body_idle_seconds,
            settings.response_timeout_seconds or _FOREVER,
            settings.upgrade_timeout_seconds,
            _HALF_CLOSED_SECONDS,
            _LINGER_SECONDS,
        )

    def error(self, whose: int, upstream: str) -> GatewayError:
        """What a client is told after the deadline; ``upstream`` is the dev server's name."""
        seconds = self.seconds[whose]
        if whose == CLIENT_SENDS:
            return UploadStalled(
                f"nothing more of the request's content came for {seconds:g} s: send it again"
            )
        if whose == UPGRADE:
            return UpgradeTimeout(
                f"{upstream} did not answer the upgrade within {seconds:g} s: check the "
                "socket's path and subprotocol"
            )
        return ResponseTimeout(
            f"{upstream} accepted the request and did not answer within {seconds:g} s: look at its "
            "log, or raise GATEWAY_RESPONSE_TIMEOUT_SECONDS if it is only slow"
        )
