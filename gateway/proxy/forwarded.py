"""What proxies in front say of a client, and whom to believe. Pure.

``X-Forwarded-For``, ``-Proto`` and ``-Host`` can be sent by anybody. They count only on connections
from ``GATEWAY_TRUSTED_PROXIES``, and of a list only what a trusted proxy has written itself: its
last element, or, of addresses, the last that is not a trusted proxy's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from gateway.proxy.authority import is_host
from gateway.proxy.fields import X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO
from gateway.proxy.messages import RequestHead

#: Some proxies name the scheme of an upgrade by what it upgrades to.
_SCHEMES: Final = {b"http": b"http", b"https": b"https", b"ws": b"http", b"wss": b"https"}


class Forwarding:
    """Whom one gateway believes, and what it tells those behind it.

    ``networks`` are CIDRs. ``scheme`` is what browsers use, if no trusted proxy says otherwise.
    """

    def __init__(self, networks: Iterable[str], *, scheme: str) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._scheme = scheme.encode()

    def trusts(self, peer_host: bytes) -> bool:
        """Whether a connection from this address is one of a trusted proxy."""
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(peer_host.decode("latin-1"))
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

    def host(self, head: RequestHead) -> bytes | None:
        """The host that a trusted proxy says was asked for; None if it says nothing usable."""
        value = _last(head, X_FORWARDED_HOST)
        return value if value and is_host(value) else None

    def scheme(self, head: RequestHead, *, trusted: bool) -> bytes:
        """``http`` or ``https``: what the browser used."""
        said = _SCHEMES.get(_last(head, X_FORWARDED_PROTO).lower()) if trusted else None
        return said or self._scheme

    def client(self, head: RequestHead, peer_host: bytes, *, trusted: bool) -> bytes:
        """The address of the client: the peer's, or what the trusted proxies made of it."""
        client = peer_host
        hops = (head.special[X_FORWARDED_FOR] or b"").split(b",") if trusted else []
        while hops and self.trusts(client):
            hop = _address(hops.pop().strip(b" \t"))
            if not hop:
                break
            client = hop
        return client

    def for_control(
        self, head: RequestHead, peer_host: bytes, *, trusted: bool
    ) -> tuple[bytes, ...]:
        """The lines by which the control plane, which believes them, knows the client."""
        return (
            b"X-Forwarded-For: " + self.client(head, peer_host, trusted=trusted),
            b"X-Forwarded-Proto: " + self.scheme(head, trusted=trusted),
        )

    def for_preview(
        self, head: RequestHead, peer_host: bytes, *, trusted: bool, host: bytes
    ) -> tuple[bytes, ...]:
        """The lines by which a dev server knows its public address (header profile ``public``)."""
        earlier = head.special[X_FORWARDED_FOR] if trusted else None
        return (
            b"X-Forwarded-For: " + (b"%b, %b" % (earlier, peer_host) if earlier else peer_host),
            b"X-Forwarded-Host: " + host,
            b"X-Forwarded-Proto: " + self.scheme(head, trusted=trusted),
        )


def _last(head: RequestHead, place: int) -> bytes:
    return (head.special[place] or b"").rpartition(b",")[2].strip(b" \t")


def _address(hop: bytes) -> bytes:
    """The IP address in an element of X-Forwarded-For, which may have a port; else b""."""
    text = hop.decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text)).encode()
    except ValueError:
        return b""
