"""A real Vite project run by the agent: installed, baked into the image, and by a warm process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from gateway.session import Endpoint
from gateway.spawner.kube.agent_wire import Install, Order
from gateway.spawner.package_json import dependency_names, read_package
from gateway.spawner.probe import ping_request, until_it_answers
from gateway.spawner.warm_process import Order as WarmOrder
from tests.agent.pods import ID, LAUNCHERS, ROOT, NewPod, Pod, listening, order, running_pod

APP: Final = ROOT / "examples/vite-react"
BASE: Final = f"/preview/{ID}/"
EDITED: Final = "src/App.jsx"
NPM_CI: Final = ("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline")
TEXTS: Final = {name: (LAUNCHERS / name).read_text() for name in ("vite.mjs", "ahead.mjs")}
#: An install that must not be needed.
NO_INSTALL: Final = Install(("sh", "-c", "echo installing; exit 1"))


def app() -> dict[str, bytes]:
    return {
        path.relative_to(APP).as_posix(): path.read_bytes()
        for path in APP.rglob("*")
        if path.is_file() and "node_modules" not in path.parts
    }


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def image(node: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the app's dependencies, as an image brings them along."""
    root, mark = tmp_path_factory.mktemp("image"), f"agent-{secrets.token_hex(8)}"
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    install = Install(NPM_CI, env=env, title="npm ci")
    async with running_pod(node, root, mark) as pod:
        await pod.agent.push_tree(ID, generation=1, revision=1, files=app())
        async with listening(pod.agent) as heard:
            await pod.agent.start(order(pod, "true", install=install))
            await heard.until(lambda: heard.exits)
        assert heard.phases == [("installing", "npm ci"), ("starting", "it")], heard.lines
    return pod.app


def free_endpoint(pod: Pod) -> Endpoint:
    with socket.create_server((pod.host, 0)) as listener:
        return Endpoint(pod.host, listener.getsockname()[1])


def vite(pod: Pod, endpoint: Endpoint, *, install: Install, line: str = "", **given: int) -> Order:
    arguments = (endpoint.host, str(endpoint.port), BASE, "")
    return Order(
        generation=given.get("generation", 1),
        command=("node", "{launchers}/vite.mjs", *arguments),
        env=pod.env,
        install=install,
        launchers=TEXTS,
        title="vite",
        line=line,
    )


def waiting(pod: Pod, *, install: Install) -> Order:
    packages = sorted(dependency_names(read_package(app())))
    return Order(
        generation=0,
        command=("node", "{launchers}/vite.mjs", "--wait", *packages),
        env=pod.env,
        install=install,
        launchers=TEXTS,
    )


async def answers(endpoint: Endpoint) -> None:
    request = ping_request(port=endpoint.port, base=BASE, accept="text/x-vite-ping")
    async with asyncio.timeout(60):
        await until_it_answers(endpoint, request)


async def edit_and_see_one_update(
    pod: Pod, endpoint: Endpoint, files: Mapping[str, bytes], *, generation: int
) -> None:
    """What a browser would see of an edit: one update of one module, on Vite's own socket."""
    headers = {"Host": f"localhost:{endpoint.port}"}
    async with aiohttp.ClientSession(f"http://{endpoint}", headers=headers) as http:

        async def get(path: str) -> str:
            async with http.get(f"{BASE}{path}") as response:
                assert response.status == 200
                return await response.text()

        token = re.search(r'wsToken = "([^"]+)"', await get("@vite/client"))
        assert token
        async with connect(
            f"ws://{endpoint}{BASE}?token={token[1]}",
            origin=None,
            subprotocols=[Subprotocol("vite-hmr")],
        ) as updates:
            async with asyncio.timeout(20):
                assert json.loads(await updates.recv()) == {"type": "connected"}
                for path in ("src/main.jsx", EDITED):
                    await get(path)
                changed = files[EDITED].replace(b"Hello", b"Goodbye")
                assert changed != files[EDITED]
                await pod.agent.patch_files(
                    generation=generation, base_revision=1, revision=2, write={EDITED: changed}
                )
                message = json.loads(await updates.recv())
        assert message["type"] == "update"
        assert [update["acceptedPath"] for update in message["updates"]] == [f"/{EDITED}"]
        assert "Goodbye" in await get(EDITED)


