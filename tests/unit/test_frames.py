"""Frames that pass by, in every cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from gateway.proxy.frames import FrameWatch

VITE_PING = b'{"type":"ping"}'


def frame(opcode: Opcode, data: bytes, *, mask: bool, fin: bool = True) -> bytes:
    """A frame as the websockets library writes it."""
    return Frame(opcode, data, fin=fin).serialize(mask=mask)


def seen(*parts: bytes) -> FrameWatch:
    watch = FrameWatch()
    for part in parts:
        watch.see(part)
    return watch


KEEP_ALIVES = {
    "vite's ping": (Opcode.TEXT, VITE_PING),
    "a ping": (Opcode.PING, b""),
    "a ping with content": (Opcode.PING, b"12"),
    "a pong": (Opcode.PONG, b""),
    "a close": (Opcode.CLOSE, b"\x03\xe8"),
}
TALK = {
    "another text of the same length": (Opcode.TEXT, b'{"type":"pong"}'),
    "a text": (Opcode.TEXT, b"hello"),
    "an empty text": (Opcode.TEXT, b""),
    "binary like vite's ping": (Opcode.BINARY, VITE_PING),
    "a continuation": (Opcode.CONT, VITE_PING),
    "a frame of 16-bit length": (Opcode.TEXT, b"x" * 200),
    "a frame of 64-bit length": (Opcode.BINARY, b"x" * 70_000),
}


@pytest.mark.parametrize("mask", [True, False], ids=["from client", "from server"])
@pytest.mark.parametrize(("opcode", "data"), KEEP_ALIVES.values(), ids=KEEP_ALIVES)
def test_a_keep_alive_is_no_activity(opcode: Opcode, data: bytes, mask: bool) -> None:
    watch = seen(frame(opcode, data, mask=mask))
    assert not watch.active
    assert watch.at_boundary


@pytest.mark.parametrize("mask", [True, False], ids=["from client", "from server"])
@pytest.mark.parametrize(("opcode", "data"), TALK.values(), ids=TALK)
def test_anything_else_is_activity(opcode: Opcode, data: bytes, mask: bool) -> None:
    watch = seen(frame(opcode, data, mask=mask))
    assert watch.active
    assert watch.at_boundary


def test_an_unfinished_text_like_vites_ping_is_activity() -> None:
    assert seen(frame(Opcode.TEXT, VITE_PING, mask=True, fin=False)).active


def test_several_keep_alives_in_one_read_are_no_activity() -> None:
    ping = frame(Opcode.TEXT, VITE_PING, mask=True)
    assert not seen(ping + frame(Opcode.PONG, b"", mask=True) + ping).active


def test_a_stream_inside_a_frame_is_at_no_boundary() -> None:
    whole = frame(Opcode.TEXT, b"hello", mask=True)
    for cut in range(1, len(whole)):
        assert not seen(whole[:cut]).at_boundary
        watch = seen(whole[:cut], whole[cut:])
        assert watch.at_boundary
        assert watch.active


FRAMES = st.tuples(
    st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG]),
    st.binary(max_size=125) | st.just(VITE_PING),
    st.booleans(),
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 1200), max_size=8))
def test_wherever_the_bytes_are_cut_activity_is_never_missed_and_boundaries_are_found(
    frames: list[tuple[Opcode, bytes, bool]], cuts: list[int]
) -> None:
    stream = b"".join(frame(opcode, data, mask=mask) for opcode, data, mask in frames)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    watch = seen(*(stream[a:b] for a, b in pairwise(edges) if a < b))
    talk = [
        opcode in (Opcode.TEXT, Opcode.BINARY) and (opcode, data) != (Opcode.TEXT, VITE_PING)
        for opcode, data, _ in frames
    ]
    assert watch.at_boundary
    if any(talk):
        assert watch.active
    elif len(edges) == 2:
        assert not watch.active
