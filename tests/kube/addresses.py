"""Addresses for pods: each of them has one of its own in 127.1.0.0/16."""

from __future__ import annotations

import itertools
import os
import socket
from typing import Final

#: Whoever binds this port of an address has the address. Nothing else is done with it.
_CLAIM_PORT: Final = 61977
_COUNT: Final = 2**16 - 2
_turns: Final = itertools.count(os.getpid() * 251)


class Address:
    """An address that no other pod on this machine has, also not one of another test run."""

    def __init__(self) -> None:
        for turn in itertools.islice(_turns, _COUNT):
            place = turn % _COUNT + 1
            self.ip = f"127.1.{place >> 8}.{place & 0xFF}"
            self._claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                self._claim.bind((self.ip, _CLAIM_PORT))
            except OSError:
                self._claim.close()
            else:
                return
        raise RuntimeError("every address of 127.1.0.0/16 is taken")

    def release(self) -> None:
        """Let others have it."""
        self._claim.close()
