"""A thin client: one connection per exchange, one limit per call, nothing repeated unasked.

redis-py's own client retries writes (ten times by default), so an INCR across a stall ran twice.
Here a call is repeated at most once, only if the connection broke, and only if its caller says
that repeating it is safe. Every foreign error leaves as RegistryUnavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from redis import exceptions
from redis.asyncio.connection import AbstractConnection, BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.errors import RegistryUnavailable, SettingsError
from gateway.registry.scripts import Script

T = TypeVar("T")
Argument = str | bytes | int

_MAX_CONNECTIONS: Final = 64
#: What a slow but healthy link moves in a second; large file sets get that much more time.
_BYTES_PER_SECOND: Final = 8 * 2**20

#: The server's answer says that this connection leads to the wrong place: open a new one.
_WRONG_SERVER: Final = (
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
)
#: ConnectionErrors that are answers; repeating them at once helps nobody.
_ANSWERS: Final = (exceptions.AuthenticationError, exceptions.BusyLoadingError)


class Exchange:
    """A connection held by one caller, for commands that belong together."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def command(self, *parts: Argument) -> Any:
        """Send one command and return its answer."""
        await self._connection.send_command(*parts)
        return await self._connection.read_response()

    async def batch(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send all commands in one write; the first error is raised after all are answered."""
        if not commands:
            return []
        await self._connection.send_packed_command(self._connection.pack_commands(commands))
        answers: list[Any] = []
        error: exceptions.ResponseError | None = None
        for _ in commands:
            try:
                answers.append(await self._connection.read_response())
            except exceptions.ResponseError as exc:
                error = error or exc
        if error:
            raise error
        return answers

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


class RedisClient:
    """Exchanges with one server, over a bounded pool of connections.

    ``limit_seconds`` bounds each call as a whole: waiting for a connection, connecting, sending,
    the answer. Answers are bytes, in the form of RESP2.
    """

    def __init__(self, url: str, *, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        try:
            self._pool: BlockingConnectionPool = BlockingConnectionPool.from_url(url, protocol=2)
        except (ValueError, TypeError) as exc:
            raise SettingsError(f"GATEWAY_REDIS_URL cannot be used: {exc}") from exc
        self._pool.max_connections = _MAX_CONNECTIONS
        self._pool.timeout = limit_seconds
        # After the URL's own options, so that none of them changes how answers look, or repeats
        # a write. socket_timeout would add a task to every send; the limit of the call covers it.
        self._pool.connection_kwargs.update(
            protocol=2,
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            socket_timeout=None,
            socket_connect_timeout=limit_seconds,
            driver_info=None,
        )

    async def ask(
        self,
        about: str,
        exchange: Callable[[Exchange], Awaitable[T]],
        *,
        repeatable: bool = True,
        size: int = 0,
        more_seconds: float = 0.0,
    ) -> T:
        """The result of ``exchange`` on one connection, within the limit.

        ``about`` says in errors what was asked; ``size`` (bytes to move) and ``more_seconds``
        extend the limit. Raises RegistryUnavailable, whatever went wrong.
        """
        limit = self.limit_seconds + size / _BYTES_PER_SECOND + more_seconds
        try:
            async with asyncio.timeout(limit):
                try:
                    return await self._exchange(exchange)
                except exceptions.ConnectionError as exc:
                    if not repeatable or isinstance(exc, _ANSWERS):
                        raise
                    return await self._exchange(exchange)
        except (exceptions.RedisError, OSError, TimeoutError) as exc:
            raise RegistryUnavailable(f"{_explain(exc, limit)}; asked to {about}") from exc

    async def _exchange(self, exchange: Callable[[Exchange], Awaitable[T]]) -> T:
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            return await exchange(Exchange(connection))
        except _WRONG_SERVER:
            await connection.disconnect(nowait=True)
            raise
        except exceptions.ResponseError:
            raise
        except BaseException:
            # An answer may still be under way: it must not reach the next caller.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    async def dial(self) -> AbstractConnection:
        """A connected connection of its own, outside of the pool; the caller disconnects it."""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self.limit_seconds):
                await connection.connect()  # type: ignore[no-untyped-call]
        except (exceptions.RedisError, OSError, TimeoutError) as exc:
            await connection.disconnect(nowait=True)
            raise RegistryUnavailable(_explain(exc, self.limit_seconds)) from exc
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._pool.disconnect()


def _explain(error: Exception, limit: float) -> str:
    """What went wrong, as the beginning of a sentence for an operator."""
    # A refusal while connecting over a Unix socket comes wrapped in a ConnectionError.
    if isinstance(error.__cause__, exceptions.RedisError):
        error = error.__cause__
    answer = str(error)
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        return f"the registry did not answer within {limit:.1f} s"
    if isinstance(error, exceptions.BusyLoadingError):
        return "the registry is still loading its data (LOADING)"
    if isinstance(error, exceptions.ReadOnlyError) or answer.startswith("READONLY"):
        return "the registry is a read-only replica (READONLY): point the gateway at the primary"
    if isinstance(error, exceptions.OutOfMemoryError) or answer.startswith("OOM"):
        return "the registry is out of memory (OOM): raise its maxmemory or stop previews"
    if isinstance(error, (exceptions.AuthenticationError, exceptions.NoPermissionError)):
        return f"the registry refuses the gateway's credentials ({answer})"
    if isinstance(error, (exceptions.ConnectionError, OSError)):
        return f"the registry cannot be reached ({answer})"
    return f"the registry answered with an error ({answer})"
