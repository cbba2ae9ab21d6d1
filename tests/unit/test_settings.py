"""Settings: what is unknown, malformed or contradictory is refused by name, with the remedy."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError

from gateway.errors import SettingsError
from gateway.settings import PREFIX, Settings, is_loopback, load_settings

TOKEN: Final = "a-token-of-enough-characters"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def refused(arguments: dict[str, Any] | None = None) -> str:
    """The message with which settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load_settings(arguments)
    return str(caught.value)


def test_without_any_setting_it_listens_on_loopback_only() -> None:
    settings = load_settings()
    assert is_loopback(settings.host)
    assert is_loopback(settings.advertise_host)
    assert settings.target_allowlist == []
    assert not settings.install_scripts
    assert not settings.insecure


def test_the_environment_sets_and_arguments_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "9000")
    monkeypatch.setenv("GATEWAY_HOLD_SECONDS", "1.5")
    assert load_settings().port == 9000
    assert load_settings().hold_seconds == 1.5
    assert load_settings({"port": 9001}).port == 9001


def test_an_empty_variable_is_as_if_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "")
    assert load_settings().port == 8080


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1


# -- unknown


def test_an_unknown_variable_is_refused_and_the_likely_one_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GATEWAY_REDIS_URI", "redis://localhost")
    assert refused() == "GATEWAY_REDIS_URI is no setting: did you mean GATEWAY_REDIS_URL?"


def test_an_unknown_variable_like_no_other_is_to_be_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_XYZZY", "1")
    assert refused() == "GATEWAY_XYZZY is no setting: unset it"


def test_an_unknown_argument_is_refused() -> None:
    assert "GATEWAY_XYZZY" in refused({"xyzzy": 1})


def test_every_problem_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_XYZZY", "1")
    monkeypatch.setenv("GATEWAY_PORT", "http")
    monkeypatch.setenv("GATEWAY_LEASE_SECONDS", "0")
    message = refused()
    assert [
        name
        for name in ("GATEWAY_XYZZY", "GATEWAY_PORT", "GATEWAY_LEASE_SECONDS")
        if name in message
    ] == ["GATEWAY_XYZZY", "GATEWAY_PORT", "GATEWAY_LEASE_SECONDS"]


# -- malformed


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("port", "70000", "65535"),
        ("port", "tcp://10.0.0.1:8080", "integer"),
        ("api_tokens", "short", "shorter than 16"),
        ("api_tokens", '["unclosed', "JSON array"),
        ("api_tokens", "[1]", "string"),
        ("cors_origins", "example.com", "scheme://host[:port]"),
        ("cors_origins", "https://example.com/path", "scheme://host[:port]"),
        ("target_allowlist", "10.0.0.0/99", "IPv4 or IPv6 network"),
        ("target_allowlist", "10.0.0.1/8", "host bits"),
        ("trusted_proxies", "proxy.example", "IPv4 or IPv6 network"),
        ("header_profile", "b", "'local' or 'public'"),
        ("public_url", "previews.example", "scheme://host[:port]"),
        ("public_url", "https://previews.example/path", "without a path"),
        ("public_url", "ftp://previews.example", "scheme://host[:port]"),
        ("preview_domain", "https://previews.example", "lower-case domain"),
        ("preview_domain", "Previews.Example", "lower-case domain"),
        ("replica_id", "a/b", "A-Z"),
        ("replica_id", "a" * 64, "up to 63"),
        ("redis_url", "http://localhost:6379", "redis://"),
        ("redis_url", "localhost:6379", "redis://"),
        ("spawner", "docker", "process"),
        ("lease_seconds", "nan", "greater"),
        ("log_level", "loud", "debug"),
        ("max_files", "0", "1"),
    ],
)
def test_a_malformed_setting_is_refused_by_name_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, hint: str
) -> None:
    monkeypatch.setenv(PREFIX + name.upper(), value)
    message = refused()
    assert message.startswith(PREFIX + name.upper() + ":")
    assert hint in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0),
        ("public_url", "https://previews.example:8443"),
        ("preview_domain", "previews.example"),
        ("preview_domain", "localhost:8080"),
        ("replica_id", "gateway-7d4b9_x.1"),
        ("trusted_proxies", ["10.0.0.0/8", "192.168.7.7", "fd00::/8"]),
        ("redis_url", "rediss://user:secret@redis.example:6380/1"),
        ("redis_url", "unix:///run/valkey.sock"),
        ("spawner", "none"),
    ],
)
def test_a_wellformed_setting_is_taken(name: str, value: object) -> None:
    assert getattr(load_settings({name: value}), name) == value


