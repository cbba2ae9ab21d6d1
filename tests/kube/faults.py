"""What goes wrong with the calls and watches of the fake API server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.kube.statuses import Refusal, expired
from tests.kube.store import Store

Verb = Literal["create", "read", "patch", "delete", "list", "watch"]


@dataclass(slots=True, eq=False)
class Fault:
    """What happens to the next ``times`` calls of a verb (None: of any), in this order:

    wait for ``delay`` seconds; close the connection (``drop``); answer ``refusal``; do the call,
    and close the connection instead of answering (``lose_reply``).
    """

    verb: Verb | None
    times: int
    #: So many calls are let pass before.
    after: int = 0
    delay: float = 0.0
    drop: bool = False
    refusal: Callable[[], Refusal] | None = None
    lose_reply: bool = False


class Faults:
    """Faults that are still to happen, and those that last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[Fault] = []
        #: As many pods as a ResourceQuota of this name and number lets be; None: any.
        self.quota: tuple[str, int] | None = None
        #: Open and new watches say nothing, while the connection stays.
        self.silence = False
        #: And are not ended when their time is over: nobody is there.
        self.hold_watches = False
        #: New watches end at once, in order.
        self.cut_watches = False
        #: A watch from a forgotten version is refused with HTTP status 410. The API server's watch
        #: cache says 200, and 410 in an event.
        self.gone_as_status = False

    def next(self, verb: Verb) -> Fault | None:
        """The fault that hits a call of this verb now."""
        for fault in self._waiting:
            if fault.verb in (None, verb):
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self._waiting.remove(fault)
                return fault
        return None

    def refuse(
        self, verb: Verb | None, refusal: Callable[[], Refusal], *, times: int = 1, after: int = 0
    ) -> None:
        """Answer the next calls with what ``refusal`` makes; nothing of them takes effect."""
        self._waiting.append(Fault(verb, times, after, refusal=refusal))

    def delay(self, verb: Verb | None, seconds: float, *, times: int = 1) -> None:
        """Let the next calls wait before they take effect."""
        self._waiting.append(Fault(verb, times, delay=seconds))

    def drop(self, verb: Verb | None, *, times: int = 1, after: int = 0) -> None:
        """Close the connection of the next calls before they take effect."""
        self._waiting.append(Fault(verb, times, after, drop=True))

    def lose_reply(self, verb: Verb | None, *, times: int = 1, after: int = 0) -> None:
        """Let the next calls take effect, and close the connection instead of answering."""
        self._waiting.append(Fault(verb, times, after, lose_reply=True))

    def clear(self) -> None:
        """Everything is well from now on."""
        self._waiting.clear()
        self.quota = None
        self.silence = self.hold_watches = False
        self.cut_watches = self.gone_as_status = False

    # -- open watches --------------------------------------------------------------------------

    def drop_watches(self) -> None:
        """Break the connections of all open watches."""
        for watch in tuple(self._store.watches):
            watch.queue.put_nowait("drop")

    def end_watches(self) -> None:
        """End all open watches as their time-out would."""
        for watch in tuple(self._store.watches):
            watch.queue.put_nowait("end")

    def expire_watches(self) -> None:
        """Tell all open watches that their version is too old (410 in an event)."""
        self.compact()
        for watch in tuple(self._store.watches):
            watch.queue.put_nowait(expired(self._store.version - 1, self._store.oldest))

    def compact(self) -> None:
        """Forget the history: who comes with an older version is told 410."""
        self._store.compact()
