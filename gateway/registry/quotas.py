"""What the sessions of one account take up, kept in the registry so that it holds everywhere."""

from __future__ import annotations

from typing import Final

from gateway.errors import LimitReached
from gateway.registry import records, scripts
from gateway.registry.base import Charge, Limits
from gateway.registry.exchange import Exchange
from gateway.registry.keys import quota_key, session_key
from gateway.registry.node import Argument
from gateway.registry.redis_client import RedisClient
from gateway.session import ENDED, SessionId, State

#: No session lives longer, and every charge renews it.
_ACCOUNT_SECONDS: Final = 32 * 86400
#: Records read at a time to find out which sessions are still there.
_BATCH: Final = 100
#: When a limit that only the end of a session lifts is worth another try.
_RETRY_SECONDS: Final = 10
_KINDS: Final = {-1: "sessions", -2: "files", -3: "bytes"}


class Quotas:
    """Charges accounts by a script, and looks at the records when a limit is reached."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def charge(self, account: str, charge: Charge, limits: Limits) -> None:
        """Charge the account, or raise LimitReached and charge nothing."""
        code, value = await self._try(account, charge, limits)
        if code < 0 and value:
            await self._drop_ended(account)
            code, value = await self._try(account, charge, limits)
        if code == 0:
            raise LimitReached("creates", limits.creates_per_minute, seconds=-(-value // 1000))
        if code < 0:
            kind = _KINDS[code]
            raise LimitReached(kind, getattr(limits, kind), seconds=_RETRY_SECONDS)

    async def _try(self, account: str, charge: Charge, limits: Limits) -> tuple[int, int]:
        key = quota_key(account)
        arguments: list[Argument] = [
            charge.session_id,
            charge.files,
            charge.bytes,
            "1" if charge.creates else "0",
            limits.creates_per_minute,
            limits.sessions,
            limits.files,
            limits.bytes,
            _ACCOUNT_SECONDS * 1000,
        ]
        # Repeating it after a lost reply counts one call for two, and nothing else.
        code, value = await self._client.ask(
            f"charge {key}", lambda exchange: exchange.run(scripts.QUOTA, [key], arguments)
        )
        return int(code), int(value)

    async def _drop_ended(self, account: str) -> None:
        """Strike off the sessions that have ended, or are another account's."""
        key = quota_key(account)
        stored = await self._client.ask(
            f"read {key}", lambda exchange: exchange.command("HGETALL", key)
        )
        names = [name for name in stored[::2] if name.startswith(b"s:")]
        for begin in range(0, len(names), _BATCH):
            await self._drop(account, names[begin : begin + _BATCH])

    async def _drop(self, account: str, names: list[bytes]) -> None:
        key, ids = quota_key(account), [SessionId(name[2:].decode()) for name in names]

        async def look(exchange: Exchange) -> None:
            commands = [("HMGET", session_key(one), "state", "creator") for one in ids]
            found = await exchange.batch(commands)
            for name, (state, creator) in zip(names, found, strict=True):
                known = None if state is None else state.decode("ascii", "replace")
                if known is None or known in _OVER or creator != records.text(account):
                    await exchange.command("HDEL", key, name)

        await self._client.ask(f"look after {key}", look)


_OVER: Final = frozenset(map(str, (*ENDED, State.STOPPING)))
