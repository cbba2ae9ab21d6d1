"""The words in which a dev server is asked, and what is put right in its answers."""

from __future__ import annotations

from typing import Any, Final

import pytest

from gateway.proxy.access import Access
from gateway.proxy.forwarded import Forwarding
from gateway.proxy.messages import RequestHead, ResponseHead
from gateway.proxy.outbox import Outbox
from gateway.proxy.place import CONTROL, Place, Places
from gateway.proxy.profile import LocalProfile, Profile, PublicProfile
from gateway.proxy.requests import RequestParser
from gateway.proxy.responses import ResponseParser
from gateway.proxy.upstream import Pool, PoolLimits
from gateway.session import Hmr, Route, SessionId, State
from gateway.tokens import Tokens

ID: Final = SessionId("abcdef0123456789")
BASE: Final = b"/preview/" + ID.encode() + b"/"
DOMAIN: Final = "previews.example:8443"
OWN_HOST: Final = ID.encode() + b".previews.example:8443"
LOCAL: Final = LocalProfile(
    Access(
        tokens=Tokens(),
        allowed_origins=["https://friend.example"],
        public_url="",
        preview_domain="",
        listen_host="127.0.0.1",
    )
)
PUBLIC: Final = PublicProfile(Forwarding((), scheme="https"), preview_domain=DOMAIN)
BOTH: Final = pytest.mark.parametrize("profile", [LOCAL, PUBLIC], ids=["local", "public"])
UPGRADE: Final = (b"Connection: upgrade", b"Upgrade: foo")
VITE: Final = Hmr(path="?token=t", protocol="vite-hmr")


async def no_connection(_: Any) -> None: ...


@pytest.fixture
async def pool() -> Pool:
    return Pool(
        no_connection,
        name="x",
        connect_timeout_seconds=1,
        limits=PoolLimits(requests=1, tunnels=1, queue=0, queue_seconds=0),
        max_head=1,
        outbox=Outbox(lambda call: None, lambda: 0.0),
        host=b"localhost:5173",
        origin=b"http://localhost:5173",
        address=b"10.0.0.5",
    )


def request(target: bytes, *lines: bytes, host: bytes = b"gateway") -> tuple[Place, RequestHead]:
    parser = RequestParser(max_head=65536, max_target=32768)
    start = b"GET " + target + b" HTTP/1.1"
    parser.feed(b"\r\n".join((start, b"Host: " + host, *lines)) + b"\r\n\r\n")
    head = parser.events[0]
    assert isinstance(head, RequestHead)
    return Places(DOMAIN).of(head), head


def response(*lines: bytes) -> ResponseHead:
    parser = ResponseParser(max_head=65536)
    parser.feed(b"\r\n".join((b"HTTP/1.1 302 Found", *lines)) + b"\r\n\r\n")
    first = parser.events[0]
    assert isinstance(first, ResponseHead)
    return first


def sent(
    profile: Profile,
    pool: Pool,
    asked: tuple[Place, RequestHead],
    *,
    hmr: Hmr | None = None,
    base: bytes = BASE,
) -> bytes:
    place, head = asked
    route = Route(ID, 1, 1, State.READY, base=base.decode(), hmr=hmr or Hmr())
    return profile.request_head(place, head, pool, route, peer_host=b"9.9.9.9", trusted=False)


# -- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [b"http://gateway", b"https://friend.example"])
async def test_locally_a_page_of_the_preview_is_one_of_the_dev_server(
    pool: Pool, origin: bytes
) -> None:
    asked = request(BASE + b"x", b"Origin: " + origin, b"X-Forwarded-Host: evil")
    assert sent(LOCAL, pool, asked) == (
        b"GET "
        + BASE
        + b"x HTTP/1.1\r\nHost: localhost:5173\r\nOrigin: http://localhost:5173\r\n\r\n"
    )


@pytest.mark.parametrize("origin", [b"http://evil.example", b"null"])
async def test_locally_a_page_of_another_site_stays_one(pool: Pool, origin: bytes) -> None:
    asked = request(BASE + b"x", b"Origin: " + origin)
    assert b"\r\nOrigin: " + origin + b"\r\n" in sent(LOCAL, pool, asked)


