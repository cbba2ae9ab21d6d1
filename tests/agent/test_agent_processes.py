"""What the agent promises about what it runs: installs, dev servers, their ends."""

from __future__ import annotations

import asyncio
import json
import signal

import psutil
import pytest

from gateway.errors import AgentRefused, Fenced
from gateway.spawner.kube.agent_wire import AgentExit, Install
from tests.agent.pods import FILES, ID, LAUNCHERS, MARK, NewPod, Pod, listening, order, push, until

SAY = ("node", "say.mjs")
#: Ignores SIGTERM, as do its child in the same group and one that left for a session of its own.
STUBBORN = b"""
import { spawn } from 'node:child_process'
process.stdin.resume()
process.on('SIGTERM', () => console.log('not yet'))
if (process.argv[2]) {
  const again = [process.argv[1]]
  const stay = { stdio: 'ignore', env: process.env }
  spawn(process.execPath, again, stay)
  spawn(process.execPath, again, { ...stay, detached: true }).unref()
  setInterval(() => {}, 1000)
  console.log('stubborn')
} else {
  setInterval(() => {}, 1000)
}
"""


def exited(during: str, **given: object) -> AgentExit:
    facts = {"code": None, "signal": "", "reason": "", "requested": False, **given}
    return AgentExit(during=during, **facts)  # type: ignore[arg-type]


# -- start -----------------------------------------------------------------------------------------


async def test_start_sees_exactly_its_environment_and_nothing_of_the_agents(pod: Pod) -> None:
    await push(pod)
    async with listening(pod.agent) as heard:
        assert not await pod.agent.start(order(pod, *SAY, "hello", "you"))
        await heard.until(lambda: heard.said("said"))
    env = json.loads(heard.said("env")[0])
    assert env.pop("PREVIEW_RUN")
    assert env.pop("PATH").startswith(f"{pod.app}/node_modules/.bin:")
    assert env == {"HOME": f"{pod.root}/home", "TMPDIR": f"{pod.root}/tmp", **pod.env}
    assert heard.said("cwd") == [str(pod.app)]
    assert heard.said("said") == ["hello you"]
    assert heard.phases == [("starting", "it")]
    assert (await pod.agent.state()).state == "running"


async def test_launchers_are_written_and_found_by_the_command(pod: Pod) -> None:
    await push(pod)
    launchers = {"a.mjs": "import './b.mjs'", "b.mjs": "console.log('said by b')"}
    async with listening(pod.agent) as heard:
        command = ("node", "{launchers}/a.mjs")
        await pod.agent.start(order(pod, *command, launchers=launchers))
        await heard.until(lambda: heard.said("said"))


async def test_a_repeated_order_starts_nothing_and_a_higher_attempt_does(pod: Pod) -> None:
    await push(pod)
    async with listening(pod.agent) as heard:
        for _ in range(2):
            await pod.agent.start(order(pod, *SAY, "first"))
        await heard.until(lambda: heard.said("said"))
        await pod.agent.start(order(pod, *SAY, "again", attempt=2))
        await pod.agent.start(order(pod, *SAY, "first"))
        await heard.until(lambda: len(heard.said("said")) == 2)
    assert heard.said("said") == ["first", "again"]
    assert [event.exit.requested for event in heard.exits] == [True]
    state = await pod.agent.state()
    assert (state.run_generation, state.run_attempt) == (1, 2)
    assert len(pod.others()) == 1


async def test_a_newer_generation_takes_the_place_of_an_older_one(pod: Pod) -> None:
    await push(pod)
    await pod.agent.start(order(pod, *SAY))
    [old] = pod.others()
    with pytest.raises(AgentRefused, match="have not been pushed"):
        await pod.agent.start(order(pod, *SAY, generation=2))
    await push(pod, generation=2)
    assert not old.is_running()
    await pod.agent.start(order(pod, *SAY, generation=2))
    with pytest.raises(Fenced):
        await pod.agent.start(order(pod, *SAY, generation=1, attempt=9))
    with pytest.raises(Fenced):
        await pod.agent.stop(grace_seconds=1, generation=1)
    assert (await pod.agent.state()).state == "running"


async def test_a_pod_that_runs_one_session_takes_no_other(pod: Pod) -> None:
    await push(pod)
    await pod.agent.start(order(pod, *SAY))
    with pytest.raises(AgentRefused, match=ID) as refused:
        await pod.agent.push_tree("somebody-else", generation=9, revision=1, files={})
    assert refused.value.reason == "occupied"
    assert pod.held() == FILES


