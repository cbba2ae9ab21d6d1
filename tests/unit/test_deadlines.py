"""How long each may take, and what is said after it."""

from __future__ import annotations

import math

import pytest

from gateway.proxy import deadlines
from gateway.proxy.deadlines import Limits
from gateway.settings import load_settings


def test_nobody_has_no_deadline_and_all_others_have_one() -> None:
    seconds = Limits(load_settings()).seconds
    assert seconds[deadlines.NOBODY] == math.inf
    assert all(0 < limit < math.inf for limit in seconds[1:])


def test_the_deadline_of_a_response_can_be_turned_off() -> None:
    limits = Limits(load_settings({"response_timeout_seconds": 0}))
    assert limits.seconds[deadlines.UPSTREAM] == math.inf


@pytest.mark.parametrize(
    ("whose", "status", "word"),
    [
        (deadlines.CLIENT_SENDS, 408, "60 s: send it again"),
        (deadlines.UPSTREAM, 504, "the dev server of x accepted the request"),
        (deadlines.UPGRADE, 504, "the dev server of x did not answer the upgrade within 30 s"),
    ],
)
def test_each_deadline_has_its_answer(whose: int, status: int, word: str) -> None:
    error = Limits(load_settings()).error(whose, "the dev server of x")
    assert error.status == status
    assert word in str(error)