async def test_publicly_the_dev_server_is_asked_as_the_browser_asked(pool: Pool) -> None:
    asked = request(b"/x", b"Origin: https://a", b"X-Forwarded-For: 6.6.6.6", host=OWN_HOST)
    assert sent(PUBLIC, pool, asked, base=b"/") == (
        b"GET /x HTTP/1.1\r\nHost: " + OWN_HOST + b"\r\n"
        b"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Host: " + OWN_HOST + b"\r\n"
        b"X-Forwarded-Proto: https\r\nOrigin: https://a\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("rest", "lines", "hmr", "rewritten"),
    [
        (b"hmr", UPGRADE, VITE, True),
        (b"hmr?x", UPGRADE, VITE, True),
        (b"hmr", (*UPGRADE, b"Sec-WebSocket-Protocol: vite-hmr"), VITE, True),
        (b"hmr", (), VITE, False),
        (b"hmr", UPGRADE, None, False),
        (b"hmr/x", UPGRADE, VITE, False),
        (b"", UPGRADE, VITE, False),
    ],
)
@BOTH
async def test_the_hmr_address_becomes_the_dev_servers_own(
    profile: Profile,
    pool: Pool,
    rest: bytes,
    lines: tuple[bytes, ...],
    hmr: Hmr | None,
    rewritten: bool,
) -> None:
    head = sent(profile, pool, request(BASE + rest, *lines, b"Origin: http://o"), hmr=hmr)
    assert head.startswith(b"GET " + BASE + (b"?token=t " if rewritten else rest + b" "))
    assert head.count(b"Sec-WebSocket-Protocol: vite-hmr") == rewritten
    assert (b"Origin" in head) is not rewritten


async def test_publicly_an_upgrade_by_path_is_asked_under_the_previews_own_host(
    pool: Pool,
) -> None:
    head = sent(PUBLIC, pool, request(BASE + b"hmr", *UPGRADE), hmr=VITE, base=b"/")
    assert head.startswith(b"GET /?token=t HTTP/1.1\r\nHost: " + OWN_HOST + b"\r\n")
    assert b"\r\nX-Forwarded-Host: " + OWN_HOST + b"\r\n" in head


@BOTH
async def test_the_gateways_cookies_are_not_for_the_dev_server(
    profile: Profile, pool: Pool
) -> None:
    cookie = b"Cookie: a=b; __Host-preview-gateway-x=secret"
    head = sent(profile, pool, request(b"/", cookie, host=OWN_HOST), base=b"/")
    assert b"\r\nCookie: a=b\r\n" in head
    assert b"secret" not in head
    place, asked = request(b"/api", cookie)
    assert b"secret" in place.control_head(asked, ())


# -- answers -------------------------------------------------------------------------------------

SHARED: Final = request(BASE, b"Origin: http://gateway")
ALONE: Final = request(b"/", b"Origin: https://" + OWN_HOST, host=OWN_HOST)


def right(
    profile: Profile, pool: Pool, asked: tuple[Place, RequestHead], *lines: bytes
) -> list[bytes]:
    """The field lines of an answer as they go to the client."""
    answer = response(*lines)
    profile.put_right(answer, *asked, pool)
    return answer.lines


@pytest.mark.parametrize("asked", [SHARED, ALONE], ids=["path", "subdomain"])
@pytest.mark.parametrize("name", [b"Location", b"content-LOCATION"])
@BOTH
async def test_addresses_of_the_dev_server_itself_become_paths(
    profile: Profile, pool: Pool, asked: tuple[Place, RequestHead], name: bytes
) -> None:
    for own in (b"http://localhost:5173", b"//127.0.0.1:5173", b"http://10.0.0.5:5173"):
        assert right(profile, pool, asked, name + b": " + own + b"/a") == [name + b": /a"]
    for other in (b"https://localhost:5173/a", b"//evil", b"a", b"https://" + OWN_HOST + b"/a"):
        assert right(profile, pool, asked, name + b": " + other) == [name + b": " + other]


