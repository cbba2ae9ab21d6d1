"""Field lines that come again and again: recognised by their bytes instead of parsed. Pure.

A browser says the same fields with every request, and a dev server with every response, all but one
or two. A line that is the same to the byte means the same, so it is looked up; one that is new and
simple is checked here, more strictly than llhttp would; a head with anything else in it is left to
llhttp. ``tests/unit/test_http1.py`` holds both ways to the same result, wherever the bytes are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gateway.proxy.fields import DROPPED, Names, Special


def only(allowed: Iterable[int]) -> bytes:
    """A table for ``bytes.translate``: a text that it leaves as it is, is of these bytes only.

    The quickest look at every byte there is: for bytes to be deleted, a table is made ready at each
    call (an ETag line: 0.6 us, so 0.2; ``timeit``).
    """
    kept = frozenset(allowed)
    return bytes(byte if byte in kept else byte ^ 1 for byte in range(256))


#: What may stand in a line (RFC 9110 5.5): no control character but the tab.
_ALLOWED: Final = only({*range(0x20, 0x100), 0x09} - {0x7F})
_SPACE: Final = 0x20
_TAB: Final = 0x09
_MAX_LINES: Final = 8192
_MAX_LINE_BYTES: Final = 1024


class Meaning:
    """What a line means. ``place`` is where the value is kept, of a field that counts; else -1."""

    __slots__ = ("passes", "place", "value")

    def __init__(self, place: int, value: bytes, passes: bool) -> None:
        self.place = place
        self.value = value
        self.passes = passes


def _has_edges(value: bytes) -> bool:
    """Whether white space is around a value: llhttp takes it off. In few instructions."""
    return bool(value) and (value[0] in (_SPACE, _TAB) or value[-1] in (_SPACE, _TAB))


#: It is passed on, and that is all.
_ORDINARY: Final = Meaning(-1, b"", True)
_NOTHING: Final = Meaning(-1, b"", False)


class KnownLines:
    """The lines of requests, or of responses, that need no parser.

    ``simple`` says of those fields that the gateway acts upon, and that are simple if their value
    is, which values are. What is kept is shared by all connections and never changed.
    """

    __slots__ = ("_known", "_names", "_simple")

    def __init__(self, names: Names, simple: Mapping[bytes, Callable[[bytes], bool]]) -> None:
        self._names = names
        self._simple = simple
        self._known: dict[bytes, Meaning] = {}

    def sort(
        self, lines: list[bytes], start: int, end: int, special: Special
    ) -> list[bytes] | None:
        """Those of ``lines[start:end]`` that pass; what counts is in ``special`` then.

        None: llhttp must see them.
        """
        known = self._known
        passing: list[bytes] = []
        for number in range(start, end):
            line = lines[number]
            meaning = known.get(line)
            if meaning is None:
                meaning = self._learn(line)
                if meaning is None:
                    return None
            place = meaning.place
            if place >= 0:
                if special[place] is not None:
                    return None
                special[place] = meaning.value
            if meaning.passes:
                passing.append(line)
        return passing

    def _learn(self, line: bytes) -> Meaning | None:
        """What a line means that is not known; None if it is not simple."""
        if len(line) > _MAX_LINE_BYTES or line.translate(_ALLOWED) != line:
            return None
        name, separator, value = line.partition(b": ")
        if not separator or _has_edges(value):
            return None
        comes_again = self._names.ordinary.get(name)
        if comes_again is False:
            return _ORDINARY
        meaning = _ORDINARY if comes_again else self._meaning(name.lower(), value)
        if meaning is not None:
            if len(self._known) >= _MAX_LINES:
                self._known.clear()  # rarer than any bookkeeping of age would be worth
            self._known[line] = meaning
        return meaning

    def _meaning(self, lower: bytes, value: bytes) -> Meaning | None:
        is_simple = self._simple.get(lower)
        if is_simple is not None and is_simple(value):
            return Meaning(self._names.places[lower], value, lower in self._names.noted)
        # Only whole names are known to be names: whether `X-Preview-a b` is one, llhttp says. And
        # Transfer-Encoding decides about the framing, which is llhttp's to judge.
        if is_simple is None and lower in DROPPED and lower != b"transfer-encoding":
            return _NOTHING
        return None
