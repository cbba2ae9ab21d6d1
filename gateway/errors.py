"""The one error tree of the gateway.

Every error knows the HTTP status it means (RFC 9110), a stable machine-readable ``code``, and a
sentence that tells the caller what to do. Foreign errors (OSError, redis.RedisError, ...) are
translated into one of these where they enter.

::

    GatewayError 500
     +- BadRequest 400
     |   +- BadSessionId              id is no DNS label
     |   +- BadFiles                  a posted path, size or encoding is refused
     |   +- UnsupportedProject        no recipe fits the posted files
     +- Unauthorized 401
     +- Forbidden 403
     |   +- TargetRefused             target address is not in the allow-list
     +- SessionNotFound 404           the id never existed
     +- SessionConflict 409           same id, other content
     +- RevisionConflict 409          files changed since ``baseRevision``
     +- SessionEnded 410              stopped, failed or expired
     +- PayloadTooLarge 413
     +- LimitReached 429              sessions, creates, files or bytes of one token
     +- RegistryUnavailable 503       the store did not answer: never "not found"
     |   +- NotAcknowledged 503       fewer Redis replicas acknowledged than required
     +- ListenerTooSlow 503           takes less of a stream than comes; it can resume
     +- Fenced 409                    another owner or generation holds the session
     +- SpawnFailed 502               the dev server could not be started
     +- KubeUnavailable 503           the Kubernetes API server did not answer, or not now
     +- KubeRefused 502               the Kubernetes API server refused a call
     |   +- KubeForbidden             by RBAC, a quota or an admission rule
     |   +- KubeNotFound              the object, or its namespace
     |   +- KubeAlreadyExists         the name is taken
     |   +- KubeConflict              another version or UID than the call was meant for
     |   +- KubeGone                  the resource version is too old: list again
     |   +- KubeInvalid               the object does not make sense
     +- AgentUnreachable 503          the agent in a preview's pod did not answer in time
     +- AgentRefused 502              the agent in a preview's pod refused an order
     |   +- NoAgent                   something else answers in its place
     +- SettingsError                 refused at start
"""

from __future__ import annotations

from typing import ClassVar


class GatewayError(Exception):
    """Root of the tree. ``str(error)`` is a sentence fit for the caller."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    #: Seconds for a ``Retry-After`` header, or None.
    retry_after: int | None = None


class BadRequest(GatewayError):
    """The request is wrong in itself; repeating it unchanged cannot succeed."""

    status = 400
    code = "bad_request"
    title = "Bad request"


class BadSessionId(BadRequest):
    """The id is not of the form that fits into a DNS label."""

    code = "bad_session_id"
    title = "Bad session id"

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text[:60]!r} is no session id: use 8 to 40 characters of a-z, 0-9 and '-', "
            "beginning and ending with a letter or digit"
        )


class BadFiles(BadRequest):
    """A posted file has a path, size or encoding that is refused."""

    code = "bad_files"
    title = "Bad files"


class UnsupportedProject(BadRequest):
    """No recipe knows how to start the posted project."""

    code = "unsupported_project"
    title = "Unsupported project"


class Unauthorized(GatewayError):
    """No token, or one that is not known."""

    status = 401
    code = "unauthorized"
    title = "Unauthorized"


class Forbidden(GatewayError):
    """The caller is known, or needs not be, and still may not do this."""

    status = 403
    code = "forbidden"
    title = "Forbidden"


class TargetRefused(Forbidden):
    """The target of a session is outside the allow-list."""

    code = "target_refused"
    title = "Target refused"


class SessionNotFound(GatewayError):
    """No session of this id was ever registered (or its tombstone is gone too)."""

    status = 404
    code = "session_not_found"
    title = "Session not found"

    def __init__(self, session_id: str, *, waited: float = 0.0) -> None:
        after = f" (waited {waited:.1f} s for its registration)" if waited else ""
        super().__init__(f"there is no session {session_id}{after}; create it first")
        self.session_id = session_id
        self.waited = waited


class SessionConflict(GatewayError):
    """A live session of this id exists with other content."""

    status = 409
    code = "session_conflict"
    title = "Session exists with other content"

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session {session_id} exists with other content: use another id, stop it first, "
            "or change its files with PATCH .../files"
        )


class RevisionConflict(GatewayError):
    """The files changed since the revision the caller based its edit on."""

    status = 409
    code = "revision_conflict"
    title = "Files changed meanwhile"

    def __init__(self, current: int) -> None:
        super().__init__(f"the files are at revision {current}: read them again, then retry")
        self.current = current


class Fenced(GatewayError):
    """Another owner, generation or state holds the session: the caller lost the race."""

    status = 409
    code = "fenced"
    title = "Session moved on"


class SessionEnded(GatewayError):
    """The session has stopped, failed or expired; its tombstone says why."""

    status = 410
    code = "session_ended"
    title = "Session ended"

    def __init__(self, session_id: str, *, state: str, reason: str = "") -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(f"session {session_id} is {state}{why}: create it anew")
        self.session_id = session_id
        self.state = state
        self.reason = reason


class PayloadTooLarge(GatewayError):
    """The request's content is larger than the limit."""

    status = 413
    code = "payload_too_large"
    title = "Payload too large"


