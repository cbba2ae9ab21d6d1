"""API tokens: their scopes and names, and the file in which they are replaced."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.tokens import Caller, Scope, Tokens, parse_token

OLD, NEW = "old-token-0123456789", "new-token-0123456789"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 2.0  # every look is late enough for the next one
        return self.now


@pytest.mark.parametrize(
    ("text", "scope", "name"),
    [
        (f"create:builder:{OLD}", Scope.CREATE, "builder"),
        (f"admin:ops.1_x-y:{OLD}", Scope.ADMIN, "ops.1_x-y"),
    ],
)
def test_a_token_has_a_scope_and_a_name(text: str, scope: Scope, name: str) -> None:
    assert parse_token(text) == (OLD, Caller(scope, name))


@pytest.mark.parametrize("text", [OLD, f"read:x:{OLD}", f"create::{OLD}", f"create:a b:{OLD}"])
def test_what_has_no_scope_is_a_token_as_it_is(text: str) -> None:
    token, caller = parse_token(text)
    assert token == text
    assert caller.scope is Scope.ADMIN
    assert caller.name.startswith("token-")
    assert not set(caller.name.removeprefix("token-")) - set("0123456789abcdef")


@pytest.mark.parametrize("text", ["short", "create:builder:short", ""])
def test_a_short_token_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="openssl") as refused:
        parse_token(text)
    assert not text or text not in str(refused.value).split()


def test_a_caller_manages_what_was_made_under_its_name() -> None:
    assert Caller(Scope.CREATE, "a").manages("a")
    assert not Caller(Scope.CREATE, "a").manages("b")
    assert not Caller(Scope.CREATE, "a").manages("")
    assert not Caller(Scope.READ, "a").manages("a")
    assert Caller(Scope.ADMIN, "a").manages("b")


def test_without_tokens_none_is_asked_for() -> None:
    assert not Tokens().asked_for
    assert Tokens().caller(b"") is None


def test_tokens_are_replaced_in_their_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# of the builder\ncreate:builder:{OLD}\n")
    tokens = Tokens([f"admin:ops:{OLD}x"], file, clock=Clock())
    assert tokens.asked_for
    builder = Caller(Scope.CREATE, "builder")
    assert tokens.caller(OLD.encode()) == builder
    file.write_text(f"create:builder:{OLD}\n\n  create:builder:{NEW}  \n")
    assert tokens.caller(OLD.encode()) == tokens.caller(NEW.encode()) == builder
    file.write_text(f"create:builder:{NEW}\n")
    assert tokens.caller(OLD.encode()) is None
    assert tokens.caller(NEW.encode()) == builder
    assert tokens.caller(f"{OLD}x".encode()) == Caller(Scope.ADMIN, "ops")


def test_a_file_that_is_a_swapped_link_is_read_again(tmp_path: Path) -> None:
    """As Kubernetes updates a mounted secret."""
    for name, token in (("one", OLD), ("two", NEW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens").write_text(token)
    data, file = tmp_path / "..data", tmp_path / "tokens"
    data.symlink_to("one")
    file.symlink_to("..data/tokens")
    tokens = Tokens((), file, clock=Clock())
    assert tokens.caller(OLD.encode())
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(data)
    assert tokens.caller(OLD.encode()) is None
    assert tokens.caller(NEW.encode())


@pytest.mark.parametrize("content", [b"short", b"\xff" * 20, None], ids=["short", "bytes", "gone"])
def test_a_file_that_cannot_be_read_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    file = tmp_path / "tokens"
    file.write_text(OLD)
    tokens = Tokens((), file, clock=Clock())
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert tokens.caller(OLD.encode())
    assert "stay as they were" in caplog.text
    assert "short\n" not in caplog.text
    assert OLD not in caplog.text


def test_a_file_is_looked_at_once_a_second(tmp_path: Path) -> None:
    now = 10.0
    file = tmp_path / "tokens"
    file.write_text(OLD)
    tokens = Tokens((), file, clock=lambda: now)
    assert tokens.caller(NEW.encode()) is None
    file.write_text(f"{OLD}\n{NEW}")
    assert tokens.caller(NEW.encode()) is None
    now = 11.0
    assert tokens.caller(NEW.encode())


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.touch()
    assert Tokens((), file).asked_for
    assert Tokens((), file).caller(b"") is None


@pytest.mark.parametrize("content", ["short", None])
def test_a_gateway_does_not_start_with_a_file_that_cannot_be_read(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match="GATEWAY_API_TOKENS_FILE"):
        Tokens((), file)
