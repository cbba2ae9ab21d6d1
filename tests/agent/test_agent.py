"""What the agent promises about files and events, through the gateway's client of it."""

from __future__ import annotations

import asyncio
import os
import socket

import aiohttp
import pytest

from gateway.errors import (
    AgentRefused,
    AgentUnreachable,
    BadFiles,
    Fenced,
    PayloadTooLarge,
    RevisionConflict,
)
from gateway.spawner.kube.agent import Agent
from gateway.spawner.kube.agent_wire import GapEvent
from tests.agent.pods import FILES, ID, SAY, Heard, NewPod, Pod, listening, order, push

#: Writes whatever changes in its folder, as a file watcher tells it.
WATCH = b"""
import fs from 'node:fs'
process.stdin.resume()
fs.watch('src', (kind, name) => console.log(`watched ${kind} ${name}`))
console.log('watching')
"""


# -- files -----------------------------------------------------------------------------------------


async def test_the_tree_becomes_exactly_what_was_pushed(pod: Pod) -> None:
    state = await push(pod)
    assert (state.session_id, state.generation, state.revision, state.state) == (ID, 1, 1, "idle")
    assert pod.held() == FILES
    runnable = [path for path in FILES if (pod.app / path).stat().st_mode & 0o100]
    assert runnable == ["run"]

    (pod.app / "made.txt").write_text("by the dev server")
    (pod.app / "made").symlink_to("/etc")
    (pod.app / "node_modules/vite").mkdir(parents=True)
    await push(pod, {"src/deep": b"now a file", "b.bin/c": b"now a folder"}, revision=2)
    left = sorted(path.relative_to(pod.app).as_posix() for path in pod.app.rglob("*"))
    assert left == ["b.bin", "b.bin/c", "node_modules", "node_modules/vite", "src", "src/deep"]
    assert (await pod.agent.state(digests=True)).digests.keys() == {"src/deep", "b.bin/c"}
    assert list((pod.root / "staging").iterdir()) == []


