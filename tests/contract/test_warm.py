"""Processes that wait for projects: real Vite, npm and processes, and what can befall them."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import psutil
import pytest

from gateway.errors import SpawnFailed
from gateway.session import Recipe, SessionId
from gateway.settings import load_settings
from gateway.spawner.base import DevServer, Job
from gateway.spawner.process import ProcessSpawner
from gateway.spawner.strays import JOB_VARIABLE, SPAWNER_VARIABLE
from tests.contract.test_spawner import APPS, Heard, app, get, hmr_socket, workspaces

pytestmark = pytest.mark.node

VITE5: Final = app("vite5")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of this file, so that each app is installed once."""
    return tmp_path_factory.mktemp("warm")


class Pooled:
    """A spawner with a warm pool, as a test looks at it."""

    def __init__(self, data_dir: Path, **settings: object) -> None:
        values = {"data_dir": data_dir, "stop_grace_seconds": 0.5, "warm_pool": 1, **settings}
        self.spawner = ProcessSpawner(load_settings(values))
        self.data_dir = data_dir
        self.generation = 0

    def value(self, name: str) -> float:
        """One of its metrics."""
        return next(found[0][1] for key, _, _, found in self.spawner.samples() if key == name)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the pool, which tells nobody but its metrics."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_waiting(self, count: int = 1) -> None:
        await self.until(lambda: self.value("warm_processes") == count)

    async def start(
        self,
        files: Mapping[str, bytes],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        heard: Heard | None = None,
    ) -> tuple[Job, DevServer]:
        session_id = SessionId(name or f"s-{secrets.token_hex(6)}")
        self.generation += 1
        base = f"/preview/{session_id}/"
        recipe = Recipe(env=tuple((env or {}).items()))
        job = Job(session_id, self.generation, recipe, base, files)
        return job, await self.spawner.start(job, heard or Heard())

    def waiting(self) -> list[psutil.Process]:
        """The processes that wait, or have waited, by what their environment says."""
        return [
            process
            for process, env in environments()
            if env.get(JOB_VARIABLE, "").startswith("warm-")
            and env.get(SPAWNER_VARIABLE) == self.spawner._tenure.name
            and "--wait" in process.cmdline()
        ]


def environments() -> list[tuple[psutil.Process, dict[str, str]]]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, process.environ()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture
async def make(data_dir: Path) -> AsyncIterator[Callable[..., Pooled]]:
    made: list[Pooled] = []

    def new(**settings: object) -> Pooled:
        made.append(Pooled(data_dir, **settings))
        return made[-1]

    yield new
    for pooled in made:
        await pooled.spawner.close()
        assert pooled.waiting() == []
    assert workspaces(data_dir) == []
    assert not list((data_dir / "spawners").iterdir())


@pytest.fixture
async def pooled(make: Callable[..., Pooled]) -> Pooled:
    """A spawner for one process of one kind, which waits."""
    pooled = make()
    await pooled.spawner.open()
    job, _ = await pooled.start(VITE5)
    await pooled.spawner.stop(job.session_id)
    await pooled.until_waiting()
    return pooled


async def page_of(job: Job, server: DevServer) -> str:
    status, page = await get(server, job.base, Accept="text/html")
    assert status == 200
    return page


@pytest.mark.parametrize("name", APPS)
async def test_a_start_gets_the_process_that_waits_and_serves_its_own_project(
    make: Callable[..., Pooled], name: str
) -> None:
    pooled, files = make(), app(name)
    await pooled.spawner.open()
    cold, _ = await pooled.start(files)
    assert pooled.value("warm_starts") == 0
    await pooled.spawner.stop(cold.session_id)
    await pooled.until_waiting()
    [waiting] = pooled.waiting()
    assert not [c for c in waiting.net_connections() if c.status == psutil.CONN_LISTEN]

    heard = Heard()
    mine = {**files, "index.html": files["index.html"].replace(b"<title>", b"<title>Mine: ")}
    assert mine != files
    job, server = await pooled.start(mine, heard=heard)
    assert pooled.value("warm_starts") == 1
    assert heard.phases == ["preparing", "starting"]
    await heard.until(lambda: any("ready in" in line for line in heard.lines))
    assert not [line for line in heard.lines if "loaded" in line]
    page = await page_of(job, server)
    assert "<title>Mine: " in page
    assert f'src="{job.base}@vite/client"' in page
    # The file watcher of the server is that of the project.
    entry = "src/App.jsx" if name == "vite8" else "message.js"
    loaded = [entry.replace("App", "main") if name == "vite8" else "main.js", entry]
    async with await hmr_socket(server, job.base) as socket:
        for path in loaded:
            assert (await get(server, job.base + path))[0] == 200
        changed = files[entry].replace(b"Hello", b"Goodbye")
        await pooled.spawner.write(job.session_id, write={entry: changed})
        async with asyncio.timeout(10):
            assert '"update"' in str(await socket.recv())
    await pooled.spawner.stop(job.session_id)
    assert not waiting.is_running()
    await pooled.until_waiting()  # a new one, after it was used


