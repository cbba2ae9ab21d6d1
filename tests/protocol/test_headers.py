"""Header fields both ways: what ends here, what is believed, what is put right."""

from __future__ import annotations

import gzip

import pytest

from tests.protocol.conftest import Start
from tests.protocol.harness import ACCEPTED, BASE, HANDSHAKE, ID, TOKEN, Client, Gateway, Peer

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"Content-Length: 0\r\n"
DOMAIN = "previews.example:8443"
HOST = ID.encode() + b".previews.example:8443"
PUBLIC = {"header_profile": "public", "preview_domain": DOMAIN}
BEHIND_A_PROXY = {"trusted_proxies": ["10.0.0.0/8", "127.0.0.1"]}


class Talk:
    """A client, its gateway, and one dev server."""

    def __init__(self, gateway: Gateway, client: Client, *, subdomain: bool) -> None:
        self.gateway = gateway
        self.client = client
        self._base = b"/" if subdomain else BASE
        self._host = HOST if subdomain else b"localhost"
        self._peer: Peer | None = None

    async def asks(
        self, *fields: bytes, method: bytes = b"GET", host: bytes = b"", rest: bytes = b"x"
    ) -> tuple[Peer, bytes]:
        """Ask the preview; the dev server's end and the head that came there."""
        start = method + b" " + self._base + rest + b" HTTP/1.1"
        lines = (start, b"Host: " + (host or self._host), *fields)
        self.client.send(b"\r\n".join(lines) + b"\r\n\r\n")
        if self._peer is None:
            self._peer = await self.gateway.servers[-1].accept()
        return self._peer, await self._peer.head()

    async def hears(self, *fields: bytes) -> bytes:
        """The head that comes to the dev server of a request with these fields."""
        peer, head = await self.asks(*fields)
        peer.send(OK + EMPTY + b"\r\n")
        await self.client.head()
        return head

    async def sees(self, *fields: bytes, asking: tuple[bytes, ...] = ()) -> list[bytes]:
        """The lines that arrive of an answer with these fields, but for those of any answer."""
        peer, _ = await self.asks(*asking)
        peer.send(OK + EMPTY + b"".join(field + b"\r\n" for field in fields) + b"\r\n")
        return arrived(await self.client.head())


def arrived(head: bytes) -> list[bytes]:
    usual = (b"content-length:", b"x-preview-replica: replica-a")
    lines = head.split(b"\r\n")[1:-2]
    return [line for line in lines if not line.lower().startswith(usual)]


async def talk(gateway: Gateway) -> Talk:
    """A talk with the gateway's preview."""
    await gateway.preview()
    subdomain = bool(gateway.settings.preview_domain)
    return Talk(gateway, await gateway.client(), subdomain=subdomain)


# -- fields of one connection (RFC 9110 7.6.1) ---------------------------------------------------


@pytest.mark.parametrize(
    "connection",
    [
        (b"Connection: x-a",),
        (b"Connection: close, x-a",),
        (b"connection:X-A",),
        (b"Connection: \t, ,x-A\t,  ,",),
        (b"Connection: keep-alive", b"Connection: x-b, x-a"),
        (b"Connection: keep-alive,x-a", b"X-A: secret-again"),
    ],
)
async def test_what_connection_names_ends_here(
    gateway: Gateway, connection: tuple[bytes, ...]
) -> None:
    head = await (await talk(gateway)).hears(b"X-A: secret", *connection, b"X-C: kept")
    assert b"secret" not in head
    assert b"onnection" not in head
    assert b"\r\nX-C: kept\r\n" in head


@pytest.mark.parametrize(
    "connection",
    [
        (b"Connection: x-a, close",),
        (b"Connection:,\tX-A ,",),
        (b"Connection: x-b", b"CONNECTION: x-a"),
    ],
)
async def test_what_connection_names_ends_here_on_the_way_back_too(
    gateway: Gateway, connection: tuple[bytes, ...]
) -> None:
    lines = await (await talk(gateway)).sees(b"x-A: secret", *connection, b"X-C: kept")
    assert lines == [b"X-C: kept"]


