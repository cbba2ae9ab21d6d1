"""``target`` sessions: previews of a server that exists already, inside allow-listed networks.

A gateway that connects wherever it is told is a way into the network it stands in (SSRF). So the
target is resolved once, every address must lie in the allow-list, and the connection goes to that
address; the registry's own address is refused even inside it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Final
from urllib.parse import urlsplit

from gateway.errors import BadRequest, TargetRefused
from gateway.session import Endpoint
from gateway.settings import Settings

_RESOLVE_SECONDS: Final = 5.0


async def resolve_target(text: str, settings: Settings) -> Endpoint:
    """The address that ``text`` (``host:port`` or an http URL without path) means.

    Raises BadRequest if it is malformed, TargetRefused if it is not allowed.
    """
    host, port = _parse(text)
    address = await _resolve(host, port)
    networks = [ipaddress.ip_network(network) for network in settings.target_allowlist]
    if not any(address in network for network in networks):
        raise TargetRefused(
            f"{address} is in none of the networks of GATEWAY_TARGET_ALLOWLIST: add it there if "
            "previews may show what it serves"
        )
    if await _is_registry(address, port, settings):
        raise TargetRefused("the registry's own address is never a target")
    return Endpoint(str(address), port)


def _parse(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise BadRequest(f"target {text!r} is no address: {exc}") from exc
    if parts.scheme != "http" or not host or not port or parts.path.strip("/") or parts.query:
        raise BadRequest(f"target {text!r}: write host:port, or http://host:port without a path")
    return host, port


async def _resolve(host: str, port: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
    except (OSError, TimeoutError) as exc:
        raise BadRequest(f"target host {host!r} cannot be resolved") from exc
    return ipaddress.ip_address(str(found[0][4][0]))


async def _is_registry(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, settings: Settings
) -> bool:
    parts = urlsplit(settings.redis_url)
    if parts.scheme == "unix" or not parts.hostname or (parts.port or 6379) != port:
        return False
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port)
    except OSError:
        return False
    return str(address) in {entry[4][0] for entry in found}
