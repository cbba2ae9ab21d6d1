"""``preview-gateway up DIR``: a folder, live in a browser, kept in step until Ctrl-C."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import webbrowser
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import watchfiles

from gateway.client import ApiError, Client, Unreachable
from gateway.errors import GatewayError, SpawnFailed
from gateway.folder import Folder

_STOP_SECONDS: Final = 10.0
Say = Callable[[str], None]


def session_name(folder: Path) -> str:
    """An id that begins with the folder's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:24] or "preview"
    return f"{slug}-{secrets.token_hex(4)}"


async def up(
    client: Client, folder: Folder, *, say: Say, open_browser: bool, report: Callable[..., None]
) -> None:
    """Create a session from ``folder``, say its URL, sync edits until cancelled, then stop it.

    ``report(event, **data)`` is told the same for programs. Raises SpawnFailed if the preview
    fails, before or after it was ready.
    """
    started = time.monotonic()
    files = await asyncio.to_thread(folder.files)
    session = await client.create(files, id=session_name(folder.root))
    session_id = session["id"]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_stop, client, session_id, say)
        say(f"registered   {session_id} ({len(files)} files)")
        report("registered", session=session)
        ready = asyncio.Event()

        def on_ready() -> None:
            say(f"ready        in {time.monotonic() - started:.1f} s")
            say("")
            say(f"  {session['previewUrl']}")
            say("")
            say(f"edits of {folder.root} are synced; Ctrl-C stops the preview")
            report("ready", previewUrl=session["previewUrl"])
            if open_browser:
                webbrowser.open(session["previewUrl"])
            ready.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_follow(client, session_id, say, on_ready), name="up: events")
            tasks.create_task(_sync(client, session_id, folder, say), name="up: sync")


async def _stop(client: Client, session_id: str, say: Say) -> None:
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await client.stop(session_id)
        say(f"stopped      {session_id}")
    except (GatewayError, TimeoutError) as exc:
        say(f"could not stop {session_id}: {exc}")


async def _follow(client: Client, session_id: str, say: Say, on_ready: Callable[[], None]) -> None:
    """Say what happens; a preview that fails ends the command."""
    lines: list[str] = []
    is_ready = False
    async for event in client.events(session_id):
        if event.type == "log":
            lines = (lines + event.data["lines"])[-30:]
            if is_ready:
                for line in event.data["lines"]:
                    say(f"  | {line}")
        elif event.type == "event" and event.data.get("type") == "phase":
            _say_phase(say, event.data)
        elif event.type == "state" and event.data.get("state") == "ready" and not is_ready:
            is_ready = True
            on_ready()
        elif event.type == "end":
            tail = "\n".join(f"  | {line}" for line in lines)
            raise SpawnFailed(
                f"the preview has {event.data['state']}: {event.data.get('reason', '')}",
                log_tail=tail,
            )


def _say_phase(say: Say, data: dict[str, Any]) -> None:
    detail = f" ({data['detail']})" if data.get("detail") else ""
    say(f"{data['phase']:<12}{detail}")


async def _sync(client: Client, session_id: str, folder: Folder, say: Say) -> None:
    """Send edits of the folder as they happen."""
    async for changes in watchfiles.awatch(folder.root, step=20, debounce=200):
        write, delete = await asyncio.to_thread(folder.edits, [Path(path) for _, path in changes])
        if not write and not delete:
            continue
        try:
            await client.edit(session_id, write=write, delete=delete)
        except (ApiError, Unreachable) as exc:
            say(f"edit not sent: {exc}")
            continue
        names = [*write, *(f"{path} (deleted)" for path in delete)]
        say(f"synced       {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
