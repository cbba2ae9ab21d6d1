"""Whom to believe, and what: X-Forwarded-* from trusted proxies only."""

from __future__ import annotations

import pytest

from gateway.proxy.forwarded import Forwarding
from gateway.proxy.messages import RequestHead
from gateway.proxy.requests import RequestParser

NETWORKS = ("10.0.0.0/8", "192.168.7.7", "fd00::/8")


def forwarding(*, scheme: str = "http") -> Forwarding:
    return Forwarding(NETWORKS, scheme=scheme)


def head(*lines: bytes) -> RequestHead:
    parser = RequestParser(max_head=65536, max_target=32768)
    parser.feed(b"\r\n".join((b"GET / HTTP/1.1", b"Host: a", *lines)) + b"\r\n\r\n")
    first = parser.events[0]
    assert isinstance(first, RequestHead)
    return first


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        (b"10.255.0.1", True),
        (b"::ffff:10.0.0.1", True),
        (b"192.168.7.7", True),
        (b"fd12::1", True),
        (b"192.168.7.8", False),
        (b"11.0.0.1", False),
        (b"::ffff:11.0.0.1", False),
        (b"fe80::1%eth0", False),
        (b"::1", False),
        (b"unknown", False),
        (b"", False),
    ],
)
def test_only_configured_networks_are_trusted(peer: bytes, trusted: bool) -> None:
    assert forwarding().trusts(peer) is trusted


def test_by_default_nobody_is_trusted() -> None:
    nobody = Forwarding((), scheme="http")
    assert not any(nobody.trusts(peer) for peer in (b"10.0.0.1", b"127.0.0.1", b"::1"))


@pytest.mark.parametrize(
    ("sent", "host"),
    [
        (b"public.example", b"public.example"),
        (b"public.example:8443", b"public.example:8443"),
        # What the trusted proxy itself has added stands last.
        (b"evil.example, public.example", b"public.example"),
        (b"public.example,", None),
        (b"", None),
        (b"a b", None),
        (b"user@public.example", None),
        (b"public.example/path", None),
        (b"x" * 300, None),
    ],
)
def test_a_forwarded_host_is_one_that_a_host_field_may_have(
    sent: bytes, host: bytes | None
) -> None:
    assert forwarding().host(head(b"X-Forwarded-Host: " + sent)) == host


def test_a_host_that_is_not_forwarded_is_none() -> None:
    assert forwarding().host(head()) is None


@pytest.mark.parametrize(
    ("sent", "trusted", "scheme"),
    [
        ((b"X-Forwarded-Proto: https",), True, b"https"),
        ((b"X-Forwarded-Proto: HTTPS",), True, b"https"),
        ((b"X-Forwarded-Proto: wss",), True, b"https"),
        ((b"X-Forwarded-Proto: ws",), True, b"http"),
        ((b"X-Forwarded-Proto: http, https",), True, b"https"),
        ((b"X-Forwarded-Proto: http", b"X-Forwarded-Proto: https"), True, b"https"),
        ((b"X-Forwarded-Proto: ftp",), True, b"http"),
        ((), True, b"http"),
        ((b"X-Forwarded-Proto: https",), False, b"http"),
    ],
)
def test_the_scheme_is_what_a_trusted_proxy_says(
    sent: tuple[bytes, ...], trusted: bool, scheme: bytes
) -> None:
    assert forwarding().scheme(head(*sent), trusted=trusted) == scheme


def test_a_configured_scheme_holds_where_nobody_says_another() -> None:
    public = forwarding(scheme="https")
    assert public.scheme(head(), trusted=True) == b"https"
    assert public.scheme(head(b"X-Forwarded-Proto: http"), trusted=True) == b"http"
    assert public.scheme(head(b"X-Forwarded-Proto: http"), trusted=False) == b"https"


@pytest.mark.parametrize(
    ("sent", "client"),
    [
        (b"1.2.3.4", b"1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4", b"1.2.3.4"),
        (b"6.6.6.6,1.2.3.4 , 10.9.9.9,fd00::2", b"1.2.3.4"),
        (b"1.2.3.4:5678", b"1.2.3.4"),
        (b"[2001:db8::1]:5678", b"2001:db8::1"),
        (b"2001:DB8::1", b"2001:db8::1"),
        (b"10.1.1.1, 10.2.2.2", b"10.1.1.1"),
        (b"1.2.3.4, unknown, 10.2.2.2", b"10.2.2.2"),
        (b"1.2.3.4, unknown", b"10.0.0.1"),
        (b"", b"10.0.0.1"),
        (b",", b"10.0.0.1"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxys(
    sent: bytes, client: bytes
) -> None:
    request = head(b"X-Forwarded-For: " + sent)
    assert forwarding().client(request, b"10.0.0.1", trusted=True) == client
    assert forwarding().client(request, b"9.9.9.9", trusted=False) == b"9.9.9.9"


def test_the_control_plane_is_told_client_and_scheme() -> None:
    request = head(b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Proto: https")
    assert forwarding().for_control(request, b"10.0.0.1", trusted=True) == (
        b"X-Forwarded-For: 1.2.3.4",
        b"X-Forwarded-Proto: https",
    )
    assert forwarding().for_control(request, b"9.9.9.9", trusted=False) == (
        b"X-Forwarded-For: 9.9.9.9",
        b"X-Forwarded-Proto: http",
    )


def test_a_dev_server_is_told_the_chain_as_far_as_it_is_believed() -> None:
    request = head(b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Proto: https")
    said = forwarding().for_preview(request, b"10.0.0.1", trusted=True, host=b"x.example")
    assert said == (
        b"X-Forwarded-For: 1.2.3.4, 10.0.0.1",
        b"X-Forwarded-Host: x.example",
        b"X-Forwarded-Proto: https",
    )
    said = forwarding().for_preview(request, b"9.9.9.9", trusted=False, host=b"x.example")
    assert said[0] == b"X-Forwarded-For: 9.9.9.9"
    assert said[2] == b"X-Forwarded-Proto: http"
    assert forwarding().for_preview(head(), b"10.0.0.1", trusted=True, host=b"x")[0] == (
        b"X-Forwarded-For: 10.0.0.1"
    )
