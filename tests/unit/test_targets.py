"""Which addresses a session may point to."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from gateway.api.targets import parse_target, resolve_target
from gateway.errors import BadRequest, TargetRefused
from gateway.session import Endpoint
from gateway.settings import load_settings


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        ("http://store.internal:3000/", Endpoint("store.internal", 3000)),
        ("[::1]:5173", Endpoint("::1", 5173)),
    ],
)
def test_a_target_is_a_host_and_a_port(text: str, endpoint: Endpoint) -> None:
    assert parse_target(text) == endpoint
    assert parse_target(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text", ["", "host", "host:0", "host:x", "ftp://host:1", "host:1/x", "host:1?x", "a@host:1"]
)
def test_anything_else_is_malformed(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_target(text)


async def refused(target: str, *, allowed: str, registry: Collection[tuple[str, int]] = ()) -> bool:
    settings = load_settings({"target_allowlist": allowed})
    try:
        await resolve_target(parse_target(target), settings, registry=registry)
    except TargetRefused:
        return True
    return False


async def test_only_addresses_of_the_allow_list_pass() -> None:
    assert await refused("127.0.0.1:80", allowed="")
    assert await refused("127.0.0.1:80", allowed="10.0.0.0/8, ::/0")
    assert not await refused("127.0.0.1:80", allowed="10.0.0.0/8, 127.0.0.1/32")
    assert not await refused("[::1]:80", allowed="::1/128")


async def test_an_ipv4_address_in_ipv6_clothes_is_what_it_is() -> None:
    assert await refused("[::ffff:127.0.0.1]:80", allowed="::/0")
    settings = load_settings({"target_allowlist": "127.0.0.0/8"})
    endpoint = await resolve_target(parse_target("[::ffff:127.0.0.1]:80"), settings, registry=())
    assert endpoint == Endpoint("127.0.0.1", 80)


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:6379", "localhost:6379", "127.9.9.9:6379", "[::1]:6379", "0.0.0.0:6379"],
)
async def test_the_registry_is_refused_under_every_local_address(target: str) -> None:
    everywhere = "0.0.0.0/0, ::/0"
    elsewhere = ("127.0.0.1", 6380)
    assert await refused(target, allowed=everywhere, registry=[elsewhere, ("localhost", 6379)])
    assert not await refused(target, allowed=everywhere, registry=[elsewhere])