async def test_content_that_is_there_is_left_out_unless_the_dev_server_changed_it(pod: Pod) -> None:
    big = {f"{number}.bin": os.urandom(20_000) for number in range(8)}
    await push(pod, big)
    sent: list[int] = []

    async def count(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        sent.append(int(request.headers.get("Content-Length", 0)))
        return await handler(request)

    async with aiohttp.ClientSession(middlewares=(count,)) as counting:
        agent = Agent(counting, pod.host, pod.port, pod.token)
        moved = {"moved.bin": big.pop("1.bin"), "new.bin": b"new", **big}
        await agent.push_tree(ID, generation=1, revision=2, files=moved)
        assert pod.held() == moved
        assert sum(sent) < 3000
        (pod.app / "3.bin").write_bytes(b"changed")
        await agent.push_tree(ID, generation=1, revision=3, files=moved)
        assert pod.held() == moved


async def test_an_unchanged_file_is_not_touched_by_a_push(pod: Pod) -> None:
    def written() -> tuple[int, int, int]:
        found = (pod.app / "src/deep/a.txt").stat()
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns  # not when it was read

    await push(pod)
    before = written()
    await push(pod, {**FILES, "new.txt": b"new"}, revision=2)
    assert written() == before


async def test_a_push_of_an_older_generation_or_revision_is_refused(pod: Pod) -> None:
    await push(pod, generation=3, revision=5)
    with pytest.raises(Fenced):
        await push(pod, {}, generation=2, revision=9)
    with pytest.raises(RevisionConflict) as conflict:
        await push(pod, {}, generation=3, revision=4)
    assert conflict.value.current == 5
    await push(pod, generation=3, revision=5)
    assert (await push(pod, {"a": b""}, generation=4, revision=1)).revision == 1


async def test_an_edit_deletes_then_writes_and_knows_its_revision(pod: Pod) -> None:
    await push(pod)
    edit = {"src/deep/b.txt": b"b", "run": b"ran"}
    agent = pod.agent
    await agent.patch_files(
        generation=1, base_revision=1, revision=2, write=edit, delete=["src/deep/a.txt", "gone"]
    )
    kept = {path: content for path, content in FILES.items() if path != "src/deep/a.txt"}
    assert pod.held() == {**kept, **edit}
    with pytest.raises(RevisionConflict) as conflict:
        await agent.patch_files(generation=1, base_revision=1, revision=3, write={"run": b"no"})
    assert conflict.value.current == 2
    with pytest.raises(Fenced):
        await agent.patch_files(generation=0, base_revision=2, revision=3, write={"run": b"no"})
    with pytest.raises(AgentRefused, match="have not been pushed"):
        await agent.patch_files(generation=2, base_revision=2, revision=3, write={"run": b"no"})
    assert pod.held()["run"] == b"ran"


async def test_an_edit_whose_answer_was_lost_may_be_repeated(pod: Pod) -> None:
    await push(pod)
    for _ in range(2):
        await pod.agent.patch_files(
            generation=1, base_revision=1, revision=2, write={"run": b"once"}, delete=["b.bin"]
        )
    assert (await pod.agent.state()).revision == 2


async def test_folders_that_an_edit_leaves_empty_go(pod: Pod) -> None:
    await push(pod)
    await pod.agent.patch_files(
        generation=1, base_revision=1, revision=2, write={}, delete=["src/deep/a.txt"]
    )
    assert not (pod.app / "src").exists()


async def test_a_file_may_become_a_folder_in_one_edit_and_a_folder_a_file(pod: Pod) -> None:
    await push(pod)
    await pod.agent.patch_files(
        generation=1,
        base_revision=1,
        revision=2,
        write={"b.bin/inside": b"1", "src": b"2"},
        delete=["b.bin", "src/deep/a.txt"],
    )
    assert pod.held() == {"say.mjs": SAY, "run": FILES["run"], "b.bin/inside": b"1", "src": b"2"}


async def test_of_an_edit_that_is_refused_nothing_is_done(pod: Pod) -> None:
    await push(pod)
    for wrong in ("../out", "say.mjs/below", "src", "/etc/passwd", "node_modules/x"):
        with pytest.raises(BadFiles):
            await pod.agent.patch_files(
                generation=1, base_revision=1, revision=2, write={"a": b"a", wrong: b""}
            )
    with pytest.raises(BadFiles):
        await pod.agent.patch_files(
            generation=1, base_revision=1, revision=2, write={"a": b"a"}, delete=["../b"]
        )
    assert pod.held() == FILES
    assert (await pod.agent.state()).revision == 1


async def test_a_link_that_the_dev_server_plants_leads_nothing_elsewhere(pod: Pod) -> None:
    await push(pod)
    outside = pod.root / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    (pod.app / "folder").symlink_to(outside)
    (pod.app / "link").symlink_to(outside / "kept.txt")
    (pod.app / "src/deep/a.txt").unlink()
    (pod.app / "src/deep").rmdir()
    (pod.app / "src/deep").symlink_to(outside)
    agent = pod.agent
    for path in ("folder/kept.txt", "src/deep/a.txt"):
        with pytest.raises(BadFiles, match="no folder in the workspace"):
            await agent.patch_files(generation=1, base_revision=1, revision=2, write={path: b"x"})
    with pytest.raises(BadFiles, match="no folder in the workspace"):
        await agent.patch_files(
            generation=1, base_revision=1, revision=2, write={}, delete=["folder/kept.txt"]
        )
    assert await agent.read(["folder/kept.txt", "link", "run"], longest=100) == {
        "run": FILES["run"]
    }
    await agent.patch_files(generation=1, base_revision=1, revision=2, write={"link": b"mine"})
    assert not (pod.app / "link").is_symlink()
    await push(pod, generation=2)
    assert pod.held() == FILES
    assert [path.name for path in outside.iterdir()] == ["kept.txt"]
    assert (outside / "kept.txt").read_text() == "kept"


async def test_a_file_watcher_sees_an_edit_as_one_renaming_into_its_folder(pod: Pod) -> None:
    await push(pod, {"src/a.txt": b"a", "watch.mjs": WATCH})
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, "node", "watch.mjs"))
        await heard.until(lambda: "watching" in heard.lines)
        await pod.agent.patch_files(
            generation=1, base_revision=1, revision=2, write={"src/a.txt": b"b"}
        )
        await pod.agent.patch_files(
            generation=1, base_revision=2, revision=3, write={"src/z.txt": b"z"}
        )
        await heard.until(lambda: "watched rename z.txt" in heard.lines)
    assert heard.said("watched") == ["rename a.txt", "rename z.txt"]


async def test_read_leaves_out_what_is_gone_longer_or_no_file(pod: Pod) -> None:
    await push(pod, {**FILES, "long": b"x" * 101})
    (pod.app / "src/deep/a.txt").write_bytes(b"changed")
    (pod.app / "pipe").symlink_to("/dev/zero")
    paths = ["src/deep/a.txt", "b.bin", "long", "gone", "src", "pipe", "run/below"]
    found = await pod.agent.read(paths, longest=100)
    assert found == {"src/deep/a.txt": b"changed", "b.bin": FILES["b.bin"]}


async def test_a_tree_beyond_the_limits_is_refused_as_too_large(new_pod: NewPod) -> None:
    pod = await new_pod(PREVIEW_AGENT_MAX_INFLATED_BYTES="100000")
    with pytest.raises(PayloadTooLarge):
        await push(pod, {"zeros.txt": b"0" * 200_000})
    assert (await push(pod)).revision == 1
    (pod.app / "run").write_bytes(b"x" * 60_000)
    (pod.app / "b.bin").write_bytes(b"x" * 60_000)
    with pytest.raises(PayloadTooLarge):
        await pod.agent.read(["run", "b.bin"], longest=60_000)


