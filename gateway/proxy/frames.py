"""A look at the heads of WebSocket frames (RFC 6455 5.2) as they pass by. Pure.

It answers two questions about one direction of a tunnel, without copying the stream: has anything
been said that is more than a keep-alive, and may a frame of our own be put in now? Vite's client
says ``{"type":"ping"}`` every 30 seconds for as long as a tab is open (Vite 6 to 8); an idle
preview would never count as idle if that were traffic.
"""

from __future__ import annotations

from typing import Final

_FIN: Final = 0x80
_FIN_TEXT: Final = 0x81
_CONTROL: Final = 0x08
_MASKED: Final = 0x80
_CLOSE: Final = 0x08
_OPCODE: Final = 0x0F
_VITE_PING: Final = b'{"type":"ping"}'

#: A ping without content, towards a client.
PING: Final = b"\x89\x00"
#: The same towards a server: RFC 6455 5.3 wants a mask, even where there is nothing to mask.
MASKED_PING: Final = b"\x89\x80\x00\x00\x00\x00"

#: Missing of a frame that never ends: more than anybody will ever send.
_ENDLESS: Final = 2**62


class FrameWatch:
    """One direction. ``active`` becomes True with each frame that is more than a keep-alive."""

    __slots__ = ("_head", "_left", "_unfinished", "active")

    def __init__(self) -> None:
        #: Of the frame under way: the part of its head that has come, then what is missing of it.
        self._head = b""
        self._left = 0
        #: A message was begun in fragments, and its last one has not come.
        self._unfinished = False
        self.active = False

    @property
    def at_boundary(self) -> bool:
        """Whether a control frame may follow what was seen.

        The last byte was the last one of a frame (control frames between the fragments of a message
        are fine, RFC 6455 5.4), and that frame was no close.
        """
        return not self._left and not self._head

    @property
    def at_message_boundary(self) -> bool:
        """Whether a message of another sender may follow what was seen."""
        return not self._left and not self._head and not self._unfinished

    @property
    def is_closed(self) -> bool:
        """Whether a Close has passed."""
        return self._left > _ENDLESS // 2

    def see(self, data: bytes) -> None:
        """Look at what passes by."""
        # Nearly always one read is one frame with a whole message (FIN, and an opcode from 1 to 7),
        # not too long for 16 bits; the general way takes twice as long.
        size = len(data)
        if not self._left and not self._head and size > 3 and 0x80 < data[0] & 0x8F < 0x88:
            second = data[1]
            length = second & 0x7F
            head = 6 if second & _MASKED else 2
            if length < 126 and size == length + head:
                if not self.active and not is_keep_alive(data):
                    self.active = True
                return
            if length == 126 and size == (data[2] << 8 | data[3]) + head + 2:
                self.active = True  # no keep-alive is so long
                return
        self._walk(data)

    def _walk(self, data: bytes) -> None:
        start = 0
        while start < len(data):
            if self._left:
                taken = min(self._left, len(data) - start)
                self._left -= taken
                start += taken
                continue
            if not self._head:
                start = self._pass_small(data, start)
                if start == len(data):
                    return
            head = self._head + data[start : start + 14 - len(self._head)]
            size = _head_size(head)
            if size > len(head):
                self._head = head
                return
            start += size - len(self._head)
            self._head = b""
            if head[0] & _OPCODE == _CLOSE:
                # RFC 6455 5.5.1: it is the last frame; whatever follows belongs to nothing.
                self._left = _ENDLESS
                return
            self._left = _payload_size(head)
            if not head[0] & _CONTROL:
                self._unfinished = not head[0] & _FIN
            # Of a long payload no more is looked at than tells that it is no keep-alive.
            payload = data[start : start + min(self._left, len(_VITE_PING))]
            if not is_keep_alive(head[:size] + payload):
                self.active = True

    def _pass_small(self, data: bytes, start: int) -> int:
        """Pass by the small frames that are whole; returns where the first other thing begins.

        A read may hold 130,000 of them: 0.3 s of everybody's event loop, if each was taken apart.
        """
        size = len(data)
        while start + 1 < size:
            first, second = data[start], data[start + 1]
            length = second & 0x7F
            end = start + length + (6 if second & _MASKED else 2)
            if length > 125 or end > size or first & _OPCODE == _CLOSE:
                break
            if not first & _CONTROL:
                self._unfinished = not first & _FIN
                if not self.active and not is_keep_alive(data[start:end]):
                    self.active = True
            start = end
        return start


def text_frame(text: bytes) -> bytes:
    """A server's message of up to 125 bytes."""
    return bytes((_FIN_TEXT, len(text))) + text


def is_keep_alive(frame: bytes) -> bool:
    """Whether a frame (or the beginning of one) is a ping, a pong or Vite's own ping."""
    first = frame[0]
    if first & _CONTROL:
        # A close says that somebody left, which is no sign of life either.
        return True
    if first != _FIN_TEXT:
        return False
    second = frame[1]
    if second == len(_VITE_PING):
        return frame[2:] == _VITE_PING
    if second != len(_VITE_PING) | _MASKED:
        return False
    return _unmasked(frame[2:6], frame[6:]) == _VITE_PING


def _unmasked(mask: bytes, payload: bytes) -> bytes:
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def _head_size(head: bytes) -> int:
    """The size of a frame's head, as far as its first bytes tell."""
    if len(head) < 2:
        return 2
    length = head[1] & 0x7F
    extended = 2 if length == 126 else 8 if length == 127 else 0
    return 2 + extended + (4 if head[1] & _MASKED else 0)


def _payload_size(head: bytes) -> int:
    length = head[1] & 0x7F
    if length == 126:
        return int.from_bytes(head[2:4], "big")
    if length == 127:
        return int.from_bytes(head[2:10], "big")
    return length
