"""Host fields: a name or an IP literal, perhaps with a port (RFC 9110 7.2). Pure."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final

#: Without RFC 3986's exotic characters. Of the labels of a name only the last, the root's, may be
#: empty.
_HOST: Final = re.compile(
    rb"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?"
)
_MAX_PORT: Final = 65535
_MAX_HOST: Final = 262  # 255 of a name, 6 of a port


def is_host(value: bytes) -> bool:
    """Whether a Host field may have this value: a name or an IP literal, perhaps with a port."""
    # The length comes first: what is remembered would be as long as a head may be.
    return len(value) <= _MAX_HOST and _is_authority(value)


@lru_cache(maxsize=1024)
def _is_authority(value: bytes) -> bool:
    host = _HOST.fullmatch(value)
    if host is None or int(host[2] or b"0") > _MAX_PORT:
        return False
    return not host[1] or _is_ipv6(host[1].decode())


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
