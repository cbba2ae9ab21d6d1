"""Trailer fields: what follows chunked content (RFC 9110 6.5, RFC 9112 7.1.2). Pure.

They pass on their own, never merged into the head (RFC 9110 6.5.1), and only where the message goes
on in chunks. What a recipient would act upon as if it had been in the head does not pass.
"""

from __future__ import annotations

from typing import Final

from gateway.proxy.fields import WHITESPACE, Names, Refusal, ends_here

#: RFC 9110 6.5.1: fields that say how a message is framed, routed, modified, authenticated,
#: processed or controlled come before the content or not at all.
_FORBIDDEN: Final = frozenset(
    {
        b"age",
        b"authorization",
        b"cache-control",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"expect",
        b"expires",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"location",
        b"max-forwards",
        b"origin",
        b"pragma",
        b"range",
        b"retry-after",
        b"set-cookie",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"vary",
        b"warning",
        b"www-authenticate",
    }
)


class TrailerFields:
    """Collects the trailer fields of one message."""

    __slots__ = ("_left", "_named", "_names", "lines")

    def __init__(self, names: Names, *, connection: bytes, max_bytes: int) -> None:
        """``connection`` is the value of Connection in the message's head."""
        self._names = names
        self._named = {token.strip(WHITESPACE).lower() for token in connection.split(b",")}
        self._left = max_bytes
        #: The lines that pass.
        self.lines: list[bytes] = []

    def add(self, name: bytes, value: bytes) -> None:
        """Take in a field. Raises Refusal if there are too many bytes of them."""
        self._left -= len(name) + len(value) + 4
        if self._left < 0:
            raise Refusal(431, "trailer section too large")
        lower = name.lower()
        if lower not in self._named and self._may_follow(lower.replace(b"_", b"-")):
            self.lines.append(name + b": " + value.strip(WHITESPACE))

    def _may_follow(self, lower: bytes) -> bool:
        names = self._names
        return not (
            lower in _FORBIDDEN
            or ends_here(lower)
            or lower in names.special
            or lower in names.noted
        )
