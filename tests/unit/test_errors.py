"""The error tree: each error can be answered to a caller as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from gateway import errors
from gateway.errors import (
    BadSessionId,
    GatewayError,
    KubeUnavailable,
    RegistryUnavailable,
    RevisionConflict,
    SessionConflict,
    SessionNotFound,
    SpawnFailed,
)


def tree(root: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    yield root
    for child in root.__subclasses__():
        # Other modules hang errors of their own into the tree; this file answers for this module.
        if child.__module__ == errors.__name__:
            yield from tree(child)


ALL = list(tree())


@pytest.mark.parametrize("error", ALL)
def test_every_error_says_what_it_means_itself(error: type[GatewayError]) -> None:
    assert 400 <= error.status <= 599
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert error.title
    assert error.__doc__
    assert {"code", "title"} <= vars(error).keys(), "inherited: callers could not tell them apart"


def test_codes_are_unique() -> None:
    codes = [error.code for error in ALL]
    assert len(codes) == len(set(codes))


def test_the_tree_is_drawn_with_the_status_of_each_error() -> None:
    for error in ALL:
        if error is not errors.SettingsError:  # raised before anything is served
            assert f"{error.__name__} {error.status}" in (errors.__doc__ or "") or any(
                f"{parent.__name__} {error.status}" in (errors.__doc__ or "")
                for parent in error.__mro__[1:]
                if issubclass(parent, GatewayError)
            )
        assert error.__name__ in (errors.__doc__ or "")


def test_only_what_passes_by_itself_may_be_retried_soon() -> None:
    passing = {*tree(RegistryUnavailable), KubeUnavailable}
    assert {error for error in ALL if error.retry_after} == passing


def test_a_store_error_is_never_not_found() -> None:
    for error in tree(RegistryUnavailable):
        assert error.status == 503


def test_a_bad_id_is_quoted_shortened_and_the_rule_given() -> None:
    message = str(BadSessionId("X" * 1000 + "\n"))
    assert "8 to 40 characters" in message
    assert len(message) < 250
    assert "\n" not in message


def test_not_found_tells_a_wait_only_if_there_was_one() -> None:
    assert str(SessionNotFound("some-id0")) == "there is no session some-id0; create it first"
    waited = SessionNotFound("some-id0", waited=2.04)
    assert "waited 2.0 s" in str(waited)
    assert waited.session_id == "some-id0"


def test_a_conflict_tells_the_ways_out() -> None:
    assert "some-id0" in str(SessionConflict("some-id0"))
    assert "PATCH" in str(SessionConflict("some-id0"))


def test_a_revision_conflict_carries_the_current_revision() -> None:
    error = RevisionConflict(7)
    assert error.current == 7
    assert "revision 7" in str(error)


def test_a_failed_spawn_carries_the_end_of_the_log() -> None:
    error = SpawnFailed("npm exited with 1", log_tail="ERESOLVE")
    assert (str(error), error.log_tail) == ("npm exited with 1", "ERESOLVE")
    assert SpawnFailed("gone").log_tail == ""
