"""``target`` sessions: previews of a server that exists already, inside allow-listed networks.

A gateway that connects wherever it is told is a way into the network it stands in (SSRF). So the
target is resolved once, the address must lie in the allow-list, and the connection goes to that
address; the registry's own address is refused even inside it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from gateway.errors import BadRequest, TargetRefused
from gateway.session import Endpoint
from gateway.settings import PREFIX, Settings

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_RESOLVE_SECONDS: Final = 5.0


def parse_target(text: str) -> Endpoint:
    """The host, perhaps a name, and port in ``host:port`` or an http URL without path.

    Raises BadRequest if it is malformed.
    """
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise BadRequest(f"target {text!r} is no address: {exc}") from exc
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None
    if parts.scheme != "http" or not host or not port or more:
        raise BadRequest(f"target {text!r}: write host:port, or http://host:port without a path")
    return Endpoint(host, port)


async def resolve_target(
    target: Endpoint, settings: Settings, *, registry: Collection[tuple[str, int]]
) -> Endpoint:
    """The address of a target, resolved once: the first that the allow-list holds.

    ``registry`` are host and port of the registry's servers, which are never a target. Raises
    BadRequest if it cannot be resolved, TargetRefused if it is not allowed.
    """
    networks = [ipaddress.ip_network(network) for network in settings.target_allowlist]
    addresses = await _resolve(target.host, target.port)
    allowed = [address for address in addresses if any(address in network for network in networks)]
    if not allowed:
        raise TargetRefused(
            f"{' and '.join(map(str, addresses))}: in none of the networks of "
            f"{PREFIX}TARGET_ALLOWLIST; add it there if previews may show what it serves"
        )
    if await _is_registry(allowed[0], target.port, registry):
        raise TargetRefused("the registry's own address is never a target: name another server")
    return Endpoint(str(allowed[0]), target.port)


async def _resolve(host: str, port: int) -> list[Address]:
    """All addresses of a host, each once, in the resolver's order."""
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
    except (OSError, UnicodeError, TimeoutError) as exc:
        raise BadRequest(f"target host {host[:80]!r} cannot be resolved: check its name") from exc
    return list(dict.fromkeys(_address(str(entry[4][0])) for entry in found))


def _address(text: str) -> Address:
    """An address; an IPv4 address in IPv6 clothes (RFC 4291 2.5.5.2) as what it is."""
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


async def _is_registry(address: Address, port: int, registry: Collection[tuple[str, int]]) -> bool:
    for host, registry_port in registry:
        if registry_port == port:
            found = await _resolve(host, port)
            # Every address of this machine reaches what listens on all of them.
            if address in found or (_is_local(address) and any(map(_is_local, found))):
                return True
    return False


def _is_local(address: Address) -> bool:
    return address.is_loopback or address.is_unspecified
