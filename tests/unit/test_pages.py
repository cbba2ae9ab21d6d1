"""The pages: complete, small, escaped, and closed to everything a stranger's text could add."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Final

import pytest

from gateway.proxy import pages
from gateway.session import Route, SessionId, State

ID: Final = SessionId("a-session-id-of-exactly-forty-characters")
EVIL: Final = (
    "</pre></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)> \udcff &amp;"
)
#: EVIL as it must arrive; what UTF-8 cannot say becomes a question mark.
EVIL_SEEN: Final = EVIL.replace("\udcff", "?")


def route(state: State, **fields: str) -> Route:
    reason, log_tail = fields.get("reason", ""), fields.get("log_tail", "")
    return Route(
        id=ID, generation=1, version=1, state=state, base="/", reason=reason, log_tail=log_tail
    )


ALL: Final[dict[str, Callable[[], bytes]]] = {
    "starting": lambda: pages.starting(route(State.STARTING), events_url="/events"),
    "waking": lambda: pages.starting(route(State.SLEEPING), events_url="/events"),
    "failed": lambda: pages.failed(route(State.FAILED, reason="no", log_tail="one\ntwo")),
    "failed without a word": lambda: pages.failed(route(State.FAILED)),
    "stopped": lambda: pages.gone(route(State.STOPPED, reason="stopped by its owner")),
    "expired": lambda: pages.gone(route(State.EXPIRED)),
    "not found": lambda: pages.not_found(ID, 2.0),
    "unavailable": lambda: pages.unavailable("the registry did not answer", 5),
    "bad gateway": lambda: pages.bad_gateway("connection refused"),
}


class Document(HTMLParser):
    """A page as a browser reads it: tags in order, attributes, and the text between."""

    VOID: Final = frozenset({"meta", "img", "br", "circle", "path"})

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in {"style", "script"}:
            self.text += data

    def values(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


@pytest.mark.parametrize("page", ALL.values(), ids=ALL)
def test_a_page_is_a_complete_document_of_less_than_12_kilobytes(
    page: Callable[[], bytes],
) -> None:
    html = page()
    assert html.startswith(b"<!doctype html>\n<html lang=")
    assert len(html) < 12 * 1024
    document = Document(html)
    assert document.tags.count("title") == document.tags.count("h1") == 1
    assert document.tags.count("main") == 1


@pytest.mark.parametrize("page", ALL.values(), ids=ALL)
def test_a_page_fetches_nothing_from_anywhere(page: Callable[[], bytes]) -> None:
    html = page()
    assert not re.search(rb"https?://|//[a-z]|@import|url\(", re.sub(rb"// .*", b"", html))
    assert {"link", "img", "iframe", "object", "form"}.isdisjoint(Document(html).tags)


@pytest.mark.parametrize("page", ALL.values(), ids=ALL)
def test_a_page_is_dark_where_the_browser_is_before_anything_is_painted(
    page: Callable[[], bytes],
) -> None:
    html = page()
    assert html.index(b'name="color-scheme" content="dark light"') < html.index(b"<style>")
    assert b"prefers-color-scheme: dark" in html


@pytest.mark.parametrize(
    "page",
    [
        pages.failed(route(State.FAILED, reason=EVIL, log_tail=EVIL)),
        pages.gone(route(State.STOPPED, reason=EVIL)),
        pages.not_found(EVIL, 0.0),
        pages.unavailable(EVIL, 1),
        pages.bad_gateway(EVIL),
    ],
    ids=["failed", "gone", "not found", "unavailable", "bad gateway"],
)
def test_a_strangers_text_stays_text(page: bytes) -> None:
    document = Document(page)
    assert EVIL_SEEN in document.text
    assert "script" not in document.tags
    assert "img" not in document.tags


def test_the_address_of_the_events_stays_an_attribute() -> None:
    document = Document(pages.starting(route(State.STARTING), events_url="/e?a=1&b=" + EVIL))
    assert document.values("body", "data-events") == ["/e?a=1&b=" + EVIL_SEEN]
    assert document.tags.count("script") == 1


@pytest.mark.parametrize("page", ALL.values(), ids=ALL)
def test_a_page_forbids_every_style_and_script_but_its_own(page: Callable[[], bytes]) -> None:
    document = Document(page())
    (policy,) = [value for value in document.values("meta", "content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert ("script-src" in policy) == ("script" in document.tags)
    assert "style" not in {name for _, name, _ in document.attributes}


@pytest.mark.parametrize(
    ("events_url", "source"),
    [
        ("/api/v1/sessions/x/events", "'self'"),
        ("https://gateway.example:8443/api/v1/events?x=1", "https://gateway.example:8443"),
    ],
)
def test_the_starting_page_may_connect_to_its_event_stream_only(
    events_url: str, source: str
) -> None:
    document = Document(pages.starting(route(State.STARTING), events_url=events_url))
    (policy,) = [value for value in document.values("meta", "content") if "default-src" in value]
    assert f"connect-src {source}" in policy.split("; ")


@pytest.mark.parametrize(
    ("state", "step"), [(State.REGISTERED, "Registered"), (State.STARTING, "Installing")]
)
def test_the_starting_page_marks_one_step_as_current(state: State, step: str) -> None:
    html = pages.starting(route(state), events_url="/events").decode()
    assert re.findall(r'aria-current="step">(\w+)<', html) == [step]


def test_the_starting_page_reloads_without_scripts_too() -> None:
    html = pages.starting(route(State.STARTING), events_url="/events")
    assert b'<noscript><meta http-equiv="refresh" content="2"></noscript>' in html


def test_a_sleeping_preview_is_said_to_wake() -> None:
    page = pages.starting(route(State.SLEEPING), events_url="/events")
    assert "Waking your preview" in Document(page).text


def test_the_failed_page_shows_reason_and_end_of_the_log() -> None:
    page = pages.failed(route(State.FAILED, reason="npm exited with 1", log_tail="a\n  b\n"))
    text = Document(page).text
    assert "npm exited with 1" in text
    assert "a\n  b" in text
    assert "What to do" in text


def test_the_failed_page_without_a_log_shows_no_empty_box() -> None:
    assert "pre" not in Document(pages.failed(route(State.FAILED))).tags


@pytest.mark.parametrize(
    ("state", "words"),
    [(State.STOPPED, "has been stopped"), (State.EXPIRED, "has expired")],
)
def test_the_gone_page_tells_how_it_ended(state: State, words: str) -> None:
    text = Document(pages.gone(route(state, reason="because"))).text
    assert words in text
    assert "because" in text


@pytest.mark.parametrize(
    ("waited", "said"), [(0.0, False), (1.96, True)], ids=["at once", "after a wait"]
)
def test_the_not_found_page_tells_a_wait_only_if_there_was_one(waited: float, said: bool) -> None:
    assert ("2.0 seconds" in Document(pages.not_found(ID, waited)).text) is said


@pytest.mark.parametrize(
    ("retry_after", "seconds", "words"), [(5, "5", "5 seconds"), (0, "1", "every second")]
)
def test_the_unavailable_page_tries_again_after_the_given_time(
    retry_after: int, seconds: str, words: str
) -> None:
    document = Document(pages.unavailable("overloaded", retry_after))
    assert seconds in document.values("meta", "content")
    assert words in document.text
