"""Parameters in the query of a call."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args
from urllib.parse import parse_qsl

import pytest
from multidict import MultiDict

from gateway.api.query import (
    AnyQuery,
    CreateQuery,
    GetQuery,
    ListQuery,
    LogsQuery,
    PatchFilesQuery,
    Query,
    parse,
    session_filter,
)
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
    found = session_filter(parse(ListQuery, MultiDict(parse_qsl(text, keep_blank_values=True))))
    return found is None or found(session)


def refusal(model: type[Query], *pairs: tuple[str, str]) -> str:
    """What is said of a query that is refused."""
    with pytest.raises(BadRequest) as caught:
        parse(model, MultiDict(pairs))
    return str(caught.value)


def test_numbers_have_defaults_and_bounds() -> None:
    def seconds(*pairs: tuple[str, str]) -> float:
        return parse(GetQuery, MultiDict(pairs)).timeout

    assert seconds() == 10
    assert parse(CreateQuery, MultiDict()).timeout == 30
    for text, number in (("0", 0), ("2.5", 2.5), ("3e2", 300)):
        assert seconds(("timeout", text)) == number
    for text in ("", "x", "-1", "301", "nan", "inf", "1_0", " 1", "\u0661", "0x1"):
        assert refusal(GetQuery, ("timeout", text)).startswith("timeout: "), text


def test_whole_numbers_are_whole() -> None:
    assert parse(LogsQuery, MultiDict(tail="7")).tail == 7
    for text in ("7.5", "7.0", "", "1_0", "0", "100001"):
        assert refusal(LogsQuery, ("tail", text)).startswith("tail: "), text


def test_one_may_wait_for_ready_or_for_the_end() -> None:
    assert parse(GetQuery, MultiDict()).wait == ""
    assert parse(GetQuery, MultiDict(wait="ended")).wait == "ended"
    assert refusal(GetQuery, ("wait", "soon")) == "wait: 'soon' is none of ready, ended"


def test_what_is_misspelt_or_comes_twice_is_refused() -> None:
    assert "no such parameter" in refusal(ListQuery, ("stat", "ready"))
    assert "no such parameter" in refusal(Query, ("x", ""))
    assert "2 times" in refusal(ListQuery, ("limit", "1"), ("limit", "2"))
    assert "metadata.<name>" in refusal(ListQuery, ("metadata", "x"))


def test_some_may_come_often() -> None:
    query = MultiDict([("delete", "a"), ("delete", "b"), ("baseRevision", "3")])
    found = parse(PatchFilesQuery, query)
    assert (found.delete, found.base_revision) == (["a", "b"], 3)


def test_older_callers_may_send_what_they_like() -> None:
    parse(AnyQuery, MultiDict([("a", "1"), ("a", "2"), ("metadata", "")]))


def test_the_states_of_a_list_are_the_states_there_are() -> None:
    assert get_args(ListQuery.model_fields["state"].annotation) == ("", *State)


def test_without_a_filter_every_session_is_wanted() -> None:
    query = MultiDict(limit="5", state="", owner="")
    assert session_filter(parse(ListQuery, query)) is None


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