async def test_locally_the_origin_that_is_allowed_is_the_one_that_asked(pool: Pool) -> None:
    line = b"Access-Control-Allow-Origin: "
    own = line + b"http://localhost:5173"
    assert right(LOCAL, pool, SHARED, own) == [line + b"http://gateway"]
    for other in (b"*", b"null", b"https://a"):
        assert right(LOCAL, pool, SHARED, line + other) == [line + other]
    assert right(LOCAL, pool, request(BASE), own) == [own]
    # Not the page of another site, which the dev server has not allowed.
    assert right(LOCAL, pool, request(BASE, b"Origin: http://evil.example"), own) == [own]


async def test_publicly_the_allowed_origin_is_the_dev_servers_word(pool: Pool) -> None:
    for value in (b"http://localhost:5173", b"https://" + OWN_HOST):
        line = b"Access-Control-Allow-Origin: " + value
        assert right(PUBLIC, pool, ALONE, line) == [line]


@BOTH
async def test_each_cookie_is_confined_and_everything_else_stays(
    profile: Profile, pool: Pool
) -> None:
    lines = (
        b"X-A:  b ",
        b"set-cookie:a=1; Path=/",
        b"Set-Cookie:  b=2;  Secure ",
        b"Set-Cookie: __Host-c=3; Path=/; Secure",
        b"Set-Cookie: d=4; Domain=localhost; Path=/",
        b"Set-Cookie: preview-gateway-e=5",
        b"Vary: X",
    )
    as_passed = response(*lines).lines
    assert right(profile, pool, SHARED, *lines) == [
        as_passed[0],
        b"set-cookie: a=1; Path=" + BASE,
        as_passed[2],
        b"Set-Cookie: d=4; Path=" + BASE,
        b"Vary: X",
    ]
    assert right(profile, pool, ALONE, *lines) == [
        *as_passed[:4],
        b"Set-Cookie: d=4; Path=/",
        b"Vary: X",
    ]


@BOTH
async def test_a_domain_that_is_the_previews_own_stays(profile: Profile, pool: Pool) -> None:
    own = b"Set-Cookie: a=1; Domain=" + ID.upper().encode() + b".previews.example"
    assert right(profile, pool, ALONE, own) == [own]


@pytest.mark.parametrize(
    "line",
    [
        b"Service-Worker-Allowed: /",
        b'clear-site-data: "*"',
        b"Strict-Transport-Security: max-age=1",
        b"NEL: {}",
        b"Report-To: {}",
        b"Reporting-Endpoints: a=b",
        b'Alt-Svc: h2=":1"',
    ],
)
@BOTH
async def test_what_counts_for_a_whole_origin_ends_where_previews_share_it(
    profile: Profile, pool: Pool, line: bytes
) -> None:
    assert right(profile, pool, SHARED, line, b"A: b", line) == [b"A: b"]
    assert right(profile, pool, ALONE, line) == [line]


@BOTH
async def test_an_answer_that_says_nothing_of_the_kind_is_not_gone_through(
    profile: Profile, pool: Pool
) -> None:
    answer = response(b"Content-Type: text/html", b"ETag: x")
    lines = answer.lines
    profile.put_right(answer, *SHARED, pool)
    assert answer.lines is lines


@BOTH
async def test_answers_of_the_control_plane_stay_as_they_are(profile: Profile, pool: Pool) -> None:
    lines = [
        b"Location: http://localhost:5173/a",
        b"Set-Cookie: __Host-preview-gateway-x=1; Path=/; Secure",
        b'Clear-Site-Data: "cookies"',
    ]
    place, head = request(b"/api")
    assert place is CONTROL
    reserved, of_reserved = request(BASE + b".preview/events")
    for args in ((CONTROL, head, pool), (reserved, of_reserved, pool), (SHARED[0], head, None)):
        answer = response(*lines)
        profile.put_right(answer, *args)
        assert answer.lines == lines
