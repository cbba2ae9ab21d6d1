"""A process with a spawner of its own, which a test can kill.

Arguments: the data directory, then a JSON object {sessionId, generation, command, files}. Prints
``ready <port>`` and waits for the end of its input; then it closes the spawner and ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

import uvloop

from gateway.session import Recipe, SessionId
from gateway.settings import load_settings
from gateway.spawner.base import Job, Phase
from gateway.spawner.process import ProcessSpawner


class Printed:
    """Reports on standard output."""

    def phase(self, phase: Phase, detail: str = "") -> None:
        print("phase", phase, detail, flush=True)  # noqa: T201

    def log(self, lines: Sequence[str]) -> None:
        print(*(f"log {line}" for line in lines), sep="\n", flush=True)  # noqa: T201

    def exited(self, reason: str, log_tail: str) -> None:
        print("exited", reason, flush=True)  # noqa: T201

    def vanished(self, reason: str) -> None:
        print("vanished", reason, flush=True)  # noqa: T201


async def main() -> None:
    loop = asyncio.get_running_loop()
    job = json.loads(sys.argv[2])
    spawner = ProcessSpawner(load_settings({"data_dir": sys.argv[1]}))
    await spawner.open()
    try:
        session_id = SessionId(job["sessionId"])
        recipe = Recipe(command=tuple(job.get("command", ())))
        files = {path: content.encode() for path, content in job["files"].items()}
        base = f"/preview/{session_id}/"
        server = await spawner.start(
            Job(session_id, job.get("generation", 1), recipe, base, files), Printed()
        )
        print("ready", server.endpoint.port, flush=True)  # noqa: T201
        await loop.run_in_executor(None, sys.stdin.read)
    finally:
        await spawner.close()


if __name__ == "__main__":
    uvloop.run(main())
