"""Who may: tokens, origins, host names."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api.gate import session_token
from gateway.proxy import access as access_module
from gateway.proxy.access import Access, has_session_token
from gateway.proxy.messages import RequestHead
from gateway.proxy.requests import RequestParser
from gateway.signing import Signer
from gateway.tokens import Tokens
from tests.protocol.harness import ID, session

TOKEN = "0123456789abcdef0123"


def access(**changes: Any) -> Access:
    defaults: dict[str, Any] = {
        "tokens": (),
        "allowed_origins": ("https://app.example",),
        "public_url": "",
        "preview_domain": "",
        "listen_host": "127.0.0.1",
    }
    given = {**defaults, **changes}
    return Access(**{**given, "tokens": Tokens(given["tokens"])})


def head(*lines: bytes, method: bytes = b"GET", host: bytes = b"gateway:80") -> RequestHead:
    parser = RequestParser(max_head=65536, max_target=32768)
    parser.feed(b"\r\n".join((method + b" / HTTP/1.1", b"Host: " + host, *lines)) + b"\r\n\r\n")
    first = parser.events[0]
    assert isinstance(first, RequestHead)
    return first


@pytest.mark.parametrize(
    ("value", "ours"),
    [
        (b"Bearer " + TOKEN.encode(), True),
        (b"bearer   " + TOKEN.encode(), True),
        (b"Bearer\t" + TOKEN.encode(), True),
        (b"Bearer " + TOKEN.encode() + b"x", False),
        (b"Bearer", False),
        (b"Basic " + TOKEN.encode(), False),
        (TOKEN.encode(), False),
    ],
)
def test_only_a_bearer_token_of_ours_counts(value: bytes, ours: bool) -> None:
    request = head(b"Authorization: " + value)
    caller = access(tokens=[TOKEN, "another-token-0123"]).caller(request)
    assert (caller is not None) is ours
    assert not access().caller(request)


def test_no_authorization_is_no_token() -> None:
    assert not access(tokens=[TOKEN]).caller(head())
    assert not has_session_token(head())


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (b"Bearer abcdef0123456789.3.1893456000.Zm9v-YmFy_MTIz", True),
        (b"bearer\t abcdef01.0.1.x", True),
        (b"Bearer abcdef01.0.1", False),
        (b"Bearer abcdef01.0.1.x.y", False),
        (b"Bearer abcdef01.0.1.\xe4", False),
        (b"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.c2ln", False),
        (b"Basic abcdef01.0.1.x", False),
        (b"abcdef01.0.1.x", False),
        (b"Bearer", False),
    ],
)
def test_a_token_for_a_session_is_known_by_its_form(value: bytes, is_one: bool) -> None:
    assert has_session_token(head(b"Authorization: " + value)) is is_one


def test_what_is_issued_has_that_form() -> None:
    signed = Signer("s" * 32).sign("token", ID, 3, 1893456000)
    token = session_token(session(), signed)
    assert has_session_token(head(b"Authorization: Bearer " + token.encode()))


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (b"http://gateway:80", True),
        (b"https://gateway:80", True),
        (b"https://app.example", True),
        (b"https://public.example", True),
        (b"http://app.example", False),
        (b"http://gateway", False),
        (b"http://gateway:81", False),
        (b"null", False),
        (b"", False),
    ],
)
def test_unsafe_requests_come_from_the_same_origin_or_a_configured_one(
    origin: bytes, allowed: bool
) -> None:
    rules = access(public_url="https://public.example")
    line = b"Origin: " + origin
    upgrade = (b"Connection: upgrade", b"Upgrade: foo")
    assert rules.origin_allowed(head(line, method=b"POST")) is allowed
    assert rules.origin_allowed(head(line, *upgrade)) is allowed
    assert rules.origin_allowed(head(line))
    assert rules.origin_allowed(head(line, method=b"OPTIONS"))


@pytest.mark.parametrize(
    ("lines", "own"),
    [
        ((b"Origin: http://gateway:80",), True),
        ((b"Origin: https://app.example",), True),
        ((b"Origin: http://evil.example",), False),
        ((b"Origin: null",), False),
        ((), False),
    ],
)
def test_a_page_of_ones_own_is_known_whatever_the_method(
    lines: tuple[bytes, ...], own: bool
) -> None:
    assert access().is_own_page(head(*lines)) is own


def test_what_no_page_has_made_passes() -> None:
    assert access().origin_allowed(head(method=b"DELETE"))


@pytest.mark.parametrize(
    ("host", "own"),
    [
        (b"localhost", True),
        (b"LocalHost:8080", True),
        (b"anything.localhost:8080", True),
        (b"127.0.0.1:8080", True),
        (b"10.1.2.3", True),
        (b"[::1]:8080", True),
        (b"gateway.example", True),
        (b"public.example:443", True),
        (b"previews.example:8080", True),
        (b"abc.previews.example", True),
        (b"evil.example", False),
        (b"localhost.evil.example", False),
        (b"notpreviews.example", False),
        (b"[evil]", False),
        (b"1.2.3.4.evil", False),
    ],
)
def test_without_tokens_only_names_of_our_own_are_served(host: bytes, own: bool) -> None:
    names: dict[str, Any] = {
        "public_url": "https://public.example:8443/",
        "preview_domain": "previews.example:8080",
        "listen_host": "gateway.example",
    }
    rules = access(**names)
    assert rules.host_allowed(host) is own
    assert rules.host_allowed(host) is own  # remembered
    assert access(**names, tokens=[TOKEN]).host_allowed(host)


def test_few_names_are_remembered() -> None:
    rules, most = access(), access_module._MAX_HOSTS
    for number in range(most + 10):
        assert not rules.host_allowed(b"evil-%d.example" % number)
        assert rules.host_allowed(b"localhost")
        assert len(rules._known_hosts) <= most
