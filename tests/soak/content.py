"""Content that both ends can make: who holds it knows every byte that has to arrive."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def content(who: str, seed: int, size: int) -> bytes:
    """What the dev server called ``who`` serves under this seed; no two of them alike."""
    return hashlib.shake_128(f"{who}/{seed}".encode()).digest(size)


def receipt(who: str, size: int, digest: str) -> bytes:
    """What a dev server answers to an upload of ``size`` bytes with this SHA-256."""
    return f"{who} {size} {digest}".encode()


def accept_key(key: str) -> str:
    """``Sec-WebSocket-Accept`` (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()  # noqa: S324
