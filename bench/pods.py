"""From the create call to the first 200 of a preview in a pod, with and without pods that wait.

There is no cluster: the API server is the fake one of the tests, whose pods are processes that
run the real agent and a real Vite. So this is what gateway, agent and Vite take; what a cluster
takes to schedule a pod and to start a container comes on top where no pod waits, and is what
waiting saves. The image brings the example's dependencies along (``PREVIEW_BAKED``). Run with
``python -m bench.pods [--rounds N]``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.spawn import EXAMPLE, free_port, gateway, project, through, warm
from gateway.spawner.kube.manifest import SESSION_LABEL
from tests.e2e.conftest import run_store
from tests.kube.cluster import FakeCluster


@asynccontextmanager
async def baked() -> AsyncIterator[Path]:
    """A folder with the example's dependencies, as an image would hold it."""
    folder = Path(tempfile.mkdtemp(prefix="bench-pods-"))
    try:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(EXAMPLE / name, folder)
        install = await asyncio.create_subprocess_exec(
            *("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"), cwd=folder
        )
        assert await install.wait() == 0
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def measure(rounds: int) -> None:
    async with (
        baked() as image,
        run_store() as store,
        FakeCluster(namespace="cold", images={"/baked": image}) as cold_cluster,
        FakeCluster(namespace="pooled", images={"/baked": image}) as pooled_cluster,
        aiohttp.ClientSession() as http,
    ):
        template = image / "template.json"
        variable = {"name": "PREVIEW_BAKED", "value": "/baked"}
        template.write_text(json.dumps({"container": {"env": [variable]}}))
        common = {
            "redis_url": store.url,
            "spawner": "kubernetes",
            "pod_image": "previews",
            "pod_agent_image": "gateway",
            "pod_template_file": template,
            "secret_key": "k" * 32,
        }
        admin_port = free_port()
        async with (
            gateway(
                image / "cold",
                **common,
                kube_api_url=cold_cluster.url,
                kube_namespace="cold",
            ) as cold,
            gateway(
                image / "pooled",
                **common,
                kube_api_url=pooled_cluster.url,
                kube_namespace="pooled",
                warm_pods=1,
                warm_projects=EXAMPLE,
                admin_port=admin_port,
            ) as pooled,
        ):
            files = project()
            results: dict[str, list[float]] = {"a new pod": [], "a pod that waited": []}
            for number in range(rounds + 1):
                _, first = await through(http, cold, files)
                await warm(http, admin_port, "pods")
                await loaded(pooled_cluster)
                _, warm_first = await through(http, pooled, files)
                if number:  # the first round fills caches
                    results["a new pod"].append(first)
                    results["a pod that waited"].append(warm_first)
    print(f"Vite 8 + React in pods, {rounds} rounds in turns; create to first 200, milliseconds")
    print(f"{'':32}{'median':>8}{'min':>8}{'max':>8}")
    for name, values in results.items():
        row = (statistics.median(values), min(values), max(values))
        print(f"{name:32}" + "".join(f"{value * 1000:8.0f}" for value in row))


async def loaded(cluster: FakeCluster) -> None:
    """Return when a pod has loaded its dependencies: its agent says so in the pod's log."""
    async with asyncio.timeout(60):
        while True:
            for name, pod in cluster.pods.items():
                if SESSION_LABEL not in pod["metadata"]["labels"] and await waits(cluster, name):
                    return
            await asyncio.sleep(0.05)


async def waits(cluster: FakeCluster, name: str) -> bool:
    """Whether the process in a pod that waits has loaded all it can."""
    pod = cluster.pods[name]
    container = pod["spec"]["containers"][0]
    token = next(e["value"] for e in container["env"] if e["name"] == "PREVIEW_AGENT_TOKEN")
    ip = pod.get("status", {}).get("podIP")
    if not ip:
        return False
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.get(
                f"http://{ip}:8700/v1/state", headers={"Authorization": f"Bearer {token}"}
            ) as response,
        ):
            return bool((await response.json())["state"] == "waiting")
    except aiohttp.ClientError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    options = parser.parse_args()
    asyncio.run(measure(3 if options.quick else options.rounds))


if __name__ == "__main__":
    main()
