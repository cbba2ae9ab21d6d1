"""Streams of WebSocket frames, cut anywhere, are understood as the websockets library does."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tests.fuzz.frames import check_frames
from tests.fuzz.test_parsers import bounded

_PAYLOAD = st.one_of(
    st.just(b'{"type":"ping"}'),
    st.binary(max_size=20),
    st.sampled_from([125, 126, 127, 65535, 65536]).map(bytes),
)


@st.composite
def _frame(draw: st.DrawFn) -> bytes:
    opcode = draw(st.sampled_from(list(Opcode)))
    data = draw(_PAYLOAD)
    if opcode >= Opcode.CLOSE:
        data = data[:125]
    if opcode is Opcode.CLOSE:
        data = b"\x03\xe8" + data[2:]
    frame = Frame(
        opcode, data, fin=opcode >= Opcode.CLOSE or draw(st.sampled_from([True, True, False]))
    )
    return frame.serialize(mask=draw(st.booleans()))


_CUTS: st.SearchStrategy[Sequence[int]] = st.one_of(
    st.just([]), st.lists(st.integers(0, 2**17), max_size=6), st.just(range(200))
)
_DAMAGE = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3)


@bounded
@given(st.lists(_frame(), max_size=5).map(b"".join), _CUTS, _DAMAGE)
@example(b"\x88\x00\x81\x01a", [2], [])
def test_boundaries_and_signs_of_life_are_those_of_the_library(
    data: bytes, cuts: Sequence[int], damage: list[tuple[int, int]]
) -> None:
    changed = bytearray(data)
    for at, byte in damage:
        if at < len(changed):
            changed[at] = byte
    check_frames(bytes(changed), cuts)
