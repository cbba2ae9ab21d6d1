"""What ``doctor`` finds, and what it makes of it. Pure.

A finding is a verdict about one thing, with what was seen, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

#: A registry that takes longer for a PING makes every create and every new route slow.
SLOW_MS: Final = 20.0
_FULL: Final = 0.9
_OLDEST: Final = {"Redis": 7, "Valkey": 8}


class Verdict(StrEnum):
    """From good to bad. UNKNOWN: it could not be looked at from here."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """``about`` names the thing (``registry``, ``replica a``), ``check`` what was looked at."""

    about: str
    check: str
    verdict: Verdict
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """What was seen of one server of the registry. ``info`` is what INFO says; empty: refused."""

    name: str
    ping_ms: float
    info: Mapping[str, str]


def judge_server(server: Server, *, replicas_needed: int) -> Iterator[Finding]:
    """Every finding about a server that answers."""
    yield _latency(server)
    if not server.info:
        yield Finding(
            "registry",
            "INFO",
            Verdict.UNKNOWN,
            f"{server.name} does not tell its version, persistence and memory to this user",
            "allow the user +info, or look at the server's configuration yourself",
        )
        return
    yield _version(server)
    yield _persistence(server)
    yield _eviction(server)
    yield from _memory(server)
    if replicas_needed:
        yield _replication(server, replicas_needed)


def _latency(server: Server) -> Finding:
    seen = f"{server.name} answers in {server.ping_ms:.1f} ms"
    if server.ping_ms <= SLOW_MS:
        return Finding("registry", "reach", Verdict.OK, seen)
    remedy = "bring it nearer to the replicas, or relieve it: SLOWLOG GET shows what takes long"
    return Finding("registry", "reach", Verdict.WARNING, seen, remedy)


def _version(server: Server) -> Finding:
    info = server.info
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "")
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) >= _OLDEST[name]:
        return Finding("registry", "version", Verdict.OK, f"{name} {version}")
    remedy = "the gateway is tested with Redis 7 and later, Valkey 8 and later: update it"
    return Finding("registry", "version", Verdict.WARNING, f"{name} {version or '?'}", remedy)


def _persistence(server: Server) -> Finding:
    info = server.info
    if info.get("aof_enabled") != "1":
        return Finding(
            "registry",
            "persistence",
            Verdict.WARNING,
            "it keeps no append-only file: its restart would lose sessions",
            "CONFIG SET appendonly yes, and in its configuration file",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding(
            "registry",
            "persistence",
            Verdict.FAILURE,
            "it cannot write its append-only file",
            "look at its log and its disk",
        )
    return Finding("registry", "persistence", Verdict.OK, "append-only file")


def _eviction(server: Server) -> Finding:
    policy = server.info.get("maxmemory_policy", "")
    if policy == "noeviction" or server.info.get("maxmemory") == "0":
        return Finding("registry", "eviction", Verdict.OK, policy or "no limit of memory")
    return Finding(
        "registry",
        "eviction",
        Verdict.FAILURE,
        f"with {policy or 'an unknown policy'} it may throw sessions away when memory is short",
        "CONFIG SET maxmemory-policy noeviction, and in its configuration file",
    )


def _memory(server: Server) -> Iterator[Finding]:
    used, most = (_number(server.info.get(name)) for name in ("used_memory", "maxmemory"))
    if not most:
        return
    share = used / most
    seen = f"{share:.0%} of {most / 2**20:.0f} MiB used"
    if share < _FULL:
        yield Finding("registry", "memory", Verdict.OK, seen)
        return
    remedy = "raise its maxmemory, or stop and delete sessions: when it is full, creates fail"
    yield Finding("registry", "memory", Verdict.WARNING, seen, remedy)


def _replication(server: Server, needed: int) -> Finding:
    connected = _number(server.info.get("connected_slaves"))
    seen = f"{connected} replicas, {needed} must acknowledge a create"
    if connected >= needed:
        return Finding("registry", "replication", Verdict.OK, seen)
    remedy = "start replicas of the server, or lower GATEWAY_REGISTRY_REPLICAS: creates fail"
    return Finding("registry", "replication", Verdict.FAILURE, seen, remedy)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def judge_versions(versions: Mapping[str, str]) -> Finding:
    """Whether all replicas (version by name) run the same version."""
    distinct = sorted(set(versions.values()))
    if len(distinct) == 1:
        return Finding("replicas", "version", Verdict.OK, f"all run {distinct[0]}")
    seen = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    remedy = "fine while an update rolls; otherwise finish the update"
    return Finding("replicas", "version", Verdict.WARNING, seen, remedy)


#: What a session's state means to who looks for its preview: verdict, and remedy for its ID.
_STATES: Final = {
    "ready": (Verdict.OK, ""),
    "sleeping": (Verdict.OK, ""),
    "registered": (Verdict.WARNING, "it has not begun to start: are there replicas that spawn?"),
    "starting": (Verdict.WARNING, "wait, and see what it does: preview-gateway logs -f {id}"),
    "stopping": (Verdict.WARNING, "create it again with the same id once it has stopped"),
    "stopped": (Verdict.WARNING, "create it again with the same id"),
    "expired": (Verdict.WARNING, "create it again with the same id, perhaps with a longer ttl"),
    "failed": (Verdict.FAILURE, "see why: preview-gateway logs {id}; then create it again"),
}


def judge_state(session_id: str, state: str, reason: str) -> Finding:
    """What the state of a session means."""
    verdict, remedy = _STATES.get(state, (Verdict.UNKNOWN, "update this program"))
    seen = f"{state}: {reason}" if reason else state
    return Finding(f"session {session_id}", "state", verdict, seen, remedy.format(id=session_id))


@dataclass(frozen=True, slots=True)
class Answer:
    """How one replica answered for a preview. ``code`` is the gateway's own, if it was its own."""

    replica: str
    status: int
    code: str = ""
    detail: str = ""

    @property
    def is_dead_server(self) -> bool:
        """Whether the replica could not get an answer from the dev server."""
        return self.code in {"upstream_unreachable", "response_timeout", "bad_upstream_response"}


