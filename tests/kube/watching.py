"""The events of one watch, as lines of a response that does not end for a while."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from aiohttp import web

from tests.kube.faults import Faults
from tests.kube.statuses import Refusal
from tests.kube.store import Change, Pod, Selected, Store, Watch, seen_by

#: The default of the real one lies between 30 and 60 minutes.
_WATCH_SECONDS: Final = 1800


class Stream:
    """Writes what comes into a watch's queue, until the watch ends."""

    def __init__(
        self, watch: Watch, selected: Selected, *, store: Store, faults: Faults, pause: float
    ) -> None:
        self._watch = watch
        self._selected = selected
        self._store = store
        self._faults = faults
        #: Seconds between two bookmarks.
        self._pause = pause
        self._response = web.StreamResponse(headers={"Content-Type": "application/json"})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The whole response."""
        loop = asyncio.get_running_loop()
        end = loop.time() + float(request.query.get("timeoutSeconds") or _WATCH_SECONDS)
        bookmarks = request.query.get("allowWatchBookmarks") == "true"
        self._response.enable_chunked_encoding()
        await self._response.prepare(request)
        while not self._faults.cut_watches:
            try:
                async with asyncio.timeout(self._next(end - loop.time())):
                    item = await self._watch.queue.get()
            except TimeoutError:
                # The real one sends one about every minute, and one before it ends the watch.
                if bookmarks and not self._faults.silence:
                    await self._bookmark()
                if loop.time() >= end and not self._faults.hold_watches:
                    break
                continue
            if item == "drop":
                cut_off(request)
                break
            if not self._faults.silence and await self._is_last(item):
                break
        return self._response

    def _next(self, left: float) -> float:
        """Seconds until there is something to do in a watch of which nothing is heard."""
        return min(self._pause, left) if left > 0 else 0.05

    async def _is_last(self, item: Change | str | Refusal) -> bool:
        """Write what there is to write of an item; whether the watch ends with it."""
        if isinstance(item, Change):
            if kind := seen_by(self._selected, item):
                await self._write(kind, _shown(kind, item))
        elif isinstance(item, Refusal):
            await self._write("ERROR", item.status)
            return True
        elif item == "shown":
            await self._bookmark({"k8s.io/initial-events-end": "true"})
        return item == "end"

    async def _bookmark(self, annotations: dict[str, str] | None = None) -> None:
        metadata: dict[str, Any] = {
            "resourceVersion": str(self._store.version),
            "creationTimestamp": None,
        }
        if annotations:
            metadata["annotations"] = annotations
        bookmark = {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": metadata,
            "spec": {"containers": None},
            "status": {},
        }
        await self._write("BOOKMARK", bookmark)

    async def _write(self, kind: str, thing: dict[str, Any]) -> None:
        await self._response.write(json.dumps({"type": kind, "object": thing}).encode() + b"\n")


def _shown(kind: str, change: Change) -> Pod:
    """The pod of an event. Of one that left the view of a watch it is the state before."""
    if kind == "DELETED" and not change.deleted:
        assert change.before is not None
        metadata = {**change.before["metadata"], "resourceVersion": str(change.version)}
        return {**change.before, "metadata": metadata}
    return change.after


def cut_off(request: web.Request) -> None:
    """Close the connection of a request at once."""
    if request.transport is not None:
        request.transport.abort()
