"""The pods of the fake API server: their versions, and the history that watches start from."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from tests.kube.statuses import (
    Refusal,
    already_exists,
    expired,
    modified,
    not_found,
    version_too_large,
    wrong_uid,
)

Pod = dict[str, Any]
Key = tuple[str, str]
Selected = Callable[[Mapping[str, Any]], bool]
EventType = Literal["ADDED", "MODIFIED", "DELETED"]

#: Versions begin somewhere: nobody may count on 1.
_FIRST_VERSION: Final = 1000


def now() -> str:
    """This moment as the API server writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Change:
    """One write. ``after`` of a deletion is the last state, with the version of the deletion."""

    version: int
    before: Pod | None
    after: Pod
    deleted: bool = False


def seen_by(selected: Selected, change: Change) -> EventType | None:
    """What a watch of these pods hears of a change: a pod may also come into or leave its view."""
    before = change.before is not None and selected(change.before)
    after = not change.deleted and selected(change.after)
    if before and after:
        return "MODIFIED"
    return "ADDED" if after else "DELETED" if before else None


@dataclass(slots=True, eq=False)
class Watch:
    """One open watch. Put into ``queue``: changes, the end of those that are none but show what
    there is ("shown"), and how it ends: in order, broken, refused.
    """

    queue: asyncio.Queue[Change | Literal["shown", "end", "drop"] | Refusal] = field(
        default_factory=asyncio.Queue
    )


class Store:
    """Pods by namespace and name. Every write has a version of its own, in growing order."""

    def __init__(self, *, history: int) -> None:
        self._pods: dict[Key, Pod] = {}
        self.version = _FIRST_VERSION
        self._history: deque[Change] = deque()
        self._longest = history
        #: The oldest version from which everything is known.
        self.oldest = _FIRST_VERSION
        self.watches: set[Watch] = set()
        #: Told of every change in the moment it is made.
        self.listeners: list[Callable[[Change], None]] = []

    # -- reading -------------------------------------------------------------------------------

    def get(self, namespace: str, name: str) -> Pod:
        """The newest state. Raises a Refusal."""
        try:
            return copy.deepcopy(self._pods[namespace, name])
        except KeyError:
            raise not_found(name) from None

    def all(self) -> list[Pod]:
        """Every pod, in the order of namespaces and names."""
        return [copy.deepcopy(self._pods[key]) for key in sorted(self._pods)]

    def at(self, version: int) -> list[Pod]:
        """Every pod as of a version, in the same order. Raises a Refusal if it is forgotten."""
        if version < self.oldest:
            raise expired(version, self.oldest)
        pods = dict(self._pods)
        for change in reversed(self._history):
            if change.version <= version:
                break
            key = key_of(change.after)
            if change.before is None:
                del pods[key]
            else:
                pods[key] = change.before
        return [copy.deepcopy(pods[key]) for key in sorted(pods)]

    def since(self, version: int) -> Iterator[Change]:
        """The changes after a version. Raises a Refusal."""
        if version > self.version:
            raise version_too_large(version, self.version)
        if version < self.oldest:
            raise expired(version, self.oldest)
        return iter([change for change in self._history if change.version > version])

    # -- writing -------------------------------------------------------------------------------

    def create(self, pod: Pod) -> Pod:
        """Add a pod. Raises a Refusal if the name is taken."""
        key = key_of(pod)
        if key in self._pods:
            raise already_exists(key[1])
        pod = copy.deepcopy(pod)
        pod["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": now(),
        }
        return self._write(key, None, pod)

    def update(
        self,
        namespace: str,
        name: str,
        change: Callable[[Pod], Pod | None],
        *,
        uid: str | None = None,
        version: str | None = None,
    ) -> Pod:
        """Replace a pod by what ``change`` makes of a copy (None: it is changed in place).

        Without a difference nothing is written, as with the API server. Raises a Refusal if the
        pod has another UID or version.
        """
        before = self._checked(namespace, name, uid)
        if version is not None and version != before["metadata"]["resourceVersion"]:
            raise modified(name)
        copied = copy.deepcopy(before)
        after = change(copied) or copied
        if after == before:
            return after
        return self._write((namespace, name), before, after)

    def delete(self, namespace: str, name: str, *, grace: int | None, uid: str | None) -> Pod:
        """Have a pod ended: marked until its kubelet is done with it, or removed at once.

        At once: without grace, when it is on no node, and when its processes have ended. Raises a
        Refusal.
        """
        before = self._checked(namespace, name, uid)
        if grace is None:
            grace = int(before["spec"].get("terminationGracePeriodSeconds", 30))
        ended = before["status"].get("phase") in ("Succeeded", "Failed")
        if grace <= 0 or ended or not before["spec"].get("nodeName"):
            return self._remove((namespace, name), before)
        metadata = before["metadata"]
        if metadata.get("deletionTimestamp") and grace >= metadata["deletionGracePeriodSeconds"]:
            return copy.deepcopy(before)  # a second call can only shorten the time
        after = copy.deepcopy(before)
        end = datetime.now(UTC) + timedelta(seconds=grace)
        after["metadata"] |= {
            "deletionTimestamp": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "deletionGracePeriodSeconds": grace,
            "generation": metadata["generation"] + 1,
        }
        return self._write((namespace, name), before, after)

    def compact(self) -> None:
        """Forget all history. Open watches go on."""
        self._history.clear()
        self.oldest = self.version

    def _checked(self, namespace: str, name: str, uid: str | None) -> Pod:
        pod = self._pods.get((namespace, name))
        if pod is None:
            raise not_found(name)
        if uid is not None and uid != pod["metadata"]["uid"]:
            raise wrong_uid(name, uid, pod["metadata"]["uid"])
        return pod

    def _write(self, key: Key, before: Pod | None, after: Pod) -> Pod:
        self.version += 1
        after["metadata"]["resourceVersion"] = str(self.version)
        self._pods[key] = after
        self._tell(Change(self.version, before, after))
        return copy.deepcopy(after)

    def _remove(self, key: Key, before: Pod) -> Pod:
        self.version += 1
        del self._pods[key]
        last = copy.deepcopy(before)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._tell(Change(self.version, before, last, deleted=True))
        return copy.deepcopy(last)

    def _tell(self, change: Change) -> None:
        self._history.append(change)
        if len(self._history) > self._longest:
            self.oldest = self._history.popleft().version
        for watch in self.watches:
            watch.queue.put_nowait(change)
        for listener in self.listeners:
            listener(change)


def key_of(pod: Mapping[str, Any]) -> Key:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]
