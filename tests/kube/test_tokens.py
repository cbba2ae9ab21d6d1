"""Bearer tokens that are replaced while the gateway runs."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.errors import KubeUnavailable
from gateway.spawner.kube.tokens import CommandToken, FileToken, parse_credential


async def test_a_file_is_read_again_from_time_to_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one\n")
    source = FileToken(path, reread_seconds=0.1)
    assert await source.token() == "one"
    path.write_text("two\n")
    assert await source.token() == "one"
    await asyncio.sleep(0.11)
    assert await source.token() == "two"


async def test_a_file_is_read_again_when_its_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    source = FileToken(path)
    assert await source.token() == "one"
    path.write_text("two")
    source.refused()
    assert await source.token() == "two"


async def test_while_a_file_is_away_its_last_token_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text("secret-one")
    source = FileToken(path)
    await source.token()
    path.unlink()
    source.refused()
    assert await source.token() == "secret-one"
    assert "cannot be read again" in caplog.text
    assert "secret-one" not in caplog.text


async def test_without_any_token_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KubeUnavailable, match=f"no token .*{tmp_path}") as caught:
        await FileToken(tmp_path / "token").token()
    assert not caught.value.uncertain


def command(code: str, *, seconds: float = 10.0) -> CommandToken:
    return CommandToken(
        ["sh", "-c", code],
        api_version="client.authentication.k8s.io/v1",
        environment={},
        seconds=seconds,
    )


def credential(token: str, ends: datetime | None = None) -> str:
    status = {"token": token, **({"expirationTimestamp": ends.isoformat()} if ends else {})}
    return json.dumps({"kind": "ExecCredential", "status": status})


async def test_a_command_runs_once_for_all_who_wait(tmp_path: Path) -> None:
    source = command(f"echo x >> {tmp_path}/runs; sleep 0.1; echo '{credential('t')}'")
    assert await asyncio.gather(*(source.token() for _ in range(3))) == ["t"] * 3
    assert (tmp_path / "runs").read_text() == "x\n"


async def test_a_command_runs_again_before_its_token_ends(tmp_path: Path) -> None:
    soon = credential("t", datetime.now(UTC) + timedelta(seconds=5))
    source = command(f"echo x >> {tmp_path}/runs; echo '{soon}'")
    await source.token()
    await source.token()
    assert (tmp_path / "runs").read_text() == "x\nx\n"


async def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    source = command(f"echo $$ > {tmp_path}/pid; exec sleep 30", seconds=1)
    begun = time.monotonic()
    with pytest.raises(KubeUnavailable, match=r"did not end within 1 s"):
        await source.token()
    assert time.monotonic() - begun < 20
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


async def test_what_a_command_complains_about_is_passed_on() -> None:
    with pytest.raises(KubeUnavailable, match="ended with 3: log in first"):
        await command("echo log in first >&2; exit 3").token()


async def test_a_command_that_is_none_is_named() -> None:
    source = CommandToken(["/nowhere/plugin"], api_version="v1", environment={})
    with pytest.raises(
        KubeUnavailable, match="/nowhere/plugin of the kubeconfig cannot be started"
    ):
        await source.token()


@pytest.mark.parametrize("output", ["", "[]", "null", '"x"', '{"status": 1}', '{"status": null}'])
def test_output_that_is_no_credential_is_refused(output: str) -> None:
    with pytest.raises(KubeUnavailable, match="printed no ExecCredential object"):
        parse_credential(output.encode(), "plugin")


def test_a_client_certificate_of_a_plugin_is_refused_with_what_to_do() -> None:
    output = b'{"status": {"clientCertificateData": "x", "clientKeyData": "y"}}'
    with pytest.raises(KubeUnavailable, match="kubectl proxy"):
        parse_credential(output, "plugin")


def test_the_end_of_a_token_is_read() -> None:
    ends = datetime(2030, 1, 1, tzinfo=UTC)
    output = credential("t").replace("}}", ', "expirationTimestamp": "2030-01-01T00:00:00Z"}}')
    assert parse_credential(output.encode(), "plugin") == ("t", ends.timestamp())
