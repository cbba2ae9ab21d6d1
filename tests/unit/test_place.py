"""Which preview a target and a host name mean, and the words it is asked in."""

from __future__ import annotations

import pytest

from gateway.proxy.messages import RequestHead
from gateway.proxy.place import CONTROL, RESERVED, Place, Places, is_internal, own_path
from gateway.proxy.requests import RequestParser
from gateway.session import SessionId

ID = SessionId("abcdef0123456789")
BASE = b"/preview/" + ID.encode() + b"/"
CLIENT = (b"X-Forwarded-For: ::1", b"X-Forwarded-Proto: https")


def head(target: bytes, *lines: bytes, host: bytes = b"localhost") -> RequestHead:
    parser = RequestParser(max_head=65536, max_target=32768)
    start = b"GET " + target + b" HTTP/1.1"
    parser.feed(b"\r\n".join((start, b"Host: " + host, *lines)) + b"\r\n\r\n")
    first = parser.events[0]
    assert isinstance(first, RequestHead)
    return first


def place(target: bytes, *, domain: str = "", host: bytes = b"localhost") -> Place:
    return Places(domain).of(head(target, host=host))


@pytest.mark.parametrize(
    ("target", "rest"),
    [
        (BASE, b""),
        (BASE + b"a/b?c=/d", b"a/b?c=/d"),
        (BASE + b"/double", b"/double"),
        (BASE + b"?q", b"?q"),
        (BASE + b"../x", b"../x"),
    ],
)
def test_a_path_names_a_preview(target: bytes, rest: bytes) -> None:
    found = place(target)
    assert (found.session_id, found.base, found.misplaced) == (ID, BASE, False)
    assert found.rest(target) == rest


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/api/v1/sessions",
        b"/Preview/" + ID.encode() + b"/",
        b"/%70review/" + ID.encode() + b"/",
        b"//preview/" + ID.encode() + b"/",
        b"/previews/" + ID.encode() + b"/",
        b"/x?/preview/" + ID.encode() + b"/",
    ],
)
def test_everything_else_is_for_the_control_plane(target: bytes) -> None:
    assert place(target) is CONTROL


def test_all_that_is_below_a_base_shares_a_place_but_for_what_is_reserved() -> None:
    places = Places("")
    found = places.of(head(BASE + b"a"))
    assert (found.plain, found.session_id, found.base) == (True, ID, BASE)
    for rest in (b"", b"b/c?d", b".preview", b"../x"):
        assert found.has(BASE + rest)
        assert places.of(head(BASE + rest)) is found
    for other in (BASE + RESERVED + b"events", BASE[:-1], b"/preview/" + b"x" * 16 + b"/", b"/"):
        assert not found.has(other)
        assert places.of(head(other)) is not found


@pytest.mark.parametrize("target", [BASE + RESERVED + b"events", BASE[:-1], b"/preview/!/", b"/"])
def test_a_place_that_is_to_be_looked_at_is_that_of_one_request(target: bytes) -> None:
    assert not place(target).has(target)


def test_few_places_are_remembered() -> None:
    places = Places("")
    for number in range(5000):
        places.of(head(b"/preview/other-id-%d/" % number))
    assert len(places._known) <= 4096
    assert places.of(head(BASE + b"c")).session_id == ID
    assert places.of(head(BASE[:-1])).misplaced


@pytest.mark.parametrize("name", [b"", b"short", b"UPPERCASE-0", b"a" * 41, b"abcdef%2d123", b".."])
def test_what_is_no_id_is_kept_as_it_is(name: bytes) -> None:
    found = place(b"/preview/" + name + b"/x")
    assert found.session_id == name.decode()
    assert found.reserved is None


@pytest.mark.parametrize(
    ("target", "moved"),
    [
        (BASE[:-1], BASE),
        (BASE[:-1] + b"?a=/b", BASE + b"?a=/b"),
        (BASE, None),
        (BASE + b"x", None),
    ],
)
def test_a_missing_slash_is_noticed(target: bytes, moved: bytes | None) -> None:
    request = head(target)
    found = Places("").moved(request, place(target))
    assert found == (None if moved is None else moved.decode())


@pytest.mark.parametrize(
    ("rest", "reserved"),
    [
        (b".preview/events", b"events"),
        (b".preview/events?after=1/../2", b"events?after=1/../2"),
        (b".preview/", None),
        (b".preview/events/x", None),
        (b".preview/../x", None),
        (b".preview/%65vents", None),
        (b".previews/events", None),
        (b"x/.preview/events", None),
    ],
)
def test_only_plain_names_are_reserved(rest: bytes, reserved: bytes | None) -> None:
    assert place(BASE + rest).reserved == reserved