async def test_a_pool_is_off_unless_it_is_asked_for(make: Callable[..., Pooled]) -> None:
    pooled = make(warm_pool=0, warm_projects=[APPS["vite5"]])
    await pooled.spawner.open()
    await pooled.start(VITE5)
    assert not [task for task in asyncio.all_tasks() if "warm" in task.get_name()]
    assert pooled.waiting() == []


async def test_two_starts_at_once_do_not_share_a_process(pooled: Pooled) -> None:
    starts = await asyncio.gather(pooled.start(VITE5), pooled.start(VITE5))
    assert pooled.value("warm_starts") == 1
    (one, first), (two, second) = starts
    assert first.endpoint != second.endpoint
    assert one.base in await page_of(one, first)
    assert two.base in await page_of(two, second)


async def test_a_process_that_dies_while_it_waits_is_replaced_and_nobody_gets_it(
    pooled: Pooled, data_dir: Path
) -> None:
    [waiting] = pooled.waiting()
    [workspace] = workspaces(data_dir)
    waiting.kill()
    job, server = await pooled.start(VITE5)  # the pool may not even have noticed yet
    assert pooled.value("warm_starts") <= 1
    assert job.base in await page_of(job, server)
    await pooled.until_waiting()
    assert pooled.waiting() != [waiting]
    await pooled.spawner.stop(job.session_id)  # it may have got the workspace all the same
    await pooled.until(lambda: workspace not in workspaces(data_dir))


async def test_a_process_that_dies_alone_is_replaced_after_a_pause(pooled: Pooled) -> None:
    [waiting] = pooled.waiting()
    waiting.kill()
    await pooled.until(lambda: pooled.value("warm_failures") == 1)
    assert pooled.value("warm_processes") == 0
    await pooled.until_waiting()


async def test_a_process_that_dies_as_it_is_handed_out_is_not_noticed_by_the_caller(
    pooled: Pooled,
) -> None:
    [waiting] = pooled.waiting()
    waiting.suspend()  # it takes its order, and dies before it can do anything about it
    heard = Heard()
    start = asyncio.create_task(pooled.start(VITE5, heard=heard))
    await pooled.until(lambda: pooled.value("warm_starts") == 1)
    await heard.until(lambda: "starting" in heard.phases)
    waiting.send_signal(signal.SIGKILL)
    job, server = await start
    assert job.base in await page_of(job, server)
    assert heard.phases == ["preparing", "starting"]
    assert len([line for line in heard.lines if "ready in" in line]) == 1
    assert heard.exits == []


