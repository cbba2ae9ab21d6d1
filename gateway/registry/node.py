"""One server of the registry, and a bounded pool of connections to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from redis import exceptions
from redis.asyncio.connection import (
    AbstractConnection,
    BlockingConnectionPool,
    RedisSSLContext,
    SSLConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.errors import SettingsError
from gateway.registry.url import Address

_MAX_CONNECTIONS: Final = 64
_CONTEXT_SECONDS: Final = 60.0

Argument = str | bytes | int
Command = Sequence[Argument]
OnConnect = Callable[[AbstractConnection], Awaitable[None]]


class _Contexts:
    """The TLS context of the connections to one server.

    redis-py makes one for each connection, which reads all CAs of the system: 35 ms. Made anew from
    time to time, for certificates are renewed.
    """

    def __init__(self) -> None:
        self._current: RedisSSLContext | None = None
        self._made_at = 0.0

    def take(self, own: RedisSSLContext) -> RedisSSLContext:
        """The context to use, instead of the connection's own if that is not needed."""
        if self._current is None or time.monotonic() - self._made_at > _CONTEXT_SECONDS:
            self._current, self._made_at = own, time.monotonic()
        return self._current


class _TlsConnection(SSLConnection):
    def __init__(self, *, contexts: _Contexts, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = contexts.take(self.ssl_context)


async def abandon(connection: AbstractConnection) -> None:
    """Close a connection at once, whatever is under way in it.

    redis-py's own disconnect leaves a TLS connection open until the peer has answered its end, so
    answers are read with ``disconnect_on_error=False``.
    """
    if connection._writer is not None:
        connection._writer.transport.abort()
    await connection.disconnect(nowait=True)


class Node:
    """A server. Its connections answer in bytes, in the form of RESP2, and repeat nothing."""

    def __init__(
        self,
        url: str,
        address: Address | None,
        *,
        limit_seconds: float,
        on_connect: OnConnect | None = None,
    ) -> None:
        """``address`` replaces the one in ``url``. Raises SettingsError if that is not usable."""
        self.address = address
        try:
            options: dict[str, Any] = dict(parse_url(url))
            if address is not None:
                options |= {"host": address.host, "port": address.port}
            # After the URL's own options, so that none of them changes how answers look, or
            # repeats a write. socket_timeout would add a task to every send; the limit of the
            # call covers it.
            options |= {
                "protocol": 2,
                "decode_responses": False,
                "retry": Retry(NoBackoff(), 0),
                "retry_on_timeout": False,
                "socket_timeout": None,
                "socket_connect_timeout": limit_seconds,
                "driver_info": None,
                "redis_connect_func": on_connect,
            }
            if options.get("connection_class") is SSLConnection:
                options |= {"connection_class": _TlsConnection, "contexts": _Contexts()}
            options |= {"max_connections": _MAX_CONNECTIONS, "timeout": limit_seconds}
            self._pool = BlockingConnectionPool(**options)
            # An option that there is not would only be found by the first connection.
            self._pool.make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, OSError, exceptions.RedisError) as exc:
            raise SettingsError(f"GATEWAY_REDIS_URL cannot be used: {exc}") from exc

    def __str__(self) -> str:
        return str(self.address) if self.address else "its socket"

    async def take(self) -> AbstractConnection:
        """A connected connection; give it back with ``release``."""
        connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Give a connection back."""
        await self._pool.release(connection)

    async def dial(self) -> AbstractConnection:
        """A connection outside of the pool, once the server answers; the caller abandons it."""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            # A server that loads its data would subscribe, but knows nothing yet.
            await connection.send_command("PING")
            await connection.read_response(disconnect_on_error=False)
        except BaseException:
            await abandon(connection)
            raise
        return connection

    async def ask(self, *commands: Command, limit_seconds: float) -> list[Any]:
        """The answers to commands for this very server; raises as redis-py does."""
        async with asyncio.timeout(limit_seconds):
            connection = await self.take()
            answers: list[Any] = []
            try:
                await connection.send_packed_command(connection.pack_commands(commands))
                for _ in commands:
                    answers.append(await connection.read_response(disconnect_on_error=False))  # noqa: PERF401
            except BaseException:
                # An answer may still be under way: it must not reach the next caller.
                await abandon(connection)
                raise
            finally:
                await self.release(connection)
        return answers

    async def close(self) -> None:
        """Close every connection, those in use too. Idempotent."""
        await self._pool.disconnect()
