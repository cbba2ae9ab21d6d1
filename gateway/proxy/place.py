"""Where a request goes: to the control plane or to a preview. Pure.

Path mode: ``/preview/<id>/...``. Subdomain mode: ``<id>.<preview_domain>``. The request target is
never decoded, collapsed or re-encoded: what does not literally begin with a preview's prefix is
no request for that preview.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.proxy import heads
from gateway.proxy.http1 import RequestHead
from gateway.session import is_session_id

PREFIX: Final = b"/preview/"
#: Below a preview's base, for the gateway's own use: the starting page's event stream.
RESERVED: Final = b".preview/"
_RESERVED: Final = re.compile(rb"\.preview/([a-z]+(?:\?.*)?)", re.DOTALL)
#: Requests of the data plane itself to the control plane; no client can send this prefix.
INTERNAL: Final = b"/-/"
#: Below a preview's base: the dev server's HMR socket, whatever its own path and token.
HMR: Final = b"hmr"
#: Below the reserved prefix: where a signed link leads.
LINK: Final = b"open"
_MAX_KNOWN: Final = 4096


class Place:
    """What the target and the host name say about a request."""

    __slots__ = ("base", "misplaced", "plain", "reserved", "rest", "session_id")

    def __init__(
        self,
        session_id: str | None,
        base: bytes = b"/",
        rest: bytes = b"",
        *,
        misplaced: bool = False,
        plain: bool = False,
    ) -> None:
        self.session_id = session_id
        #: The public path prefix of the preview, with a slash at both ends.
        self.base = base
        #: What follows ``base`` in the target, query included.
        self.rest = rest
        #: A preview was meant, but the slash behind the id is missing.
        self.misplaced = misplaced
        #: A preview's address as it should be: there is nothing to refuse or to redirect.
        self.plain = plain
        # Plain names only: nothing that the control plane could resolve to another path.
        match = _RESERVED.fullmatch(rest) if rest.startswith(RESERVED) else None
        self.reserved: bytes | None = match[1] if match and session_id is not None else None

    @property
    def events_url(self) -> str:
        """Where the starting page finds its events."""
        return (self.base + RESERVED + b"events").decode("latin-1")

    @property
    def query(self) -> bytes:
        """What follows the question mark."""
        return self.rest.partition(b"?")[2]

    @property
    def opens_link(self) -> bool:
        """Whether this is where a signed link leads."""
        return self.reserved is not None and self.reserved.partition(b"?")[0] == LINK

    @property
    def is_hmr(self) -> bool:
        """Whether this is the well-known address of a preview's HMR socket."""
        return self.rest.partition(b"?")[0] == HMR

    def control_head(self, head: RequestHead, client: tuple[bytes, ...]) -> bytes:
        """The head for the control plane; ``client`` are lines that say who called it, and how."""
        target = None
        if self.session_id is not None and self.reserved is not None:
            target = INTERNAL + b"previews/" + self.session_id.encode() + b"/" + self.reserved
        return heads.request_head(
            head,
            host=head.special.get(b"host", b"localhost"),
            origin=head.special.get(b"origin"),
            target=target,
            extra=client,
        )


CONTROL: Final = Place(None)
#: RFC 9112 3.2.2: a target in absolute form. A user, or anything else in front of a host, is none.
_ABSOLUTE_FORM: Final = re.compile(rb"https?://([^/?]+)(/.*|\?.*|)", re.IGNORECASE | re.DOTALL)


def own_path(target: bytes, host: bytes) -> bytes | None:
    """The path and query of a target in absolute form that names ``host``; None if it does not.

    Whoever names two hosts, one in the target and one in Host, is refused: of the next servers one
    could take the first, another one the second.
    """
    match = _ABSOLUTE_FORM.fullmatch(target)
    if match is None or match[1].lower() != host.lower():
        return None
    path = match[2]
    return path if path.startswith(b"/") else b"/" + path


def is_internal(target: bytes) -> bool:
    """Whether the control plane, which decodes its paths, would read ``target`` as internal."""
    start = target[: 3 * len(INTERNAL)]
    return (unquote_to_bytes(start) if b"%" in start else start).startswith(INTERNAL)


class _Preview:
    __slots__ = ("base", "session_id")

    def __init__(self, session_id: str, base: bytes) -> None:
        self.session_id = session_id
        self.base = base


class Places:
    """Tells places apart; knows whether there is a subdomain mode."""

    def __init__(self, preview_domain: str) -> None:
        self._domain = preview_domain
        #: Previews that were seen, by the name in their path.
        self._known: dict[bytes, _Preview] = {}
        self._suffix = b"." + preview_domain.partition(":")[0].encode() if preview_domain else b""

    def of(self, head: RequestHead) -> Place:
        """The place of a request."""
        if self._suffix:
            place = self._by_host(head)
            if place is not None:
                return place
        target = head.target
        if not target.startswith(PREFIX):
            return CONTROL
        name, slash, rest = target[len(PREFIX) :].partition(b"/")
        known = self._known.get(name)
        if known is not None and slash:
            return Place(known.session_id, known.base, rest, plain=not self._domain)
        return self._by_path(target)

    def _by_path(self, target: bytes) -> Place:
        path, question, _ = target.partition(b"?")
        end = path.find(b"/", len(PREFIX))
        name = path[len(PREFIX) : end if end >= 0 else None].decode("latin-1")
        if not is_session_id(name):
            return Place(name)
        base = PREFIX + name.encode() + b"/"
        if end < 0:
            return Place(name, base, target[len(path) :] if question else b"", misplaced=True)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[name.encode()] = _Preview(name, base)
        return Place(name, base, target[len(base) :])

    def moved(self, head: RequestHead, place: Place) -> str | None:
        """Where the client is sent instead, if the address is not quite the preview's."""
        path_mode = place.base != b"/"
        if self._domain and path_mode and not head.upgrade:
            return f"//{place.session_id}.{self._domain}/{place.rest.decode('latin-1')}"
        if place.misplaced:
            return (place.base + place.rest).decode("latin-1")
        return None

    def _by_host(self, head: RequestHead) -> Place | None:
        host = head.special.get(b"host", b"").lower().partition(b":")[0]
        if not host.endswith(self._suffix):
            return None
        return Place(host[: -len(self._suffix)].decode("latin-1"), b"/", head.target[1:])
