"""Commands that belong together, each sent to the server that holds its key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from gateway.registry.node import Argument, Command, Node, abandon
from gateway.registry.scripts import Script
from gateway.registry.topology import Topology

#: Commands in use whose first argument is no key.
_KEYLESS: Final = frozenset({"PING", "PUBLISH", "SCRIPT", "TIME", "WAIT"})
#: How often one command is sent on before the cluster counts as out of order.
_LONGEST_CHASE: Final = 5
_TRY_AGAIN_SECONDS: Final = 0.05


def key_of(command: Command) -> str | None:
    """The key that decides where a command is sent; None if any server can answer it."""
    name = command[0]
    if name in _KEYLESS:
        return None
    return str(command[3] if name == "EVALSHA" else command[1])


class Exchange:
    """Connections held by one caller: one to each server that it has asked."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._held: dict[Node, AbstractConnection] = {}
        #: The server that was asked last.
        self._last: Node | None = None

    async def command(self, *parts: Argument) -> Any:
        """Send one command and return its answer.

        One without a key goes to the server that was asked last.
        """
        key = key_of(parts)
        node = self._last if key is None and self._last else await self._topology.node(key)
        await self._send(node, [parts])
        answers = await self._chase(node, [parts], await self._read(node, 1))
        return _value(answers[-1])

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        """Send all commands in one write per server; the first error is raised after all answers.

        A command without a key goes with the next one that has one: TIME in front of a read is the
        clock of the server that is read. What a cluster sends on is repeated there together.
        """
        parts = _together(commands)
        nodes = [await self._topology.node(key_of(part[-1])) for part in parts]
        for node in dict.fromkeys(nodes):
            mine = (part for part, at in zip(parts, nodes, strict=True) if at is node)
            await self._send(node, [command for part in mine for command in part])
        answers = [
            await self._read(node, len(part)) for node, part in zip(nodes, parts, strict=True)
        ]
        for place, (node, part) in enumerate(zip(nodes, parts, strict=True)):
            answers[place] = await self._chase(node, part, answers[place])
        return [_value(answer) for part in answers for answer in part]

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument] = ()
    ) -> Any:
        """Run a script; one the server does not know (yet, or after a restart) is loaded first."""
        call = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        try:
            return await self.command(*call)
        except exceptions.NoScriptError:
            await self.command("SCRIPT", "LOAD", script.source)
            return await self.command(*call)

    async def _chase(self, node: Node, part: list[Command], answers: list[Any]) -> list[Any]:
        """The answers to ``part`` from the server that has its key, wherever that is by now."""
        for _ in range(_LONGEST_CHASE):
            answer, asking = answers[-1], []
            if isinstance(answer, exceptions.TryAgainError):
                # Some keys of the slot have been moved to another node, some not.
                await asyncio.sleep(_TRY_AGAIN_SECONDS)
            elif isinstance(answer, exceptions.AskError):
                node = self._topology.redirect(answer, asked=node)
                asking = [] if isinstance(answer, exceptions.MovedError) else [("ASKING",)]
            else:
                break
            await self._send(node, [*part[:-1], *asking, part[-1]])
            answers = await self._read(node, len(part) + len(asking))
        return [*answers[: len(part) - 1], answers[-1]]

    async def _send(self, node: Node, commands: Sequence[Command]) -> None:
        connection = self._held.get(node)
        if connection is None:
            connection = self._held[node] = await node.take()
        self._last = node
        await connection.send_packed_command(connection.pack_commands(commands))

    async def _read(self, node: Node, count: int) -> list[Any]:
        """The next answers of a server; errors among them are not raised."""
        connection = self._held[node]
        answers: list[Any] = []
        for _ in range(count):
            try:
                answers.append(await connection.read_response(disconnect_on_error=False))
            except exceptions.ResponseError as exc:
                answers.append(exc)
        return answers

    async def release(self, *, broken: bool) -> None:
        """Give all connections back; closed first if answers may still be under way in them."""
        held, self._held = self._held, {}
        for node, connection in held.items():
            if broken:
                await abandon(connection)
            await node.release(connection)


def _together(commands: Sequence[Command]) -> list[list[Command]]:
    """Each command that has a key, with those in front of it that have none."""
    parts: list[list[Command]] = []
    waiting: list[Command] = []
    for command in commands:
        waiting.append(command)
        if key_of(command) is not None:
            parts.append(waiting)
            waiting = []
    if waiting:
        raise ValueError(f"{waiting[0][0]!r} has no key behind it that tells where to send it")
    return parts


def _value(answer: Any) -> Any:
    if isinstance(answer, exceptions.ResponseError):
        raise answer
    return answer
