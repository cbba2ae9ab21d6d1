"""From a program's bytes to the lines of a log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.spawner.output import MAX_LINE_CHARACTERS, TAIL_CHARACTERS, TAIL_LINES, Output


def lines(*chunks: bytes) -> list[str]:
    output = Output()
    return [line for chunk in chunks for line in output.feed(chunk)] + output.end()


def test_lines_are_whole_however_they_come() -> None:
    assert lines(b"a\nb", b"c\n", b"d") == ["a", "bc", "d"]


def test_a_character_cut_in_two_is_one_character() -> None:
    assert lines(b"\xc3", b"\xbc\n") == ["ü"]


def test_what_is_no_utf8_is_replaced() -> None:
    assert lines(b"a\xffb\n") == ["a\ufffdb"]


def test_terminal_escapes_are_removed() -> None:
    assert lines(b"\x1b[32mok\x1b[0m \x1b]0;title\x07x\x1b[2K\x1b[1", b"Gy\x1bc\tz\x00\n") == [
        "ok xy\tz"
    ]


def test_of_a_line_drawn_over_itself_the_last_state_is_kept() -> None:
    assert lines(b"10%\r50%\r100%\r\nnext\r\n") == ["100%", "next"]


def test_a_long_line_is_cut_also_when_it_never_ends() -> None:
    output = Output()
    for _ in range(1000):
        assert output.feed(b"x" * 1000) == []
    assert [len(line) for line in output.end()] == [MAX_LINE_CHARACTERS]


def test_the_tail_is_bounded_in_lines_and_characters() -> None:
    output = Output()
    output.feed(b"".join(b"%d\n" % number for number in range(1000)))
    assert output.tail.splitlines() == [str(number) for number in range(1000 - TAIL_LINES, 1000)]
    output.feed(b"y" * 3000 + b"\n" + b"z" * 3000 + b"\n")
    assert len(output.tail) == TAIL_CHARACTERS


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_chunks_never_matter(chunks: list[bytes]) -> None:
    assert lines(*chunks) == lines(b"".join(chunks))