# -- events ----------------------------------------------------------------------------------------

#: Prints so many lines of so many characters, then "done"; ends if there is a third argument.
FLOOD = b"""
const [lines, size] = process.argv.slice(2, 4).map(Number)
if (!process.argv[4]) process.stdin.resume()
for (let number = 0; number < lines; number++) console.log('x'.repeat(size))
console.log('done')
"""


async def test_events_are_resumed_where_they_ended_and_shared_by_readers(pod: Pod) -> None:
    await push(pod)
    async with listening(pod.agent) as first, listening(pod.agent) as second:
        await pod.agent.start(order(pod, "node", "say.mjs", "1"))
        for heard in (first, second):
            await heard.until(lambda heard=heard: heard.said("said"))  # type: ignore[misc]
    assert first.events == second.events
    assert [event.number for event in first.events] == list(range(1, len(first.events) + 1))
    async with listening(pod.agent, after=first.events[1].number) as late:
        await late.until(lambda: len(late.events) == len(first.events) - 2)
    assert late.events == first.events[2:]
    assert (await pod.agent.state()).last_event == first.events[-1].number
    with pytest.raises(AgentRefused, match="the last event is"):
        await anext(pod.agent.events(after=99, unreachable_seconds=5))


async def test_lines_are_cleaned_and_cut(pod: Pod) -> None:
    script = rb"""
    process.stdin.resume()
    process.stdout.write('\x1b[32mok\x1b[0m\r\n10%\r100%\n')
    console.log('y'.repeat(5000))
    console.log('\ud83d\ude00'.repeat(5000).slice(1))
    console.log('end')
    """
    await push(pod, {"script.mjs": script})
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, "node", "script.mjs"))
        await heard.until(lambda: "end" in heard.lines)
    ok, last, cut, odd, _ = heard.lines
    assert (ok, last, cut) == ("ok", "100%", "y" * 4000)
    assert odd.encode()


async def test_who_comes_late_to_a_flood_is_told_what_is_missing(pod: Pod) -> None:
    await push(pod, {"flood.mjs": FLOOD})
    async with listening(pod.agent) as live:
        await pod.agent.start(order(pod, "node", "flood.mjs", "12000", "100"))
        await live.until(lambda: "done" in live.lines)
    async with listening(pod.agent) as late:
        await late.until(lambda: "done" in late.lines)
    gap = late.events[0]
    assert isinstance(gap, GapEvent)
    assert gap.first == 1
    assert late.events[1].number == gap.number + 1
    assert sum(len(line) for line in late.lines) <= 2**20


async def test_a_reader_who_does_not_read_costs_no_memory_and_holds_up_nobody(
    new_pod: NewPod,
) -> None:
    # More than what is said would not fit into this heap: Node would end.
    pod = await new_pod(NODE_OPTIONS="--max-old-space-size=32")
    await push(pod, {"flood.mjs": FLOOD})
    request = f"GET /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {pod.token}\r\n\r\n"
    with socket.create_connection((pod.host, pod.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(request.encode())
        await pod.agent.start(order(pod, "node", "flood.mjs", "12000", "4000", "end"))
        async with asyncio.timeout(60):
            while not (exit_ := (await pod.agent.state()).exit):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert exit_.code == 0


async def test_events_end_once_the_agent_stays_away(pod: Pod) -> None:
    heard = Heard()

    async def listen() -> None:
        async for event in pod.agent.events(unreachable_seconds=0.5):
            heard.take(event)

    await push(pod)
    await pod.agent.start(order(pod, "node", "say.mjs"))
    task = asyncio.create_task(listen(), name="listen")
    await heard.until(lambda: heard.said("said"))
    pod.process.terminate()
    with pytest.raises(AgentUnreachable):
        async with asyncio.timeout(20):
            await task
    assert heard.exits[-1].exit.requested
    assert not await pod.agent.healthy()


async def test_a_wrong_token_is_refused_and_no_token_is_shown(pod: Pod) -> None:
    async with aiohttp.ClientSession() as http:
        stranger = Agent(http, pod.host, pod.port, "wrong")
        assert await stranger.healthy()
        with pytest.raises(AgentRefused, match="token") as refused:
            await stranger.state()
        assert refused.value.reason == "unauthorized"
        with pytest.raises(AgentRefused, match="token"):
            await anext(stranger.events(unreachable_seconds=5))
    assert pod.token not in repr(pod.agent)
    assert pod.mark not in repr(order(pod, "x"))
