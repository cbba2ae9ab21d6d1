"""Addresses that name the dev server itself become paths; no other address is touched."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from gateway.proxy.locations import put_right

OWN = {
    b"http://localhost:5173/a?b#c": b"/a?b#c",
    b"http://localhost:5173": b"/",
    b"http://localhost:5173?b": b"/?b",
    b"http://localhost:5173#c": b"/#c",
    b"HTTP://LocalHost:05173/a": b"/a",
    b"http://127.0.0.1:5173/a": b"/a",
    b"http://[::1]:5173/a": b"/a",
    b"http://0.0.0.0:5173/a": b"/a",
    b"http://[::]:5173/a": b"/a",
    b"http://10.1.2.3:5173/a": b"/a",
    b"//localhost:5173/a": b"/a",
    b"//127.0.0.1:5173": b"/",
    b"http://localhost:5173/a\xff%2F//b": b"/a\xff%2F//b",
}


@pytest.mark.parametrize("location", OWN, ids=str)
def test_what_names_the_dev_server_becomes_a_path(location: bytes) -> None:
    assert put_right(location, port=b"5173", address=b"10.1.2.3") == OWN[location]


def test_an_ipv6_address_of_the_dev_server_is_known() -> None:
    assert put_right(b"http://[FD00::1]:80/a", port=b"80", address=b"fd00::1") == b"/a"


def test_a_port_that_is_not_named_is_80() -> None:
    assert put_right(b"http://localhost/a", port=b"80", address=b"x") == b"/a"
    assert put_right(b"http://localhost/a", port=b"5173", address=b"x") == b"http://localhost/a"


#: Where a path, taken off its host, would lead to another host in a browser.
LURES = {
    b"http://localhost:5173//evil.example/": b"/.//evil.example/",
    b"http://localhost:5173///evil.example/": b"/.///evil.example/",
    b"http://localhost:5173/\\evil.example/": b"/./\\evil.example/",
    b"http://localhost:5173/\t/evil.example/": b"/.//evil.example/",
    b"http://localhost:5173/\t\\\tevil.example/": b"/./\\evil.example/",
    b"//localhost:5173//evil.example/": b"/.//evil.example/",
}


@pytest.mark.parametrize("location", LURES, ids=str)
def test_no_path_leads_to_another_host(location: bytes) -> None:
    right = put_right(location, port=b"5173", address=b"127.0.0.1")
    assert right == LURES[location]
    assert not urlsplit(right.decode().replace("\\", "/")).netloc


FOREIGN = [
    b"",
    b"/",
    b"/a",
    b"a",
    b"?b",
    b"./a",
    b"//evil.example/",
    b"///evil.example/",
    b"////localhost:5173/",
    b"/\\evil.example",
    b"\\\\evil.example",
    b"/\t/evil.example",
    b"https://evil.example/",
    b"https:evil.example",
    b"http:/localhost:5173/",
    b"http:localhost:5173/",
    b"http:///localhost:5173/",
    b"http:\\\\localhost:5173\\a",
    b"https://localhost:5173/",
    b"ws://localhost:5173/",
    b"javascript://localhost:5173/%0aalert(1)",
    b"http://localhost:51730/",
    b"http://localhost:517/",
    b"http://localhost:5174/",
    b"http://localhost:/",
    b"http://localhost:5173@evil.example/",
    b"http://localhost:5173\\@evil.example/",
    b"http://localhost:5173.evil.example/",
    b"http://localhost:5173:80/",
    b"http://user@localhost:5173/",
    b"http://localhost%3a5173/",
    b"http://local\thost:5173/",
    b"http://localhost:5173\t/",
    b"http://localhost.evil.example:5173/",
    b"http://evil.example:5173/",
    b"http://xlocalhost:5173/",
    b"http://localhost.:5173/",
    b"http://[::1:5173/",
    b"http://[::2]:5173/",
    b"http://127.0.0.1.evil.example:5173/",
    b"http://2130706433:5173/",
    b"http://evil.example/?http://localhost:5173/",
    b"http://evil.example#http://localhost:5173/",
    b"https://abcdef01.previews.example/a",
    b"http://gateway.example/preview/abcdef01/a",
    b"data:text/html,http://localhost:5173/",
]


@pytest.mark.parametrize("location", FOREIGN, ids=str)
def test_every_other_address_passes_byte_for_byte(location: bytes) -> None:
    assert put_right(location, port=b"5173", address=b"127.0.0.1") == location
