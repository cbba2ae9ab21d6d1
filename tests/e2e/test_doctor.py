"""``doctor`` on real set-ups, whole and broken."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any, Final, cast

import aiohttp
import pytest
import redis.asyncio

from gateway.registry.keys import replica_key
from tests.e2e.calls import APP
from tests.e2e.conftest import Pair, Store
from tests.e2e.replicas import ReplicaProcess
from tests.e2e.test_cli import run

pytestmark = [pytest.mark.timeout(180)]

TOKEN: Final = "0123456789abcdef0123"
Findings = dict[tuple[str, str], dict[str, str]]


@pytest.fixture
def environ() -> dict[str, str]:
    # What a test writes into a lease has to last until doctor has read it.
    return {"GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8", "GATEWAY_LEASE_SECONDS": "60"}


@pytest.fixture
def plain() -> dict[str, str]:
    """An environment without any setting of the gateway's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}


async def doctor(
    environ: dict[str, str], url: str, *arguments: str
) -> tuple[int, Findings, dict[str, Any]]:
    """(exit status, findings by what they are about and what was looked at, the whole output)."""
    status, out, err = await run(environ, "doctor", "--json", "--url", url, *arguments)
    assert err == ""
    shown = json.loads(out)
    found = {(one["about"], one["check"]): one for one in shown["findings"]}
    assert shown["ok"] is (status == 0)
    for one in shown["findings"]:
        assert one["detail"]
        assert one["remedy"] or one["verdict"] == "ok", one
    return status, found, shown


def verdicts(findings: Findings, about: str) -> dict[str, str]:
    return {check: one["verdict"] for (name, check), one in findings.items() if name == about}


def name_of(replica: ReplicaProcess) -> str:
    return f"{socket.gethostname()[:50]}-{replica.url.rpartition(':')[2]}"


async def command(store: Store, text: str) -> None:
    reader, writer = await asyncio.open_unix_connection(str(store.socket))
    writer.write(text.encode() + b"\r\n")
    assert (await reader.readline()).startswith(b"+OK")
    writer.close()
    await writer.wait_closed()


@pytest.mark.node
async def test_all_is_well_with_a_preview_on_two_replicas(
    pair: Pair, plain: dict[str, str]
) -> None:
    session = await pair.a.create({"files": APP}, ready=True)
    environ = {**plain, "GATEWAY_REDIS_URL": pair.store.url}
    status, findings, shown = await doctor(environ, pair.b.url, session["id"])
    assert status == 0, shown
    registry = verdicts(findings, "registry")
    assert registry == {
        "reach": "ok",
        "version": "ok",
        "persistence": "warning",  # this test's store is in memory
        "eviction": "ok",
    }
    names = [name_of(api.replica) for api in (pair.a, pair.b)]
    for name in names:
        assert verdicts(findings, f"replica {name}") == dict.fromkeys(
            ("reach", "ready", "registry", "previews"), "ok"
        )
    about = f"session {session['id']}"
    assert verdicts(findings, about) == dict.fromkeys(
        (
            *("state", "owner", "dev server"),
            *(f"HTTP through {name}" for name in names),
            *(f"HMR socket through {name}" for name in names),
        ),
        "ok",
    )
    assert findings["replicas", "version"]["verdict"] == "ok"


async def test_people_get_a_line_for_each_finding_and_what_to_do(
    pair: Pair, plain: dict[str, str]
) -> None:
    status, out, _ = await run(plain, "doctor", "--url", pair.a.url)
    lines = out.splitlines()
    assert status == 0, out
    assert lines[-1] == "all is well"
    assert any(line.startswith("ok       replica ") for line in lines)
    unknown = next(i for i, line in enumerate(lines) if line.startswith("unknown  registry: "))
    assert "GATEWAY_REDIS_URL" in lines[unknown + 1]


async def test_a_dead_replica_is_found(pair: Pair, plain: dict[str, str]) -> None:
    pair.a.replica.kill(signal.SIGKILL)
    await pair.a.replica.exited()
    status, findings, _ = await doctor(plain, pair.b.url)
    assert status == 1
    assert findings[f"replica {name_of(pair.a.replica)}", "reach"]["verdict"] == "failure"
    assert findings[f"replica {name_of(pair.b.replica)}", "reach"]["verdict"] == "ok"


