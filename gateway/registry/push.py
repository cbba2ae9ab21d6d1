"""The push link: one pub/sub connection that hears every change, kept alive.

Pub/sub delivers at most once, so what matters is to know when something may have been missed:
``lost`` when the link breaks, ``synced`` when it is up again. A link on which nothing is heard,
not even the answer to a PING, counts as broken.

The link leads to one server. With Sentinel that may be a former primary that is cut off and does
not know it; in a cluster, what the other nodes publish comes over the cluster's bus (PUBLISH goes
to every node; sharded channels would need a link to each shard that follows every move of a slot).
So there each server at which changes are published is made to publish an echo from time to time,
and a link that does not hear all of them counts as broken, too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from gateway.errors import GatewayError, RegistryUnavailable
from gateway.registry.base import Subscriber
from gateway.registry.keys import CHANGES, ECHOES
from gateway.registry.node import abandon
from gateway.registry.records import decode_route
from gateway.registry.redis_client import RedisClient
from gateway.registry.redis_errors import explain

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0
_PING_SECONDS: Final = 5.0
_CANCEL_SECONDS: Final = 1.0


class Listener(Protocol):
    """One listener to a channel. Both calls return at once."""

    def heard(self, payload: bytes) -> None:
        """A message of the channel."""

    def lost(self, error: RegistryUnavailable) -> None:
        """The link is down: nothing will be heard any more."""


@dataclass(slots=True, eq=False)
class _Channel:
    """Those who listen to one channel. ``ready``: True once subscribed, False if the link broke."""

    ready: asyncio.Future[bool]
    #: In the order in which they came; a dictionary, since thousands may leave at once.
    listeners: dict[Listener, None] = field(default_factory=dict)


class PushLink:
    """Subscribes to all changes, and to further channels on demand."""

    def __init__(self, client: RedisClient, *, ping_seconds: float = _PING_SECONDS) -> None:
        self._client = client
        self._ping_seconds = ping_seconds
        self._subscribers: dict[object, Subscriber] = {}
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._failure: BaseException | None = None
        # Per connection: commands to send, and for each SUBSCRIBE among them, in order, who waits.
        self._outbox: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        self._awaited: deque[asyncio.Future[bool]] = deque()
        self._channels: dict[str, _Channel] = {}
        self._echoes = ECHOES + secrets.token_hex(8)
        self._echoed: set[str] = set()
        self._news = asyncio.Event()

    @property
    def up(self) -> bool:
        """Whether changes are being heard."""
        return self._up.is_set()

    async def open(self) -> None:
        """Start; returns when the link is up, RegistryUnavailable if it does not come up."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="registry push link")
        try:
            async with asyncio.timeout(self._client.limit_seconds):
                await self._up.wait()
        except TimeoutError as exc:
            await self.close()
            reason = f": {self._failure}" if self._failure else ""
            raise RegistryUnavailable(f"no push link to the registry{reason}") from exc

    async def close(self) -> None:
        """End the task and the connection; listeners are told. Idempotent."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()
            # Once more if a library has swallowed it.
            await asyncio.wait([task], timeout=_CANCEL_SECONDS)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Tell ``subscriber`` of every change; returns the call that ends it."""
        token = object()
        self._subscribers[token] = subscriber
        if self.up:
            _call(subscriber.synced)

        def unsubscribe() -> None:
            self._subscribers.pop(token, None)

        return unsubscribe

    async def listen(self, name: str, listener: Listener) -> Callable[[], None]:
        """Listen to a channel; returns, once subscribed, the call that ends it.

        Raises RegistryUnavailable if the link is down or goes down meanwhile.
        """
        if not self.up:
            raise RegistryUnavailable("the push link to the registry is down: try again")
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel(self._subscribe(name))
        channel.listeners[listener] = None
        try:
            async with asyncio.timeout(self._client.limit_seconds):
                # Others may wait for the same: shielded from the cancellation of this call.
                subscribed = await asyncio.shield(channel.ready)
        except TimeoutError as exc:
            self._leave(name, channel, listener)
            raise RegistryUnavailable("the registry did not confirm a subscription") from exc
        except BaseException:
            self._leave(name, channel, listener)
            raise
        if not subscribed:
            raise RegistryUnavailable("the push link to the registry was lost: try again")
        return lambda: self._leave(name, channel, listener)

    def _subscribe(self, name: str) -> asyncio.Future[bool]:
        # Redis confirms in the order of the commands, so the n-th confirmation belongs to the
        # n-th SUBSCRIBE, whatever was unsubscribed in between.
        ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._awaited.append(ready)
        self._outbox.put_nowait(("SUBSCRIBE", name))
        return ready

    def _leave(self, name: str, channel: _Channel, listener: Listener) -> None:
        channel.listeners.pop(listener, None)
        if not channel.listeners and self._channels.get(name) is channel:
            del self._channels[name]
            self._outbox.put_nowait(("UNSUBSCRIBE", name))

    # -- the link ------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._serve()
            except GatewayError as exc:
                self._failure = exc
                _log.warning("push link to the registry lost: %s", exc)
            except (RedisError, OSError) as exc:
                self._failure = RegistryUnavailable(explain(exc, self._longest_silence))
                _log.warning("push link to the registry lost: %s", self._failure)
            except Exception as exc:
                # A defect must not end the task: without it this replica hears nothing more.
                self._failure = exc
                _log.exception("push link to the registry failed")
            finally:
                if self.up:
                    pause = _FIRST_PAUSE_SECONDS
                self._down()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _serve(self) -> None:
        """Connect, subscribe, and hear until the link breaks (which raises)."""
        connection = await self._client.dial()
        self._subscribe(self._echoes)
        self._subscribe(CHANGES)
        # No TaskGroup: in Python 3.11 it swallows a cancellation that meets a failing child.
        tasks = [
            asyncio.create_task(self._read(connection), name="registry push reader"),
            asyncio.create_task(self._send(connection), name="registry push sender"),
            asyncio.create_task(self._check_echoes(), name="registry push echoes"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                await abandon(connection)

    async def _send(self, connection: AbstractConnection) -> None:
        while True:
            await connection.send_command(*await self._next_command())

    async def _next_command(self) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(self._ping_seconds):
                return await self._outbox.get()
        except TimeoutError:
            return ("PING",)

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            async with asyncio.timeout(self._longest_silence):
                message = await connection.read_response(
                    timeout=math.inf, disconnect_on_error=False
                )
            self._hear(message)

    @property
    def _longest_silence(self) -> float:
        # The sender makes the server say something at least every ping_seconds.
        return self._ping_seconds + self._client.limit_seconds

    async def _check_echoes(self) -> None:
        """Raise RegistryUnavailable once the link does not hear what it should."""
        while True:
            await asyncio.sleep(self._ping_seconds)
            self._echoed.clear()
            try:
                sent = await self._client.echo(self._echoes)
            except RegistryUnavailable as exc:
                # Whether changes are heard cannot be told now. PING goes on.
                _log.debug("no echo: %s", exc)
                continue
            try:
                async with asyncio.timeout(self._client.limit_seconds):
                    while not sent <= self._echoed:
                        self._news.clear()
                        await self._news.wait()
            except TimeoutError as exc:
                unheard = ", ".join(sorted(sent - self._echoed))
                raise RegistryUnavailable(f"it does not hear what {unheard} publishes") from exc

    def _hear(self, message: Any) -> None:
        kind = message[0]
        if kind == b"message":
            name, payload = message[1].decode(), message[2]
            if name == CHANGES:
                self._changed(payload)
            elif name == self._echoes:
                self._echoed.add(payload.decode())
                self._news.set()
            elif channel := self._channels.get(name):
                for listener in tuple(channel.listeners):
                    _call(listener.heard, payload)
        elif kind == b"subscribe":
            ready = self._awaited.popleft()
            ready.set_result(True)
            if message[1].decode() == CHANGES:
                self._up.set()
                self._failure = None
                for subscriber in tuple(self._subscribers.values()):
                    _call(subscriber.synced)

    def _changed(self, payload: bytes) -> None:
        try:
            route = decode_route(payload)
        except RegistryUnavailable as exc:
            # Whoever cached the route before reads it again at its maximal age.
            _log.error("a published change is skipped: %s", exc)
            return
        for subscriber in tuple(self._subscribers.values()):
            _call(subscriber.changed, route)

    def _down(self) -> None:
        was_up = self.up
        self._up.clear()
        awaited, self._awaited = self._awaited, deque()
        channels, self._channels = self._channels, {}
        self._outbox = asyncio.Queue()
        for ready in awaited:
            ready.set_result(False)
        error = RegistryUnavailable("the push link to the registry was lost: resume")
        for channel in channels.values():
            for listener in tuple(channel.listeners):
                _call(listener.lost, error)
        if was_up:
            for subscriber in tuple(self._subscribers.values()):
                _call(subscriber.lost)


def _call(callback: Callable[..., object], *arguments: object) -> None:
    """Call; what it raises is logged, for one bad listener must not silence the others."""
    try:
        callback(*arguments)
    except Exception:
        _log.exception("a listener to the registry failed")
