"""Calls made up by schemathesis from the document of the API, against a real replica.

It is run as a program (its pytest plugin is off), with the settings and the hooks of this folder;
the seed is fixed. Sessions live for seconds here, so that streams and waits end.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import run_store
from tests.e2e.replicas import ReplicaProcess

HERE: Final = Path(__file__).parent
TOKEN: Final = secrets.token_hex(24)
ENVIRON: Final = {
    "GATEWAY_API_TOKENS": TOKEN,
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_SESSION_TTL_SECONDS": "2",
    "GATEWAY_LEASE_SECONDS": "1",
    "GATEWAY_REGISTRATION_WAIT_SECONDS": "0.05",
    "GATEWAY_STATUS_WAIT_SECONDS": "0.05",
    "GATEWAY_EVENT_WAIT_SECONDS": "0.05",
    "GATEWAY_STREAM_WAIT_SECONDS": "0.05",
    "GATEWAY_WARM_POOL": "0",
}


async def run(url: str, *arguments: str, folder: Path) -> tuple[int, str]:
    """Status and output of schemathesis."""
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert program is not None, "schemathesis is not installed"
    process = await asyncio.create_subprocess_exec(
        program,
        *("--config-file", str(HERE / "schemathesis.toml")),
        *("run", f"{url}/api/v1/openapi.json", *arguments),
        cwd=folder,  # where it leaves its caches
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": str(HERE / "hooks.py"),
            "SCHEMATHESIS_TOKEN": TOKEN,
            # Nothing answers there, and nobody asks.
            "SCHEMATHESIS_TARGET": "127.0.0.1:9",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(170):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("phases", "seconds"), [("examples,coverage", 30), ("fuzzing,stateful", 30)]
)
async def test_made_up_calls_find_no_failure(tmp_path: Path, phases: str, seconds: int) -> None:
    async with run_store() as store:
        environ = {"GATEWAY_REDIS_URL": store.url, **ENVIRON}
        it = ReplicaProcess(host="127.0.0.2", data_dir=tmp_path / "data", environ=environ)
        async with it:
            status, output = await run(
                it.url, "--phases", phases, "--max-time", str(seconds), folder=tmp_path
            )
    wrong = [line for line in it.lines if "Traceback" in line or '"level": "error"' in line]
    assert status == 0, output
    assert not wrong, wrong
    tested = re.search(r"Tested: (\d+)", output)
    assert tested is not None, output
    assert int(tested[1]) > 25, output
