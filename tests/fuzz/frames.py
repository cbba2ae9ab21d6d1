"""Holds the watch over WebSocket frames against the frame reader of the websockets library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from gateway.proxy.frames import FrameWatch
from tests.fuzz.compare import split

_VITE_PING: Final = b'{"type":"ping"}'
_CONTROL: Final = (Opcode.CLOSE, Opcode.PING, Opcode.PONG)


@dataclass
class Stream:
    """What the library read: whole frames, with where each begins and ends."""

    frames: list[tuple[Frame, int, int]]
    #: Nothing is left over.
    whole: bool
    #: What follows the frames is no frame.
    broken: bool = False


def read(data: bytes) -> Stream:
    """The frames of one direction, masked or not, up to the first close."""
    frames: list[tuple[Frame, int, int]] = []
    at = 0
    while at < len(data):
        reader = StreamReader()
        reader.feed_data(data[at:])
        masked = data[at + 1 : at + 2] >= b"\x80"
        parsing = Frame.parse(reader.read_exact, mask=masked)
        try:
            next(parsing)
            return Stream(frames, whole=False)
        except StopIteration as done:
            end = len(data) - len(reader.buffer)
            frames.append((done.value, at, end))
            at = end
        except ProtocolError:
            return Stream(frames, whole=False, broken=True)
        if frames[-1][0].opcode is Opcode.CLOSE:
            break
    return Stream(frames, whole=True)


def check_frames(data: bytes, cuts: Sequence[int] = ()) -> None:
    """Both readers find the same boundaries and the same signs of life, wherever the cuts are."""
    parts = split(data, cuts)
    edges, watch, was_active = [0], FrameWatch(), False
    for part in parts:
        watch.see(part)
        edges.append(edges[-1] + len(part))
        stream = read(data[: edges[-1]])
        if stream.broken:
            return
        closed = any(frame.opcode is Opcode.CLOSE for frame, _, _ in stream.frames)
        assert watch.at_boundary is (stream.whole and not closed), (data[: edges[-1]], stream)
        spoke = any(not _is_keep_alive(frame) for frame, _, _ in stream.frames)
        assert watch.active or not spoke, f"missed in {data!r}"
        if watch.active and not was_active:
            assert spoke or not stream.whole or _was_cut(stream, edges), f"made up in {data!r}"
        was_active = watch.active


def _is_keep_alive(frame: Frame) -> bool:
    if frame.opcode in _CONTROL:
        return True
    plain = frame.fin and not (frame.rsv1 or frame.rsv2 or frame.rsv3)
    return plain and frame.opcode is Opcode.TEXT and bytes(frame.data) == _VITE_PING


def _was_cut(stream: Stream, edges: list[int]) -> bool:
    """A ping of Vite's that came in two reads may pass for talk: nobody puts it together."""
    return any(start < edge < end for _, start, end in stream.frames for edge in edges)
