"""What a replica writes down of the calls it answers, and what it never writes down."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import redis.asyncio

from tests.e2e.calls import SESSIONS, fresh_id
from tests.e2e.conftest import Store, run_pair
from tests.e2e.fleet import until
from tests.e2e.replicas import Api, ReplicaProcess

pytestmark = pytest.mark.timeout(120)

#: What may be in no line.
TOKEN: Final = secrets.token_hex(24)
SECRET: Final = f"hush-{secrets.token_hex(12)}"


def calls_of(api: Api) -> list[dict[str, Any]]:
    """The lines of calls, as a program reads them."""
    lines = [json.loads(line) for line in api.replica.lines if line.startswith("{")]
    return [line for line in lines if line["logger"] == "gateway.api.call_log"]


async def test_each_call_is_one_line_with_replica_route_session_status_and_time(
    store: Store, data_dir: Path, http: aiohttp.ClientSession
) -> None:
    environ = {"GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8", "GATEWAY_REPLICA_ID": "a-name"}
    async with run_pair(store, data_dir, http, {**environ, "GATEWAY_LOG_FORMAT": "json"}) as pair:
        session = await pair.a.create({"target": "127.0.0.1:9"})
        path = f"{SESSIONS}/{session['id']}"
        await pair.a.ask("GET", f"{path}?wait=ready&timeout=1")
        await pair.a.ask("POST", f"{path}/events", json={"type": "a b"})
        await pair.a.ask("GET", "/nowhere/at/all")
        await pair.a.ask("GET", "/readyz")
        await pair.a.ask("POST", "/sessions/stop", json={"session_id": session["id"]})
        async with http.get(f"{pair.a.url}{path}/events") as stream:
            await stream.read()
    lines = calls_of(pair.a)
    shown = [(line["method"], line["route"], line["status"], line["session"]) for line in lines]
    one = "/api/v1/sessions/{id}"
    assert shown == [
        ("POST", "/api/v1/sessions", 201, session["id"]),
        ("GET", one, 200, session["id"]),
        ("POST", f"{one}/events", 400, session["id"]),
        ("GET", "", 404, ""),
        ("POST", "/sessions/stop", 200, session["id"]),
        ("GET", f"{one}/events", 200, session["id"]),
    ]
    for line in lines:
        assert line["replica"] == "a-name"
        assert 0 < line["duration_ms"] < 60_000
        assert line["level"] == "info"
    assert lines[1]["message"] == f"GET /api/v1/sessions/{session['id']} 200"


async def test_a_person_gets_plain_lines_where_they_are_asked_for(
    store: Store, data_dir: Path, http: aiohttp.ClientSession
) -> None:
    async with run_pair(store, data_dir, http, {"GATEWAY_LOG_FORMAT": "text"}) as pair:
        await pair.a.ask("GET", SESSIONS)
    assert not [line for line in pair.a.replica.lines if line.startswith("{")]
    assert [line for line in pair.a.replica.lines if line.endswith(f"GET {SESSIONS} 200")]


async def test_workers_heed_the_form_of_the_log_too(store: Store, data_dir: Path) -> None:
    environ = {
        "GATEWAY_REDIS_URL": store.url,
        "GATEWAY_LOG_FORMAT": "text",
        "GATEWAY_WORKERS": "1",
    }
    async with ReplicaProcess(host="127.0.0.2", data_dir=data_dir, environ=environ) as replica:
        store.process.kill()

        async def complains() -> bool:
            return any(" worker " in line for line in replica.lines)

        await until(complains, seconds=20)
    assert not [line for line in replica.lines if line.startswith("{")]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def spill(api: Api) -> None:
    """Put secrets wherever a caller can put one, in calls that succeed and in calls that fail."""
    good = bearer(TOKEN)
    session_id = fresh_id()
    create = {
        "id": session_id,
        "target": "127.0.0.1:9",
        "metadata": {"key": SECRET},
    }
    project: dict[str, Any] = {
        "files": [{"path": f"{SECRET}.js", "content": SECRET}],
        "command": ["node", "-e", f"console.error('{SECRET}'); process.exit(1)"],
        "env": {"KEY": SECRET},
    }
    keyed = {**good, "Idempotency-Key": SECRET, "Cookie": f"a={SECRET}", "X-Api-Key": SECRET}
    path = f"{SESSIONS}/{session_id}"
    calls: list[tuple[str, str, dict[str, str], Any]] = [
        ("POST", SESSIONS, keyed, create),
        ("POST", SESSIONS, keyed, {**create, "metadata": {"other": SECRET}}),
        ("POST", f"{SESSIONS}?wait=ready&timeout=30", good, project),
        ("POST", SESSIONS, good, {"target": f"http://user:{SECRET}@127.0.0.1:9"}),
        ("POST", SESSIONS, good, {"target": f"{SECRET}.invalid:80"}),
        ("POST", SESSIONS, good, {SECRET: SECRET}),
        ("PATCH", path, good, {"metadata": {"k": SECRET}}),
        ("POST", f"{path}/events", good, {"type": "login", "data": {"password": SECRET}}),
        ("POST", f"{path}/events", good, {"type": f"no name {SECRET}"}),
        ("POST", f"/session/{session_id}/interactions", good, {"prompt": SECRET, "response": ""}),
        ("GET", f"{path}?token={SECRET}&wait={SECRET}", good, None),
        ("GET", f"{path}/events?token={SECRET}", {}, None),
        ("GET", f"/{SECRET}?x={SECRET}", good, None),
        ("GET", f"{SESSIONS}/{SECRET}x{'y' * 40}", good, None),
        ("GET", path, bearer(SECRET), None),
        ("GET", path, {"Authorization": f"Basic {SECRET}"}, None),
        ("GET", f"/preview/{session_id}/?token={SECRET}", keyed, None),
        ("POST", f"{path}/stop", good, None),
    ]
    for method, address, headers, body in calls:
        await api.ask(method, address, headers=headers, json=body)


async def test_no_line_of_any_log_holds_a_secret(
    store: Store, data_dir: Path, http: aiohttp.ClientSession
) -> None:
    """At the most talkative level, with a registry that goes away in the end."""
    async with aiohttp.ClientSession() as client:
        password = SECRET + "-redis"
        port = await open_tcp(store, password)
        environ = {
            "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
            "GATEWAY_API_TOKENS": TOKEN,
            "GATEWAY_LOG_LEVEL": "debug",
            "GATEWAY_REDIS_URL": f"redis://:{password}@127.0.0.1:{port}",
            "GATEWAY_REGISTRATION_WAIT_SECONDS": "0.1",
            "GATEWAY_REGISTRY_TIMEOUT_SECONDS": "0.5",
        }
        replica = ReplicaProcess(host="127.0.0.2", data_dir=data_dir, environ=environ)
        async with replica:
            api = Api(client, replica)
            await spill(api)
            store.process.kill()
            await store.process.wait()
            await spill(api)
            answer = await api.ask("GET", SESSIONS, headers=bearer(TOKEN))
            assert answer.status == 503
    assert len(calls_of(api)) > 30
    for line in replica.lines:
        assert SECRET not in line
        assert TOKEN not in line


async def open_tcp(store: Store, password: str) -> int:
    """Let the store listen on a port, too, with a password; the port."""
    async with redis.asyncio.from_url(store.url) as client:
        for port in range(20_000 + os.getpid() % 10_000, 32_000):
            try:
                await client.config_set("port", port)
            except redis.exceptions.ResponseError:
                continue
            await client.config_set("requirepass", password)
            return port
    raise AssertionError("no port is free")


async def test_a_call_whose_client_goes_is_logged_too(
    store: Store, data_dir: Path, http: aiohttp.ClientSession
) -> None:
    async with run_pair(store, data_dir, http, {}) as pair:
        url = f"{pair.a.url}{SESSIONS}/{fresh_id()}"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await http.get(url)
        await pair.a.ask("GET", SESSIONS)
    assert {(line["route"], line["status"]) for line in calls_of(pair.a)} == {
        ("/api/v1/sessions/{id}", 0),
        ("/api/v1/sessions", 200),
    }
