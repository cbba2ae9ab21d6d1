"""A client of the HTTP API; the command line is its first user.

::

    async with Client("https://gateway.example", token=token) as gateway:
        session = await gateway.create({"package.json": b"...", "index.html": b"..."}, wait=True)
        async with aclosing(gateway.events(session["id"])) as events:
            async for event in events:
                ...

It waits instead of failing: what a later try can mend (no connection, 429, 502, 503, 504) is tried
again until it succeeds or ``patience_seconds`` are over, so that callers need no loop of their own.
"""

from __future__ import annotations

from gateway.client.answers import (
    Edited,
    Files,
    IssuedToken,
    Link,
    NewSession,
    Page,
    Posted,
    Replica,
    Session,
    SourceFile,
    Stopped,
    Ticket,
)
from gateway.client.calls import Client
from gateway.client.errors import ApiError, PreviewEnded, Unreachable, WaitTimeout
from gateway.client.events import Event, EventParser
from gateway.client.files import decoded_file, encoded_files

__all__ = [
    "ApiError",
    "Client",
    "Edited",
    "Event",
    "EventParser",
    "Files",
    "IssuedToken",
    "Link",
    "NewSession",
    "Page",
    "Posted",
    "PreviewEnded",
    "Replica",
    "Session",
    "SourceFile",
    "Stopped",
    "Ticket",
    "Unreachable",
    "WaitTimeout",
    "decoded_file",
    "encoded_files",
]
