"""WebSocket frames (RFC 6455 5.2), enough of them for an echo. Pure."""

from __future__ import annotations


def frame(payload: bytes, *, opcode: int = 2, masked: bool = False) -> bytes:
    """A whole frame. The mask of a client is zero: allowed, and the cheapest there is."""
    bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, bit | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, bit | 126)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, bit | 127)) + size.to_bytes(8)
    return head + (bytes(4) if masked else b"") + payload


def split_frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole frames in ``data`` as (opcode, payload), and the rest."""
    frames = []
    at = 0
    while len(data) - at >= 2:
        opcode, size = data[at] & 0x0F, data[at + 1] & 0x7F
        masked = data[at + 1] & 0x80
        begin = at + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[begin : begin + width])
            begin += width
        mask = data[begin : begin + 4] if masked else b""
        begin += len(mask)
        if len(data) < begin + size or (masked and len(mask) < 4):
            break
        payload = data[begin : begin + size]
        frames.append((opcode, unmask(payload, mask) if any(mask) else payload))
        at = begin + size
    return frames, data[at:]


def unmask(payload: bytes, mask: bytes) -> bytes:
    """``payload`` with its mask taken off."""
    size = len(payload)
    pad = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(pad)).to_bytes(size)
