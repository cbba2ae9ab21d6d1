"""The older shape of the create call, and the HMR socket at its well-known address."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Final

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.e2e.calls import APP, SESSIONS, expect_problem, fresh_id
from tests.e2e.conftest import Pair

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

CALL: Final = "/kontext/preview"
FILES: Final = {file["path"]: file["content"] for file in APP}
OTHERS: Final = {path: content for path, content in FILES.items() if path != "package.json"}
#: The same project in every form of the call.
FORMS: Final[dict[str, dict[str, Any]]] = {
    "list": {"files": APP},
    "object": {"files": FILES},
    "package.json as an object": {
        "files": OTHERS,
        "packageJson": json.loads(FILES["package.json"]),
    },
    "package.json as a string": {"files": OTHERS, "packageJson": FILES["package.json"]},
    "package.json in both places": {"files": FILES, "packageJson": FILES["package.json"]},
    "further fields": {"files": [file | {"type": "x"} for file in APP], "userId": 7},
}


@pytest.mark.node
@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
async def test_every_form_of_the_call_makes_a_preview(
    shared_pair: Pair, body: dict[str, Any]
) -> None:
    session_id = fresh_id()
    answer = await shared_pair.a.ask("POST", CALL, json={**body, "sessionId": session_id})
    assert answer.status == 200
    base = f"{shared_pair.a.url}/preview/{session_id}/"
    assert answer.body == {
        "success": True,
        "sessionId": session_id,
        "previewUrl": base,
        "wsUrl": f"ws{base.removeprefix('http')}hmr",
    }
    preview = await shared_pair.b.ask("GET", f"/preview/{session_id}/")
    assert preview.status == 200
    assert "/@vite/client" in preview.body
    # As a caller does whose answer was lost.
    again = await shared_pair.b.ask("POST", CALL, json={**body, "sessionId": session_id})
    assert (again.status, again.body["success"]) == (200, True)
    await shared_pair.b.ask("DELETE", f"{SESSIONS}/{session_id}")


async def test_without_an_id_one_is_made(shared_pair: Pair) -> None:
    answer = await shared_pair.a.ask("POST", CALL, json={"files": FILES})
    assert re.fullmatch("[0-9a-f]{32}", answer.body["sessionId"])
    assert answer.body["previewUrl"].endswith(f"/preview/{answer.body['sessionId']}/")
    await shared_pair.b.ask("DELETE", f"{SESSIONS}/{answer.body['sessionId']}")


@pytest.mark.parametrize(
    ("body", "code", "session_id"),
    [
        ({"files": {}, "sessionId": "no"}, "bad_session_id", "no"),
        ({"files": {"../x": ""}, "sessionId": "some-id-1"}, "bad_files", "some-id-1"),
        ({"files": [], "sessionId": "some-id-1"}, "bad_request", "some-id-1"),
        ({"files": {"a": ""}, "sessionId": "some-id-1"}, "unsupported_project", "some-id-1"),
        ({"files": {}, "packageJson": "{"}, "unsupported_project", None),
        ({"sessionId": "some-id-1"}, "bad_request", None),
        ([], "bad_request", None),
        ({"files": {"a": 7}}, "bad_request", None),
    ],
)
async def test_errors_have_the_older_shape_too(
    shared_pair: Pair, body: Any, code: str, session_id: str | None
) -> None:
    answer = await shared_pair.a.ask("POST", CALL, json=body)
    detail = expect_problem(answer, 400, code)
    assert answer.body["success"] is False
    assert answer.body["error"] == detail
    assert answer.body["sessionId"] == session_id


async def test_a_body_that_is_no_json_has_the_older_shape_too(shared_pair: Pair) -> None:
    answer = await shared_pair.a.ask("POST", CALL, data="x", headers={"Content-Type": "text/html"})
    expect_problem(answer, 415, "unsupported_media_type")
    assert (answer.body["success"], answer.body["sessionId"]) == (False, None)


async def test_without_an_allow_list_no_target_is_allowed(shared_pair: Pair) -> None:
    answer = await shared_pair.a.ask("POST", SESSIONS, json={"target": "127.0.0.1:9"})
    assert "GATEWAY_TARGET_ALLOWLIST" in expect_problem(answer, 403, "target_refused")


# -- the HMR socket --------------------------------------------------------------------------------


@pytest.mark.node
@pytest.mark.parametrize("origin", [None, "own"])
async def test_the_well_known_address_reaches_the_hmr_socket_through_the_other_replica(
    shared_pair: Pair, origin: str | None
) -> None:
    created = await shared_pair.a.ask("POST", CALL, json={"files": FILES})
    path = f"/preview/{created.body['sessionId']}/hmr"
    url = f"ws{shared_pair.b.url.removeprefix('http')}{path}"
    own = Origin(shared_pair.b.url) if origin else None
    # At once: the first upgrade is held until the dev server is ready.
    async with asyncio.timeout(60), connect(url, origin=own, open_timeout=60) as socket:
        assert json.loads(await socket.recv()) == {"type": "connected"}
        for module in ("", "main.js", "message.js"):  # Vite tells of modules it has served
            await shared_pair.b.ask("GET", f"/preview/{created.body['sessionId']}/{module}")
        changed = {"path": "message.js", "content": "export const message = 'other';"}
        edit = await shared_pair.a.ask(
            "PATCH",
            f"{SESSIONS}/{created.body['sessionId']}/files",
            json={"write": [changed]},
        )
        assert edit.status == 200
        assert json.loads(await socket.recv())["type"] in {"update", "full-reload"}
    await shared_pair.b.ask("DELETE", f"{SESSIONS}/{created.body['sessionId']}")


@pytest.mark.node
async def test_a_refusal_of_the_dev_server_is_passed_on_as_it_is(shared_pair: Pair) -> None:
    """Vite refuses a socket with an Origin and without its token: 400.

    The normal path with the token opens: so the token is what the gateway must not drop.
    """
    session = await shared_pair.a.create({"files": APP}, ready=True)
    path = f"/preview/{session['id']}/"
    client = await shared_pair.b.ask("GET", f"{path}@vite/client")
    found = re.search(r'wsToken = "([^"]+)"', client.body)
    assert found
    url = f"ws{shared_pair.b.url.removeprefix('http')}{path}"
    options: dict[str, Any] = {
        "origin": Origin(shared_pair.b.url),
        "subprotocols": [Subprotocol("vite-hmr")],
        "open_timeout": 30,
    }
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, **options)
    assert refused.value.response.status_code == 400
    async with connect(f"{url}?token={found[1]}", **options) as socket:
        assert socket.subprotocol == "vite-hmr"
        assert json.loads(await socket.recv()) == {"type": "connected"}
    # A page of another site gets nowhere, token or not.
    options["origin"] = Origin("https://evil.example")
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{url}?token={found[1]}", **options)
    assert refused.value.response.status_code == 403
    await shared_pair.b.ask("DELETE", f"{SESSIONS}/{session['id']}")
