"""Sessions: ids, the table of moves, and which of two routes is true."""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadSessionId
from gateway.session import (
    ENDED,
    MOVES,
    OWNED,
    PENDING,
    Endpoint,
    Hmr,
    Recipe,
    Route,
    Session,
    SessionId,
    State,
    content_digest,
    is_session_id,
    new_session_id,
    parse_session_id,
)

GOOD: Final = ["abcdefgh", "12345678", "a-------z", "0" * 40, "a" + "-" * 38 + "b"]
BAD: Final = [
    "",
    "abcdefg",  # one too short
    "a" * 41,
    "-abcdefgh",
    "abcdefgh-",
    "Abcdefgh",
    "abc_defgh",
    "abc.defgh",
    "abcdefgh\n",
    "abcdéfgh",
    "abcdefg٣",  # a digit, but not one of 0-9
]


@pytest.mark.parametrize("text", GOOD)
def test_an_id_that_fits_a_dns_label_is_taken_as_it_is(text: str) -> None:
    assert parse_session_id(text) == text
    assert is_session_id(text)


@pytest.mark.parametrize("text", BAD)
def test_any_other_id_is_refused(text: str) -> None:
    assert not is_session_id(text)
    with pytest.raises(BadSessionId):
        parse_session_id(text)


@given(st.text(max_size=50))
def test_both_ways_of_asking_agree(text: str) -> None:
    if is_session_id(text):
        assert parse_session_id(text) == text
    else:
        with pytest.raises(BadSessionId):
            parse_session_id(text)


def test_a_new_id_is_well_formed_and_never_the_same() -> None:
    ids = {new_session_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(is_session_id(i) and len(i) == 32 for i in ids)


def test_every_state_appears_in_the_table_of_moves() -> None:
    assert set(MOVES) == set(State)
    assert set().union(*MOVES.values()) == set(State)


def test_an_ended_session_only_begins_anew() -> None:
    for state in ENDED:
        assert MOVES[state] == {State.REGISTERED}


def test_nothing_but_an_end_follows_stopping() -> None:
    assert MOVES[State.STOPPING] == ENDED


def test_every_live_session_can_be_ended_and_stopped() -> None:
    for state in set(State) - ENDED - {State.STOPPING}:
        assert MOVES[state] >= ENDED | {State.STOPPING}


def test_only_a_create_call_leads_to_registered() -> None:
    assert {state for state, moves in MOVES.items() if State.REGISTERED in moves} == ENDED


def test_ready_is_reached_from_a_start_or_at_registration_only() -> None:
    assert {state for state, moves in MOVES.items() if State.READY in moves} == {
        State.REGISTERED,
        State.STARTING,
    }


def test_the_groups_of_states_do_not_contradict_each_other() -> None:
    assert ENDED.isdisjoint(PENDING | OWNED)
    assert State.READY not in PENDING
    assert State.STOPPING not in PENDING | OWNED | ENDED
    assert PENDING | OWNED | ENDED | {State.STOPPING} == set(State)


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (Endpoint("127.0.0.1", 5173), "127.0.0.1:5173"),
        (Endpoint("fd00::1", 80), "[fd00::1]:80"),
        (Endpoint("dev.internal", 8080), "dev.internal:8080"),
    ],
)
def test_an_endpoint_is_written_as_in_a_url(endpoint: Endpoint, text: str) -> None:
    assert str(endpoint) == text


def test_equal_content_has_an_equal_digest_in_whatever_order_it_comes() -> None:
    recipe = Recipe(framework="vite", env=(("A", "1"),))
    files = {"a.js": b"1", "b.js": b"2"}
    assert content_digest(recipe, files) == content_digest(
        Recipe(framework="vite", env=(("A", "1"),)), dict(reversed(files.items()))
    )


@pytest.mark.parametrize(
    ("recipe", "files"),
    [
        (Recipe(framework="vite"), {"a.js": b"1"}),
        (Recipe(env=(("A", "1"),)), {"a.js": b"1"}),
        (Recipe(command=("npm", "start")), {"a.js": b"1"}),
        (Recipe(command=("npm start",)), {"a.js": b"1"}),
        (Recipe(target="127.0.0.1:80"), {"a.js": b"1"}),
        (Recipe(), {"a.js": b"2"}),
        (Recipe(), {"b.js": b"1"}),
        (Recipe(), {"a.js": b"1", "b.js": b""}),
        (Recipe(), {}),
    ],
)
def test_any_other_content_has_another_digest(recipe: Recipe, files: dict[str, bytes]) -> None:
    assert content_digest(recipe, files) != content_digest(Recipe(), {"a.js": b"1"})


def route(generation: int, version: int) -> Route:
    return Route(SessionId("abcdefgh"), generation, version, State.READY)


@pytest.mark.parametrize(
    ("new", "old", "newer"),
    [
        ((1, 2), (1, 1), True),
        ((2, 1), (1, 9), True),
        ((1, 9), (2, 1), False),
        ((1, 1), (1, 1), False),
    ],
)
def test_of_two_routes_generation_counts_before_version(
    new: tuple[int, int], old: tuple[int, int], newer: bool
) -> None:
    assert route(*new).newer_than(route(*old)) is newer


@pytest.fixture
def session() -> Session:
    return Session(
        id=SessionId("abcdefgh"),
        generation=3,
        version=5,
        state=State.READY,
        owner="replica-a/1f2e",
        digest="d",
        recipe=Recipe(),
        base="/preview/abcdefgh/",
        public=False,
        created_at_ms=1,
        expires_at_ms=2,
        expires_in_ms=1,
        endpoint=Endpoint("127.0.0.1", 5173),
        hmr=Hmr(path="hmr", protocol="vite-hmr"),
        reason="why",
        log_tail="log",
    )


def test_the_replica_is_the_owner_without_its_incarnation(session: Session) -> None:
    assert session.replica == "replica-a"
    assert dataclasses.replace(session, owner="").replica == ""


def test_a_route_says_the_same_as_its_session(session: Session) -> None:
    made = session.route
    assert made.owner == session.replica
    for field in dataclasses.fields(Route):
        if field.name != "owner":
            assert getattr(made, field.name) == getattr(session, field.name), field.name
