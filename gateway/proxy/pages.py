"""The pages a browser gets in place of a preview. Pure: text in, a whole HTML document out.

Each document is complete in itself (style and script inline, nothing is fetched but the event
stream) and forbids everything else by a content security policy: the reason and the log on it were
written by a stranger's program. Source of look and behaviour: ``html/``.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from html import escape
from importlib.resources import files
from string import Template
from typing import Final, Literal
from urllib.parse import urlsplit

from gateway.session import Route, State

#: What the page is about; sets its colours. A class of ``page.css``.
_Kind = Literal["starting", "failed", "gone", "missing", "busy", "bad"]


def _read(name: str) -> str:
    return files("gateway.proxy").joinpath("html", name).read_text("utf-8")


_PAGE: Final = Template(_read("page.html"))
_STYLE: Final = _read("page.css")
_SCRIPT: Final = _read("starting.js")

_SPINNER: Final = (
    '<svg class="spin" viewBox="0 0 24 24" width="22" height="22">'
    '<circle cx="12" cy="12" r="9" opacity=".25"/><path d="M12 3a9 9 0 0 1 9 9"/></svg>'
)
_CLOCK: Final = "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M12 7.5V12l3 2"
_CROSS: Final = "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M9 9l6 6M15 9l-6 6"
_STOP: Final = "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M9.5 9.5h5v5h-5z"
_SEARCH: Final = "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M20 20l-4.9-4.9"
_PLUG: Final = "M9 3v5M15 3v5M6 8h12v3a6 6 0 0 1-12 0zM12 17v4"

_STEPS: Final = ("Registered", "Installing", "Starting", "Ready")

_RELOAD: Final = '<a class="button" href="">Reload</a>'


def starting(route: Route, *, events_url: str) -> bytes:
    """The preview is on its way: steps, time and log, live from ``events_url`` (server-sent events
    ``state``, ``event``, ``log``, ``end``). Loads itself anew when the preview is ready or has
    ended, and, where the events cannot be had, with growing pauses.
    """
    current = 1 if route.state is State.STARTING else 0
    waking = route.state is State.SLEEPING
    return _page(
        "starting",
        title=f"Starting {route.id}",
        heading="Waking your preview" if waking else "Starting your preview",
        session_id=route.id,
        icon=_SPINNER,
        content=(
            f'<ol class="steps">{"".join(map(_step, range(4), [current] * 4))}</ol>\n'
            '<div class="status"><span id="status" role="status">This page opens the preview as '
            'soon as it is ready</span><span id="clock"></span></div>\n'
            '<div class="log" tabindex="0" role="region" aria-label="Log"><pre></pre></div>'
        ),
        head='<noscript><meta http-equiv="refresh" content="2"></noscript>\n',
        data={"id": route.id, "events": events_url, "state": route.state.value},
        script=_SCRIPT,
        connect=events_url,
    )


def failed(route: Route) -> bytes:
    """The preview could not be started, or its dev server ended: why, and the end of its log."""
    log = ""
    if route.log_tail:
        log = (
            '<section><h2 id="log">End of the log</h2>\n<div class="log" tabindex="0" role="region"'
            f' aria-labelledby="log"><pre>{escape(route.log_tail.rstrip())}</pre></div></section>\n'
        )
    return _page(
        "failed",
        title=f"Failed: {route.id}",
        heading="This preview has failed",
        session_id=route.id,
        icon=_icon(_CROSS),
        content=_reason(route.reason or "The dev server ended without giving a reason.")
        + log
        + _what_to_do(
            "Correct what the reason and the log point at.",
            "Create the session again under the same id: this address then shows the new one.",
        )
        + _RELOAD,
    )


def gone(route: Route) -> bytes:
    """The preview was stopped or has expired."""
    expired = route.state is State.EXPIRED
    return _page(
        "gone",
        title=f"{'Expired' if expired else 'Stopped'}: {route.id}",
        heading=f"This preview has {'expired' if expired else 'been stopped'}",
        session_id=route.id,
        icon=_icon(_CLOCK if expired else _STOP),
        content=(_reason(route.reason) if route.reason else "")
        + _what_to_do(
            "Ask whoever gave you this address to start the preview again.",
            "Is it yours? Create the session again under the same id: this address then works "
            "again.",
        ),
    )


def not_found(session_id: str, waited: float) -> bytes:
    """No session of this id was registered, not even within the ``waited`` seconds."""
    after = f" Its registration was awaited for {waited:.1f} seconds." if waited > 0 else ""
    return _page(
        "missing",
        title="Preview not found",
        heading="There is no preview at this address",
        session_id=session_id,
        icon=_icon(_SEARCH),
        content=f"<p>No session of this id is known.{after}</p>\n"
        + _what_to_do(
            "Check the address: an id is 8 to 40 lower-case letters, digits and hyphens.",
            "If the preview was used a while ago, it has ended and been forgotten: create it again "
            "under the same id.",
        )
        + _RELOAD,
    )


def unavailable(message: str, retry_after: int) -> bytes:
    """The gateway cannot answer now and says nothing about the preview; tries again by itself."""
    seconds = max(1, retry_after)
    return _page(
        "busy",
        title="Back in a moment",
        heading="The gateway is not available just now",
        icon=_SPINNER,
        content=_reason(message)
        + '<p role="status">There is nothing you need to do: this page tries again every '
        + (f"{seconds} seconds" if seconds > 1 else "second")
        + ".</p>",
        head=f'<meta http-equiv="refresh" content="{seconds}">\n',
    )


def bad_gateway(message: str) -> bytes:
    """The dev server of the preview does not answer, or not in HTTP."""
    return _page(
        "bad",
        title="Dev server not answering",
        heading="The dev server did not answer",
        icon=_icon(_PLUG),
        content=_reason(message)
        + _what_to_do(
            "Reload: it may have been restarting.",
            "If that does not help, look at the log of the session for what it was doing.",
        )
        + _RELOAD,
    )


def _page(
    kind: _Kind,
    *,
    title: str,
    heading: str,
    icon: str,
    content: str,
    session_id: str = "",
    head: str = "",
    data: dict[str, str] | None = None,
    script: str = "",
    connect: str = "",
) -> bytes:
    """The document. ``icon``, ``content`` and ``head`` are HTML, everything else is text."""
    text = _PAGE.substitute(
        kind=kind,
        policy=escape(_policy(script, connect)),
        head=head,
        title=escape(title),
        style=_STYLE,
        icon=icon,
        heading=escape(heading),
        subheading=f'<p class="id">{escape(session_id)}</p>' if session_id else "",
        content=content,
        data="".join(f' data-{key}="{escape(value)}"' for key, value in (data or {}).items()),
        script=f"<script>{script}</script>\n" if script else "",
    )
    # A log may hold lone surrogates, which UTF-8 has no bytes for.
    return text.encode("utf-8", "replace")


def _policy(script: str, connect: str) -> str:
    """Allow this style, this script and the event stream; nothing a stranger's log could add."""
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'"]
    rules.append(f"style-src {_hash(_STYLE)}")
    if script:
        parts = urlsplit(connect)
        origin = f"{parts.scheme}://{parts.netloc}" if parts.netloc else "'self'"
        rules += [f"script-src {_hash(script)}", f"connect-src {origin}"]
    return "; ".join(rules)


def _hash(inline: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


def _icon(path: str) -> str:
    return f'<svg viewBox="0 0 24 24" width="22" height="22"><path d="{path}"/></svg>'


def _step(index: int, current: int) -> str:
    if index == current:
        return f'<li class="now" aria-current="step">{_STEPS[index]}</li>'
    return f"<li{' class=done' if index < current else ''}>{_STEPS[index]}</li>"


def _reason(text: str) -> str:
    return f'<p class="reason">{escape(text)}</p>\n'


def _what_to_do(*advice: str) -> str:
    items = "".join(f"<li>{escape(item)}</li>" for item in advice)
    return f"<section><h2>What to do</h2>\n<ul>{items}</ul></section>\n"
