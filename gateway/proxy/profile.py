"""In which words a dev server is asked, and what is put right in its answers. Pure.

Dev servers defend themselves by Host and Origin. Each header profile is one coherent story, never a
mixture of two: in ``local`` (A, the default) the dev server is called by its own address and knows
of no other; in ``public`` (B, subdomain mode only) it is called as the browser called it and lists
that host among those it allows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from gateway.proxy import cookies, heads, locations
from gateway.proxy.access import Access, host_name
from gateway.proxy.fields import (
    COOKIE,
    HOST,
    LOCATION,
    LOOKED_AT,
    ORIGIN,
    SEC_WEBSOCKET_PROTOCOL,
)
from gateway.proxy.forwarded import Forwarding
from gateway.proxy.messages import RequestHead, ResponseHead
from gateway.proxy.place import Place
from gateway.proxy.upstream import Pool
from gateway.session import Route

#: What these say counts for a whole origin. On one that previews share they could harm each other
#: and the gateway: take over or wipe what others store, force TLS, redirect reports or traffic.
_ORIGIN_WIDE: Final = frozenset(
    {
        b"service-worker-allowed",
        b"clear-site-data",
        b"strict-transport-security",
        b"nel",
        b"report-to",
        b"reporting-endpoints",
        b"alt-svc",
    }
)
_LOCATIONS: Final = frozenset({b"location", b"content-location"})
_ALLOWED_ORIGIN: Final = b"access-control-allow-origin"
_SET_COOKIE: Final = b"set-cookie"
_LOOKED_AT: Final = _ORIGIN_WIDE | _LOCATIONS | {_ALLOWED_ORIGIN, _SET_COOKIE}


class Profile(ABC):
    """A header profile, for all previews of one gateway."""

    @abstractmethod
    def request_head(
        self,
        place: Place,
        head: RequestHead,
        pool: Pool,
        route: Route,
        *,
        peer_host: bytes,
        trusted: bool,
    ) -> bytes:
        """The head for the dev server. ``peer_host`` and ``trusted`` are about the connection."""

    @abstractmethod
    def allowed_origin(self, value: bytes, head: RequestHead, pool: Pool) -> bytes:
        """The value of Access-Control-Allow-Origin as the browser must see it."""

    def put_right(
        self, response: ResponseHead, place: Place, head: RequestHead, pool: Pool | None
    ) -> None:
        """Put right what a dev server says of itself; drop what reaches beyond its preview.

        Answers of the control plane pass as they are.
        """
        special = response.special
        if special[LOOKED_AT] is None and special[LOCATION] is None:
            return
        if pool is None or place.session_id is None or place.reserved is not None:
            return
        lines = []
        for line in response.lines:
            name = line[: line.index(b":")].lower()
            if name not in _LOOKED_AT:
                lines.append(line)
                continue
            value = line[len(name) + 1 :].strip(b" \t")
            right = self._right(name, value, place, head, pool)
            if right is not None:
                # The name as it was written; if nothing is wrong, the line as it was written.
                lines.append(line if right == value else line[: len(name)] + b": " + right)
        response.lines = lines

    def _right(
        self, name: bytes, value: bytes, place: Place, head: RequestHead, pool: Pool
    ) -> bytes | None:
        """A field's value as it goes to the client; None if the field ends here."""
        if name in _LOCATIONS:
            port = pool.host.rpartition(b":")[2]
            return locations.put_right(value, port=port, address=pool.address)
        if name == _ALLOWED_ORIGIN:
            return self.allowed_origin(value, head, pool)
        if name == _SET_COOKIE:
            host = host_name(head.special[HOST] or b"")
            return cookies.confined(value, host=host, base=place.base)
        return value if place.base == b"/" else None


class LocalProfile(Profile):
    """Header profile A: nothing of the public address reaches the dev server.

    A page of the preview itself is to the dev server a page of its own. The origin of any other
    page is passed on as it is, so that what the dev server lets other sites read stays its choice.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    def request_head(
        self,
        place: Place,
        head: RequestHead,
        pool: Pool,
        route: Route,
        *,
        peer_host: bytes,
        trusted: bool,
    ) -> bytes:
        """See ``Profile``."""
        special = head.special
        if (cookie := special[COOKIE]) is not None and cookies.has_own(cookie):
            head.lines = cookies.without_own(head.lines)
        if head.upgrade and route.hmr.protocol and place.is_hmr(head.target):
            return _hmr_head(head, route, host=pool.host, extra=())
        origin = special[ORIGIN]
        if origin is not None and self._access.is_own_page(head):
            origin = pool.origin
        return heads.request_head(head, host=pool.host, origin=origin)

    def allowed_origin(self, value: bytes, head: RequestHead, pool: Pool) -> bytes:
        """See ``Profile``: who asked as a page of the dev server is allowed under its own name."""
        if value != pool.origin or not self._access.is_own_page(head):
            return value
        return head.special[ORIGIN] or value


class PublicProfile(Profile):
    """Header profile B: the dev server knows its public address and builds its URLs from it."""

    def __init__(self, forwarding: Forwarding, *, preview_domain: str) -> None:
        self._forwarding = forwarding
        self._suffix = b"." + preview_domain.encode()

    def request_head(
        self,
        place: Place,
        head: RequestHead,
        pool: Pool,
        route: Route,
        *,
        peer_host: bytes,
        trusted: bool,
    ) -> bytes:
        """See ``Profile``."""
        special = head.special
        if (cookie := special[COOKIE]) is not None and cookies.has_own(cookie):
            head.lines = cookies.without_own(head.lines)
        # An upgrade, which no browser redirects, may still come by path.
        host = special[HOST] if place.base == b"/" else None
        if host is None:
            host = route.id.encode() + self._suffix
        extra = self._forwarding.for_preview(head, peer_host, trusted=trusted, host=host)
        if head.upgrade and route.hmr.protocol and place.is_hmr(head.target):
            return _hmr_head(head, route, host=host, extra=extra)
        return heads.request_head(head, host=host, origin=special[ORIGIN], extra=extra)

    def allowed_origin(self, value: bytes, head: RequestHead, pool: Pool) -> bytes:
        """See ``Profile``: the dev server has seen the true origin."""
        return value


def _hmr_head(head: RequestHead, route: Route, *, host: bytes, extra: tuple[bytes, ...]) -> bytes:
    """The well-known HMR address: the dev server's own path and subprotocol are put in.

    The gateway has checked Origin already; without one, Vite asks for no token (ws.ts).
    """
    if head.special[SEC_WEBSOCKET_PROTOCOL] is None:
        extra = (*extra, b"Sec-WebSocket-Protocol: " + route.hmr.protocol.encode())
    target = (route.base + route.hmr.path).encode()
    return heads.request_head(head, host=host, target=target, extra=extra)
