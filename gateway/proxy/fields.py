"""The fields of a message: which end here, which the gateway acts upon, which pass. Pure.

RFC 9110 7.6.1 says which fields concern one connection only. Others end here because the gateway
says them itself, or lets nobody say them: the architecture document has the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Fields that concern one connection only (RFC 9110 7.6.1), or that the gateway writes itself.
DROPPED: Final = frozenset(
    {
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"http2-settings",
        # Said of the client by whoever wants to; some of it is believed (``forwarded``), all of it
        # is said anew where it is said at all.
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-server",
        b"x-real-ip",
    }
)
#: Names that begin so are the gateway's own, in both directions.
_OWN: Final = b"x-preview-"

#: The values of the fields that count, of one head: a list with a place for each. Numbers instead
#: of names, since every request asks for nearly all of them (bench/proxies.py, case get-1k).
Special = list[bytes | None]
CONNECTION: Final = 0
CONTENT_LENGTH: Final = 1
TRANSFER_ENCODING: Final = 2
UPGRADE: Final = 3
SEC_WEBSOCKET_PROTOCOL: Final = 4
# Of requests only:
HOST: Final = 5
ORIGIN: Final = 6
EXPECT: Final = 7
AUTHORIZATION: Final = 8
X_FORWARDED_FOR: Final = 9
X_FORWARDED_HOST: Final = 10
X_FORWARDED_PROTO: Final = 11
ACCEPT: Final = 12
COOKIE: Final = 13
SEC_FETCH_MODE: Final = 14
SEC_WEBSOCKET_KEY: Final = 15
SEC_WEBSOCKET_VERSION: Final = 16
# Of responses only:
SEC_WEBSOCKET_ACCEPT: Final = 5
#: Whether anything may have to be put right (``profile``); the values are taken from the lines.
LOCATION: Final = 6
LOOKED_AT: Final = 7
_PLACES: Final = 17

#: Fields of requests that end here, once the gateway has acted upon them.
_REQUEST_SPECIAL: Final = {
    b"host": HOST,
    b"connection": CONNECTION,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"upgrade": UPGRADE,
    b"origin": ORIGIN,
    b"expect": EXPECT,
    b"authorization": AUTHORIZATION,
    b"sec-websocket-protocol": SEC_WEBSOCKET_PROTOCOL,
    b"x-forwarded-for": X_FORWARDED_FOR,
    b"x-forwarded-host": X_FORWARDED_HOST,
    b"x-forwarded-proto": X_FORWARDED_PROTO,
}
#: Read by the gateway and passed on all the same.
_REQUEST_NOTED: Final = {
    b"accept": ACCEPT,
    b"cookie": COOKIE,
    b"sec-fetch-mode": SEC_FETCH_MODE,
    b"sec-websocket-key": SEC_WEBSOCKET_KEY,
    b"sec-websocket-version": SEC_WEBSOCKET_VERSION,
}
_RESPONSE_SPECIAL: Final = {
    b"connection": CONNECTION,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"upgrade": UPGRADE,
    b"sec-websocket-protocol": SEC_WEBSOCKET_PROTOCOL,
}
_RESPONSE_NOTED: Final = {
    b"sec-websocket-accept": SEC_WEBSOCKET_ACCEPT,
    b"location": LOCATION,
    b"content-location": LOOKED_AT,
    b"access-control-allow-origin": LOOKED_AT,
    b"set-cookie": LOOKED_AT,
    b"service-worker-allowed": LOOKED_AT,
    b"clear-site-data": LOOKED_AT,
    b"strict-transport-security": LOOKED_AT,
    b"nel": LOOKED_AT,
    b"report-to": LOOKED_AT,
    b"reporting-endpoints": LOOKED_AT,
    b"alt-svc": LOOKED_AT,
}
#: Hardly any two messages have the same value of these.
_ALWAYS_NEW: Final = frozenset({b"etag", b"if-none-match"})
#: Single-valued fields: a second one makes the message ambiguous.
_ONCE: Final = frozenset({b"host", b"origin", b"authorization", b"sec-websocket-key", b"location"})

#: Passed on by value; unlike the rest of what is special they end here when Connection says so.
_CARRIED: Final = {b"authorization": AUTHORIZATION, b"expect": EXPECT}
#: Connection options that are no fields, and fields that a message cannot do without: those of the
#: WebSocket handshake. Host, Origin and the framing are written anew in any case.
_NEVER_NAMED: Final = frozenset(
    {
        b"",
        b"close",
        b"keep-alive",
        b"upgrade",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
    }
)
#: Distinct names that are recognised at first sight; enough for all browsers and frameworks.
_MAX_NAMES: Final = 1024
#: Longer ones are not kept: a name may be as long as a head.
_MAX_NAME_BYTES: Final = 64
WHITESPACE: Final = b" \t"


def ends_here(lower: bytes) -> bool:
    """Whether a field, by its lower-case name, is not passed on, whatever its value."""
    return lower in DROPPED or lower.startswith(_OWN)


def no_special() -> Special:
    """Of a head with none of the fields that count."""
    return [None] * _PLACES


class Refusal(Exception):
    """Raised inside llhttp's callbacks; becomes a Malformed event."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Names:
    """What becomes of the fields of requests, or of responses, by their names."""

    __slots__ = ("noted", "ordinary", "places", "special")

    def __init__(self, special: Mapping[bytes, int], noted: Mapping[bytes, int]) -> None:
        self.special = frozenset(special)
        self.noted = frozenset(noted)
        #: Where the values of both are kept.
        self.places = {**special, **noted}
        #: Names, as they were written, that are known to be nothing but passed on, and whether
        #: their lines come again.
        self.ordinary: dict[bytes, bool] = {}

    def learn(self, name: bytes) -> None:
        """Recognise an ordinary name at first sight from now on."""
        if len(name) > _MAX_NAME_BYTES:
            return
        if len(self.ordinary) >= _MAX_NAMES:
            self.ordinary.clear()  # else whoever makes up names keeps all others out for good
        self.ordinary[name] = name.lower() not in _ALWAYS_NEW


