"""Addresses in a dev server's answers that name itself where nobody can reach it. Pure.

Only what names the dev server for certain is rewritten, into a path; everything else passes byte
for byte, so that the gateway adds no redirect that the dev server has not made. What counts is how
browsers read an address (WHATWG URL standard, 4.4), not how it looks.
"""

from __future__ import annotations

import re
from typing import Final

#: How a dev server may call the machine it runs on.
_LOCAL: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]", b"0.0.0.0", b"[::]"})
#: Scheme or none, host, port, and the rest. What has user information, a backslash before the path,
#: another scheme or control characters in it is not recognised.
_ABSOLUTE: Final = re.compile(
    rb"(?:http:)?//([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?((?:[/?#].*)?)",
    re.IGNORECASE | re.DOTALL,
)
_HTTP_PORT: Final = b"80"


def put_right(location: bytes, *, port: bytes, address: bytes) -> bytes:
    """``location`` as a path if it names the dev server itself, else as it is.

    ``port`` is the dev server's, ``address`` the host it is reached at (an IP literal without
    brackets, or a name).
    """
    match = _ABSOLUTE.fullmatch(location)
    if match is None:
        return location
    host, named_port, rest = match[1].lower(), match[2] or _HTTP_PORT, match[3]
    if named_port.lstrip(b"0") != port or (
        host not in _LOCAL and host.strip(b"[]") != address.lower()
    ):
        return location
    # Browsers drop tabs anywhere in an address, and take a backslash for a slash.
    rest = rest.replace(b"\t", b"")
    if not rest.startswith(b"/"):
        return b"/" + rest
    # A path that begins with two slashes would be read as a host name.
    return b"/." + rest if rest[1:2] in (b"/", b"\\") else rest
