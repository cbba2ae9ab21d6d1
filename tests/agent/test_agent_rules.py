"""The agent's pure parts, held against those of the gateway that they mirror."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadFiles
from gateway.spawner.output import Output
from gateway.spawner.workspace import check_path
from tests.agent.pods import LAUNCHERS

#: Reads lines of [call, argument], and answers each.
SCRIPT: Final = """
const agent = await import(process.env.AGENT)
const { createInterface } = await import('node:readline')
const calls = {
  pathProblem: (path) => agent.pathProblem(path),
  output: (chunks) => {
    const output = new agent.Output()
    const lines = chunks.flatMap((chunk) => output.feed(Buffer.from(chunk, 'latin1')))
    return [...lines, ...output.end()]
  },
  dependencyKey: (files) =>
    agent.dependencyKey((name) => (name in files ? Buffer.from(files[name]) : null)),
}
for await (const line of createInterface({ input: process.stdin })) {
  const [name, argument] = JSON.parse(line)
  console.log(JSON.stringify(calls[name](argument)))
}
"""
PATHS: Final = (
    *("", "/a", "a", "a/b", "..", "a/..", "./a", "a//b", "a/", "C:", "c:x", "1:", "a\\b", "a\x7f"),
    *("\x85", "\u2028", "\ud800", "ü/ö", "node_modules", "a/node_modules", "node_modules.js"),
    *(".git", "a/.Git/b", ".gitignore", "x" * 255, "x" * 256, "ü" * 128, "a/" * 511 + "aa"),
    *("a/" * 512 + "a", "...", " ", "a b", "-", "__proto__", "é" * 600),
)
Call = Callable[[str, Any], Any]


@pytest.fixture(scope="module")
def call(node: str) -> Iterator[Call]:
    """Calls an exported function of agent.mjs."""
    with subprocess.Popen(
        [node, "--input-type=module", "-e", SCRIPT],
        env={"AGENT": str(LAUNCHERS / "agent.mjs")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin
        assert stdout

        def ask(name: str, argument: Any) -> Any:
            stdin.write(json.dumps([name, argument]).encode() + b"\n")
            stdin.flush()
            return json.loads(stdout.readline())

        yield ask


def problem(path: str) -> str:
    """What the gateway says about a path; empty if it allows it."""
    try:
        check_path(path)
    except BadFiles as exc:
        return str(exc).rpartition(" is refused: ")[2]
    return ""


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_held_to_the_gateways_rules(call: Call, path: str) -> None:
    assert call("pathProblem", path) == problem(path)


@settings(max_examples=150, deadline=None)
@given(path=st.text(alphabet="aA.:/\\\0\n\x9f é\ud800😀" + "gitnode_modules", max_size=40))
def test_any_path_is_held_to_the_gateways_rules(call: Call, path: str) -> None:
    assert call("pathProblem", path) == problem(path)


def expected(*chunks: bytes) -> list[str]:
    output = Output()
    return [line for chunk in chunks for line in output.feed(chunk)] + output.end()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from(
                [b"\x1b[32m", b"\x1b]0;a\x07", b"\r", b"\r\n", b"\n", b"\xc3", b"\xbc"]
            ),
            st.text(max_size=6).map(lambda text: text.encode("utf-8", "replace")),
        ),
        max_size=12,
    )
)
def test_output_becomes_the_lines_that_the_gateway_would_make_of_it(
    call: Call, chunks: list[bytes]
) -> None:
    given_chunks = [chunk.decode("latin-1") for chunk in chunks]
    assert call("output", given_chunks) == expected(*chunks)


#: One reader reads, one never does; hours pass in no time.
READERS: Final = """
import { mock } from 'node:test'
import { Writable } from 'node:stream'
mock.timers.enable({ apis: ['setInterval', 'Date'], now: 1000 })
const { Events } = await import(process.env.AGENT)
const turn = () => new Promise((resolve) => setImmediate(resolve))
const reader = (write, highWaterMark = 1000) =>
  Object.assign(new Writable({ highWaterMark, write }), { flushHeaders() {} })
