"""From the create call to the first 200 of the preview, against what the same Vite needs alone.

Both start the example app with its dependencies installed; they take turns, so that a noisy
machine troubles both. Run with ``python -m bench.spawn [--rounds N]``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "vite-react"


def project() -> list[dict[str, str]]:
    return [
        {"path": path.relative_to(EXAMPLE).as_posix(), "content": path.read_text()}
        for path in sorted(EXAMPLE.rglob("*"))
        if path.is_file() and "node_modules" not in path.parts
    ]


@asynccontextmanager
async def gateway(data_dir: Path) -> AsyncIterator[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    environ |= {"GATEWAY_PORT": "0", "GATEWAY_DATA_DIR": str(data_dir)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "serve"),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    banner = (await process.stdout.readline()).decode()
    try:
        yield banner.split()[-1]
    finally:
        process.terminate()
        await process.wait()


async def alone(http: aiohttp.ClientSession, folder: Path) -> float:
    """Seconds from spawn to the first 200 of Vite by itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *("node", "node_modules/vite/bin/vite.js"),
        *("--host", "127.0.0.1", "--port", str(port), "--strictPort"),
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    async with http.get(f"http://127.0.0.1:{port}/") as response:
                        await response.read()
                        if response.status == 200:
                            return time.perf_counter() - started
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def through(http: aiohttp.ClientSession, url: str, files: Any) -> tuple[float, float]:
    """Seconds from create to (its answer, the first 200 of the preview)."""
    started = time.perf_counter()
    async with http.post(f"{url}/api/v1/sessions", json={"files": files}) as response:
        session = await response.json()
    answered = time.perf_counter() - started
    async with http.get(session["previewUrl"]) as response:  # held until the preview is ready
        await response.read()
        assert response.status == 200, await response.text()
    first = time.perf_counter() - started
    async with http.post(f"{url}/api/v1/sessions/{session['id']}/stop") as response:
        await response.read()
    return answered, first


async def measure(rounds: int) -> None:
    work = Path(tempfile.mkdtemp(prefix="bench-spawn-"))
    try:
        folder = work / "app"
        shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
        install = await asyncio.create_subprocess_exec(
            *("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"), cwd=folder
        )
        assert await install.wait() == 0
        async with gateway(work / "data") as url, aiohttp.ClientSession() as http:
            files = project()
            await through(http, url, files)  # fills the dependency cache
            await alone(http, folder)
            vite, answers, previews = [], [], []
            for _ in range(rounds):
                vite.append(await alone(http, folder))
                answered, first = await through(http, url, files)
                answers.append(answered)
                previews.append(first)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"Vite 8 + React, dependencies cached, {rounds} rounds in turns; milliseconds")
    print(f"{'':34}{'median':>8}{'min':>8}{'max':>8}")
    for name, values in (
        ("Vite alone: spawn to first 200", vite),
        ("create call: until its answer", answers),
        ("create to first 200 of the preview", previews),
        ("added by the gateway (per round)", [p - v for p, v in zip(previews, vite, strict=True)]),
    ):
        row = (statistics.median(values), min(values), max(values))
        print(f"{name:34}" + "".join(f"{value * 1000:8.0f}" for value in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