@pytest.mark.parametrize(
    ("rest", "hmr"), [(b"hmr", True), (b"hmr?x", True), (b"hmr/x", False), (b"", False)]
)
def test_the_hmr_address_is_known(rest: bytes, hmr: bool) -> None:
    assert place(BASE + rest).is_hmr(BASE + rest) is hmr


def test_reserved_requests_go_to_an_internal_address() -> None:
    found = place(BASE + b".preview/events?x")
    sent = found.control_head(head(BASE + b".preview/events?x", b"Origin: http://o"), CLIENT)
    assert sent == (
        b"GET /-/previews/" + ID.encode() + b"/events?x HTTP/1.1\r\nHost: localhost\r\n"
        b"X-Forwarded-For: ::1\r\nX-Forwarded-Proto: https\r\nOrigin: http://o\r\n\r\n"
    )
    assert found.events_url == (BASE + b".preview/events").decode()


def test_the_control_plane_is_told_how_it_was_called() -> None:
    request = head(b"/api?x", host=b"public.example")
    assert CONTROL.control_head(request, CLIENT) == (
        b"GET /api?x HTTP/1.1\r\nHost: public.example\r\n"
        b"X-Forwarded-For: ::1\r\nX-Forwarded-Proto: https\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("target", "internal"),
    [
        (b"/-/previews", True),
        (b"/%2d/previews", True),
        (b"/%2D%2fpreviews", True),
        (b"%2f%2d%2f", True),
        (b"/-", False),
        (b"/-x/", False),
        (b"/%252d/", False),
        (b"/a/-/", False),
    ],
)
def test_internal_addresses_are_known_in_every_spelling(target: bytes, internal: bool) -> None:
    assert is_internal(target) is internal


# -- subdomain mode ------------------------------------------------------------------------------

DOMAIN = "previews.example:8080"


@pytest.mark.parametrize("port", [b"", b":8080", b":9"])
def test_a_host_names_a_preview(port: bytes) -> None:
    host = ID.upper().encode() + b".Previews.Example" + port
    found = place(b"//a?b", domain=DOMAIN, host=host)
    assert (found.session_id, found.base, found.rest(b"//a?b")) == (ID, b"/", b"/a?b")
    assert not found.has(b"//a?b")  # the host counts, too
    assert Places(DOMAIN).moved(head(b"//a?b"), found) is None
    assert found.events_url == "/.preview/events"


def test_a_label_that_is_no_id_is_kept_as_it_is() -> None:
    found = place(b"/", domain=DOMAIN, host=b"a.b.previews.example")
    assert found.session_id == "a.b"


@pytest.mark.parametrize("host", [b"localhost", b"previews.example", b"xpreviews.example"])
def test_other_hosts_name_none(host: bytes) -> None:
    assert place(b"/", domain=DOMAIN, host=host) is CONTROL


def test_a_path_is_sent_to_its_subdomain() -> None:
    places = Places(DOMAIN)
    request = head(BASE + b"a?b")
    found = places.of(request)
    assert places.moved(request, found) == f"//{ID}.{DOMAIN}/a?b"
    upgrade = head(BASE + b"a?b", b"Connection: upgrade", b"Upgrade: x")
    assert places.moved(upgrade, found) is None


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://Gateway:80/a?b", b"/a?b"),
        (b"HTTPS://gateway:80?b", b"/?b"),
        (b"http://gateway:80", b"/"),
        (b"http://gateway/a", None),
        (b"http://x@gateway:80/a", None),
        (b"ftp://gateway:80/a", None),
        (b"*", None),
    ],
)
def test_a_target_in_absolute_form_names_the_host_once_more(
    target: bytes, path: bytes | None
) -> None:
    assert own_path(target, b"gateway:80") == path


@pytest.mark.parametrize(
    ("rest", "opens", "query"),
    [
        (b".preview/open?e=1&s=2?3", True, b"e=1&s=2?3"),
        (b".preview/open", True, b""),
        (b".preview/events?open", False, b"open"),
        (b"open?e=1", False, b""),
    ],
)
def test_a_signed_link_is_known_and_what_it_carries(rest: bytes, opens: bool, query: bytes) -> None:
    found = place(BASE + rest)
    assert (found.opens_link, found.query) == (opens, query)
