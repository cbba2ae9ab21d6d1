"""What the gateway signs: for one purpose, one session, one access number, until one moment."""

from __future__ import annotations

import pytest

from gateway.session import SessionId
from gateway.signing import Signer

ID = SessionId("abcdef01")
KEY = "k" * 32


def test_what_was_signed_says_until_when_it_is_good() -> None:
    signed = Signer(KEY).sign("link", ID, 7, 1234)
    assert Signer(KEY).expiry("link", ID, 7, signed) == 1234


def test_it_is_good_for_nothing_else() -> None:
    signer = Signer(KEY)
    signed = signer.sign("link", ID, 7, 1234)
    assert not signer.expiry("cookie", ID, 7, signed)
    assert not signer.expiry("link", SessionId("abcdef02"), 7, signed)
    assert not signer.expiry("link", ID, 8, signed)
    assert not Signer("K" * 32).expiry("link", ID, 7, signed)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "9" + text,
        lambda text: text.replace("1234", "1235"),
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
        lambda text: text + "\n",
        lambda text: text.replace("1234", "\u0661\u0662\u0663\u0664"),
        lambda text: text.replace(".", ""),
        lambda _: "",
    ],
)
def test_what_was_changed_is_good_for_nothing(change: object) -> None:
    signer = Signer(KEY)
    assert callable(change)
    assert signer.expiry("link", ID, 7, change(signer.sign("link", ID, 7, 1234))) == 0


def test_nobody_signs_with_an_empty_key() -> None:
    with pytest.raises(ValueError, match="empty"):
        Signer("")
