"""Who may see a private preview: links, and the cookies for which they are exchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.proxy import viewers as viewers_module
from gateway.proxy.viewers import Viewers, own
from gateway.session import Route, SessionId, State
from gateway.signing import Signer

KEY = "k" * 32
BASE = b"/preview/abcdef01/"
ROUTE = Route(
    id=SessionId("abcdef01"), generation=1, version=1, state=State.READY, public=False, access=7
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def viewers(clock: Clock) -> Viewers:
    return Viewers(KEY, clock=clock)


def query(expires: int = 1060, route: Route = ROUTE, key: str = KEY) -> bytes:
    return f"token={Signer(key).sign('link', route.id, route.access, expires)}".encode()


def cookie(viewers: Viewers, *, base: bytes = BASE, secure: bool = False) -> str:
    opened = viewers.opened(ROUTE, query(), base=base, secure=secure)
    assert opened is not None
    return opened


@pytest.mark.parametrize(
    ("base", "secure", "name", "attributes"),
    [
        (
            BASE,
            False,
            "preview-gateway-access",
            "Path=/preview/abcdef01/; Max-Age=60; HttpOnly; SameSite=Lax",
        ),
        (b"/", False, "preview-gateway-access", "Path=/; Max-Age=60; HttpOnly; SameSite=Lax"),
        (
            BASE,
            True,
            "__Secure-preview-gateway-access",
            "Path=/preview/abcdef01/; Max-Age=60; HttpOnly; Secure; SameSite=None; Partitioned",
        ),
        (
            b"/",
            True,
            "__Host-preview-gateway-access",
            "Path=/; Max-Age=60; HttpOnly; Secure; SameSite=None; Partitioned",
        ),
    ],
)
def test_a_cookie_is_confined_to_its_preview(
    viewers: Viewers, base: bytes, secure: bool, name: str, attributes: str
) -> None:
    pair, _, rest = cookie(viewers, base=base, secure=secure).partition("; ")
    assert pair.partition("=")[0] == name
    assert rest == attributes
    assert viewers.admits(ROUTE, pair.encode())


def test_a_cookie_opens_as_long_as_its_link_and_no_longer(viewers: Viewers, clock: Clock) -> None:
    pair = cookie(viewers).partition(";")[0].encode()
    clock.now = 1059.9
    assert viewers.admits(ROUTE, pair)
    clock.now = 1060.0
    assert not viewers.admits(ROUTE, pair)
    assert viewers.opened(ROUTE, query(), base=BASE, secure=False) is None


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"token=",
        b"token=x",
        query(key="K" * 32),
        query(route=replace(ROUTE, access=8)),
        query(route=replace(ROUTE, id=SessionId("abcdef02"))),
        query(expires=1000),
        query().replace(b"token", b"ticket"),
        b"token=\xff",
    ],
)
def test_other_links_open_nothing(viewers: Viewers, bad: bytes) -> None:
    assert viewers.opened(ROUTE, bad, base=BASE, secure=False) is None


def test_a_cookie_opens_one_preview_until_it_is_revoked(viewers: Viewers) -> None:
    pair = cookie(viewers).partition(";")[0].encode()
    assert viewers.admits(ROUTE, b"a=b; " + pair + b"; c=d")
    assert viewers.admits(ROUTE, b"a=b, " + pair)
    assert viewers.admits(ROUTE, b"preview-gateway-access=1." + b"A" * 43 + b"; " + pair)
    assert not viewers.admits(replace(ROUTE, access=8), pair)
    assert not viewers.admits(replace(ROUTE, id=SessionId("abcdef02")), pair)
    assert not viewers.admits(ROUTE, b"x" + pair)
    assert not viewers.admits(ROUTE, pair + b"x")
    assert not viewers.admits(ROUTE, b"a=b")
    # What is in the address is no cookie.
    assert not viewers.admits(ROUTE, b"preview-gateway-access=" + query().partition(b"=")[2])


def test_without_a_key_nobody_is_let_in() -> None:
    anybody = Viewers("")
    assert anybody.opened(ROUTE, query(), base=BASE, secure=False) is None
    with pytest.raises(ValueError, match="empty"):
        Signer("")


def test_few_verdicts_are_remembered(viewers: Viewers) -> None:
    most = viewers_module._MAX_KNOWN
    for number in range(most + 10):
        viewers.admits(ROUTE, b"preview-gateway-access=%d" % number)
        assert len(viewers._known) <= most


def test_of_a_tunnels_cookies_only_what_lets_it_in_is_kept(viewers: Viewers) -> None:
    pair = cookie(viewers, base=b"/", secure=True).partition(";")[0].encode()
    kept = own(b"a=" + b"b" * 4000 + b"; " + pair)
    assert kept == pair.removeprefix(b"__Host-")
    assert viewers.admits(ROUTE, kept)
    assert own(b"a=b") == b""
    assert own(b"preview-gateway-access=no") == b""
