"""From the create call to the first 200 of the preview, against what the same Vite needs alone.

All start the example app with its dependencies installed: Vite alone, a gateway, and a gateway
with a warm pool. They take turns, so that a noisy machine troubles all. Run with
``python -m bench.spawn [--rounds N]``.
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
async def gateway(data_dir: Path, **settings: object) -> AsyncIterator[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    environ |= {"GATEWAY_PORT": "0", "GATEWAY_DATA_DIR": str(data_dir)}
    environ |= {f"GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def warm(http: aiohttp.ClientSession, admin_port: int, what: str = "processes") -> None:
    """Return when a process, or a pod, waits for a project."""
    async with asyncio.timeout(60):
        while True:
            async with http.get(f"http://127.0.0.1:{admin_port}/metrics") as response:
                if f"\npreview_gateway_warm_{what} 1.0" in await response.text():
                    return
            await asyncio.sleep(0.05)


async def alone(http: aiohttp.ClientSession, folder: Path) -> float:
    """Seconds from spawn to the first 200 of Vite by itself."""
    port = free_port()
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
        admin_port = free_port()
        async with (
            gateway(work / "data") as cold,
            gateway(work / "data", warm_pool=1, admin_port=admin_port) as pooled,
            aiohttp.ClientSession() as http,
        ):
            files = project()
            for url in (cold, pooled):
                await through(http, url, files)  # fills the dependency cache, and the pool
            await alone(http, folder)
            vite, answers, previews, warm_answers, warm_previews = [], [], [], [], []
            for _ in range(rounds):
                await warm(http, admin_port)
                vite.append(await alone(http, folder))
                answered, first = await through(http, cold, files)
                answers.append(answered)
                previews.append(first)
                answered, first = await through(http, pooled, files)
                warm_answers.append(answered)
                warm_previews.append(first)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"Vite 8 + React, dependencies cached, {rounds} rounds in turns; milliseconds")
    print(f"{'':44}{'median':>8}{'min':>8}{'max':>8}")
    for name, values in (
        ("Vite alone: spawn to first 200", vite),
        ("create call: until its answer", answers),
        ("create to first 200 of the preview", previews),
        ("added by the gateway (per round)", [p - v for p, v in zip(previews, vite, strict=True)]),
        ("warm pool: create call until its answer", warm_answers),
        ("warm pool: create to first 200", warm_previews),
    ):
        row = (statistics.median(values), min(values), max(values))
        print(f"{name:44}" + "".join(f"{value * 1000:8.0f}" for value in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    options = parser.parse_args()
    asyncio.run(measure(3 if options.quick else options.rounds))


if __name__ == "__main__":
    main()
