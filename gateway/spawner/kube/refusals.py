"""Answers of the API server that are no success, as errors of the gateway. Pure.

The API server explains itself in a Status object (``kind: Status``): ``code`` repeats the HTTP
status, ``reason`` is one word for programs, ``message`` a sentence, ``details`` names the object.
What stands in front of it (a load balancer, a proxy) may answer with anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import (
    KubeAlreadyExists,
    KubeConflict,
    KubeForbidden,
    KubeGone,
    KubeInvalid,
    KubeNotFound,
    KubeRefused,
    KubeUnavailable,
)

#: Statuses that pass by themselves. 429 is what the API server says before it does anything.
_PASSING: Final = frozenset({429, 500, 502, 503, 504})
_LONGEST_TEXT: Final = 500

_KINDS: Final[dict[int, type[KubeRefused]]] = {
    400: KubeInvalid,
    403: KubeForbidden,
    404: KubeNotFound,
    409: KubeConflict,
    410: KubeGone,
    422: KubeInvalid,
}


def refusal(status: int, body: bytes, *, retry_after: str = "") -> KubeRefused | KubeUnavailable:
    """The error that an answer with this HTTP status, content and Retry-After stands for."""
    return from_status(parsed(body), status=status, retry_after=retry_after)


def parsed(body: bytes) -> dict[str, Any]:
    """The Status object in an answer, or one made of whatever text is there."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and answer.get("kind") == "Status":
        return answer
    return {"message": body[:_LONGEST_TEXT].decode(errors="replace").strip()}


def from_status(
    answer: Mapping[str, Any], *, status: int = 0, retry_after: str = ""
) -> KubeRefused | KubeUnavailable:
    """The same for a Status object, which also comes as the last event of a watch."""
    status = status or int(answer.get("code") or 0)
    reason = str(answer.get("reason") or "")
    message = str(answer.get("message") or "") or f"status {status}"
    details = answer.get("details") or {}
    if status in _PASSING or _is_quota_race(status, details):
        return KubeUnavailable(
            f"the Kubernetes API server cannot answer now ({status}): {message}",
            retry_after=_seconds(retry_after) or _seconds(details.get("retryAfterSeconds")),
            uncertain=status >= 500,
        )
    if status == 401:
        message = f"the Kubernetes API server does not accept the gateway's credentials: {message}"
    kind = _KINDS.get(status, KubeRefused)
    if status == 409 and reason == "AlreadyExists":
        kind = KubeAlreadyExists
    return kind(message, http_status=status, reason=reason)


def _is_quota_race(status: int, details: Mapping[str, Any]) -> bool:
    """Whether a create met another one at the quota's counter: nothing of it has happened.

    That is 409, too, with the quota as the object in conflict.
    """
    return status == 409 and details.get("kind") == "resourcequotas"


def _seconds(value: object) -> int | None:
    """Seconds of a Retry-After; None for a date, which the API server does not send."""
    try:
        return max(1, int(str(value)))
    except ValueError:
        return None