@pytest.mark.node
async def test_a_project_gets_the_dependencies_of_the_image_if_they_are_its_own(
    new_pod: NewPod, image: Path
) -> None:
    pod = await new_pod(PREVIEW_BAKED=str(image))
    package = json.loads(app()["package.json"])
    files = {**app(), "package.json": json.dumps({**package, "name": "mine"}).encode()}
    await pod.agent.push_tree(ID, generation=1, revision=1, files=files)
    endpoint = free_endpoint(pod)
    async with listening(pod.agent) as heard:
        await pod.agent.start(vite(pod, endpoint, install=NO_INSTALL))
        await answers(endpoint)
        baked = ("installing", "dependencies of the image")
        assert heard.phases == [baked, ("starting", "vite")]
        await edit_and_see_one_update(pod, endpoint, files, generation=1)
    binary = pod.app / "node_modules/.bin/vite"
    assert binary.is_symlink()
    assert binary.resolve().is_relative_to(pod.app)

    other = {**app(), "package-lock.json": app()["package-lock.json"] + b"\n"}
    await pod.agent.push_tree(ID, generation=2, revision=1, files=other)
    async with listening(pod.agent) as heard:
        await pod.agent.start(vite(pod, endpoint, install=NO_INSTALL, generation=2))
        await heard.until(lambda: heard.exits and heard.exits[-1].generation == 2)
    assert "installing" in heard.lines


async def warm_pod(new_pod: NewPod, image: Path) -> Pod:
    """A pod in which a process waits for whoever has the app's dependencies."""
    pod = await new_pod(PREVIEW_BAKED=str(image))
    ahead = {name: app()[name] for name in ("package.json", "package-lock.json")}
    await pod.agent.push_tree("warm-00000000", generation=0, revision=1, files=ahead)
    async with listening(pod.agent) as heard:
        for _ in range(2):
            await pod.agent.warm(waiting(pod, install=NO_INSTALL))
        await heard.until(lambda: ("waiting", "") in heard.phases or heard.exits)
        assert not heard.exits, heard.lines
    return pod


def told(endpoint: Endpoint) -> str:
    return str(WarmOrder(endpoint, BASE, "", {"VITE_LATE": "late"}))


@pytest.mark.node
async def test_a_process_that_waits_takes_on_a_project_with_its_dependencies(
    new_pod: NewPod, image: Path
) -> None:
    pod = await warm_pod(new_pod, image)
    assert (await pod.agent.state()).state == "waiting"
    [process] = pod.others()
    files, endpoint = app(), free_endpoint(pod)
    state = await pod.agent.push_tree(ID, generation=7, revision=1, files=files)
    assert state.state == "waiting"
    served = vite(pod, endpoint, install=NO_INSTALL, line=told(endpoint), generation=7)
    async with listening(pod.agent, after=state.last_event) as heard:
        assert await pod.agent.start(served)
        assert await pod.agent.start(served), "its answer may have been lost"
        await answers(endpoint)
        await edit_and_see_one_update(pod, endpoint, files, generation=7)
        assert {event.generation for event in heard.events} == {7}  # type: ignore[union-attr]
    assert heard.phases == [("starting", "vite")]
    assert pod.others() == [process]
    state = await pod.agent.state()
    assert (state.session_id, state.run_generation, state.state) == (ID, 7, "running")


@pytest.mark.node
async def test_a_process_that_waited_and_does_not_serve_is_replaced(
    new_pod: NewPod, image: Path
) -> None:
    pod = await warm_pod(new_pod, image)
    [process] = pod.others()
    process.suspend()  # it hangs, and ends before it has served
    endpoint, files = free_endpoint(pod), app()
    await pod.agent.push_tree(ID, generation=7, revision=1, files=files)
    served = vite(pod, endpoint, install=NO_INSTALL, line=told(endpoint), generation=7)
    async with listening(pod.agent) as heard:
        assert await pod.agent.start(served)
        process.kill()
        await answers(endpoint)
        assert any("another one is started" in line for line in heard.lines)
        assert not heard.exits
        await pod.agent.stop(grace_seconds=5)


@pytest.mark.node
async def test_a_process_that_waits_with_other_dependencies_is_ended(
    new_pod: NewPod, image: Path
) -> None:
    pod = await warm_pod(new_pod, image)
    [process] = pod.others()
    other = {**app(), "package.json": b'{"dependencies": {"vite": "*"}}'}
    await pod.agent.push_tree(ID, generation=7, revision=1, files=other)
    endpoint = free_endpoint(pod)
    served = vite(pod, endpoint, install=NO_INSTALL, line=told(endpoint), generation=7)
    async with listening(pod.agent) as heard:
        assert not await pod.agent.start(served)
        await heard.until(lambda: heard.exits and heard.exits[-1].generation == 7)
    assert "installing" in heard.lines
    assert not process.is_running()
