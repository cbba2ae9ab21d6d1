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
from gateway.proxy.fields import HOST, ORIGIN
from gateway.proxy.messages import RequestHead
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
    """What the target and the host name say about a request. Requests may share one."""

    __slots__ = ("_reserved_base", "base", "misplaced", "plain", "reserved", "session_id")

    def __init__(
        self,
        session_id: str | None,
        base: bytes = b"/",
        *,
        reserved: bytes | None = None,
        misplaced: bool = False,
        plain: bool = False,
    ) -> None:
        self.session_id = session_id
        #: The public path prefix of the preview, with a slash at both ends.
        self.base = base
        self._reserved_base = base + RESERVED
        #: What follows the reserved prefix, for the gateway's own use.
        self.reserved = reserved
        #: A preview was meant, but the slash behind the id is missing.
        self.misplaced = misplaced
        #: A preview's address as it should be: there is nothing to refuse or to redirect.
        self.plain = plain

    def has(self, target: bytes) -> bool:
        """Whether this, a plain preview, is the place of ``target``, too, whatever the host."""
        return (
            self.plain
            and target.startswith(self.base)
            and not target.startswith(self._reserved_base)
        )

    def rest(self, target: bytes) -> bytes:
        """What follows ``base`` in the target of a request to here, query included."""
        return target[len(self.base) - self.misplaced :]

    @property
    def events_url(self) -> str:
        """Where the starting page finds its events."""
        return (self.base + RESERVED + b"events").decode("latin-1")

    @property
    def query(self) -> bytes:
        """What follows the question mark, where the address is a reserved one."""
        return (self.reserved or b"").partition(b"?")[2]

    @property
    def opens_link(self) -> bool:
        """Whether this is where a signed link leads."""
        return self.reserved is not None and self.reserved.partition(b"?")[0] == LINK

    def is_hmr(self, target: bytes) -> bool:
        """Whether ``target`` is the well-known address of the preview's HMR socket."""
        return self.rest(target).partition(b"?")[0] == HMR

    def control_head(self, head: RequestHead, client: tuple[bytes, ...]) -> bytes:
        """The head for the control plane; ``client`` are lines that say who called it, and how."""
        target = None
        if self.session_id is not None and self.reserved is not None:
            target = INTERNAL + b"previews/" + self.session_id.encode() + b"/" + self.reserved
        return heads.request_head(
            head,
            host=head.special[HOST] or b"localhost",
            origin=head.special[ORIGIN],
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


def _reserved(rest: bytes) -> bytes | None:
    # Plain names only: nothing that the control plane could resolve to another path.
    match = _RESERVED.fullmatch(rest) if rest.startswith(RESERVED) else None
    return match[1] if match else None


class Places:
    """Tells places apart; knows whether there is a subdomain mode."""

    def __init__(self, preview_domain: str) -> None:
        self._domain = preview_domain
        #: Previews that were seen, by the name in their path.
        self._known: dict[bytes, Place] = {}
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
        if known is not None and slash and not rest.startswith(RESERVED):
            return known
        return self._by_path(target)

    def _by_path(self, target: bytes) -> Place:
        path = target.partition(b"?")[0]
        end = path.find(b"/", len(PREFIX))
        name = path[len(PREFIX) : end if end >= 0 else None].decode("latin-1")
        if not is_session_id(name):
            return Place(name)
        base = PREFIX + name.encode() + b"/"
        if end < 0:
            return Place(name, base, misplaced=True)
        if (reserved := _reserved(target[len(base) :])) is not None:
            return Place(name, base, reserved=reserved)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        place = self._known[name.encode()] = Place(name, base, plain=not self._domain)
        return place

    def moved(self, head: RequestHead, place: Place) -> str | None:
        """Where the client is sent instead, if the address is not quite the preview's."""
        path_mode, rest = place.base != b"/", place.rest(head.target).decode("latin-1")
        if self._domain and path_mode and not head.upgrade:
            return f"//{place.session_id}.{self._domain}/{rest}"
        if place.misplaced:
            return place.base.decode("latin-1") + rest
        return None

    def _by_host(self, head: RequestHead) -> Place | None:
        host = (head.special[HOST] or b"").lower().partition(b":")[0]
        if not host.endswith(self._suffix):
            return None
        name = host[: -len(self._suffix)].decode("latin-1")
        return Place(name, reserved=_reserved(head.target[1:]))
