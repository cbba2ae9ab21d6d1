"""What the gateway signs, so that any replica can check it without asking the registry. Pure.

A signature says what it is for, for which session, and until when. It also covers the session's
``access`` number, which changes with each revocation and each time the id is registered anew: what
was signed before is void then.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import Final, Literal

from gateway.session import SessionId

Purpose = Literal["link", "cookie", "token"]

_SIGNED: Final = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{43})")


class Signer:
    """Signs and checks with one key; all replicas must have the same. Times are Unix seconds."""

    def __init__(self, key: str) -> None:
        if not key:
            raise ValueError("an empty key would let anybody sign")
        self._key = key.encode()

    def sign(self, purpose: Purpose, session_id: SessionId, access: int, expires: int) -> str:
        """``<expires>.<signature>``: letters, digits, ``.``, ``-`` and ``_`` only."""
        return f"{expires}.{self._signature(purpose, session_id, access, str(expires))}"

    def expiry(self, purpose: Purpose, session_id: SessionId, access: int, text: str) -> int:
        """Until when ``text`` is good; 0 if it was not signed for this, or not with this key."""
        match = _SIGNED.fullmatch(text)
        if match is None:
            return 0
        expected = self._signature(purpose, session_id, access, match[1])
        return int(match[1]) if hmac.compare_digest(match[2], expected) else 0

    def _signature(self, purpose: Purpose, session_id: SessionId, access: int, until: str) -> str:
        # None of the parts can hold a NUL, so no two sets of parts make one text.
        text = f"{purpose}\0{session_id}\0{access}\0{until}"
        digest = hmac.digest(self._key, text.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