class Fields:
    """Collects the fields of one head, sorted by what becomes of them."""

    __slots__ = ("_counted", "_counted_bytes", "_names", "lines", "special")

    def __init__(self, names: Names) -> None:
        self._names = names
        self.lines: list[bytes] = []
        self.special = no_special()
        self._counted = 0
        self._counted_bytes = 0

    def add(self, name: bytes, value: bytes) -> None:
        """Take in a field whose name is not known to be ordinary."""
        names, lower = self._names, name.lower()
        noted = lower in names.noted
        if noted or lower in names.special:
            # llhttp knows no coding with a tab behind it, so it is no coding here either.
            space = b" " if lower == b"transfer-encoding" else WHITESPACE
            self._take(lower, value.strip(space))
        if lower in names.special or ends_here(lower) or self._is_alias(lower):
            self._counted_bytes += len(name) + len(value) + 4
            return
        self.lines.append(name + b": " + value)
        if not noted:
            names.learn(name)

    def _is_alias(self, lower: bytes) -> bool:
        # X_Forwarded_For becomes X-Forwarded-For in what follows CGI's naming (PEP 3333).
        if b"_" not in lower:
            return False
        name = lower.replace(b"_", b"-")
        return ends_here(name) or name in self._names.special or name in self._names.noted

    def size(self) -> int:
        """Bytes of all fields so far, with their line ends."""
        for line in self.lines[self._counted :]:
            self._counted_bytes += len(line) + 2
        self._counted = len(self.lines)
        return self._counted_bytes

    def _take(self, lower: bytes, value: bytes) -> None:
        place = self._names.places[lower]
        earlier = self.special[place]
        if earlier is None:
            self.special[place] = value
        elif lower in _ONCE:
            raise Refusal(400, f"more than one {lower.decode()} field")
        else:
            self.special[place] = b"%b, %b" % (earlier, value)

    def drop_named_in_connection(self) -> None:
        # RFC 9110 7.6.1: Connection names further fields that end at this hop.
        connection = self.special[CONNECTION]
        if connection is None:
            return
        named = {token.strip(WHITESPACE).lower() for token in connection.split(b",")}
        named -= _NEVER_NAMED
        if named:
            self.lines = [
                line for line in self.lines if line[: line.index(b":")].lower() not in named
            ]
            for name in named & _CARRIED.keys():
                self.special[_CARRIED[name]] = None


REQUEST_NAMES: Final = Names(_REQUEST_SPECIAL, _REQUEST_NOTED)
RESPONSE_NAMES: Final = Names(_RESPONSE_SPECIAL, _RESPONSE_NOTED)
