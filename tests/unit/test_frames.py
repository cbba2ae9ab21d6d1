"""Frames that pass by, in every cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from gateway.proxy.frames import MASKED_PING, PING, FrameWatch

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


@pytest.mark.parametrize("mask", [True, False], ids=["from client", "from server"])
@pytest.mark.parametrize("data", [b"", b"\x03\xe8", b"\x03\xe9going away"])
def test_a_close_is_no_activity_and_nothing_may_follow_it(data: bytes, mask: bool) -> None:
    close = frame(Opcode.CLOSE, data, mask=mask)
    for parts in ([close], [close[:1], close[1:]], [close, b"\x81\x01x"], [close + b"\x81\x01x"]):
        watch = seen(*parts)
        assert not watch.active
        assert not watch.at_boundary
        assert not watch.at_message_boundary
        assert watch.is_closed


def test_a_ping_may_be_put_between_the_fragments_of_a_message_but_no_other_message() -> None:
    first = frame(Opcode.TEXT, b"hel", mask=True, fin=False)
    watch = seen(first)
    assert (watch.at_boundary, watch.at_message_boundary) == (True, False)
    watch.see(frame(Opcode.CONT, b"lo", mask=True))
    assert (watch.at_boundary, watch.at_message_boundary) == (True, True)
    assert not watch.is_closed


def test_our_pings_are_what_the_other_side_expects() -> None:
    assert frame(Opcode.PING, b"", mask=False) == PING
    masked = MASKED_PING
    assert masked[:1] == PING[:1]
    assert masked[1] == 0x80  # masked, without content
    assert len(masked) == len(frame(Opcode.PING, b"", mask=True))


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
    st.binary(max_size=125) | st.just(VITE_PING) | st.sampled_from([126, 300]).map(bytes),
    st.booleans(),
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 2400), max_size=8))
def test_wherever_the_bytes_are_cut_activity_is_never_missed_and_boundaries_are_found(
    frames: list[tuple[Opcode, bytes, bool]], cuts: list[int]
) -> None:
    frames = [(op, data[:125] if op >= Opcode.CLOSE else data, mask) for op, data, mask in frames]
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