async def test_a_message_keeps_what_it_cannot_do_without(gateway: Gateway) -> None:
    named = b"Connection: host, content-length, transfer-encoding, origin, x-a"
    conversation = await talk(gateway)
    peer, head = await conversation.asks(
        named, b"Content-Length: 3", b"Origin: http://localhost", method=b"POST"
    )
    assert b"\r\nHost: localhost:" in head
    assert b"\r\nContent-Length: 3\r\n" in head
    assert b"\r\nOrigin: http://localhost:" in head
    conversation.client.send(b"abc")
    assert await peer.exactly(3) == b"abc"
    peer.send(OK + b"Connection: content-length\r\nContent-Length: 5\r\n\r\nhello")
    assert (await conversation.client.response()).body == b"hello"


async def test_a_handshake_keeps_what_it_cannot_do_without(gateway: Gateway) -> None:
    named = (b"sec-websocket-key, sec-websocket-version, sec-websocket-protocol", b"upgrade")
    conversation = await talk(gateway)
    head = await conversation.hears(
        b"Connection: " + b", ".join(named), *HANDSHAKE[1:], b"Sec-WebSocket-Protocol: p"
    )
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in head
    for field in (*HANDSHAKE[2:], b"Sec-WebSocket-Protocol: p"):
        assert b"\r\n" + field + b"\r\n" in head


async def test_an_end_to_end_field_that_is_named_ends_here_like_any_other(
    gateway: Gateway,
) -> None:
    """RFC 9110 7.6.1 makes no exception: who names Cookie or Authorization does without."""
    head = await (await talk(gateway)).hears(
        b"Connection: cookie, Authorization, cache-control",
        b"Cookie: a=secret",
        b"Authorization: Basic secret",
        b"Cache-Control: secret",
    )
    assert b"secret" not in head


@pytest.mark.parametrize(
    "field",
    [
        b"Proxy-Connection: keep-alive",
        b"Keep-Alive: timeout=5",
        b"TE: gzip;q=0.5",
        b"Upgrade: websocket",
        b"Proxy-Authorization: Basic YTpi",
        b"HTTP2-Settings: AAMAAABkAAQAAP__",
    ],
)
async def test_fields_of_one_connection_end_here_also_when_nobody_names_them(
    gateway: Gateway, field: bytes
) -> None:
    head = await (await talk(gateway)).hears(field, b"X-C: kept")
    assert field.partition(b":")[0].lower() not in head.lower()
    assert b"\r\nX-C: kept\r\n" in head


@pytest.mark.parametrize(
    "field", [b"Keep-Alive: timeout=5", b"Proxy-Authenticate: Basic", b"Upgrade: h2c"]
)
async def test_a_dev_servers_fields_of_one_connection_end_here(
    gateway: Gateway, field: bytes
) -> None:
    assert await (await talk(gateway)).sees(field, b"X-C: kept") == [b"X-C: kept"]


#: A gzip stream, which no reading as text leaves as it is.
ZIPPED = gzip.compress(bytes(range(256)) * 8, mtime=0)


@pytest.mark.parametrize(
    ("asking", "status", "answering", "content"),
    [
        (
            (b"Range: bytes=2-5, 9-", b'If-Range: "v1"'),
            b"206 Partial Content",
            (b"Content-Range: bytes 2-5/100", b"Accept-Ranges: bytes", b'ETag: "v1"'),
            b"\x00\xff\r\n",
        ),
        (
            (b"Range: bytes=900-",),
            b"416 Range Not Satisfiable",
            (b"Content-Range: bytes */100",),
            b"",
        ),
        (
            (b"Accept-Encoding: gzip, br;q=0.8",),
            b"200 OK",
            (b"Content-Encoding: gzip", b"Vary: Accept-Encoding, Origin", b'ETag: W/"v,2"'),
            ZIPPED,
        ),
        (
            (
                b'If-None-Match: W/"v,2", "v1"',
                b"If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT",
                b"Cache-Control: max-age=0",
            ),
            b"304 Not Modified",
            (
                b'ETag: W/"v,2"',
                b"Vary: Accept-Encoding",
                b"Last-Modified: Sat, 29 Oct 1994 19:43:31 GMT",
                b"Cache-Control: max-age=31536000,immutable",
                b"Expires: 0",
            ),
            b"",
        ),
        (
            (b'If-Match: "v1"', b"If-Unmodified-Since: Sat, 29 Oct 1994 19:43:31 GMT"),
            b"412 Precondition Failed",
            (b"Vary: *", b"Age: 0", b"Date: Sat, 29 Oct 1994 19:43:31 GMT"),
            b"",
        ),
    ],
    ids=["range", "no such range", "gzip", "not modified", "precondition"],
)
async def test_ranges_codings_and_validators_pass_as_they_are(
    gateway: Gateway,
    asking: tuple[bytes, ...],
    status: bytes,
    answering: tuple[bytes, ...],
    content: bytes,
) -> None:
    """Byte for byte and in order, in both directions: caching is between browser and dev server."""
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", *asking)
    peer = await dev.accept()
    assert b"\r\n" + b"\r\n".join(asking) + b"\r\n" in await peer.head()
    framing = () if status.startswith(b"304") else (b"Content-Length: %d" % len(content),)
    lines = (b"HTTP/1.1 " + status, *answering, *framing, b"", b"")
    peer.send(b"\r\n".join(lines) + content)
    response = await client.response()
    first = b"\r\n".join((b"HTTP/1.1 " + status, *answering)) + b"\r\n"
    assert response.head.startswith(first)
    assert response.body == content
    assert not response.closes


