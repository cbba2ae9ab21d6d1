"""What doctor makes of what it sees."""

from __future__ import annotations

import pytest

from gateway.findings import (
    Answer,
    Finding,
    Server,
    Verdict,
    judge_answer,
    judge_dev_server,
    judge_server,
    judge_state,
    judge_versions,
)

GOOD = {
    "redis_version": "7.2.4",
    "valkey_version": "8.1.0",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "maxmemory": "0",
    "maxmemory_policy": "noeviction",
    "used_memory": "1000000",
    "connected_slaves": "0",
}


def judged(
    changes: dict[str, str] | None = None, *, ping_ms: float = 0.2, replicas: int = 0
) -> dict[str, Finding]:
    server = Server("valkey:6379", ping_ms, {**GOOD, **(changes or {})})
    return {finding.check: finding for finding in judge_server(server, replicas_needed=replicas)}


def test_a_good_server_is_well() -> None:
    findings = judged()
    assert {finding.verdict for finding in findings.values()} == {Verdict.OK}
    assert findings["version"].detail == "Valkey 8.1.0"
    assert "memory" not in findings, "there is no limit"
    assert "replication" not in findings, "none is asked for"


@pytest.mark.parametrize(
    ("changes", "check", "verdict"),
    [
        ({"valkey_version": "7.2.5"}, "version", Verdict.WARNING),
        ({"valkey_version": "unstable"}, "version", Verdict.WARNING),
        ({"aof_enabled": "0"}, "persistence", Verdict.WARNING),
        ({"aof_last_write_status": "err"}, "persistence", Verdict.FAILURE),
        ({"maxmemory": "5", "maxmemory_policy": "allkeys-lru"}, "eviction", Verdict.FAILURE),
        ({"maxmemory_policy": "allkeys-lru"}, "eviction", Verdict.OK),
        ({"maxmemory": "4000000"}, "memory", Verdict.OK),
        ({"maxmemory": "1000001"}, "memory", Verdict.WARNING),
        ({"maxmemory": "?"}, "eviction", Verdict.OK),
    ],
)
def test_what_endangers_sessions_is_found_and_has_a_remedy(
    changes: dict[str, str], check: str, verdict: Verdict
) -> None:
    finding = judged(changes)[check]
    assert finding.verdict is verdict
    assert bool(finding.remedy) is (verdict is not Verdict.OK)


def test_redis_is_judged_by_its_own_versions() -> None:
    for version, verdict in (("7.0.15", Verdict.OK), ("6.2.1", Verdict.WARNING)):
        server = Server("redis", 0.1, {"redis_version": version})
        found = {finding.check: finding for finding in judge_server(server, replicas_needed=0)}
        assert (found["version"].verdict, found["version"].detail) == (verdict, f"Redis {version}")


def test_a_slow_server_is_found() -> None:
    assert judged(ping_ms=50)["reach"].verdict is Verdict.WARNING


def test_missing_replicas_of_the_registry_are_found() -> None:
    assert judged(replicas=1)["replication"].verdict is Verdict.FAILURE
    assert judged({"connected_slaves": "1"}, replicas=1)["replication"].verdict is Verdict.OK


def test_a_server_that_tells_nothing_of_itself_is_unknown_not_bad() -> None:
    reach, info = judge_server(Server("valkey", 0.1, {}), replicas_needed=1)
    assert (reach.verdict, info.verdict) == (Verdict.OK, Verdict.UNKNOWN)
    assert "+info" in info.remedy


def test_different_versions_are_found() -> None:
    assert judge_versions({"a": "1", "b": "1"}).verdict is Verdict.OK
    mixed = judge_versions({"a": "1", "b": "2"})
    assert (mixed.verdict, mixed.detail) == (Verdict.WARNING, "a 1, b 2")


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ("ready", Verdict.OK),
        ("sleeping", Verdict.OK),
        ("starting", Verdict.WARNING),
        ("stopped", Verdict.WARNING),
        ("failed", Verdict.FAILURE),
        ("of a later version", Verdict.UNKNOWN),
    ],
)
def test_a_session_is_judged_by_its_state(state: str, verdict: Verdict) -> None:
    assert judge_state("my-session", state, "").verdict is verdict
    assert judge_state("my-session", state, "why").detail == f"{state}: why"


def test_a_failed_session_s_remedy_is_a_command_to_copy() -> None:
    assert "preview-gateway logs my-session" in judge_state("my-session", "failed", "").remedy


SERVED = Answer("a", 200)
DEAD = Answer("b", 502, "upstream_unreachable", "the dev server refuses connections")
LOST = Answer("c", 503, "registry_unavailable", "the registry is away")


@pytest.mark.parametrize(
    ("answers", "verdict", "said"),
    [
        ([SERVED, SERVED], Verdict.OK, "it answers"),
        ([SERVED, LOST], Verdict.OK, "it answers"),
        ([DEAD, DEAD], Verdict.FAILURE, "refuses connections"),
        ([SERVED, DEAD], Verdict.FAILURE, "not to b"),
        ([LOST], Verdict.UNKNOWN, "no replica has asked it"),
        ([], Verdict.UNKNOWN, "no replica has asked it"),
    ],
)
def test_a_dead_dev_server_is_told_from_a_replica_that_does_not_reach_it(
    answers: list[Answer], verdict: Verdict, said: str
) -> None:
    finding = judge_dev_server("my-session", answers)
    assert finding.verdict is verdict
    assert said in finding.detail


def test_an_answer_of_the_dev_server_is_fine_whatever_it_is() -> None:
    assert judge_answer("my-session", Answer("a", 404)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (DEAD, "dev server"),
        (LOST, "registry"),
        (Answer("a", 404, "session_not_found", ""), "GATEWAY_REDIS_URL"),
        (Answer("a", 0, "unreachable", "connection refused"), "this replica"),
        (Answer("a", 500, "something_new", ""), ""),
    ],
)
def test_a_refusal_of_the_gateway_s_own_has_a_remedy(answer: Answer, remedy: str) -> None:
    finding = judge_answer("my-session", answer)
    assert finding.verdict is Verdict.FAILURE
    assert remedy in finding.remedy
    assert finding.detail