def judge_dev_server(session_id: str, answers: Sequence[Answer]) -> Finding:
    """Whether the dev server answers, by what all replicas together have seen."""
    about = f"session {session_id}"
    blind = [answer for answer in answers if answer.is_dead_server]
    asked = [answer for answer in answers if answer.is_dead_server or not answer.code]
    if not asked:
        return Finding(about, "dev server", Verdict.UNKNOWN, "no replica has asked it")
    if not blind:
        return Finding(about, "dev server", Verdict.OK, "it answers")
    if len(blind) == len(asked):
        remedy = f"see what it says: preview-gateway logs {session_id}"
        return Finding(about, "dev server", Verdict.FAILURE, blind[0].detail, remedy)
    names = ", ".join(answer.replica for answer in blind)
    return Finding(
        about,
        "dev server",
        Verdict.FAILURE,
        f"it answers, but not to {names}",
        "its owner's GATEWAY_ADVERTISE_HOST must be an address that every replica reaches",
    )


def judge_answer(session_id: str, answer: Answer) -> Finding:
    """What a replica's answer for a preview means."""
    about = f"session {session_id}"
    check = f"HTTP through {answer.replica}"
    if not answer.code:
        return Finding(about, check, Verdict.OK, f"{answer.status}")
    remedies = {
        "upstream_unreachable": "see the finding on the dev server",
        "response_timeout": "see the finding on the dev server",
        "bad_upstream_response": "see the finding on the dev server",
        "registry_unavailable": "see the findings on the registry",
        "session_not_found": "this replica has another registry: compare GATEWAY_REDIS_URL",
        "unknown_host": "give this host to GATEWAY_PUBLIC_URL or GATEWAY_PREVIEW_DOMAIN",
        "unreachable": "see the findings on this replica",
    }
    remedy = remedies.get(answer.code, "")
    seen = f"{answer.status} {answer.code}: {answer.detail}" if answer.status else answer.detail
    return Finding(about, check, Verdict.FAILURE, seen, remedy)
