"""What the gateway and the agent in a preview's pod say to each other. Pure, no I/O.

The protocol is in docs/agent.md, the other side in ``launchers/agent.mjs``. Code of the preview
runs beside the agent and may take its place: what comes from there is checked like any stranger's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import signal
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from gateway.errors import (
    AgentRefused,
    BadFiles,
    Fenced,
    GatewayError,
    NoAgent,
    PayloadTooLarge,
    RevisionConflict,
)
from gateway.spawner.output import Output

AgentPhase = Literal["installing", "loading", "waiting", "starting"]
RunState = Literal["idle", "installing", "loading", "waiting", "starting", "running", "exited"]
During = Literal["install", "warm", "run"]

#: Of what the agent says about a failure.
_DETAIL_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class AgentExit:
    """How a run has ended: in the ``install``, while it waited (``warm``), or as dev server.

    ``requested``: by a stop, or because something newer took its place. ``reason`` is a sentence
    of the agent's own, if there is more to say than the status.
    """

    during: During
    code: int | None
    signal: str
    reason: str
    requested: bool

    @property
    def ending(self) -> str:
        """To go on a sentence: "exited with status 3"."""
        if self.code is not None:
            return f"exited with status {self.code}"
        return f"was ended by {self.signal}" if self.signal else "did not start"


@dataclass(frozen=True, slots=True)
class AgentState:
    """What an agent holds and does. ``digests``: SHA-256 of the files it was given, by path.

    ``generation`` and ``revision`` are those of the files, ``run_generation`` and ``run_attempt``
    those of what runs, or ran last. ``last_event`` is the number of the newest event.
    """

    session_id: str
    generation: int
    revision: int
    state: RunState
    last_event: int
    run_generation: int = 0
    run_attempt: int = 0
    exit: AgentExit | None = None
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class PhaseEvent:
    """A run has entered a phase."""

    number: int
    generation: int
    phase: AgentPhase
    detail: str


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Lines of output, without line ends and terminal escapes, in order."""

    number: int
    generation: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExitEvent:
    """A run has ended, for whatever reason."""

    number: int
    generation: int
    exit: AgentExit


@dataclass(frozen=True, slots=True)
class GapEvent:
    """Events up to ``number``, from ``first`` on, came too fast to be kept."""

    number: int
    first: int


AgentEvent = PhaseEvent | LogEvent | ExitEvent | GapEvent


@dataclass(frozen=True, slots=True)
class Install:
    """How ``node_modules`` is filled, unless the image brought it along."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    title: str = ""
    limit_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Order:
    """A dev server to start, once for each (generation, attempt).

    ``{launchers}`` in the command stands for the folder in which ``launchers`` are written, by
    name. ``env`` is all it sees but HOME, TMPDIR and PATH. ``line`` is what a process that waits
    for this project is told; empty, or if none waits with the same dependencies: ``command``.
    """

    generation: int
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    install: Install | None = None
    launchers: Mapping[str, str] = field(default_factory=dict, repr=False)
    title: str = ""
    attempt: int = 1
    line: str = field(default="", repr=False)

    def document(self) -> dict[str, Any]:
        """The order as the agent reads it."""
        install = self.install
        return {
            "generation": self.generation,
            "attempt": self.attempt,
            "title": self.title,
            "command": list(self.command),
            "env": dict(self.env),
            "launchers": dict(self.launchers),
            **({"order": self.line} if self.line else {}),
            **(
                {
                    "install": {
                        "command": list(install.command),
                        "env": dict(install.env),
                        "title": install.title,
                        "limitSeconds": install.limit_seconds,
                    }
                }
                if install
                else {}
            ),
        }


# -- what is sent ----------------------------------------------------------------------------------


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each file in hexadecimal."""
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def file_entries(
    files: Mapping[str, bytes],
    digests: Mapping[str, str],
    *,
    known: Collection[str] = frozenset(),
) -> list[dict[str, str]]:
    """Files as the agent reads them, without the content of those whose digest is ``known``."""
    return [
        {"path": path, "sha256": digests[path]}
        | ({} if digests[path] in known else _content(content))
        for path, content in files.items()
    ]


def _content(content: bytes) -> dict[str, str]:
    try:
        return {"content": content.decode()}
    except UnicodeDecodeError:
        return {"content": base64.b64encode(content).decode(), "encoding": "base64"}


# -- what comes ------------------------------------------------------------------------------------


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``. Raises NoAgent."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise NoAgent("it does not answer in JSON") from exc
    if not isinstance(value, dict):
        raise NoAgent("its answer is no object")
    return value


