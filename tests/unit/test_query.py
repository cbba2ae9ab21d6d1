"""Parameters in the query of a call."""

from __future__ import annotations

from dataclasses import replace

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.api import query
from gateway.errors import BadRequest
from gateway.session import Recipe, Session, SessionId, State

SESSION = Session(
    id=SessionId("some-id-1"),
    generation=1,
    version=1,
    state=State.READY,
    owner="a/1",
    digest="",
    recipe=Recipe(),
    base="/",
    public=True,
    created_at_ms=0,
    expires_at_ms=0,
    expires_in_ms=0,
    metadata='{"n": 7, "s": "7", "flag": true, "null": null, "list": [1]}',
)


def wanted(text: str, session: Session = SESSION) -> bool:
    found = query.session_filter(make_mocked_request("GET", f"/?{text}"))
    return found is None or found(session)


def test_numbers_have_defaults_and_bounds() -> None:
    def number(text: str) -> float:
        request = make_mocked_request("GET", f"/?{text}")
        return query.number(request, "n", default=3, low=0, high=10)

    assert (number(""), number("n=0"), number("n=2.5")) == (3, 0, 2.5)
    for text in ("n=", "n=x", "n=-1", "n=11", "n=nan", "n=inf"):
        with pytest.raises(BadRequest, match="n: "):
            number(text)


def test_whole_numbers_are_whole() -> None:
    assert query.whole_number(make_mocked_request("GET", "/?n=7"), "n", default=1, high=9) == 7
    with pytest.raises(BadRequest, match="whole"):
        query.whole_number(make_mocked_request("GET", "/?n=7.5"), "n", default=1, high=9)


def test_one_may_wait_for_ready_or_for_the_end() -> None:
    assert query.wait(make_mocked_request("GET", "/"), default=5) == ("", 5)
    request = make_mocked_request("GET", "/?wait=ended&timeout=7")
    assert query.wait(request, default=5) == ("ended", 7)
    with pytest.raises(BadRequest, match="ready, ended"):
        query.wait(make_mocked_request("GET", "/?wait=soon"), default=5)


def test_without_a_filter_every_session_is_wanted() -> None:
    assert query.session_filter(make_mocked_request("GET", "/?limit=5&state=&owner=")) is None


def test_every_part_of_a_filter_counts() -> None:
    assert wanted("state=ready&visibility=public&owner=a&metadata.n=7")
    assert not wanted("state=stopped")
    assert not wanted("visibility=private")
    assert wanted("visibility=private", replace(SESSION, public=False))
    assert not wanted("owner=b")
    assert not wanted("owner=a&metadata.n=8")


def test_metadata_are_met_by_their_text_or_their_json() -> None:
    for text in ("n=7", "s=7", 's="7"', "flag=true", "null=null", "list=[1]"):
        assert wanted(f"metadata.{text}"), text
    for text in ("flag=True", "other=", "list=1", "null="):
        assert not wanted(f"metadata.{text}"), text
