"""What calls of the client raise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.client.answers import Session
from gateway.errors import GatewayError


class ApiError(GatewayError):
    """The API refused a call; ``problem`` is its RFC 9457 document, ``problem_code`` its code."""

    code = "api_error"
    title = "API error"

    def __init__(
        self, status: int, problem: Mapping[str, Any], *, retry_after: int | None = None
    ) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"status {status}"))
        self.http_status = status
        self.problem = dict(problem)
        self.problem_code = str(problem.get("code", ""))
        self.retry_after = retry_after


class Unreachable(GatewayError):
    """Nothing answers at the API's address, or not in time."""

    code = "unreachable"
    title = "Gateway unreachable"


class NoGateway(Unreachable):
    """Something else answers: trying again does not help."""


class PreviewEnded(GatewayError):
    """A preview that was waited for has ended instead; ``session`` says how and why."""

    code = "session_ended"
    title = "Preview ended"

    def __init__(self, session: Session) -> None:
        super().__init__(f"preview {session['id']} is {session['state']}: {session['reason']}")
        self.session = session


class WaitTimeout(GatewayError):
    """What was waited for has not come in time; ``session`` is as it was last seen."""

    code = "wait_timeout"
    title = "Not in time"

    def __init__(self, session: Session, *, until: str, seconds: float) -> None:
        name, state = session["id"], session["state"]
        super().__init__(f"preview {name} is {state}, not {until}, after {seconds:g} s")
        self.session = session
