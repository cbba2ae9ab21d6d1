"""What the gateway itself answers, to people and to programs."""

from __future__ import annotations

import json

import pytest

from gateway.errors import GatewayError, RegistryUnavailable, SessionNotFound
from gateway.proxy import answers
from gateway.proxy.messages import RequestHead
from gateway.proxy.requests import RequestParser
from gateway.session import Route, SessionId, State

ID = SessionId("hello-preview")


def head(*lines: bytes) -> RequestHead:
    parser = RequestParser(max_head=4096, max_target=1024)
    parser.feed(b"\r\n".join([b"GET / HTTP/1.1", b"Host: a", *lines, b"", b""]))
    event = parser.events[0]
    assert isinstance(event, RequestHead)
    return event


PERSON = head(b"Accept: text/html")
PROGRAM = head(b"Accept: application/json")


def route(state: State, reason: str = "because") -> Route:
    return Route(id=ID, generation=1, version=1, state=state, reason=reason)


def test_a_session_that_is_not_found_has_the_members_that_older_callers_look_for() -> None:
    answer = answers.error(SessionNotFound(ID, waited=2.0), PROGRAM, of_preview=True)
    problem = json.loads(answer.body)
    assert (answer.status, answer.content_type) == (404, "application/problem+json")
    assert problem["success"] is False
    assert problem["error"] == "Preview session not found"
    assert problem["sessionId"] == ID
    assert problem["code"] == "session_not_found"


def test_a_person_is_told_how_long_the_registration_was_awaited() -> None:
    answer = answers.error(SessionNotFound(ID, waited=2.0), PERSON, of_preview=True)
    assert answer.content_type.startswith("text/html")
    assert b"2.0 seconds" in answer.body


@pytest.mark.parametrize(
    ("exc", "retry_after"), [(RegistryUnavailable("away"), 1), (GatewayError("broken"), None)]
)
def test_errors_say_when_to_come_back(exc: GatewayError, retry_after: int | None) -> None:
    for asker in (PERSON, PROGRAM):
        answer = answers.error(exc, asker, of_preview=True)
        assert (answer.status, answer.retry_after) == (exc.status, retry_after)
        assert str(exc).encode() in answer.body


def test_the_control_plane_is_answered_for_with_problems_only() -> None:
    answer = answers.error(GatewayError("broken"), PERSON, of_preview=False)
    assert answer.content_type == "application/problem+json"


@pytest.mark.parametrize("state", [State.STOPPED, State.EXPIRED, State.FAILED])
def test_what_has_ended_is_410_with_the_reason(state: State) -> None:
    for asker in (PERSON, PROGRAM):
        answer = answers.ended(route(state), asker)
        assert answer.status == 410
        assert b"because" in answer.body
    assert "no reason given" in json.loads(answers.ended(route(state, ""), PROGRAM).body)["detail"]


def test_a_starting_preview_is_503_and_says_when_to_come_back() -> None:
    page = answers.starting_page(route(State.STARTING), events_url="/events")
    assert (page.status, page.retry_after) == (503, 1)
    assert b"/events" in page.body
    held = answers.still_starting(route(State.STARTING))
    assert (held.status, held.retry_after) == (503, 1)


def test_pages_may_run_their_own_script_and_nothing_else() -> None:
    fields = dict(answers.page(200, b"").fields)
    assert "default-src 'none'" in fields["Content-Security-Policy"]
    assert fields["X-Content-Type-Options"] == "nosniff"


def test_a_redirect_and_a_refused_origin_name_the_address() -> None:
    assert answers.redirect("/preview/x/").fields == (("Location", "/preview/x/"),)
    refused = answers.foreign_origin(head(b"Origin: https://evil.example"))
    assert "https://evil.example" in str(refused)


def test_what_is_refused_is_told_what_would_not_be() -> None:
    old = answers.refused(426, "only 13")
    assert (old.status, json.loads(old.body)["code"]) == (426, "upgrade_required")
    assert old.fields == (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
    bad = answers.refused(400, "no Host")
    assert (bad.status, json.loads(bad.body)["code"], bad.fields) == (400, "malformed_request", ())


@pytest.mark.parametrize("cookie", [None, "a=b; HttpOnly"])
def test_who_opens_a_link_is_sent_on_without_what_is_secret_in_it(cookie: str | None) -> None:
    answer = answers.link_opened(b"/preview/x/", cookie)
    fields = {"Location": "/preview/x/", "Referrer-Policy": "no-referrer"}
    if cookie is not None:
        fields["Set-Cookie"] = cookie
    assert (answer.status, dict(answer.fields)) == (303, fields)
