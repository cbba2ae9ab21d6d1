"""What is asked for by Upgrade (RFC 9110 7.8), and the WebSocket handshake (RFC 6455 4). Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection
from typing import Final

from gateway.proxy.fields import (
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION,
    WHITESPACE,
    Refusal,
    Special,
)

_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: They would bypass all that is done here.
_NOT_FOLLOWED: Final = (b"h2c", b"h2")


def protocols(value: bytes, *, besides: Collection[bytes] = ()) -> bytes:
    """The protocols of an Upgrade field, ``", "`` between them, without empty elements."""
    tokens = (token.strip(WHITESPACE) for token in value.split(b","))
    return b", ".join(token for token in tokens if token and token.lower() not in besides)


def followed(value: bytes) -> bytes:
    """The protocols of a request's Upgrade field that the gateway lets a client change to."""
    return protocols(value, besides=_NOT_FOLLOWED)


def check_handshake(method: bytes, special: Special) -> None:
    """Refuse what is no opening handshake of RFC 6455 4.2.1."""
    try:
        key = base64.b64decode(special[SEC_WEBSOCKET_KEY] or b"", validate=True)
    except binascii.Error:
        key = b""
    if method != b"GET" or len(key) != 16:
        raise Refusal(400, "a WebSocket handshake is a GET with a Sec-WebSocket-Key of 16 bytes")
    version = special[SEC_WEBSOCKET_VERSION]
    if version != b"13":
        # A client of another version can try again with this one; one without any is no client.
        status = 426 if version else 400
        raise Refusal(status, "the only Sec-WebSocket-Version spoken here is 13 (RFC 6455)")


def is_websocket(upgrade: bytes) -> bool:
    """Whether WebSocket is among the protocols of an Upgrade field."""
    return any(token.strip().lower() == b"websocket" for token in upgrade.split(b","))


def accept_key(key: bytes) -> bytes:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())