async def test_zipped_content_passes_as_it_is_in_chunks_too(gateway: Gateway) -> None:
    dev = await gateway.preview()
    client = await gateway.client()
    client.get(b"x", b"Accept-Encoding: gzip")
    peer = await dev.accept()
    await peer.head()
    fields = b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    middle = len(ZIPPED) // 2
    chunks = [b"%x\r\n%b\r\n" % (len(p), p) for p in (ZIPPED[:middle], ZIPPED[middle:])]
    peer.send(b"HTTP/1.1 200 OK\r\n" + fields + b"".join(chunks) + b"0\r\n\r\n")
    response = await client.response()
    assert (response.fields["content-encoding"], response.body) == ("gzip", ZIPPED)


async def test_an_offer_of_h2c_is_no_upgrade(gateway: Gateway) -> None:
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAA")
    conversation = await talk(gateway)
    peer, head = await conversation.asks(*offer)
    for word in (b"upgrade", b"http2", b"h2c", b"connection"):
        assert word not in head.lower()
    peer.send(OK + EMPTY + b"\r\n")
    assert (await conversation.client.response()).status == 200


# -- names of the gateway's own ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"X-Preview-Replica", b"x-preview-anything", b"X_Preview_Replica", b"X-Preview_Owner"]
)
async def test_the_gateways_own_fields_pass_in_neither_direction(
    gateway: Gateway, name: bytes
) -> None:
    conversation = await talk(gateway)
    for _ in range(2):  # the second time the line is known
        lines = await conversation.sees(name + b": forged", b"X-C: kept", asking=(b"A: b",))
        assert lines == [b"X-C: kept"]
    head = await conversation.hears(name + b": forged", b"X_Preview: kept")
    assert b"forged" not in head
    assert b"\r\nX_Preview: kept\r\n" in head


@pytest.mark.parametrize("subdomain", [False, True])
async def test_the_gateways_cookies_do_not_reach_the_dev_server(
    start: Start, subdomain: bool
) -> None:
    gateway = await start(preview_domain=DOMAIN if subdomain else "", api_tokens=[TOKEN])
    head = await (await talk(gateway)).hears(
        b"Cookie: a=1; __Host-preview-gateway-x=secret;b=2", b"cookie: preview-gateway-y=secret"
    )
    assert b"\r\nCookie: a=1;b=2\r\n" in head
    assert head.lower().count(b"cookie:") == 1
    assert b"secret" not in head


async def test_the_control_plane_gets_the_gateways_cookies_and_sets_them(gateway: Gateway) -> None:
    client = await gateway.client()
    client.ask(b"/api/x", b"Cookie: preview-gateway-x=1; a=2")
    peer = await gateway.control.accept()
    assert b"\r\nCookie: preview-gateway-x=1; a=2\r\n" in await peer.head()
    cookie = b"Set-Cookie: __Host-preview-gateway-x=2; Path=/; Secure"
    wipe = b'Clear-Site-Data: "cache"'
    peer.send(OK + EMPTY + cookie + b"\r\n" + wipe + b"\r\n\r\n")
    assert arrived(await client.head()) == [cookie, wipe]


