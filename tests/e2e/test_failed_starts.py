"""Fault 38: dev servers that end at once, never listen, or listen elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from tests.e2e.calls import SESSIONS, dev_servers, expect_problem
from tests.e2e.conftest import Pair

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
    pytest.mark.node,
]

ENVIRON: Final = {"GATEWAY_START_TIMEOUT_SECONDS": "2"}
SERVE: Final = "require('http').createServer((q, a) => a.end('x'))"
#: Tells in its log at which port it should listen, and what it does instead.
CASES: Final[dict[str, tuple[str, str]]] = {
    "ends at once": ("process.exit(3)", "3"),
    "dies of a signal": ("process.kill(process.pid, 'SIGKILL')", "SIGKILL"),
    "never listens": ("setInterval(() => {}, 1000)", "2"),
    "listens elsewhere": (f"{SERVE}.listen(0, process.env.HOST)", "2"),
    "listens on another address": (f"{SERVE}.listen(process.env.PORT, '127.9.9.9')", "2"),
}


@pytest.mark.parametrize(("source", "words"), CASES.values(), ids=CASES)
async def test_fault_38_a_dev_server_that_does_not_serve_fails_its_session_and_frees_its_port(
    shared_pair: Pair, source: str, words: str
) -> None:
    session = await ended_at_once(shared_pair, f"console.log(process.env.PORT); {source}")
    assert session["state"] == "failed"
    assert words in session["reason"], session["reason"]
    path = f"{SESSIONS}/{session['id']}"
    assert await asyncio.to_thread(dev_servers, session["id"]) == []
    # As any other ended session, on the other replica too.
    assert (await shared_pair.b.ask("GET", f"/preview/{session['id']}/")).status == 410
    event = await shared_pair.b.ask("PATCH", path, json={"metadata": {"a": 1}})
    expect_problem(event, 410, "session_ended")
    assert (event.body["state"], event.body["reason"]) == ("failed", session["reason"])
    stopped = await shared_pair.b.ask("POST", f"{path}/stop")
    assert (stopped.body["state"], stopped.body["alreadyStopped"]) == ("stopped", True)
    assert (stopped.body["endedAs"], stopped.body["reason"]) == ("failed", session["reason"])
    # Its port can be had at once.
    log = (await shared_pair.b.ask("GET", f"{path}/logs")).body
    server = await asyncio.start_server(lambda *_: None, shared_pair.a.replica.host, int(log))
    server.close()
    await server.wait_closed()


async def ended_at_once(pair: Pair, source: str) -> dict[str, Any]:
    """The session of a program, once it has failed."""
    body = {"files": [{"path": "x.cjs", "content": source}], "command": "node x.cjs"}
    answer = await pair.a.ask("POST", f"{SESSIONS}?wait=ended&timeout=60", json=body)
    assert answer.status == 201
    assert isinstance(answer.body, dict)
    return answer.body