# -- install ---------------------------------------------------------------------------------------


async def test_what_is_to_be_installed_is_installed_first_and_once(pod: Pod) -> None:
    await push(pod, {**FILES, "package.json": b'{"dependencies": {"a": "1"}}'})
    script = "mkdir node_modules; echo installing; echo installed >> count; echo $WHICH"
    install = Install(("sh", "-c", script), env={**pod.env, "WHICH": "this"}, title="npm ci")
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, *SAY, install=install))
        await heard.until(lambda: heard.said("said"))
        await pod.agent.start(order(pod, *SAY, install=install, attempt=2))
        await heard.until(lambda: len(heard.said("said")) == 2)
    assert heard.phases == [("installing", "npm ci"), ("starting", "it"), ("starting", "it")]
    assert heard.lines[:2] == ["installing", "this"]
    assert (pod.app / "count").read_text() == "installed\n"


async def test_other_dependencies_are_installed_anew(pod: Pod) -> None:
    install = Install(("sh", "-c", "echo installing"), env=pod.env)
    async with listening(pod.agent) as heard:
        for generation, version in enumerate((b"1", b"2", b"2"), start=1):
            package = b'{"name": "%d", "dependencies": {"a": "%b"}}' % (generation, version)
            await push(pod, {**FILES, "package.json": package}, generation=generation)
            await pod.agent.start(order(pod, *SAY, install=install, generation=generation))
            await heard.until(lambda count=generation: len(heard.said("said")) == count)  # type: ignore[misc]
    assert heard.lines.count("installing") == 2


async def test_an_install_that_fails_ends_the_run_and_may_be_tried_again(pod: Pod) -> None:
    await push(pod)
    install = Install(("sh", "-c", "echo no such package >&2; exit 3"), env=pod.env)
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, *SAY, install=install))
        await heard.until(lambda: heard.exits)
        assert heard.exits[0].exit == exited("install", code=3)
        assert "no such package" in heard.lines
        assert (await pod.agent.state()).state == "exited"
        again = Install(("true",), env=pod.env)
        await pod.agent.start(order(pod, *SAY, install=again, attempt=2))
        await heard.until(lambda: heard.said("said"))


async def test_an_install_that_takes_too_long_is_ended(pod: Pod) -> None:
    await push(pod)
    install = Install(("sleep", "600"), env=pod.env, limit_seconds=0.2)
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, *SAY, install=install))
        await heard.until(lambda: heard.exits)
    reason = "it was not done within 0.2 s"
    assert heard.exits[0].exit == exited("install", signal="SIGKILL", reason=reason)
    assert not pod.others()


async def test_a_stop_ends_an_install(pod: Pod) -> None:
    await push(pod)
    install = Install(("sleep", "600"), env=pod.env)
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, *SAY, install=install))
        await until(pod.others)
        state = await pod.agent.stop(grace_seconds=5)
        assert not pod.others()
        await heard.until(lambda: heard.exits)
    assert state.exit == exited("install", signal="SIGTERM", requested=True)
    assert not heard.said("said")


async def test_a_project_takes_over_an_install_that_was_begun_ahead(pod: Pod) -> None:
    package = {"package.json": b'{"dependencies": {"a": "1"}}'}
    script = "until [ -e ../home/go ]; do sleep 0.02; done; echo installed"
    install = Install(("sh", "-c", script), env=pod.env, title="npm ci")
    await pod.agent.push_tree("warm", generation=0, revision=1, files=package)
    await pod.agent.warm(order(pod, "node", "never.mjs", generation=0, install=install))
    state = await push(pod, {**FILES, **package}, generation=5)
    assert state.state == "installing"
    async with listening(pod.agent, after=state.last_event) as heard:
        for _ in range(2):
            assert not await pod.agent.start(order(pod, *SAY, generation=5, install=install))
        (pod.root / "home/go").touch()
        await heard.until(lambda: heard.said("said"))
    assert heard.phases == [("installing", "npm ci"), ("starting", "it")]
    assert heard.lines.count("installed") == 1
    assert (await pod.agent.state()).run_generation == 5