async def test_a_registry_that_is_away_is_found(pair: Pair, plain: dict[str, str]) -> None:
    pair.store.process.kill()
    await pair.store.process.wait()
    environ = {**plain, "GATEWAY_REDIS_URL": pair.store.url}
    status, findings, _ = await doctor(environ, pair.b.url)
    assert status == 1
    assert findings["registry", "reach"]["verdict"] == "failure"
    assert findings["replicas", "list"]["detail"].startswith(f"{pair.b.url}: 503 ")


async def test_a_dev_server_that_does_not_answer_is_told_from_the_rest(
    pair: Pair, plain: dict[str, str]
) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{sock.getsockname()[1]}"
        session = await pair.a.create({"target": target})
        status, findings, _ = await doctor(plain, pair.b.url, session["id"])
    assert status == 1
    found = verdicts(findings, f"session {session['id']}")
    assert found["dev server"] == "failure"
    assert found["state"] == found["owner"] == "ok"
    assert verdicts(findings, f"replica {name_of(pair.a.replica)}")["previews"] == "ok"


async def test_a_session_that_there_is_not_is_a_failure(pair: Pair, plain: dict[str, str]) -> None:
    status, findings, _ = await doctor(plain, pair.b.url, "no-such-session")
    assert status == 1
    assert "preview-gateway ls" in findings["session no-such-session", "state"]["remedy"]


async def test_without_a_gateway_it_says_how_to_start_one(
    plain: dict[str, str], tmp_path: Path
) -> None:
    environ = {**plain, "GATEWAY_DATA_DIR": str(tmp_path)}
    status, findings, _ = await doctor(environ, "http://127.0.0.1:9")
    assert status == 1
    assert "preview-gateway serve" in findings["replicas", "list"]["remedy"]


async def test_it_needs_a_token_where_the_gateway_does_and_no_more(
    store: Store, data_dir: Path, plain: dict[str, str], http: aiohttp.ClientSession
) -> None:
    tokens = {"GATEWAY_API_TOKENS": TOKEN, "GATEWAY_REDIS_URL": store.url}
    async with ReplicaProcess(host="127.0.0.2", data_dir=data_dir, environ=tokens) as replica:
        status, findings, _ = await doctor(plain, replica.url)
        assert status == 1
        assert "--token" in findings["replicas", "list"]["remedy"]
        status, findings, shown = await doctor(plain, replica.url, "--token", TOKEN)
        assert status == 0, shown
        assert TOKEN not in json.dumps(shown)


async def test_a_user_of_the_registry_who_may_do_little_is_no_failure(
    pair: Pair, plain: dict[str, str]
) -> None:
    await command(pair.store, "ACL SETUSER doctor on >secret-of-the-store resetkeys -@all +ping")
    url = f"unix://doctor:secret-of-the-store@{pair.store.socket}"
    status, findings, shown = await doctor({**plain, "GATEWAY_REDIS_URL": url}, pair.b.url)
    assert status == 0, shown
    assert verdicts(findings, "registry") == {"reach": "ok", "INFO": "unknown"}
    assert "secret-of-the-store" not in json.dumps(shown)


async def test_the_registry_that_the_gateway_runs_itself_is_looked_at(
    plain: dict[str, str], tmp_path: Path
) -> None:
    async with ReplicaProcess(host="127.0.0.1", data_dir=tmp_path) as replica:
        environ = {**plain, "GATEWAY_DATA_DIR": str(tmp_path)}
        status, findings, shown = await doctor(environ, replica.url)
    assert status == 0, shown
    assert set(verdicts(findings, "registry").values()) == {"ok"}


async def test_another_server_at_a_replica_s_address_is_found(
    pair: Pair, plain: dict[str, str]
) -> None:
    """As where every replica says 127.0.0.1, and doctor runs on one of their machines."""
    a, b = (api.replica for api in (pair.a, pair.b))
    key = replica_key(name_of(a))
    async with redis.asyncio.from_url(pair.store.url) as client:
        lease = cast("bytes", await client.get(key))
        await client.set(key, lease.replace(a.url.encode(), b.url.encode()), keepttl=True)
    _, findings, _ = await doctor(plain, b.url)
    found = findings[f"replica {name_of(a)}", "reach"]
    assert found["verdict"] == "failure"
    assert name_of(b) in found["detail"]
