"""Who may see a preview, from which page, and under which host name. Pure decisions.

Header profile A hides the public Host and Origin from dev servers, which disables their own
defence against cross-site requests and DNS rebinding (GHSA-vg6x-rcgg-rjx6). So the gateway checks
both itself, on previews and API alike.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from gateway.proxy.fields import AUTHORIZATION, HOST, ORIGIN
from gateway.proxy.messages import RequestHead
from gateway.tokens import SESSION_TOKEN, Caller, Tokens

SAFE_METHODS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
_MAX_HOSTS: Final = 1024


class Access:
    """The access rules of one gateway, from its settings."""

    def __init__(
        self,
        *,
        tokens: Tokens,
        allowed_origins: Iterable[str],
        public_url: str,
        preview_domain: str,
        listen_host: str,
    ) -> None:
        self._tokens = tokens
        self._origins = {origin.encode() for origin in allowed_origins}
        self._preview_domain = preview_domain.partition(":")[0]
        self._names = {"localhost", listen_host, self._preview_domain}
        if public_url:
            self._origins.add(public_url.encode())
            self._names.add(urlsplit(public_url).hostname or "")
        self._names.discard("")
        self._known_hosts: dict[bytes, bool] = {}
        #: The one that was allowed last; mostly it is the only one.
        self._allowed_host: bytes | None = None

    def caller(self, head: RequestHead) -> Caller | None:
        """Whose token of the gateway's own the request carries, if any."""
        token = _bearer_token(head) if self._tokens.asked_for else b""
        return self._tokens.caller(token) if token else None

    def origin_allowed(self, head: RequestHead) -> bool:
        """Whether the page that made the request may make it.

        Safe methods may come from anywhere (the browser keeps the answer from a foreign page);
        upgrades and unsafe methods only from the same origin or a configured one. No Origin: no
        browser page made the request.
        """
        if head.special[ORIGIN] is None or (head.method in SAFE_METHODS and not head.upgrade):
            return True
        return self.is_own_page(head)

    def is_own_page(self, head: RequestHead) -> bool:
        """Whether a page of the origin it asks, or of a configured one, made the request."""
        origin = head.special[ORIGIN] or b""
        _, _, authority = origin.partition(b"://")
        return authority == head.special[HOST] or origin in self._origins

    def host_allowed(self, host: bytes) -> bool:
        """Whether the request was made under a name of this gateway.

        Without API tokens a foreign name that resolves to the loopback address would hand the
        API to any web page (DNS rebinding), so only addresses and known names pass then.
        """
        if host == self._allowed_host or self._tokens.asked_for:
            return True
        allowed = self._known_hosts.get(host)
        if allowed is None:
            if len(self._known_hosts) >= _MAX_HOSTS:
                self._known_hosts.clear()
            allowed = self._known_hosts[host] = self._is_own_name(host)
        if allowed:
            self._allowed_host = host
        return allowed

    def _is_own_name(self, host: bytes) -> bool:
        name = host_name(host).decode("latin-1")
        if name in self._names or name.endswith(".localhost"):
            return True
        if self._preview_domain and name.endswith("." + self._preview_domain):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def has_session_token(head: RequestHead) -> bool:
    """Whether the request carries what looks like a token for one session, good or not."""
    return SESSION_TOKEN.fullmatch(_bearer_token(head).decode("latin-1")) is not None


def _bearer_token(head: RequestHead) -> bytes:
    """The token of ``Authorization: Bearer`` (RFC 6750 2.1), empty without one."""
    # Servers differ in which white space they take for the one SP: all is taken here, so that no
    # token is passed on to a dev server that would read it.
    words = (head.special[AUTHORIZATION] or b"").split(None, 1)
    return words[1].strip() if len(words) == 2 and words[0].lower() == b"bearer" else b""


def host_name(authority: bytes) -> bytes:
    """The host of ``host[:port]`` in lower case, without brackets."""
    if authority.startswith(b"["):
        return authority[1:].partition(b"]")[0].lower()
    return authority.partition(b":")[0].lower()