const events = new Events()
let read = ''
const live = reader((data, _, done) => { read += data; done() })
const stuck = reader(() => {})
const full = reader(() => {}, 1)
events.follow(live, 0)
events.follow(stuck, 0)
const told = []
const tell = async (name) => {
  await turn()
  told.push([name, read, stuck.destroyed, full.destroyed])
  read = ''
}
events.add({ type: 'a', text: 'x'.repeat(2000) })
events.add({ type: 'b' })
events.follow(full, 2)
await tell('live')
mock.timers.tick(10_000)
await tell('10 s')
mock.timers.tick(20_000)
await tell('30 s')
mock.timers.tick(10_000)
mock.timers.tick(10_000)
await tell('50 s')
events.add({ type: 'c' })
await tell('after')
console.log(JSON.stringify(told))
process.exit(0)
"""


def test_a_reader_gets_a_sign_of_life_and_one_who_takes_nothing_is_cut_off(node: str) -> None:
    done = subprocess.run(
        [node, "--no-warnings", "--input-type=module", "-e", READERS],
        env={"AGENT": str(LAUNCHERS / "agent.mjs")},
        stdout=subprocess.PIPE,
        check=True,
        timeout=20,
    )
    live, ten, thirty, fifty, after = json.loads(done.stdout)
    assert [json.loads(line)["n"] for line in live[1].splitlines()] == [1, 2]
    assert ten == ["10 s", "\n", False, False]
    assert thirty == ["30 s", "\n\n", True, False], (
        "the other one was full from the first sign of life on"
    )
    assert fifty == ["50 s", "\n\n", True, True]
    assert after[1] == '{"n":3,"type":"c"}\n'


PACKAGE: Final = {
    "dependencies": {"vite": "^8", "react": "19"},
    "name": "one",
    "scripts": {"a": "b"},
}


def key(call: Call, package: object, **beside: str) -> object:
    text = package if isinstance(package, str) else json.dumps(package)
    return call("dependencyKey", {"package.json": text, **beside})


def test_projects_with_the_same_dependencies_have_the_same_key(call: Call) -> None:
    mine = key(call, PACKAGE, **{"package-lock.json": "{}"})
    other = {"dependencies": {"react": "19", "vite": "^8"}, "name": "two", "version": "1.2.3"}
    assert mine
    assert key(call, other, **{"package-lock.json": "{}"}) == mine
    assert key(call, "\ufeff" + json.dumps(other), **{"package-lock.json": "{}"}) == mine


def test_whatever_an_install_depends_on_changes_the_key(call: Call) -> None:
    keys = [
        key(call, PACKAGE),
        key(call, PACKAGE, **{"package-lock.json": "{}"}),
        key(call, PACKAGE, **{"package-lock.json": "{} "}),
        key(call, PACKAGE, **{"npm-shrinkwrap.json": "{}"}),
        key(call, PACKAGE, **{"yarn.lock": "{}"}),
        key(call, PACKAGE, **{".npmrc": "omit=dev"}),
        key(call, PACKAGE | {"dependencies": {"vite": "^7", "react": "19"}}),
        key(call, {"devDependencies": PACKAGE["dependencies"]}),
        key(call, PACKAGE | {"overrides": {"a": "1"}}),
    ]
    assert None not in keys
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "package",
    [
        *("", "{", "null", "[]", "1"),
        *({"workspaces": ["a"]}, {"dependencies": {"a": "file:../a"}}),
        *(
            {"dependencies": {"a": "./a"}},
            {"dependencies": {"a": 1}},
            {"dependencies": {"a": "~/a"}},
        ),
    ],
)
def test_where_sameness_cannot_be_told_there_is_no_key(call: Call, package: object) -> None:
    assert key(call, package) is None
