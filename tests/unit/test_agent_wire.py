"""What is believed of what comes from a pod, where anybody may answer."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import pytest

from gateway.errors import (
    AgentRefused,
    BadFiles,
    Fenced,
    GatewayError,
    NoAgent,
    PayloadTooLarge,
    RevisionConflict,
)
from gateway.spawner.kube.agent_wire import (
    AgentExit,
    ExitEvent,
    GapEvent,
    Install,
    LogEvent,
    Order,
    PhaseEvent,
    digests_of,
    file_entries,
    missing_paths,
    parse_event,
    parse_files,
    parse_object,
    parse_state,
    refusal,
)

STATE: Final[dict[str, Any]] = {
    "sessionId": "a",
    "generation": 2,
    "revision": 3,
    "state": "running",
    "run": {"generation": 2, "attempt": 1},
    "digests": {"a": "b"},
    "lastEvent": 4,
}
EXIT: Final[dict[str, Any]] = {
    "n": 9,
    "generation": 2,
    "type": "exit",
    "during": "run",
    "code": None,
    "signal": "SIGKILL",
    "reason": "",
    "requested": False,
}


def event(document: object, *, after: int = 0) -> object:
    return parse_event(json.dumps(document).encode(), after=after)


def test_events_are_read() -> None:
    exit_ = AgentExit("run", None, "SIGKILL", "", requested=False)
    assert event(EXIT) == ExitEvent(9, 2, exit_)
    log = {"n": 1, "generation": 2, "type": "log", "lines": ["a", ""]}
    assert event(log) == LogEvent(1, 2, ("a", ""))
    phase = {"n": 1, "generation": 2, "type": "phase", "phase": "installing", "detail": "npm ci"}
    assert event(phase) == PhaseEvent(1, 2, "installing", "npm ci")
    assert event({"type": "gap", "from": 1, "to": 7}) == GapEvent(7, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": "9"},
        {"n": -1},
        {"n": True},
        {"generation": None},
        {"type": "other"},
        {"during": "always"},
        {"code": "1"},
        {"reason": None},
        {"type": "log"},
        {"type": "log", "lines": "text"},
        {"type": "log", "lines": [1]},
        {"type": "phase", "phase": "dancing", "detail": ""},
        {"type": "phase", "phase": ["installing"], "detail": ""},
        {"type": "gap"},
    ],
)
def test_an_event_of_another_form_is_no_agents(wrong: dict[str, Any]) -> None:
    with pytest.raises(NoAgent, match="is no agent"):
        event(EXIT | wrong)


@pytest.mark.parametrize("line", [b"x", b"\xff", b"[]", b"[" * 100_000, b'"text"'])
def test_what_is_no_object_is_no_agents(line: bytes) -> None:
    with pytest.raises(NoAgent):
        parse_object(line)


def test_events_that_go_back_are_no_agents() -> None:
    assert event(EXIT, after=8)
    with pytest.raises(NoAgent):
        event(EXIT, after=9)


def test_lines_are_fit_for_a_log_whatever_is_sent() -> None:
    lines = ["\x1b[31mred", "two\nlines", "\ud800", "x" * 10_000]
    log = event({"n": 1, "generation": 1, "type": "log", "lines": lines})
    assert isinstance(log, LogEvent)
    assert log.lines == ("red", "two", "lines", "?", "x" * 4000)


def test_an_unknown_signal_is_none() -> None:
    odd = event(EXIT | {"signal": "SIG\x1b"})
    assert isinstance(odd, ExitEvent)
    assert odd.exit.signal == ""


@pytest.mark.parametrize(
    ("code", "signal", "ending"),
    [
        (3, "", "exited with status 3"),
        (None, "SIGTERM", "was ended by SIGTERM"),
        (None, "", "did not start"),
    ],
)
def test_an_end_is_told_in_words(code: int | None, signal: str, ending: str) -> None:
    assert AgentExit("run", code, signal, "", requested=False).ending == ending


def test_a_state_is_read() -> None:
    state = parse_state(STATE | {"state": "exited", "exit": EXIT})
    assert (state.session_id, state.generation, state.revision) == ("a", 2, 3)
    assert (state.run_generation, state.run_attempt, state.last_event) == (2, 1, 4)
    assert state.exit == AgentExit("run", None, "SIGKILL", "", requested=False)
    idle = {k: v for k, v in STATE.items() if k not in {"run", "digests"}} | {"state": "idle"}
    assert parse_state(idle).run_generation == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "odd"},
        {"state": {}},
        {"run": 1},
        {"run": {"generation": 1}},
        {"digests": []},
        {"digests": {"a": 1}},
        {"lastEvent": 1.5},
        {"exit": 1},
        {"sessionId": None},
    ],
)
def test_a_state_of_another_form_is_no_agents(wrong: dict[str, Any]) -> None:
    with pytest.raises(NoAgent):
        parse_state(STATE | wrong)


def test_files_are_read_and_those_that_are_too_long_left_out() -> None:
    files = [{"path": "a", "content": "YQ=="}, {"path": "long", "content": "YWJj"}]
    assert parse_files({"files": files}, longest=2) == {"a": b"a"}
    for wrong in (None, [1], [{"path": "a", "content": "?"}], [{"path": "a", "content": 1}]):
        with pytest.raises(NoAgent):
            parse_files({"files": wrong}, longest=2)


def test_text_is_sent_as_text_and_anything_else_in_base64() -> None:
    files = {"a": "ü".encode(), "b": b"\xff", "c": b"known"}
    digests = digests_of(files)
    assert file_entries(files, digests, known={digests["c"]}) == [
        {"path": "a", "sha256": digests["a"], "content": "ü"},
        {"path": "b", "sha256": digests["b"], "content": "/w==", "encoding": "base64"},
        {"path": "c", "sha256": hashlib.sha256(b"known").hexdigest()},
    ]


def test_an_order_says_what_it_has_to() -> None:
    assert Order(1, ("a",)).document() == {
        "generation": 1,
        "attempt": 1,
        "title": "",
        "command": ["a"],
        "env": {},
        "launchers": {},
    }
    full = Order(1, ("a",), install=Install(("npm",), limit_seconds=5), line="{}").document()
    assert full["order"] == "{}"
    assert full["install"] == {"command": ["npm"], "env": {}, "title": "", "limitSeconds": 5}


def test_an_order_shows_no_variables() -> None:
    order = Order(1, ("a",), env={"SECRET": "x"}, install=Install(("a",), env={"SECRET": "x"}))
    assert "SECRET" not in repr(order)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"code": "fenced"}, Fenced),
        ({"code": "revision", "revision": 4}, RevisionConflict),
        ({"code": "revision", "revision": "4"}, AgentRefused),
        ({"code": "bad_files"}, BadFiles),
        ({"code": "too_large"}, PayloadTooLarge),
        ({"code": "occupied"}, AgentRefused),
        ({"code": ["x"]}, AgentRefused),
        ({}, AgentRefused),
    ],
)
def test_refusals_are_errors_of_the_gateway(
    document: dict[str, Any], kind: type[GatewayError]
) -> None:
    error = refusal(409, document | {"detail": "a\x1b[31m sentence"})
    assert type(error) is kind
    assert "\x1b" not in str(error)


def test_only_a_list_of_what_is_missing_asks_for_more() -> None:
    assert missing_paths({"code": "missing", "paths": ["a", 1]}) == frozenset("a")
    assert missing_paths({"code": "missing", "paths": "a"}) is None
    assert missing_paths({"paths": ["a"]}) is None