# -- cookies of previews -------------------------------------------------------------------------


async def test_in_path_mode_cookies_stay_below_the_previews_base(gateway: Gateway) -> None:
    lines = await (await talk(gateway)).sees(
        b"Set-Cookie: a=1; Path=/; HttpOnly",
        b"X-Between: 1",
        b"set-cookie: b=2",
        b"Set-Cookie: c=3; PATH=/x; Domain=localhost; Secure",
        b"Set-Cookie: __Host-d=4; Path=/; Secure",
        b"Set-Cookie: preview-gateway-e=5",
    )
    assert lines == [
        b"Set-Cookie: a=1; Path=" + BASE + b"; HttpOnly",
        b"X-Between: 1",
        b"set-cookie: b=2",
        b"Set-Cookie: c=3; PATH=" + BASE + b"x; Secure",
    ]


async def test_in_subdomain_mode_cookies_stay_with_the_previews_host(start: Start) -> None:
    lines = await (await talk(await start(preview_domain=DOMAIN))).sees(
        b"Set-Cookie: a=1; Path=/x; Domain=localhost",
        b"Set-Cookie: b=2; domain=.previews.example;Secure",
        b"Set-Cookie: c=3; Domain=" + ID.encode() + b".previews.example",
        b"Set-Cookie: __Host-d=4; Path=/; Secure",
        b"Set-Cookie: __Secure-preview-gateway-e=5; Secure",
    )
    assert lines == [
        b"Set-Cookie: a=1; Path=/x",
        b"Set-Cookie: b=2;Secure",
        b"Set-Cookie: c=3; Domain=" + ID.encode() + b".previews.example",
        b"Set-Cookie: __Host-d=4; Path=/; Secure",
    ]


async def test_cookies_of_interim_responses_are_confined_too(gateway: Gateway) -> None:
    conversation = await talk(gateway)
    peer, _ = await conversation.asks()
    peer.send(b"HTTP/1.1 103 Early Hints\r\nSet-Cookie: a=1; Path=/\r\n\r\n" + OK + EMPTY + b"\r\n")
    early = await conversation.client.head()
    assert arrived(early) == [b"Set-Cookie: a=1; Path=" + BASE]
    assert (await conversation.client.response()).status == 200


async def test_cookies_of_an_upgrade_are_confined_too(gateway: Gateway) -> None:
    conversation = await talk(gateway)
    peer, _ = await conversation.asks(*HANDSHAKE)
    cookie = b"Set-Cookie: a=1; Path=/; Domain=localhost\r\nClear-Site-Data: x\r\n\r\n"
    peer.send(ACCEPTED.removesuffix(b"\r\n") + cookie)
    head = await conversation.client.head()
    assert b"\r\nSet-Cookie: a=1; Path=" + BASE + b"\r\n" in head
    assert b"Clear-Site-Data" not in head


# -- what counts for a whole origin --------------------------------------------------------------

ORIGIN_WIDE = (
    b"Service-Worker-Allowed: /",
    b'Clear-Site-Data: "*"',
    b"Strict-Transport-Security: max-age=9; includeSubDomains",
    b'NEL: {"report_to": "a", "max_age": 9}',
    b'Report-To: {"group": "a"}',
    b'Reporting-Endpoints: a="https://evil.example/"',
    b'alt-svc: h3=":9"',
)


async def test_on_a_shared_origin_no_preview_speaks_for_all_of_it(gateway: Gateway) -> None:
    assert await (await talk(gateway)).sees(*ORIGIN_WIDE, b"A: b") == [b"A: b"]


async def test_on_its_own_origin_a_preview_speaks_for_itself(start: Start) -> None:
    conversation = await talk(await start(preview_domain=DOMAIN))
    assert await conversation.sees(*ORIGIN_WIDE) == list(ORIGIN_WIDE)


