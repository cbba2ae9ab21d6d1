"""Cookies: those of the gateway stay here, those of a preview stay with it. Pure.

A browser knows cookies by host and path, not by origin: what one preview sets for a parent domain
or for ``/`` comes back to all its siblings and to the gateway ("cookie tossing"). So a preview sets
cookies for itself only. Attributes are read as browsers read them (RFC 6265bis 5.6): names without
regard to case, white space around them ignored, quotes without meaning, the last one of a name
counts; whatever need not change stays as it is, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from gateway.session import COOKIE_PREFIX

#: Every cookie of the gateway's own has this in its name.
_OWN: Final = COOKIE_PREFIX.encode()
#: The leading "=" is how a cookie without a name would come back as one with this name. White space
#: is matched in one way only: in two, a pair of nothing else takes the square of its length.
_START: Final = rb"[ \t]*(?:=[ \t]*)?"
_OWN_PAIR: Final = re.compile(_START + rb"(?:__Host-|__Secure-)?" + re.escape(_OWN))
#: A browser takes such a cookie only with ``Path=/``, so it cannot be one preview's on an origin
#: that previews share.
_HOST_PAIR: Final = re.compile(_START + rb"__host-", re.IGNORECASE)
_COOKIE: Final = b"cookie:"
_WHITESPACE: Final = b" \t"


def has_own(cookies: bytes) -> bool:
    """Whether a Cookie field's value may hold a cookie of the gateway's own."""
    return _OWN in cookies


def without_own(lines: Iterable[bytes]) -> list[bytes]:
    """Field lines of a request without the gateway's cookies; all other cookies as sent."""
    kept = []
    for line in lines:
        if _OWN in line and line[: len(_COOKIE)].lower() == _COOKIE:
            pairs = line[len(_COOKIE) :].split(b";")
            others = [pair for pair in pairs if not _OWN_PAIR.match(pair)]
            if not others:
                continue
            if len(others) < len(pairs):
                value = b";".join(others).lstrip(_WHITESPACE)
                line = line[: len(_COOKIE)] + b" " + value
        kept.append(line)
    return kept


def confined(cookie: bytes, *, host: bytes, base: bytes) -> bytes | None:
    """The value of a Set-Cookie field as a preview may send it; None: not at all.

    ``host`` is the preview's public host name without a port. ``base`` is its path, with a slash
    at both ends: ``/`` where the preview has the host for itself, else the host is shared, no
    Domain is kept and every Path is put below ``base``.
    """
    pair, *attributes = cookie.split(b";")
    shared = base != b"/"
    if _OWN_PAIR.match(pair) or (shared and _HOST_PAIR.match(pair)):
        return None
    kept = [pair]
    for attribute in attributes:
        name, equals, value = attribute.partition(b"=")
        lower, value = name.strip(_WHITESPACE).lower(), value.strip(_WHITESPACE)
        if lower == b"domain" and (shared or value.removeprefix(b".").lower() != host):
            continue
        if lower == b"path" and shared and _leaves(value, base):
            attribute = name + equals + base + value[1:]
        kept.append(attribute)
    return b";".join(kept)


def _leaves(path: bytes, base: bytes) -> bool:
    """Whether a cookie of ``path`` would be sent with requests that are not below ``base``.

    What is no absolute path means the path of the request (RFC 6265bis 5.1.4), which is below.
    """
    return path.startswith(b"/") and not (path + b"/").startswith(base)
