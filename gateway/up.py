"""``preview-gateway up DIR``: a folder, live in a browser, kept in step until Ctrl-C."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import webbrowser
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Final

import watchfiles

from gateway.client import ApiError, Client, Unreachable
from gateway.errors import BadFiles, GatewayError, SpawnFailed
from gateway.folder import Folder

_STOP_SECONDS: Final = 30.0
#: An edit that got lost (before the watcher listened, or on its way) is found after this.
_LOOK_AGAIN_MS: Final = 1000
_TAIL_LINES: Final = 30

#: Is told what happens: ``tell(event, **data)``.
Tell = Callable[..., None]


def session_name(folder: Path) -> str:
    """An id that begins with the folder's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:24] or "preview"
    return f"{slug}-{secrets.token_hex(4)}"


def sentence(event: str, data: dict[str, Any]) -> str:
    """What happened, for a person to read."""
    match event:
        case "serving":
            return f"serving      {data['url']}"
        case "registered":
            return f"registered   {data['session']['id']} ({data['files']} files)"
        case "phase":
            detail = f" ({data['detail']})" if data.get("detail") else ""
            return f"{data['phase']:<12}{detail}".rstrip()
        case "ready":
            return (
                f"ready        in {data['seconds']:.1f} s\n\n  {data['previewUrl']}\n\n"
                f"edits of {data['folder']} are synced; Ctrl-C stops the preview"
            )
        case "log":
            return "\n".join(f"  | {line}" for line in data["lines"])
        case "stopped":
            return f"stopped      {data['id']}"
        case _:
            return f"{event:<12} {data['detail']}"


async def up(client: Client, folder: Folder, *, tell: Tell, open_browser: bool) -> None:
    """Create a session from ``folder``, tell its URL, sync edits until cancelled, then stop it.

    Returns if the session is stopped by somebody else. Raises SpawnFailed if the preview fails,
    before or after it was ready.
    """
    started = time.monotonic()
    files = (await asyncio.to_thread(folder.edits)).write
    if "package.json" not in files:
        raise BadFiles(f"{folder.root} has no package.json: name the folder that holds it")
    name = session_name(folder.root)
    async with AsyncExitStack() as stack:
        # Before the call: cancelled half-way, it may have made the session.
        stack.push_async_callback(_stop, client, name, tell)
        session = await client.create(files, id=name)
        tell("registered", session=session, files=len(files))

        def on_ready() -> None:
            url = session["previewUrl"]
            tell(
                "ready",
                previewUrl=url,
                seconds=round(time.monotonic() - started, 2),
                folder=str(folder.root),
            )
            if open_browser:
                webbrowser.open(url)

        sync = asyncio.create_task(_sync(client, name, folder, tell), name="up: sync")
        stack.push_async_callback(_end, sync)
        follow = asyncio.create_task(_follow(client, name, tell, on_ready), name="up: events")
        stack.push_async_callback(_end, follow)
        done, _ = await asyncio.wait((sync, follow), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


async def _stop(client: Client, session_id: str, tell: Tell) -> None:
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await client.stop(session_id)
    except ApiError as exc:
        if exc.http_status != 404:  # refused: it was never made
            tell("warning", detail=f"could not stop {session_id}: {exc}")
    except (GatewayError, TimeoutError) as exc:
        tell("warning", detail=f"could not stop {session_id}: {exc}")
    else:
        tell("stopped", id=session_id)


async def _follow(
    client: Client, session_id: str, tell: Tell, on_ready: Callable[[], None]
) -> None:
    """Tell what happens, until the preview ends; SpawnFailed if that is a failure."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    is_ready = False
    async with aclosing(client.events(session_id)) as events:
        async for event in events:
            data = event.data
            if event.type == "log":
                tail.extend(data["lines"])
                if is_ready:
                    tell("log", lines=data["lines"])
            elif event.type == "event" and data.get("type") == "phase":
                tell("phase", phase=data["phase"], detail=data.get("detail", ""))
            elif event.type == "state" and data["state"] == "ready" and not is_ready:
                is_ready = True
                on_ready()
            elif event.type == "end" and data["state"] == "failed":
                log_tail = "" if is_ready else "\n".join(f"  | {line}" for line in tail)
                raise SpawnFailed(f"the preview failed: {data['reason']}", log_tail=log_tail)
            elif event.type == "end":
                tell("ended", detail=f"the preview is {data['state']}: {data['reason']}")


async def _sync(client: Client, session_id: str, folder: Folder, tell: Tell) -> None:
    """Send edits of the folder as they happen."""
    watcher = watchfiles.awatch(
        folder.root,
        watch_filter=lambda _, path: folder.belongs(Path(path)),
        step=20,
        debounce=200,
        rust_timeout=_LOOK_AGAIN_MS,
        yield_on_timeout=True,
    )
    look = True
    async with aclosing(watcher) as changes:
        async for changed in changes:
            if not changed and not look:
                continue
            edits = await asyncio.to_thread(folder.edits)
            look = False
            if not edits:
                continue
            try:
                edited = await client.edit(session_id, write=edits.write, delete=edits.delete)
            except (ApiError, Unreachable) as exc:
                tell("not synced", detail=f"{edits}: {exc}")
                # A refused edit is refused again; one that did not arrive is sent again.
                if isinstance(exc, Unreachable) or exc.http_status >= 500:
                    folder.forget(edits)
                    look = True
                continue
            tell("synced", detail=str(edits), revision=edited["revision"])