# -- addresses of the dev server itself ----------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"preview_domain": DOMAIN}, PUBLIC], ids=str)
@pytest.mark.parametrize("name", [b"Location", b"Content-Location"])
async def test_a_dev_server_that_names_itself_is_not_taken_at_its_word(
    start: Start, settings: dict[str, str], name: bytes
) -> None:
    gateway = await start(**settings)
    conversation = await talk(gateway)
    port = gateway.servers[-1].endpoint.port
    for own in (b"http://localhost:%d/a?b", b"//127.0.0.1:%d/a?b", b"http://[::1]:%d/a?b"):
        assert await conversation.sees(name + b": " + own % port) == [name + b": /a?b"]
    for other in (b"https://%b/a" % HOST, b"//evil.example/", b"/.//a", b"a#b", b"x:" * 300):
        assert await conversation.sees(name + b": " + other) == [name + b": " + other]


async def test_a_page_of_another_site_reads_only_what_the_dev_server_lets_it(
    gateway: Gateway,
) -> None:
    """Its origin arrives as it is: rewritten, Vite would take it for a page of its own."""
    origin = b"Origin: https://evil.example"
    conversation = await talk(gateway)
    peer, head = await conversation.asks(origin)
    assert b"\r\n" + origin + b"\r\n" in head
    port = gateway.servers[-1].endpoint.port
    own = b"Access-Control-Allow-Origin: http://localhost:%d" % port
    peer.send(OK + EMPTY + own + b"\r\n\r\n")
    assert arrived(await conversation.client.head()) == [own]


# -- proxies in front ----------------------------------------------------------------------------

FORWARDED = (
    b"X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.0.0.9",
    b"X-Forwarded-Host: public.localhost",
    b"X-Forwarded-Proto: https",
)


async def control_head(gateway: Gateway, *fields: bytes, host: bytes = b"localhost") -> bytes:
    """What the control plane gets to see."""
    client = await gateway.client()
    client.send(b"\r\n".join((b"GET /api HTTP/1.1", b"Host: " + host, *fields)) + b"\r\n\r\n")
    peer = await gateway.control.accept()
    head = await peer.head()
    peer.send(OK + EMPTY + b"\r\n")
    await client.head()
    return head


async def test_nobody_is_believed_by_default(gateway: Gateway) -> None:
    assert await control_head(gateway, *FORWARDED) == (
        b"GET /api HTTP/1.1\r\nHost: localhost\r\n"
        b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\r\n"
    )


async def test_another_network_than_the_trusted_one_is_not_believed(start: Start) -> None:
    gateway = await start(trusted_proxies=["10.0.0.0/8", "127.0.0.2"])
    head = await control_head(gateway, *FORWARDED)
    assert b"\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n" in head
    assert b"public" not in head


async def test_a_trusted_proxy_is_believed(start: Start) -> None:
    gateway = await start(**BEHIND_A_PROXY)
    assert await control_head(gateway, *FORWARDED) == (
        b"GET /api HTTP/1.1\r\nHost: public.localhost\r\n"
        b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n"
    )


async def test_a_trusted_proxy_may_say_nothing(start: Start) -> None:
    assert await control_head(await start(**BEHIND_A_PROXY)) == (
        b"GET /api HTTP/1.1\r\nHost: localhost\r\n"
        b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\r\n"
    )


@pytest.mark.parametrize("name", [b"X-Forwarded-Host", b"X_Forwarded_Host", b"Forwarded"])
async def test_a_foreign_name_is_no_host_of_ours_however_it_is_given(
    start: Start, name: bytes
) -> None:
    gateway = await start(**BEHIND_A_PROXY)
    field = name + b": evil.example"
    if name != b"X-Forwarded-Host":
        assert b"evil" not in await control_head(gateway, field)
        return
    client = await gateway.client()
    client.ask(b"/api", field)
    assert (await client.response()).status == 421
    assert gateway.control.untouched


async def test_no_forwarded_host_makes_a_foreign_host_ours(start: Start) -> None:
    """A page that was rebound to a trusted proxy's machine can send any field it likes."""
    gateway = await start(**BEHIND_A_PROXY)
    client = await gateway.client()
    field = b"X-Forwarded-Host: localhost"
    client.send(b"GET /api HTTP/1.1\r\nHost: evil.example\r\n" + field + b"\r\n\r\n")
    assert (await client.response()).status == 421
    assert gateway.control.untouched


