"""The Valkey of ``redis-embedded``, started as its manifest says, does all that a gateway needs."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import redis.asyncio
from redis.exceptions import AuthenticationError, NoPermissionError

from gateway.registry.redis_store import RedisRegistry
from tests.conftest import find_tool, find_valkey
from tests.contract.conftest import ID, new_session
from tests.contract.servers import acl_rule, free_port
from tests.manifests.documents import Document, find, pods_of
from tests.manifests.policy.configured import GIVEN, settings
from tests.manifests.rendering import documents

KIND: Final = documents("overlays/kind")
PASSWORD: Final = GIVEN["REDIS_PASSWORD"]


def server() -> Document:
    """The container of the manifest's Valkey."""
    (pods,) = [pods for pods in pods_of(KIND) if "redis" in pods.ports]
    (container,) = pods.containers
    assert isinstance(container, dict)
    return container


def config() -> str:
    """The configuration that is mounted into it."""
    (pods,) = [pods for pods in pods_of(KIND) if "redis" in pods.ports]
    (volume,) = [volume for volume in pods.spec["volumes"] if volume["name"] == "config"]
    return str(find(KIND, "ConfigMap", volume["configMap"]["name"])["data"]["valkey.conf"])


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Such a server, on a free port and with a folder of its own."""
    (tmp_path / "valkey.conf").write_text(config().replace("dir /data", f"dir {tmp_path}"))
    given = [str(word).replace("$(REDISCLI_AUTH)", PASSWORD) for word in server()["args"]]
    assert given[0] == "/etc/valkey/valkey.conf"
    given[0] = str(tmp_path / "valkey.conf")
    number = free_port()
    command = [find_valkey(), *given, "--port", str(number), "--bind", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        asyncio.run(answers(number))
        yield number
    finally:
        process.terminate()
        process.wait(timeout=10)


async def answers(port: int) -> None:
    """Wait until something listens."""
    async with asyncio.timeout(20):
        while True:
            try:
                _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def url(port: int) -> str:
    """The address that the manifest gives to the gateway, for this port."""
    given = settings(KIND).redis_url
    assert given == f"redis://gateway:{PASSWORD}@preview-gateway-redis:6379/0"
    return given.replace("preview-gateway-redis:6379", f"127.0.0.1:{port}")


async def test_a_gateway_registers_sessions_in_it(port: int) -> None:
    registry = RedisRegistry(settings(KIND), url=url(port))
    try:
        await registry.open()
        await registry.register(new_session(), owner="replica/1")
        assert await registry.session(ID) is not None
    finally:
        await registry.close()


async def test_it_lets_nobody_else_in_and_the_gateway_do_nothing_else(port: int) -> None:
    stranger = redis.asyncio.Redis(port=port)
    gateway = redis.asyncio.Redis.from_url(url(port))
    try:
        with pytest.raises(AuthenticationError):
            await stranger.ping()
        with pytest.raises(NoPermissionError):
            await gateway.config_get("dir")
        with pytest.raises(NoPermissionError):
            await gateway.get("something:else")
    finally:
        await stranger.aclose()
        await gateway.aclose()


async def test_it_keeps_what_it_has_and_evicts_nothing(port: int) -> None:
    lines = dict(line.split(maxsplit=1) for line in config().splitlines() if line[:1].isalpha())
    assert lines["appendonly"] == "yes"
    assert lines["appendfsync"] == "everysec"
    assert lines["maxmemory-policy"] == "noeviction"
    assert lines["stream-node-max-bytes"] == "512"


def test_its_access_rule_is_the_one_of_the_docs() -> None:
    args = [str(word) for word in server()["args"]]
    after = args[args.index("--user") + 1 :]
    assert after[:3] == ["gateway", "on", ">$(REDISCLI_AUTH)"]
    assert after[3:] == acl_rule("gateway")


def test_its_probe_needs_the_password_and_fails_without_an_answer(port: int) -> None:
    probe = server()["readinessProbe"]["exec"]["command"]
    assert probe[0] == "valkey-cli"
    if (client := find_tool("valkey-cli") or find_tool("redis-cli")) is None:
        pytest.skip("neither valkey-cli nor redis-cli is installed")
    command = [client, "-p", str(port), *probe[1:]]

    def ask(**environment: str) -> int:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=10, check=False
        )
        return done.returncode

    assert ask(REDISCLI_AUTH=PASSWORD) == 0
    assert ask(REDISCLI_AUTH="wrong") != 0
    assert ask() != 0
