"""What a registry's URL means."""

from __future__ import annotations

import pytest

from gateway.registry.url import Address, RedisUrl, parse_redis_url, without_passwords


def test_one_server() -> None:
    assert parse_redis_url("redis://store") == RedisUrl(
        "server", (Address("store", 6379),), "redis://localhost/0"
    )
    assert parse_redis_url("rediss://u:p%40@[::1]:7000/2?ssl_ca_certs=/ca.pem") == RedisUrl(
        "server",
        (Address("::1", 7000),),
        "rediss://u:p%40@localhost/2?ssl_ca_certs=%2Fca.pem",
    )


def test_a_socket_is_left_as_it_is() -> None:
    url = "unix://:word@/run/valkey.sock?db=1"
    assert parse_redis_url(url) == RedisUrl("server", (), url)


def test_sentinels_name_the_primary_of_a_service() -> None:
    assert parse_redis_url("redis+sentinel://u:p@a,b:1/previews/3") == RedisUrl(
        "sentinel",
        (Address("a", 26379), Address("b", 1)),
        "redis://u:p@localhost/3",
        "redis://localhost/",
        "previews",
    )


def test_sentinels_have_a_login_of_their_own() -> None:
    url = parse_redis_url(
        "rediss+sentinel://u:p@a/s?sentinel_username=w%20w&sentinel_password=x/y+z&ssl_ca_certs=c"
    )
    assert url.plain == "rediss://u:p@localhost/0?ssl_ca_certs=c"
    assert url.plain_sentinel == "rediss://w%20w:x%2Fy%20z@localhost/?ssl_ca_certs=c"
    only_word = parse_redis_url("redis+sentinel://a/s?sentinel_password=x")
    assert only_word.plain_sentinel == "redis://:x@localhost/"


def test_a_cluster_is_found_through_any_of_its_nodes() -> None:
    assert parse_redis_url("rediss+cluster://:p@a,b:7001/") == RedisUrl(
        "cluster", (Address("a", 6379), Address("b", 7001)), "rediss://:p@localhost/0"
    )


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://a", "redis://"),
        ("redis+other://a", "redis\\+cluster://"),
        ("http+cluster://a", "redis\\+cluster://"),
        ("a:6379", "redis://"),
        ("unix://", "path of the socket"),
        ("redis://", "name the host"),
        ("redis://a:port", "'a:port' is no host:port"),
        ("redis://a:99999", "no host:port"),
        ("redis://a,b", "redis\\+sentinel://"),
        ("redis+cluster://a,,b", "name the host"),
        ("redis+sentinel://a", "name the service"),
        ("redis+sentinel://a/s/x", "'x' is no database"),
        ("redis://a/0/1", "'0/1' is no database"),
        ("redis+cluster://a/1", "only database 0"),
        ("redis://a?sentinel_password=x", "sentinel_password belongs to"),
    ],
)
def test_what_cannot_be_used_says_what_to_write(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_redis_url(url)


def test_an_address_reads_as_it_is_written() -> None:
    assert str(Address("a", 1)) == "a:1"
    assert str(Address("::1", 1)) == "[::1]:1"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://a:1/0", "redis://a:1/0"),
        ("redis://u@a", "redis://u@a"),
        ("redis://u:word@a,b:1/s", "redis://u:**********@a,b:1/s"),
        ("redis://a/s?password=word&db=1", "redis://a/s?password=**********&db=1"),
        (
            "redis+sentinel://a/s?sentinel_password=w",
            "redis+sentinel://a/s?sentinel_password=**********",
        ),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_passwords(url) == shown
    assert "word" not in repr(parse_redis_url("redis+sentinel://u:word@a/s?sentinel_password=word"))