def parse_state(document: Mapping[str, Any]) -> AgentState:
    """The state that the agent tells. Raises NoAgent."""
    run = document.get("run", {})
    digests = document.get("digests", {})
    exit_ = document.get("exit")
    if not isinstance(run, dict) or not isinstance(digests, dict):
        raise NoAgent("its state is malformed")
    if not all(isinstance(digest, str) for digest in digests.values()):
        raise NoAgent("its digests are malformed")
    return AgentState(
        session_id=_text(document, "sessionId"),
        generation=_count(document, "generation"),
        revision=_count(document, "revision"),
        state=_one_of(document, "state", get_args(RunState)),
        last_event=_count(document, "lastEvent"),
        run_generation=_count(run, "generation") if run else 0,
        run_attempt=_count(run, "attempt") if run else 0,
        exit=_exit(exit_) if exit_ is not None else None,
        digests=digests,
    )


def parse_event(line: bytes, *, after: int) -> AgentEvent:
    """The event in a line, which must be newer than ``after``. Raises NoAgent."""
    document = parse_object(line)
    kind = document.get("type")
    if kind == "gap":
        event: AgentEvent = GapEvent(_count(document, "to"), _count(document, "from"))
    else:
        number, generation = _count(document, "n"), _count(document, "generation")
        if kind == "log":
            event = LogEvent(number, generation, _lines(document.get("lines")))
        elif kind == "phase":
            phase = _one_of(document, "phase", get_args(AgentPhase))
            event = PhaseEvent(number, generation, phase, _text(document, "detail"))
        elif kind == "exit":
            event = ExitEvent(number, generation, _exit(document))
        else:
            raise NoAgent("it tells unknown events")
    if event.number <= after:
        raise NoAgent("its events are out of order")
    return event


def parse_files(document: Mapping[str, Any], *, longest: int) -> dict[str, bytes]:
    """The files in an answer. Raises NoAgent."""
    files = document.get("files")
    if not isinstance(files, list) or not all(isinstance(entry, dict) for entry in files):
        raise NoAgent("its files are malformed")
    try:
        found = {
            _text(entry, "path"): base64.b64decode(_text(entry, "content"), validate=True)
            for entry in files
        }
    except binascii.Error as exc:
        raise NoAgent("its files are malformed") from exc
    return {path: content for path, content in found.items() if len(content) <= longest}


def missing_paths(document: Mapping[str, Any]) -> frozenset[str] | None:
    """The files whose content the agent asks for; None if it refuses for another reason."""
    paths = document.get("paths")
    if document.get("code") != "missing" or not isinstance(paths, list):
        return None
    return frozenset(path for path in paths if isinstance(path, str))


def refusal(status: int, document: Mapping[str, Any]) -> GatewayError:
    """The error that a refusal means."""
    code, detail = str(document.get("code", "")), _plain(str(document.get("detail", "")))
    current = document.get("revision")
    match code:
        case "fenced":
            return Fenced(detail)
        case "revision" if isinstance(current, int):
            return RevisionConflict(current)
        case "bad_files":
            return BadFiles(detail)
        case "too_large":
            return PayloadTooLarge(detail)
    return AgentRefused(detail or f"it answered with status {status}", reason=code)


def _exit(document: Any) -> AgentExit:
    if not isinstance(document, dict):
        raise NoAgent("its exit is malformed")
    code, signal_ = document.get("code"), document.get("signal")
    if not isinstance(code, int | None):
        raise NoAgent("its exit is malformed")
    name = ""
    with suppress(ValueError):
        name = signal.Signals[str(signal_)].name if signal_ in signal.Signals.__members__ else ""
    return AgentExit(
        during=_one_of(document, "during", get_args(During)),
        code=code,
        signal=name,
        reason=_plain(_text(document, "reason")),
        requested=document.get("requested") is True,
    )


def _lines(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise NoAgent("its log is malformed")
    # Cleaned there already, if an agent it was.
    text = "".join(f"{line}\n" for line in value)
    return tuple(Output().feed(text.encode("utf-8", "replace")))


def _plain(text: str) -> str:
    return " ".join(_lines([text[:_DETAIL_CHARACTERS]]))


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise NoAgent(f"{name!r} is no string")
    return value


def _count(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise NoAgent(f"{name!r} is no number")
    return value


def _one_of(document: Mapping[str, Any], name: str, values: tuple[Any, ...]) -> Any:
    value = document.get(name)
    if value not in values:
        raise NoAgent(f"{name!r} is unknown")
    return value