@pytest.mark.parametrize(("trusted", "status"), [([], 403), (["127.0.0.0/8"], 200)])
async def test_behind_a_proxy_the_forwarded_host_is_the_pages_own(
    start: Start, trusted: list[str], status: int
) -> None:
    gateway = await start(trusted_proxies=trusted)
    conversation = await talk(gateway)
    fields = (b"Origin: https://a.localhost", b"X-Forwarded-Host: a.localhost", EMPTY[:-2])
    if status == 200:
        peer, head = await conversation.asks(*fields, method=b"POST")
        assert b"\r\nOrigin: http://localhost:" in head
        peer.send(OK + EMPTY + b"\r\n")
    else:
        conversation.client.get(b"x", *fields, method=b"POST")
    assert (await conversation.client.response()).status == status


@pytest.mark.parametrize("trusted", [[], ["127.0.0.1"]])
async def test_behind_a_proxy_the_forwarded_host_names_the_preview(
    start: Start, trusted: list[str]
) -> None:
    gateway = await start(trusted_proxies=trusted, preview_domain=DOMAIN)
    await gateway.preview()
    client = await gateway.client()
    client.ask(b"/x", b"X-Forwarded-Host: " + HOST)
    peer = await (gateway.servers[-1] if trusted else gateway.control).accept()
    assert (await peer.head()).startswith(b"GET /x HTTP/1.1\r\n")
    peer.send(OK + EMPTY + b"\r\n")
    assert (await client.response()).status == 200


async def test_by_default_the_dev_server_hears_nothing_of_proxies(start: Start) -> None:
    gateway = await start(**BEHIND_A_PROXY)
    head = await (await talk(gateway)).hears(*FORWARDED)
    assert b"orwarded" not in head


# -- header profile B ----------------------------------------------------------------------------


async def test_publicly_the_dev_server_is_asked_as_the_browser_asked(start: Start) -> None:
    gateway = await start(**PUBLIC, public_url="https://previews.example:8443")
    conversation = await talk(gateway)
    origin = b"Origin: https://" + HOST
    peer, head = await conversation.asks(
        origin, *FORWARDED, b"X_Forwarded_Proto: gopher", EMPTY[:-2], method=b"POST"
    )
    assert head == (
        b"POST /x HTTP/1.1\r\nHost: " + HOST + b"\r\n"
        b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: " + HOST + b"\r\n"
        b"X-Forwarded-Proto: https\r\n" + origin + b"\r\n" + EMPTY + b"\r\n"
    )
    allowed = b"Access-Control-Allow-Origin: https://" + HOST
    place = b"Location: https://" + HOST + b"/y"
    peer.send(OK + EMPTY + allowed + b"\r\n" + place + b"\r\n\r\n")
    assert arrived(await conversation.client.head()) == [allowed, place]


async def test_publicly_the_dev_server_hears_what_a_trusted_proxy_says(start: Start) -> None:
    conversation = await talk(await start(**PUBLIC, **BEHIND_A_PROXY))
    head = await conversation.hears(
        b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Proto: wss", b"X-Forwarded-Host: " + HOST
    )
    assert b"\r\nX-Forwarded-For: 1.2.3.4, 127.0.0.1\r\n" in head
    assert b"\r\nX-Forwarded-Proto: https\r\n" in head
    assert b"\r\nX-Forwarded-Host: " + HOST + b"\r\n" in head


async def test_publicly_what_connection_names_does_not_remove_the_gateways_word(
    start: Start,
) -> None:
    conversation = await talk(await start(**PUBLIC))
    head = await conversation.hears(b"Connection: x-forwarded-for, x-forwarded-proto")
    assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in head
    assert b"\r\nX-Forwarded-Proto: http\r\n" in head


@pytest.mark.parametrize("settings", [{"preview_domain": DOMAIN}, PUBLIC], ids=["A", "B"])
async def test_an_upgrade_from_a_foreign_page_is_403_in_both_profiles(
    start: Start, settings: dict[str, str]
) -> None:
    gateway = await start(**settings)
    dev = await gateway.preview()
    for origin in (b"https://evil.example", b"https://other-id-1.previews.example:8443", b"null"):
        client = await gateway.client()
        fields = (b"Host: " + HOST, *HANDSHAKE, b"Origin: " + origin)
        client.send(b"\r\n".join((b"GET /?token=t HTTP/1.1", *fields)) + b"\r\n\r\n")
        assert (await client.response()).status == 403
    assert dev.untouched
