"""The pods of a selector, kept up to date: list, then watch from there, and list again.

A watch tells changes as they happen, but may break, fall silent, or start too late. So what is
known has an age, every watch ends after a minute at the latest, one that cannot be resumed leads
to a list, and a list is made from time to time in any case: it finds what a watch has missed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from types import TracebackType
from typing import Final, Protocol, Self

from gateway.errors import GatewayError, KubeGone, KubeUnavailable
from gateway.spawner.kube.client import KubeApi, Pod
from gateway.spawner.kube.pauses import pause_seconds

_log = logging.getLogger(__name__)

_RELIST_SECONDS: Final = 300.0
_LONGEST_PAUSE_SECONDS: Final = 15.0
_CANCEL_SECONDS: Final = 1.0
#: The shortest time a watch is opened for; less is left to the list that is due.
_SHORTEST_WATCH_SECONDS: Final = 1.0
#: After so many failures in a row the version may be to blame: list.
_RELIST_AFTER: Final = 3


class Listener(Protocol):
    """Hears what happens to the pods. Both calls return at once; what they raise is logged."""

    def changed(self, pod: Pod) -> None:
        """A pod is new, or not as it was."""

    def deleted(self, pod: Pod) -> None:
        """A pod is gone, or no longer selected; this is the last that is known of it."""


class Reflector:
    """The pods of ``selector``, by name. Use as an async context manager, or open and close.

    What it says may be old (``age_seconds``): before something is destroyed, read the pod.
    """

    def __init__(
        self,
        api: KubeApi,
        selector: str,
        *,
        relist_seconds: float = _RELIST_SECONDS,
        watch_seconds: float | None = None,
        longest_pause_seconds: float = _LONGEST_PAUSE_SECONDS,
    ) -> None:
        self._api = api
        self._selector = selector
        self._relist_seconds = relist_seconds
        self._watch_seconds = watch_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self._pods: dict[str, Pod] = {}
        self._version = ""
        self._listeners: dict[object, Listener] = {}
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self._heard_at = float("-inf")
        self._relist_at = float("-inf")
        self._failures = 0
        #: Set once the pods have been listed, and from then on.
        self.synced = asyncio.Event()
        #: What the last try failed with; None while all is well.
        self.failure: GatewayError | None = None

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def open(self) -> None:
        """Start; ``synced`` tells when the pods are known."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="kubernetes reflector")

    async def close(self) -> None:
        """End the task. Idempotent."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()
            # Once more if a library has swallowed it.
            await asyncio.wait([task], timeout=_CANCEL_SECONDS)

    # -- what is known -------------------------------------------------------------------------

    @property
    def age_seconds(self) -> float:
        """How long ago the API server was last heard of; infinite before the first list.

        While a watch is open and quiet this grows until the next bookmark or the watch's end.
        """
        return time.monotonic() - self._heard_at

    def get(self, name: str) -> Pod | None:
        """A pod, not to be changed; None if there is none as far as is known."""
        return self._pods.get(name)

    def all(self) -> tuple[Pod, ...]:
        """All pods, not to be changed."""
        return tuple(self._pods.values())

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell ``listener`` what happens from now on; returns the call that ends it."""
        token = object()
        self._listeners[token] = listener

        def unsubscribe() -> None:
            self._listeners.pop(token, None)

        return unsubscribe

    async def wait(
        self, name: str, predicate: Callable[[Pod | None], bool], seconds: float
    ) -> Pod | None:
        """Wait until ``predicate`` holds for a pod; returns the pod.

        The predicate is asked at once and after every change of the pod, with None while it is
        not known: not listed yet, or gone. What it raises ends the wait. Raises TimeoutError.
        """
        news = asyncio.Event()
        waiters = self._waiters.setdefault(name, set())
        waiters.add(news)
        try:
            async with asyncio.timeout(seconds):
                while not predicate(pod := self._pods.get(name)):
                    news.clear()
                    await news.wait()
                return pod
        finally:
            waiters.discard(news)
            if not waiters and self._waiters.get(name) is waiters:
                del self._waiters[name]

    # -- the loop ------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            asked = 0.0
            try:
                await self._advance()
                continue
            except KubeGone as exc:
                # As usual after a longer pause: what is known is replaced by a list.
                _log.info("the watch of pods begins anew: %s", exc)
                self._relist_at = float("-inf")
            except GatewayError as exc:
                asked = exc.asked_seconds if isinstance(exc, KubeUnavailable) else 0.0
                self._failed(exc)
            except Exception as exc:
                # A defect must not end the task: without it this replica would learn nothing more.
                _log.exception("the reflector of pods failed")
                self._failed(KubeUnavailable(f"the reflector of pods failed: {exc!r}"))
            self._failures += 1
            if self._failures >= _RELIST_AFTER:
                self._relist_at = float("-inf")
            await asyncio.sleep(
                pause_seconds(self._failures, asked=asked, longest=self._longest_pause_seconds)
            )

    def _failed(self, exc: GatewayError) -> None:
        # One line when it begins, not one for every try.
        level = logging.WARNING if self.failure is None else logging.DEBUG
        self.failure = exc
        _log.log(level, "pods are not heard of: %s", exc)

    async def _advance(self) -> None:
        """List if that is due, else watch until that ends."""
        left = self._relist_at - time.monotonic()
        if left <= 0:
            await self._list()
        else:
            await self._watch(left)

    async def _list(self) -> None:
        listing = await self._api.list(self._selector)
        found = {pod["metadata"]["name"]: pod for pod in listing.pods}
        self._version = listing.resource_version
        self._relist_at = time.monotonic() + self._relist_seconds * random.uniform(0.75, 1.25)  # noqa: S311
        self._heard()
        for name in self._pods.keys() - found.keys():
            self._drop(self._pods[name])
        for pod in found.values():
            self._take(pod)
        self.synced.set()

    async def _watch(self, left: float) -> None:
        seconds = self._watch_seconds
        if seconds is None or left < seconds:
            # None: the client chooses; no watch of its choice is longer than a minute.
            seconds = left if left < 60 else seconds
        if seconds is not None:
            seconds = max(seconds, _SHORTEST_WATCH_SECONDS)
        opened_at = time.monotonic()
        async with aclosing(
            self._api.watch(self._selector, self._version, seconds=seconds)
        ) as events:
            async for kind, pod in events:
                self._heard()
                # Only what a watch tells ends a row of failures: lists go on working where
                # watches are cut off, and would be made without a pause.
                self._failures = 0
                self._version = pod["metadata"]["resourceVersion"]
                if kind == "DELETED":
                    self._drop(pod)
                elif kind in ("ADDED", "MODIFIED"):
                    self._take(pod)
        # It has ended in order: until now nothing was missed.
        self._heard_at = time.monotonic()
        if self._heard_at < opened_at + _SHORTEST_WATCH_SECONDS / 2:
            raise KubeUnavailable("the Kubernetes API server ended a watch at once")
        self._heard()
        self._failures = 0

    def _heard(self) -> None:
        self._heard_at = time.monotonic()
        if self.failure is not None:
            _log.warning("pods are heard of again")
            self.failure = None

    def _take(self, pod: Pod) -> None:
        """A pod as it is now."""
        name = pod["metadata"]["name"]
        # Who wrote which field and when: not small, and of no use here.
        pod["metadata"].pop("managedFields", None)
        before = self._pods.get(name)
        if before is not None:
            known, new = before["metadata"], pod["metadata"]
            if known["uid"] != new["uid"]:
                # Another pod under the same name; the end of the first was missed.
                self._drop(before)
            elif known["resourceVersion"] == new["resourceVersion"]:
                return
        self._pods[name] = pod
        self._tell(pod, gone=False)

    def _drop(self, pod: Pod) -> None:
        """A pod that is no more; ``pod`` is its last state."""
        known = self._pods.get(pod["metadata"]["name"])
        if known is not None and known["metadata"]["uid"] == pod["metadata"]["uid"]:
            del self._pods[pod["metadata"]["name"]]
            self._tell(pod, gone=True)

    def _tell(self, pod: Pod, *, gone: bool) -> None:
        for listener in tuple(self._listeners.values()):
            try:
                (listener.deleted if gone else listener.changed)(pod)
            except Exception:
                _log.exception("a listener to pods failed")
        for news in self._waiters.get(pod["metadata"]["name"], ()):
            news.set()
