"""Status objects: how the API server says no, in its own words."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after
        self.status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            **({"details": details} if details is not None else {}),
            "code": code,
        }


def not_found(name: str, kind: str = "pods") -> Refusal:
    return Refusal(
        404, "NotFound", f'{kind} "{name}" not found', details={"name": name, "kind": kind}
    )


def already_exists(name: str) -> Refusal:
    return Refusal(
        409,
        "AlreadyExists",
        f'pods "{name}" already exists',
        details={"name": name, "kind": "pods"},
    )


def conflict(name: str, why: str, kind: str = "pods") -> Refusal:
    return Refusal(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {kind} "{name}": {why}',
        details={"name": name, "kind": kind},
    )


def modified(name: str, kind: str = "pods") -> Refusal:
    return conflict(
        name,
        "the object has been modified; please apply your changes to the latest version and "
        "try again",
        kind,
    )


def wrong_uid(name: str, wanted: str, found: str) -> Refusal:
    return conflict(
        name, f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
    )


def bad_request(message: str) -> Refusal:
    return Refusal(400, "BadRequest", message)


def invalid(name: str, field: str, message: str, reason: str = "FieldValueInvalid") -> Refusal:
    return Refusal(
        422,
        "Invalid",
        f'Pod "{name}" is invalid: {field}: {message}',
        details={
            "name": name,
            "kind": "Pod",
            "causes": [{"reason": reason, "message": message, "field": field}],
        },
    )


def forbidden(name: str, why: str) -> Refusal:
    return Refusal(
        403,
        "Forbidden",
        f'pods "{name}" is forbidden: {why}',
        details={"name": name, "kind": "pods"},
    )


def quota_exceeded(name: str, quota: str, limit: int) -> Refusal:
    return forbidden(
        name,
        f"exceeded quota: {quota}, requested: pods=1, used: pods={limit}, limited: pods={limit}",
    )


def unauthorized() -> Refusal:
    return Refusal(401, "Unauthorized", "Unauthorized")


def expired(version: int, oldest: int) -> Refusal:
    return Refusal(410, "Expired", f"too old resource version: {version} ({oldest})")


def continue_expired() -> Refusal:
    return Refusal(
        410,
        "Expired",
        "The provided continue parameter is too old to display a consistent list result. You can "
        "start a new list without the continue parameter, or use the continue token in this "
        "response to retrieve the remainder of the results. Continuing with the provided token "
        "results in an inconsistent list - objects that were created, modified, or deleted "
        "between the time the first chunk was returned and now may show up in the list.",
    )


def version_too_large(version: int, current: int) -> Refusal:
    return Refusal(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {version}, current: {current}",
        details={
            "causes": [
                {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            ],
            "retryAfterSeconds": 1,
        },
        retry_after=1,
    )


def too_many_requests(retry_after: int) -> Refusal:
    return Refusal(
        429,
        "TooManyRequests",
        "too many requests, please try again later.",
        details={"retryAfterSeconds": retry_after},
        retry_after=retry_after,
    )


def internal_error(why: str = "etcdserver: request timed out") -> Refusal:
    return Refusal(
        500,
        "InternalError",
        f"Internal error occurred: {why}",
        details={"causes": [{"message": why}]},
    )
