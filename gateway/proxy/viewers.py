"""Who may see a private preview: signed links, and the cookies they are exchanged for. Pure.

A link leads to ``.preview/open`` below the preview; its token becomes a cookie of this preview
only, and a redirect takes it out of the address. Access ends for both at the moment that the link
names, or when the session's links are revoked. No registry is asked: the signature says it all.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs

from gateway.session import COOKIE_PREFIX, Route
from gateway.signing import Signer

_NAME: Final = COOKIE_PREFIX + "access"
#: More than one Cookie field arrives joined with a comma.
_OWN: Final = re.compile(
    rb"(?:^|[;,])[ \t]*(?:__Host-|__Secure-)?"
    + re.escape(_NAME.encode())
    + rb"=([0-9]{1,12}\.[A-Za-z0-9_-]{43})(?=[ \t]*(?:[;,]|$))"
)
#: Cookies of one request that are looked at: a browser sends one, or one for each scheme.
_MAX_COOKIES: Final = 8
_MAX_KNOWN: Final = 4096
#: What is longer is checked anew each time: anybody may send it, and as much of it as a head holds.
_MAX_KNOWN_BYTES: Final = 2048


class Viewers:
    """Checks links and cookies with one key; without a key there is nobody to let in."""

    def __init__(self, key: str, *, clock: Callable[[], float] = time.time) -> None:
        self._signer = Signer(key or secrets.token_hex(32))
        self._clock = clock
        #: Until when these cookies are good for this session, as it was then.
        self._known: dict[tuple[bytes, str, int], int] = {}

    def admits(self, route: Route, cookies: bytes) -> bool:
        """Whether one of ``cookies`` (the value of Cookie) lets its bearer see the preview now."""
        if _NAME.encode() not in cookies:
            return False
        key = (cookies, route.id, route.access)
        until = self._known.get(key)
        if until is None:
            until = self._until(route, cookies)
            if len(cookies) <= _MAX_KNOWN_BYTES:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[key] = until
        return self._clock() < until

    def _until(self, route: Route, cookies: bytes) -> int:
        found = _OWN.findall(cookies)[:_MAX_COOKIES]
        return max(
            (
                self._signer.expiry("cookie", route.id, route.access, value.decode())
                for value in found
            ),
            default=0,
        )

    def opened(self, route: Route, query: bytes, *, base: bytes, secure: bool) -> str | None:
        """The Set-Cookie that the link with this ``query`` is good for, if it is good.

        ``base`` is the preview's public path; ``secure``: the browser came by https.
        """
        token = parse_qs(query.decode("latin-1")).get("token", [""])[-1]
        expires = self._signer.expiry("link", route.id, route.access, token)
        left = math.ceil(expires - self._clock())
        if left <= 0:
            return None
        value = self._signer.sign("cookie", route.id, route.access, expires)
        path = base.decode("latin-1")
        attributes = f"Path={path}; Max-Age={left}; HttpOnly"
        if not secure:
            return f"{_NAME}={value}; {attributes}; SameSite=Lax"
        # A page of another site that shows the preview in a frame has a partition of its own.
        prefix = "__Host-" if path == "/" else "__Secure-"
        return f"{prefix}{_NAME}={value}; {attributes}; Secure; SameSite=None; Partitioned"


def own(cookies: bytes) -> bytes:
    """Of the value of Cookie, what ``admits`` looks at; empty if there is nothing."""
    name = _NAME.encode()
    if name not in cookies:
        return b""
    return b"; ".join(name + b"=" + value for value in _OWN.findall(cookies)[:_MAX_COOKIES])