async def test_a_project_with_other_dependencies_ends_an_install_that_was_begun_ahead(
    pod: Pod,
) -> None:
    install = Install(("sleep", "600"), env=pod.env)
    await pod.agent.push_tree("warm", generation=0, revision=1, files={"package.json": b"{}"})
    await pod.agent.warm(order(pod, "node", "never.mjs", generation=0, install=install))
    await push(pod, {**FILES, "package.json": b'{"dependencies": {"a": "1"}}'}, generation=5)
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, *SAY, generation=5, install=Install(("true",))))
        await heard.until(lambda: heard.said("said"))
    assert [(event.generation, event.exit.requested) for event in heard.exits] == [(0, True)]


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ("process.exit(0)", exited("run", code=0)),
        ("console.log('why'); process.exit(7)", exited("run", code=7)),
        ("process.kill(process.pid, 'SIGKILL')", exited("run", signal="SIGKILL")),
    ],
)
async def test_a_dev_server_that_ends_at_once_is_told_with_all_it_said(
    pod: Pod, script: str, end: AgentExit
) -> None:
    await push(pod, {"end.mjs": script.encode()})
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, "node", "end.mjs"))
        await heard.until(lambda: heard.exits)
    assert heard.events[-1] is heard.exits[0]
    assert heard.exits[0].exit == end
    assert ("why" in heard.lines) == ("why" in script)
    state = await pod.agent.state()
    assert (state.state, state.exit) == ("exited", end)
    assert await pod.agent.healthy()
    await push(pod, generation=2)
    assert not await pod.agent.start(order(pod, *SAY, generation=2))


async def test_a_program_that_cannot_be_run_is_told_with_a_remedy(pod: Pod) -> None:
    await push(pod)
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, "no-such-program"))
        await heard.until(lambda: heard.exits)
    exit_ = heard.exits[0].exit
    assert exit_.reason.startswith("'no-such-program' cannot be run: there is no such program;")
    assert exit_.ending == "did not start"
    assert heard.lines == [f"preview: {exit_.reason}"]


async def test_what_a_dev_server_leaves_behind_is_ended_when_it_ends(pod: Pod) -> None:
    await push(pod, {"end.sh": b"sleep 600 & setsid sleep 600 & echo said; sleep 0.3"})
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, "sh", "end.sh"))
        await heard.until(lambda: heard.exits)
    assert heard.lines == ["said"]
    assert not pod.others()


async def test_stop_ends_all_processes_also_those_that_ignore_it_or_left_the_group(
    pod: Pod,
) -> None:
    await push(pod, {"stubborn.mjs": STUBBORN})
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, "node", "stubborn.mjs", "again"))
        await heard.until(lambda: "stubborn" in heard.lines)
        await until(lambda: len(pod.others()) == 3)
        state = await pod.agent.stop(grace_seconds=0.2)
        assert not pod.others()
        await heard.until(lambda: heard.exits)
    assert state.exit == exited("run", signal="SIGKILL", requested=True)
    assert "not yet" not in heard.lines
    assert (await pod.agent.stop(grace_seconds=0)).state == "exited"


async def test_stopping_where_nothing_runs_succeeds(pod: Pod) -> None:
    assert (await pod.agent.stop(grace_seconds=5)).state == "idle"


async def test_sigterm_ends_the_dev_server_within_its_grace_and_leaves_nothing(
    new_pod: NewPod,
) -> None:
    pod = await new_pod(PREVIEW_AGENT_GRACE_SECONDS="0.3")
    await push(pod, {"stubborn.mjs": STUBBORN})
    async with listening(pod.agent) as heard:
        await pod.agent.start(order(pod, "node", "stubborn.mjs", "again"))
        await heard.until(lambda: "stubborn" in heard.lines)
        pod.process.terminate()
        async with asyncio.timeout(20):
            assert await pod.process.wait() == 0
    assert not pod.others()


async def test_a_dev_server_ends_with_an_agent_that_was_killed(pod: Pod) -> None:
    await push(pod, {"stay.mjs": b"process.stdin.on('end', () => process.exit()).resume()"})
    await pod.agent.start(order(pod, "node", "stay.mjs"))
    [server] = pod.others()
    pod.process.send_signal(signal.SIGKILL)
    assert await pod.process.wait() == -signal.SIGKILL
    await until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


async def test_an_agent_without_a_token_does_not_start(node: str, mark: str) -> None:
    process = await asyncio.create_subprocess_exec(
        node, str(LAUNCHERS / "agent.mjs"), env={MARK: mark}, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert (process.returncode, said) == (
        1,
        b"agent: cannot start: PREVIEW_AGENT_TOKEN is not set\n",
    )
