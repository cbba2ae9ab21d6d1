"""Cookies: those of the gateway stay here, those of a preview stay with it."""

from __future__ import annotations

import pytest

from gateway.proxy.cookies import confined, has_own, without_own

BASE = b"/preview/abcdef01/"
HOST = b"abcdef01.previews.example"


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (b"Cookie: a=b", b"Cookie: a=b"),
        (b"Cookie: preview-gateway-x=1", None),
        (b"cookie: __Host-preview-gateway-x=1; __Secure-preview-gateway-y=2", None),
        (b"Cookie: preview-gateway-x=1; a=b;c=d", b"Cookie: a=b;c=d"),
        (b"Cookie: a=b; __Host-preview-gateway-x=1; c=d", b"Cookie: a=b; c=d"),
        (b"COOKIE: a=b; c=d; preview-gateway-x=1", b"COOKIE: a=b; c=d"),
        (b"Cookie: a=preview-gateway-x; b", b"Cookie: a=preview-gateway-x; b"),
        (b"Cookie: my-preview-gateway-x=1", b"Cookie: my-preview-gateway-x=1"),
        # Sent for a cookie without a name: it must not pass for ours, either.
        (b"Cookie: =preview-gateway-x=1; a=b", b"Cookie: a=b"),
        # A quote does not hide what is ours ("cookie sandwich").
        (b'Cookie: a="; preview-gateway-x=1; b="', b'Cookie: a="; b="'),
        (b"X-Other: preview-gateway-x=1", b"X-Other: preview-gateway-x=1"),
        (b"Cookies: preview-gateway-x=1", b"Cookies: preview-gateway-x=1"),
    ],
)
def test_cookies_of_the_gateway_do_not_arrive(sent: bytes, arrives: bytes | None) -> None:
    others = [b"A: b", b"C: d"]
    expected = [b"A: b", arrives, b"C: d"] if arrives is not None else others
    assert without_own([others[0], sent, others[1]]) == expected


def test_a_glance_tells_whether_a_cookie_may_be_ours() -> None:
    assert has_own(b"a=b; __Host-preview-gateway-x=1")
    assert not has_own(b"a=b; preview=1")


#: What a preview says, and what becomes of it on an origin that it shares.
SHARED = {
    b"a=b": b"a=b",
    b"a=b; HttpOnly;Secure ; SameSite=None;Partitioned": (
        b"a=b; HttpOnly;Secure ; SameSite=None;Partitioned"
    ),
    b"a=b; Path=/": b"a=b; Path=/preview/abcdef01/",
    b"a=b;pAtH = / ;Secure": b"a=b;pAtH =/preview/abcdef01/;Secure",
    b"a=b; Path=/app/x": b"a=b; Path=/preview/abcdef01/app/x",
    b"a=b; Path=/preview/abcdef01/": b"a=b; Path=/preview/abcdef01/",
    b"a=b; Path=/preview/abcdef01": b"a=b; Path=/preview/abcdef01",
    b"a=b; Path=/preview/abcdef01/x": b"a=b; Path=/preview/abcdef01/x",
    b"a=b; Path=/preview/abcdef012/": b"a=b; Path=/preview/abcdef01/preview/abcdef012/",
    b"a=b; Path=/preview/other-id/": b"a=b; Path=/preview/abcdef01/preview/other-id/",
    # The last one counts; each is confined.
    b"a=b; Path=/preview/abcdef01/; Path=/": (
        b"a=b; Path=/preview/abcdef01/; Path=/preview/abcdef01/"
    ),
    # No absolute path: browsers take the directory of the request, which is below.
    b"a=b; Path": b"a=b; Path",
    b"a=b; Path=": b"a=b; Path=",
    b"a=b; Path=x": b"a=b; Path=x",
    b"a=b; Domain=localhost": b"a=b",
    b"a=b; Domain=127.0.0.1; Secure": b"a=b; Secure",
    b"a=b;DOMAIN = .previews.example;Path=/": b"a=b;Path=/preview/abcdef01/",
    b"a=b; Domain=abcdef01.previews.example": b"a=b",
    b"a=b; Domain": b"a=b",
    b'a="x; Path=/; y"': b'a="x; Path=/preview/abcdef01/; y"',
    b"path=/; Path=/": b"path=/; Path=/preview/abcdef01/",
    b"__Secure-a=b; Secure; Path=/": b"__Secure-a=b; Secure; Path=/preview/abcdef01/",
    b"__Host-a=b; Secure; Path=/": None,
    b" __hOsT-a=b; Secure; Path=/": None,
    b"__Host-Http-a=b; Secure; Path=/; HttpOnly": None,
    b"=__Host-a=b; Secure; Path=/": None,
    b"__Hosta=b": b"__Hosta=b",
    b"preview-gateway-x=1": None,
    b"__Host-preview-gateway-x=1": None,
    b"__Secure-preview-gateway-x=1; Secure": None,
    b"=preview-gateway-x=1": None,
    b"= preview-gateway-x=1": None,
    b"not-preview-gateway-x=1": b"not-preview-gateway-x=1",
    b"": b"",
    b"; Path=/": b"; Path=/preview/abcdef01/",
}


@pytest.mark.parametrize("cookie", SHARED, ids=str)
def test_on_a_shared_origin_a_preview_sets_cookies_below_its_base_only(cookie: bytes) -> None:
    assert confined(cookie, host=b"gateway.example", base=BASE) == SHARED[cookie]


#: The same where the preview has its host for itself.
ALONE = {
    b"a=b": b"a=b",
    b"a=b; Path=/": b"a=b; Path=/",
    b"a=b; Path=/x;Secure": b"a=b; Path=/x;Secure",
    b"a=b; Domain=localhost; Path=/": b"a=b; Path=/",
    b"a=b; Domain=127.0.0.1": b"a=b",
    b"a=b; domain=.previews.example": b"a=b",
    b"a=b; Domain=previews.example; HttpOnly": b"a=b; HttpOnly",
    b"a=b; Domain=other-id.previews.example": b"a=b",
    b"a=b; Domain=x.abcdef01.previews.example": b"a=b",
    b"a=b; Domain=": b"a=b",
    # The last one counts; none that is foreign stays.
    b"a=b; Domain=abcdef01.previews.example; Domain=previews.example": (
        b"a=b; Domain=abcdef01.previews.example"
    ),
    b"a=b; Domain=.ABCdef01.previews.example ": b"a=b; Domain=.ABCdef01.previews.example ",
    b"__Host-a=b; Secure; Path=/": b"__Host-a=b; Secure; Path=/",
    b"__Host-a=b; Secure; Path=/; Domain=localhost": b"__Host-a=b; Secure; Path=/",
    b"__Host-preview-gateway-x=1; Secure; Path=/": None,
}


@pytest.mark.parametrize("cookie", ALONE, ids=str)
def test_on_its_own_host_a_preview_sets_cookies_for_that_host_only(cookie: bytes) -> None:
    assert confined(cookie, host=HOST, base=b"/") == ALONE[cookie]
