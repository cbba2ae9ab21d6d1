"""Where the registry is, as a URL says it. Pure.

======================================= ==================================================
``redis://``, ``rediss://``             one server (``rediss``: TLS)
``unix:///path/of/socket``              one server on this machine
``redis+sentinel://a:1,b:2/service/0``  the primary that these sentinels name; 0 is the database
``redis+cluster://a:1,b:2``             a cluster, found through any of these nodes
======================================= ==================================================

The last two also exist as ``rediss+sentinel`` and ``rediss+cluster``. ``user:password@`` before the
addresses is for the servers; sentinels with a password of their own get it by ``sentinel_username``
and ``sentinel_password`` in the query. What else is in the query are redis-py's options, those of
TLS among them (``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_check_hostname``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

Kind = Literal["server", "sentinel", "cluster"]

_KINDS: Final[dict[str, Kind]] = {"": "server", "sentinel": "sentinel", "cluster": "cluster"}
_PORTS: Final[dict[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_HIDDEN: Final = "**********"
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")


class Address(NamedTuple):
    """Host name or literal address, and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A registry's URL, taken apart. Shows no password.

    ``addresses`` are those of the server, the sentinels or some nodes of the cluster; a server on
    a Unix socket has none. ``plain`` is a URL of one server with every option but its address, as
    redis-py reads it; ``plain_sentinel`` the same for a sentinel.
    """

    kind: Kind
    addresses: tuple[Address, ...]
    plain: str = field(repr=False)
    plain_sentinel: str = field(default="", repr=False)
    service: str = ""


def parse_redis_url(text: str) -> RedisUrl:
    """The parts of a URL; ValueError with what to write instead."""
    parts = urlsplit(text)
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("write the path of the socket: unix:///path/of/socket")
        return RedisUrl("server", (), text)
    base, _, suffix = parts.scheme.partition("+")
    if base not in {"redis", "rediss"} or suffix not in _KINDS:
        raise ValueError(
            "use a redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL"
        )
    kind = _KINDS[suffix]
    login, _, hosts = parts.netloc.rpartition("@")
    addresses = tuple(_address(host, _PORTS[kind]) for host in hosts.split(","))
    if kind == "server" and len(addresses) > 1:
        raise ValueError("redis:// takes one host: use redis+sentinel:// or redis+cluster://")
    path = [unquote(part) for part in parts.path.split("/") if part]
    service = ""
    if kind == "sentinel":
        if not path:
            raise ValueError("name the service after the sentinels: redis+sentinel://host/service")
        service = path.pop(0)
    query, own = _options(parts.query)
    if own and kind != "sentinel":
        raise ValueError(f"{next(iter(own))} belongs to a redis+sentinel:// URL")
    return RedisUrl(
        kind,
        addresses,
        _plain(base, login, _database(kind, path), query),
        _plain(base, _login(own), "", query) if kind == "sentinel" else "",
        service,
    )


def _address(text: str, port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        host, named = parts.hostname, parts.port
    except ValueError as exc:
        raise ValueError(f"{text!r} is no host:port: {exc}") from exc
    if not host:
        raise ValueError("name the host: redis://host:port")
    return Address(unquote(host), named or port)


def _database(kind: Kind, path: list[str]) -> str:
    """The number of the database, as a path's last part."""
    number = path[0] if path else "0"
    if len(path) > 1 or not (number.isascii() and number.isdigit()):
        raise ValueError(f"{'/'.join(path)!r} is no database: write its number, or nothing")
    if kind == "cluster" and number != "0":
        raise ValueError("a cluster has only database 0: leave the number out")
    return number


def _options(query: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(redis-py's options, the sentinels' own)."""
    pairs = parse_qsl(query, keep_blank_values=True)
    own = {name: value for name, value in pairs if name in _SENTINEL_OPTIONS}
    return [pair for pair in pairs if pair[0] not in own], own


def _login(own: dict[str, str]) -> str:
    return ":".join(quote(own.get(option, ""), safe="") for option in _SENTINEL_OPTIONS)


def _plain(base: str, login: str, path: str, query: list[tuple[str, str]]) -> str:
    at = f"{login}@" if login.strip(":") else ""
    options = f"?{urlencode(query)}" if query else ""
    return f"{base}://{at}localhost/{path}{options}"


def without_passwords(text: str) -> str:
    """The URL, fit to be shown."""
    parts = urlsplit(text)
    login, at, hosts = parts.netloc.rpartition("@")
    name, colon, _ = login.partition(":")
    hidden = f"{name}:{_HIDDEN}" if colon else name
    query = "&".join(
        f"{pair.partition('=')[0]}={_HIDDEN}" if "password" in pair.partition("=")[0] else pair
        for pair in parts.query.split("&")
    )
    return parts._replace(netloc=f"{hidden}{at}{hosts}", query=query).geturl()
