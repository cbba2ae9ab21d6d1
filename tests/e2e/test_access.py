"""A gateway with API tokens: who may do what, and from which page."""

from __future__ import annotations

import secrets
import socket
from typing import Final

import aiohttp
import pytest

from gateway import __version__
from gateway.proxy.build import BUILD
from tests.e2e.calls import SESSIONS, expect_problem, fresh_id
from tests.e2e.conftest import Pair

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


def free_port() -> int:
    """A port that is free on every loopback address, at least now."""
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])


TOKENS: Final = [secrets.token_hex(24), secrets.token_hex(24)]
FRIEND: Final = "https://builder.example"
STRANGER: Final = "https://elsewhere.example"
ADMIN_PORT: Final = free_port()
ENVIRON: Final = {
    "GATEWAY_API_TOKENS": ",".join(TOKENS),
    "GATEWAY_CORS_ORIGINS": FRIEND,
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_ADMIN_PORT": str(ADMIN_PORT),
    "GATEWAY_LOG_LEVEL": "debug",
    "GATEWAY_REGISTRATION_WAIT_SECONDS": "0.2",
}
BEARER: Final = {"Authorization": f"Bearer {TOKENS[1]}"}

CALLS: Final = [
    ("POST", SESSIONS),
    ("GET", SESSIONS),
    *((method, f"{SESSIONS}/some-id-1") for method in ("GET", "PATCH", "DELETE")),
    ("PATCH", f"{SESSIONS}/some-id-1/files"),
    ("POST", f"{SESSIONS}/some-id-1/stop"),
    *(("GET", f"{SESSIONS}/some-id-1/{part}") for part in ("logs", "events")),
    ("GET", "/api/v1/replicas"),
    ("GET", "/api/v1/nonsense"),
    ("POST", "/kontext/preview"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer",
        "Bearer " + "x" * 48,
        f"Basic {TOKENS[0]}",
        f"Token {TOKENS[0]}",
        TOKENS[0],
        f"Bearer {TOKENS[0]}{TOKENS[1]}",
        f"Bearer {TOKENS[0]} {TOKENS[1]}",
    ],
    ids=["none", "empty", "wrong", "basic", "token", "bare", "joined", "two"],
)
async def test_every_call_asks_for_a_token(
    shared_pair: Pair, method: str, path: str, authorization: str | None
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    answer = await shared_pair.a.ask(method, path, headers=headers)
    assert "GATEWAY_API_TOKENS" in expect_problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    if path.startswith("/kontext/"):
        assert answer.body["success"] is False
        assert answer.body["error"]


@pytest.mark.parametrize("token", TOKENS, ids=["first", "second"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_each_token_opens_the_api(shared_pair: Pair, token: str, scheme: str) -> None:
    answer = await shared_pair.a.ask(
        "GET", SESSIONS, headers={"Authorization": f"{scheme} {token}"}
    )
    assert answer.status == 200


async def test_no_address_of_the_inside_can_be_reached(shared_pair: Pair) -> None:
    answer = await shared_pair.a.ask("GET", "/-/previews/some-id-1/events")
    expect_problem(answer, 400, "bad_target")


# -- health and metrics ----------------------------------------------------------------------------


async def test_health_is_open_on_both_ports(shared_pair: Pair) -> None:
    for api in (shared_pair.a, shared_pair.b):
        for path, status in (("/livez", "ok"), ("/readyz", "ready")):
            answer = await api.ask("GET", path)
            assert (answer.status, answer.body["status"]) == (200, status)
            on_admin = await api.ask("GET", path, port=ADMIN_PORT)
            assert (on_admin.status, on_admin.body) == (200, answer.body)


async def test_metrics_are_on_the_admin_port_only(shared_pair: Pair, shared_echo: str) -> None:
    session = (
        await shared_pair.a.ask("POST", SESSIONS, json={"target": shared_echo}, headers=BEARER)
    ).body
    for _ in range(3):
        await shared_pair.a.ask("GET", f"/preview/{session['id']}/")
    answer = await shared_pair.a.ask("GET", "/metrics", port=ADMIN_PORT)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    samples = dict(
        line.rsplit(" ", 1) for line in answer.body.splitlines() if not line.startswith("#")
    )
    assert float(samples['preview_gateway_responses_total{code="200"}']) >= 4
    assert float(samples["preview_gateway_registry_linked"]) == 1
    build = f'{{data_plane="{BUILD}",version="{__version__}"}}'
    assert float(samples[f"preview_gateway_build_info{build}"]) == 1
    assert session["id"] not in answer.body
    assert (await shared_pair.a.ask("GET", "/metrics", headers=BEARER)).status == 404


# -- previews --------------------------------------------------------------------------------------


async def test_a_private_preview_opens_with_a_token_which_its_server_never_sees(
    shared_pair: Pair, shared_echo: str
) -> None:
    body = {"id": fresh_id(), "target": shared_echo, "visibility": "private"}
    created = await shared_pair.a.ask("POST", SESSIONS, json=body, headers=BEARER)
    assert created.body["visibility"] == "private"
    path = f"/preview/{body['id']}/x"
    for api in (shared_pair.a, shared_pair.b):
        closed = await api.ask("GET", path)
        assert (closed.status, closed.body["code"]) == (404, "session_not_found")
        wrong = await api.ask("GET", path, headers={"Authorization": "Bearer " + "x" * 48})
        assert wrong.status == 404
        opened = await api.ask("GET", path, headers=BEARER)
        assert opened.status == 200
        assert opened.body["path"] == path
        assert "authorization" not in opened.body["headers"]
        # The same way into its events.
        events = f"/preview/{body['id']}/.preview/events"
        assert (await api.ask("GET", events)).status == 404
    patched = await shared_pair.b.ask(
        "PATCH", f"{SESSIONS}/{body['id']}", json={"visibility": "public"}, headers=BEARER
    )
    assert patched.body["visibility"] == "public"
    opened = await shared_pair.a.ask("GET", path, headers={"Authorization": "Bearer its-own"})
    assert opened.status == 200
    assert opened.body["headers"]["authorization"] == "Bearer its-own"


# -- pages of other sites --------------------------------------------------------------------------


async def test_a_page_of_a_configured_origin_may_call(shared_pair: Pair, shared_echo: str) -> None:
    preflight = await shared_pair.a.ask(
        "OPTIONS",
        SESSIONS,
        headers={
            "Origin": FRIEND,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        },
    )
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == FRIEND
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in preflight.headers

    call = await shared_pair.a.ask(
        "POST", SESSIONS, json={"target": shared_echo}, headers={**BEARER, "Origin": FRIEND}
    )
    assert call.status == 201
    assert call.headers["Access-Control-Allow-Origin"] == FRIEND
    assert "Location" in call.headers["Access-Control-Expose-Headers"]
    # What went wrong can be read, too.
    refused = await shared_pair.a.ask("GET", SESSIONS, headers={"Origin": FRIEND})
    expect_problem(refused, 401, "unauthorized")
    assert refused.headers["Access-Control-Allow-Origin"] == FRIEND
    events = f"{shared_pair.a.url}{SESSIONS}/{call.body['id']}/events"
    async with (
        aiohttp.ClientSession() as http,
        http.get(events, headers={**BEARER, "Origin": FRIEND}) as stream,
    ):
        assert stream.headers["Access-Control-Allow-Origin"] == FRIEND


async def test_a_page_of_another_origin_may_not(shared_pair: Pair, shared_echo: str) -> None:
    preflight = await shared_pair.a.ask(
        "OPTIONS",
        SESSIONS,
        headers={"Origin": STRANGER, "Access-Control-Request-Method": "POST"},
    )
    assert preflight.status >= 400
    read = await shared_pair.a.ask("GET", SESSIONS, headers={**BEARER, "Origin": STRANGER})
    for answer in (preflight, read):
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
        assert answer.headers["Vary"] == "Origin"
    for origin in (
        STRANGER,
        "null",
        FRIEND.replace("https", "http"),
        FRIEND + ".elsewhere.example",
    ):
        answer = await shared_pair.a.ask(
            "POST", SESSIONS, json={"target": shared_echo}, headers={**BEARER, "Origin": origin}
        )
        assert "GATEWAY_CORS_ORIGINS" in expect_problem(answer, 403, "forbidden")


# -- the log ---------------------------------------------------------------------------------------


async def test_no_token_is_ever_logged(shared_pair: Pair) -> None:
    token = TOKENS[0]
    for path in (SESSIONS, "/preview/some-id-1/", f"/x?token={token}", f"/{token}"):
        await shared_pair.a.ask("GET", path, headers={"Authorization": f"Bearer {token}"})
        await shared_pair.a.ask("GET", path, headers={"Authorization": token})
    await shared_pair.a.ask(
        "POST", SESSIONS, json={"id": token, "token": token}, headers={"X-Token": token}
    )
    lines = shared_pair.a.replica.lines + shared_pair.b.replica.lines
    assert len(lines) > 2
    assert not [line for line in lines if any(token in line for token in TOKENS)]
