"""Parameters in the query of a call. Each raises BadRequest that says what is possible."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from aiohttp import web

from gateway.errors import BadRequest
from gateway.session import Session, State

MAX_WAIT_SECONDS: Final = 300.0
_METADATA: Final = "metadata."


def number(request: web.Request, name: str, *, default: float, low: float, high: float) -> float:
    """A number between ``low`` and ``high``."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError as exc:
        raise BadRequest(f"{name}: {text[:40]!r} is no number") from exc
    if not low <= value <= high:
        raise BadRequest(f"{name}: must lie between {low:g} and {high:g}")
    return value


def whole_number(request: web.Request, name: str, *, default: int, high: int) -> int:
    """A whole number from 1 to ``high``."""
    value = number(request, name, default=default, low=1, high=high)
    if value != int(value):
        raise BadRequest(f"{name}: must be a whole number")
    return int(value)


def choice(request: web.Request, name: str, possible: tuple[str, ...]) -> str:
    """One of ``possible``, or "" if the parameter is absent or empty."""
    value = request.query.get(name, "")
    if value and value not in possible:
        raise BadRequest(f"{name}: {value[:40]!r} is none of {', '.join(possible)}")
    return value


def wait(request: web.Request, *, default: float) -> tuple[str, float]:
    """What to wait for ("", "ready" or "ended"), and for how many seconds at most."""
    wanted = choice(request, "wait", ("ready", "ended"))
    return wanted, number(request, "timeout", default=default, low=0.0, high=MAX_WAIT_SECONDS)


def session_filter(request: web.Request) -> Callable[[Session], bool] | None:
    """Which sessions a list is to hold; None for all.

    ``state``, ``visibility``, ``owner`` (a replica's id), and ``metadata.<name>``, which is met by
    a member of that name whose value is that text, or is written so in JSON.
    """
    state = choice(request, "state", tuple(State))
    visibility = choice(request, "visibility", ("public", "private"))
    owner = request.query.get("owner", "")
    members = {
        name.removeprefix(_METADATA): value
        for name, value in request.query.items()
        if name.startswith(_METADATA)
    }
    if not (state or visibility or owner or members):
        return None

    def wanted(session: Session) -> bool:
        return (
            (not state or session.state == state)
            and (not visibility or session.public == (visibility == "public"))
            and (not owner or session.replica == owner)
            and (not members or _has_members(session, members))
        )

    return wanted


def _has_members(session: Session, members: dict[str, str]) -> bool:
    metadata = json.loads(session.metadata)
    return all(
        name in metadata and text in (metadata[name], json.dumps(metadata[name]))
        for name, text in members.items()
    )