def test_the_public_header_profile_needs_subdomain_mode() -> None:
    assert "GATEWAY_PREVIEW_DOMAIN" in refused({"header_profile": "public"})
    settings = load_settings({"header_profile": "public", "preview_domain": "previews.example"})
    assert settings.public_host("some-id-1") == "some-id-1.previews.example"
    with_port = settings.model_copy(update={"preview_domain": "localhost:8080"})
    assert with_port.public_host("some-id-1") == "some-id-1.localhost"
    local = settings.model_copy(update={"header_profile": "local"})
    assert local.public_host("some-id-1") == ""


def test_a_slash_at_the_end_of_the_public_url_is_dropped() -> None:
    settings = load_settings({"public_url": "https://previews.example/"})
    assert settings.public_url == "https://previews.example"


# -- lists


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("https://a.example", ["https://a.example"]),
        (
            " https://a.example , http://b.example:81, ",
            ["https://a.example", "http://b.example:81"],
        ),
        (
            '["https://a.example", "http://b.example:81"]',
            ["https://a.example", "http://b.example:81"],
        ),
        ("[]", []),
        (" , ", []),
    ],
)
def test_a_list_is_a_json_array_or_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, values: list[str]
) -> None:
    monkeypatch.setenv("GATEWAY_CORS_ORIGINS", text)
    assert load_settings().cors_origins == values


def test_a_list_of_folders_is_read_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_WARM_PROJECTS", "/srv/one, /srv/two")
    assert load_settings().warm_projects == [Path("/srv/one"), Path("/srv/two")]


def test_a_list_may_be_given_as_a_list() -> None:
    settings = load_settings({"target_allowlist": ["10.0.0.0/8", "fd00::/8"]})
    assert settings.target_allowlist == ["10.0.0.0/8", "fd00::/8"]


# -- contradictory


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway.example"])
def test_an_open_address_without_tokens_is_refused(host: str) -> None:
    message = refused({"host": host})
    assert f"GATEWAY_HOST={host}" in message
    assert "GATEWAY_API_TOKENS" in message
    assert "--insecure" in message


@pytest.mark.parametrize("way_out", [{"api_tokens": TOKEN}, {"insecure": True}])
def test_an_open_address_is_taken_with_tokens_or_on_demand(way_out: dict[str, object]) -> None:
    assert load_settings({"host": "0.0.0.0"} | way_out).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_can_reach(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_file_limit_above_the_session_limit_is_refused() -> None:
    message = refused({"max_file_bytes": 2, "max_session_bytes": 1})
    assert "GATEWAY_MAX_FILE_BYTES" in message
    assert "GATEWAY_MAX_SESSION_BYTES" in message


def test_one_port_for_both_listeners_is_refused() -> None:
    message = refused({"port": 9090, "admin_port": 9090})
    assert "GATEWAY_ADMIN_PORT and GATEWAY_PORT are both 9090" in message


# -- secrets


@pytest.mark.parametrize("show", [str, repr, lambda settings: settings.model_dump_json()])
def test_a_secret_is_never_shown(show: Any) -> None:
    settings = load_settings({"api_tokens": TOKEN})
    assert TOKEN not in show(settings)
    assert settings.tokens == {TOKEN}


@pytest.mark.parametrize("show", [str, repr])
def test_the_password_in_the_registrys_url_is_never_shown(show: Any) -> None:
    settings = load_settings({"redis_url": "redis://:hunter2-hunter2@localhost:6379"})
    assert "hunter2" not in show(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_TOKENS", "tooshort-secret"),
        ("API_TOKENS", '["secret-without-end'),
        ("API_TOKENS", '{"secret": 1'),
        ("REDIS_URL", "http://:secret@localhost"),
    ],
)
def test_a_secret_is_not_shown_when_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    assert "secret" not in refused()


# -- derived


def test_the_replicas_name_is_as_set_or_made_of_host_and_port() -> None:
    assert load_settings({"replica_id": "gateway-0"}).replica == "gateway-0"
    assert load_settings({"port": 81}).replica == f"{socket.gethostname()[:50]}-81"


def test_data_lives_in_the_users_data_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load_settings().data_dir == tmp_path / "preview-gateway"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings().data_dir == tmp_path / ".local" / "share" / "preview-gateway"


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


# -- workers


def test_workers_are_bounded_by_the_processors_that_may_be_used() -> None:
    most = 4 * len(os.sched_getaffinity(0))
    assert load_settings({"workers": most}).workers == most
    assert f"set it to {most} at most" in refused({"workers": most + 1})
    assert "GATEWAY_WORKERS" in refused({"workers": -1})


def test_workers_are_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "only Linux" in refused({"workers": 1})
    assert load_settings({"workers": 0}).workers == 0