class LimitReached(GatewayError):
    """The caller has as much as it may; ``kind`` is creates, sessions, files or bytes."""

    status = 429
    code = "limit_reached"
    title = "Limit reached"

    def __init__(self, kind: str, limit: int, *, seconds: int) -> None:
        what = "creates in a minute" if kind == "creates" else kind
        how = "wait" if kind == "creates" else "stop or delete sessions"
        super().__init__(f"{limit} {what} are the limit of this token: {how}, or ask for more")
        self.kind = kind
        self.retry_after = seconds


class RegistryUnavailable(GatewayError):
    """The registry did not answer in time. Says nothing about whether a session exists."""

    status = 503
    code = "registry_unavailable"
    title = "Registry unavailable"
    retry_after = 1


class NotAcknowledged(RegistryUnavailable):
    """The write reached fewer replicas of the registry than ``registry_replicas`` asks for."""

    code = "registry_not_acknowledged"
    title = "Registration not acknowledged"


class ListenerTooSlow(GatewayError):
    """A listener to an event stream takes less than comes; it resumes after what it was given."""

    status = 503
    code = "listener_too_slow"
    title = "Listener too slow"


class SpawnFailed(GatewayError):
    """The dev server could not be started; the message is the reason a user can act on."""

    status = 502
    code = "spawn_failed"
    title = "Dev server failed"

    def __init__(self, reason: str, *, log_tail: str = "") -> None:
        super().__init__(reason)
        self.log_tail = log_tail


class KubeUnavailable(GatewayError):
    """The Kubernetes API server did not answer in time, or asks to come back later.

    ``uncertain``: whether the call may have taken effect all the same. ``asked_seconds``: after
    which time it asks to come back, 0 if it does not.
    """

    status = 503
    code = "kubernetes_unavailable"
    title = "Kubernetes unavailable"
    retry_after = 1

    def __init__(
        self, message: str, *, retry_after: int | None = None, uncertain: bool = True
    ) -> None:
        super().__init__(message)
        self.uncertain = uncertain
        self.asked_seconds = retry_after or 0
        if retry_after is not None:
            self.retry_after = retry_after


class KubeRefused(GatewayError):
    """The Kubernetes API server refused a call, for a ``reason`` and with a message of its own.

    ``http_status`` is its status. ``repeated``: an earlier try of the same call may have taken
    effect, so that a name that is taken may have been taken by this very call.
    """

    status = 502
    code = "kubernetes_refused"
    title = "Kubernetes refused"

    def __init__(self, message: str, *, http_status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.http_status = http_status
        self.reason = reason
        self.repeated = False


class KubeForbidden(KubeRefused):
    """The gateway's account may not do this, or a quota or an admission rule is against it."""

    code = "kubernetes_forbidden"
    title = "Kubernetes forbids"

    @property
    def quota_exceeded(self) -> bool:
        """Whether a ResourceQuota is used up: it passes when something else ends."""
        return "exceeded quota" in str(self)


class KubeNotFound(KubeRefused):
    """The object does not exist; for a new one, its namespace does not."""

    code = "kubernetes_not_found"
    title = "Not found in Kubernetes"


class KubeAlreadyExists(KubeRefused):
    """An object of this name exists."""

    code = "kubernetes_already_exists"
    title = "Name taken in Kubernetes"


class KubeConflict(KubeRefused):
    """The object has another version or UID than the call was meant for."""

    code = "kubernetes_conflict"
    title = "Conflict in Kubernetes"


class KubeGone(KubeRefused):
    """The API server no longer knows what happened since the given version: list again."""

    code = "kubernetes_gone"
    title = "Version too old for Kubernetes"


class KubeInvalid(KubeRefused):
    """The object is not one that Kubernetes takes."""

    code = "kubernetes_invalid"
    title = "Invalid for Kubernetes"


class AgentUnreachable(GatewayError):
    """The agent in a preview's pod did not answer, or not in time; it may do so later."""

    status = 503
    code = "agent_unreachable"
    title = "Preview pod unreachable"


class AgentRefused(GatewayError):
    """The agent in a preview's pod refused an order; ``reason`` is its code, see docs/agent.md."""

    status = 502
    code = "agent_refused"
    title = "Preview pod refused"

    def __init__(self, detail: str, *, reason: str = "") -> None:
        super().__init__(f"the agent of the preview refused: {detail}")
        self.reason = reason


class NoAgent(AgentRefused):
    """What answers in a preview's pod is no agent, perhaps the preview itself."""

    code = "no_agent"
    title = "Preview pod taken over"

    def __init__(self, detail: str) -> None:
        GatewayError.__init__(self, f"what answers in the pod of the preview is no agent: {detail}")
        self.reason = self.code


class SettingsError(GatewayError):
    """A setting is unknown, malformed or contradicts another; refused at start."""

    code = "bad_settings"
    title = "Bad settings"
