"""Server-sent events, parsed. No I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; ``id`` is empty for what cannot be resumed after."""

    id: str
    type: str
    data: dict[str, Any]


class EventParser:
    """Server-sent events from bytes as they come (HTML standard, 9.2.6)."""

    def __init__(self) -> None:
        self._open = b""
        self._fields: dict[str, str] = {}
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes."""
        *lines, self._open = (self._open + data).split(b"\n")
        events: list[Event] = []
        for raw in lines:
            line = raw.removesuffix(b"\r").decode(errors="replace")
            if line:
                name, _, value = line.partition(":")
                if name == "data":
                    self._data.append(value.removeprefix(" "))
                else:
                    self._fields[name] = value.removeprefix(" ")
                continue
            fields, self._fields = self._fields, {}
            parts, self._data = self._data, []
            if parts:
                content = json.loads("\n".join(parts))
                events.append(Event(fields.get("id", ""), fields.get("event", "message"), content))
        return events