async def test_a_process_that_hangs_when_it_is_handed_out_is_given_up(
    pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.spawner.run._WARM_SECONDS", 0.3)
    [waiting] = pooled.waiting()
    waiting.suspend()
    job, server = await pooled.start(VITE5)
    assert job.base in await page_of(job, server)
    assert not waiting.is_running()


async def test_a_project_that_cannot_start_fails_with_its_reason_told_once(pooled: Pooled) -> None:
    heard = Heard()
    broken = {**VITE5, "vite.config.js": b"throw new Error('on purpose')\n"}
    with pytest.raises(SpawnFailed, match=r"did not start: .*on purpose"):
        await pooled.start(broken, heard=heard)
    assert pooled.value("warm_starts") == 1
    assert len([line for line in heard.lines if line.startswith("preview: ")]) == 1


async def test_a_start_that_is_cancelled_takes_its_process_down(pooled: Pooled) -> None:
    [waiting] = pooled.waiting()
    waiting.suspend()
    start = asyncio.create_task(pooled.start(VITE5))
    await pooled.until(lambda: pooled.value("warm_starts") == 1)
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    assert start.cancelled()
    assert not waiting.is_running()


async def test_closing_ends_a_process_that_is_still_loading(pooled: Pooled, data_dir: Path) -> None:
    [first] = pooled.waiting()
    await pooled.start(VITE5)
    await pooled.until(lambda: pooled.waiting() not in ([], [first]))
    assert pooled.value("warm_processes") == 0
    await pooled.spawner.close()
    assert pooled.waiting() == []
    assert workspaces(data_dir) == []


async def test_no_project_sees_what_another_one_was(pooled: Pooled) -> None:
    first, _ = await pooled.start({**VITE5, "public/secret.txt": b"of the first"})
    await pooled.spawner.stop(first.session_id)
    await pooled.until_waiting()
    job, server = await pooled.start(VITE5)
    assert pooled.value("warm_starts") == 2
    assert "of the first" not in (await get(server, f"{job.base}secret.txt"))[1]


async def test_variables_of_vite_are_given_late_and_others_need_a_process_of_their_own(
    pooled: Pooled,
) -> None:
    config = b"""const seen = `${process.env.VITE_WORD},${process.env.OTHER}`
    const transformIndexHtml = (page) => `${page}<i>${seen}</i>`
    export default { plugins: [{ name: 'show', transformIndexHtml }] }"""
    files = {**VITE5, "vite.config.mjs": config}
    job, server = await pooled.start(files, env={"VITE_WORD": "spoken"})
    assert pooled.value("warm_starts") == 1
    assert "<i>spoken,undefined</i>" in await page_of(job, server)
    await pooled.until_waiting()
    job, server = await pooled.start(files, env={"VITE_WORD": "spoken", "OTHER": "set"})
    assert pooled.value("warm_starts") == 1
    assert "<i>spoken,set</i>" in await page_of(job, server)


async def test_other_dependencies_need_another_process(pooled: Pooled) -> None:
    job, server = await pooled.start(app("vite7"))
    assert pooled.value("warm_starts") == 0
    assert job.base in await page_of(job, server)
    await pooled.until_waiting(2)


async def test_only_the_sets_used_last_are_kept_ready(make: Callable[..., Pooled]) -> None:
    pooled = make(warm_sets=1)
    await pooled.spawner.open()
    await pooled.start(VITE5)
    await pooled.until_waiting()
    [old] = pooled.waiting()
    await pooled.start(app("vite7"))
    await pooled.until(lambda: not old.is_running())
    await pooled.until_waiting()
    await pooled.start(app("vite7"))
    assert pooled.value("warm_starts") == 1


async def test_processes_wait_for_dependencies_as_they_are_now(
    pooled: Pooled, data_dir: Path
) -> None:
    [entry] = [
        path
        for path in (data_dir / "dependencies").iterdir()
        if path.is_dir() and re.search('"version": "5', version_of(path))
    ]
    again = entry.with_name("again")
    shutil.copytree(entry, again, symlinks=True)
    entry.rename(entry.with_name("gone"))
    again.rename(entry)
    [waiting] = pooled.waiting()
    await pooled.start(VITE5)
    assert pooled.value("warm_starts") == 0
    await pooled.until(lambda: not waiting.is_running())
    await pooled.until_waiting()
    shutil.rmtree(entry.with_name("gone"))
    await pooled.start(VITE5)
    assert pooled.value("warm_starts") == 1


def version_of(entry: Path) -> str:
    return (entry / "node_modules/vite/package.json").read_text()


async def test_a_project_that_is_named_is_waited_for_from_the_beginning_and_for_good(
    make: Callable[..., Pooled],
) -> None:
    pooled = make(warm_projects=[APPS["vite6"]], warm_sets=1)
    await pooled.spawner.open()
    await pooled.until_waiting()
    for name in ("vite5", "vite7"):
        await pooled.start(app(name))
    await pooled.start(app("vite6"))
    assert pooled.value("warm_starts") == 1
    await pooled.until_waiting(2)  # vite7 and vite6


async def test_a_named_project_that_is_none_harms_nothing(
    make: Callable[..., Pooled], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "package.json").write_text('{"dependencies": {"left-pad": "1"}}')
    names = [tmp_path / "nowhere", tmp_path / "plain", APPS["vite5"]]
    pooled = make(warm_projects=names)
    await pooled.spawner.open()
    await pooled.until_waiting()
    told = [record.message for record in caplog.records if "nothing is kept" in record.message]
    assert len(told) == 2
    assert "holds no package.json" in told[0]
    assert "supported are" in told[1]
