"""Files of a session through the API: as JSON and as tar.gz, in and out, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from gateway import archive
from tests.e2e.calls import SESSIONS, expect_problem, fresh_id, stored
from tests.e2e.conftest import Pair
from tests.e2e.replicas import Answer, Api

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ENVIRON: Final = {
    "GATEWAY_TARGET_ALLOWLIST": "127.0.0.0/8",
    "GATEWAY_MAX_FILES": "20",
    "GATEWAY_MAX_FILE_BYTES": "100000",
    "GATEWAY_MAX_SESSION_BYTES": "300000",
    "GATEWAY_MAX_API_BODY_BYTES": "1000000",
    "GATEWAY_START_TIMEOUT_SECONDS": "600",
}
#: Lives, and never listens: a session whose files can be changed, and nothing else happens.
COMMAND: Final = ["sleep", "600"]
GZIP: Final = {"Content-Type": "application/gzip"}
FILES: Final = {"a.js": b"one", "src/b.bin": b"\x00\xff", "ä": "ö".encode()}


async def begun(api: Api, files: dict[str, bytes] = FILES) -> dict[str, Any]:
    """A session made of an archive."""
    answer = await api.ask(
        "POST",
        SESSIONS,
        params={"session": json.dumps({"command": COMMAND, "metadata": {"m": 1}})},
        data=archive.pack(files),
        headers=GZIP,
    )
    assert answer.status == 201, answer.body
    assert isinstance(answer.body, dict)
    return answer.body


async def files_of(api: Api, session_id: str) -> dict[str, bytes]:
    """What a download as JSON holds."""
    answer = await api.ask("GET", f"{SESSIONS}/{session_id}/files")
    assert answer.status == 200, answer.body
    return {
        file["path"]: base64.b64decode(file["content"])
        if file["encoding"] == "base64"
        else file["content"].encode()
        for file in answer.body["files"]
    }


async def download(api: Api, session_id: str) -> bytes:
    """The archive of a download."""
    answer = await api.ask("GET", f"{SESSIONS}/{session_id}/files?format=tar.gz")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/gzip"
    assert answer.headers["Content-Disposition"].endswith(f'"{session_id}.tar.gz"')
    assert isinstance(answer.body, bytes)
    return answer.body


async def test_a_session_made_of_an_archive_has_its_files_on_every_replica(
    shared_pair: Pair,
) -> None:
    session = await begun(shared_pair.a)
    assert (session["revision"], session["metadata"]) == (1, {"m": 1})
    assert await files_of(shared_pair.b, session["id"]) == FILES
    packed = await download(shared_pair.b, session["id"])
    assert archive.unpack(packed, max_files=99, max_bytes=10**6) == FILES
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:  # as everybody reads it
        assert sorted(tar.getnames()) == sorted(FILES)
    await shared_pair.a.ask("DELETE", f"{SESSIONS}/{session['id']}")


async def test_an_archive_and_json_of_the_same_content_are_the_same_session(
    shared_pair: Pair,
) -> None:
    body = {"id": fresh_id(), "command": COMMAND}
    first = await shared_pair.a.ask(
        "POST",
        SESSIONS,
        params={"session": json.dumps(body)},
        data=archive.pack({"a": b"1"}),
        headers=GZIP,
    )
    files = [{"path": "a", "content": "1"}]
    second = await shared_pair.b.ask("POST", SESSIONS, json={**body, "files": files})
    assert (first.status, second.status) == (201, 200), (first.body, second.body)
    await shared_pair.a.ask("DELETE", f"{SESSIONS}/{body['id']}")


async def test_edits_by_archive_write_delete_and_have_revisions(shared_pair: Pair) -> None:
    session = await begun(shared_pair.a)
    path = f"{SESSIONS}/{session['id']}/files"

    async def edit(query: str, files: dict[str, bytes]) -> Answer:
        return await shared_pair.b.ask(
            "PATCH", path + query, data=archive.pack(files), headers=GZIP
        )

    first = await edit("?delete=a.js&delete=ä&baseRevision=1", {"new": b"2"})
    assert (first.status, first.body["revision"]) == (200, 2), first.body
    assert await files_of(shared_pair.a, session["id"]) == {
        "new": b"2",
        "src/b.bin": FILES["src/b.bin"],
    }
    late = await edit("?baseRevision=1", {"new": b"3"})
    expect_problem(late, 409, "revision_conflict")
    assert late.body["currentRevision"] == 2
    for query in ("?baseRevision=x", "?baseRevision=0", "?baseRevision=1.5"):
        expect_problem(await edit(query, {"new": b"3"}), 400, "bad_request")
    expect_problem(await edit("?delete=../x", {"new": b"3"}), 400, "bad_files")
    expect_problem(await edit("", {}), 400, "bad_request")
    await shared_pair.a.ask("DELETE", f"{SESSIONS}/{session['id']}")


@pytest.mark.parametrize("form", ["json", "archive"])
async def test_all_files_can_be_replaced_at_once(shared_pair: Pair, form: str) -> None:
    session = await begun(shared_pair.a, {"keep": b"1", "change": b"1", "drop": b"1"})
    path = f"{SESSIONS}/{session['id']}/files"
    wanted = {"keep": b"1", "change": b"2", "add/it": b"3"}

    async def put(base: int | None = None) -> Answer:
        query = f"?baseRevision={base}" if base and form == "archive" else ""
        if form == "archive":
            return await shared_pair.b.ask(
                "PUT", path + query, data=archive.pack(wanted), headers=GZIP
            )
        body: dict[str, Any] = {
            "files": [{"path": name, "content": text.decode()} for name, text in wanted.items()]
        }
        return await shared_pair.b.ask(
            "PUT", path, json=body | ({"baseRevision": base} if base else {})
        )

    first = await put()
    assert (first.status, first.body["revision"]) == (200, 2), first.body
    assert await files_of(shared_pair.a, session["id"]) == wanted
    same = await put(2)
    assert (same.status, same.body["revision"]) == (200, 2), "nothing has changed"
    late = await put(1)
    expect_problem(late, 409, "revision_conflict")
    assert late.body["currentRevision"] == 2
    empty = await shared_pair.b.ask("PUT", path, json={"files": []})
    expect_problem(empty, 400, "bad_request")
    await shared_pair.a.ask("DELETE", f"{SESSIONS}/{session['id']}")


async def test_of_replacements_at_once_every_one_is_whole(shared_pair: Pair) -> None:
    session = await begun(shared_pair.a)
    path = f"{SESSIONS}/{session['id']}/files"
    sets = [{f"{name}{n}": b"%d" % n for name in "xyz"} for n in range(10)]
    answers = await asyncio.gather(
        *(
            (shared_pair.a, shared_pair.b)[n % 2].ask(
                "PUT", path, data=archive.pack(files), headers=GZIP
            )
            for n, files in enumerate(sets)
        )
    )
    assert {answer.status for answer in answers} == {200}, [a.body for a in answers]
    assert {answer.body["revision"] for answer in answers} == set(range(2, 12))
    assert await files_of(shared_pair.b, session["id"]) in sets
    await shared_pair.a.ask("DELETE", f"{SESSIONS}/{session['id']}")


async def test_files_outlive_their_session_until_they_are_deleted(shared_pair: Pair) -> None:
    session = await begun(shared_pair.a)
    path = f"{SESSIONS}/{session['id']}"
    await shared_pair.b.ask("POST", f"{path}/stop")
    assert await files_of(shared_pair.a, session["id"]) == FILES
    for method in ("PUT", "PATCH"):
        answer = await shared_pair.b.ask(
            method, f"{path}/files", data=archive.pack({"a": b""}), headers=GZIP
        )
        expect_problem(answer, 410, "session_ended")
        assert (answer.body["state"], answer.body["reason"]) == ("stopped", "stopped by request")
    await shared_pair.a.ask("DELETE", path)
    expect_problem(await shared_pair.b.ask("GET", f"{path}/files"), 410, "session_ended")
    expect_problem(await shared_pair.b.ask("GET", f"{path}/files?format=zip"), 400, "bad_request")


async def test_a_download_has_the_revision_as_its_tag(shared_pair: Pair) -> None:
    session = await begun(shared_pair.a)
    path = f"{SESSIONS}/{session['id']}/files"
    assert (await shared_pair.b.ask("GET", path)).headers["ETag"] == '"1"'
    await shared_pair.b.ask("PATCH", path, json={"delete": ["a.js"]})
    answer = await shared_pair.a.ask("GET", path)
    assert (answer.headers["ETag"], answer.body["revision"]) == ('"2"', 2)
    await shared_pair.a.ask("DELETE", f"{SESSIONS}/{session['id']}")


# -- fault 36 --------------------------------------------------------------------------------------


def tar_of(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """An archive of a package.json and one more member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        package = tarfile.TarInfo("package.json")
        package.size = 2
        tar.addfile(package, io.BytesIO(b"{}"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member)
    return out.getvalue()


HOSTILE: Final[dict[str, tuple[bytes, str]]] = {
    "parent": (tar_of("../outside"), "'..'"),
    "hidden parent": (tar_of("a/../../outside"), "'..'"),
    "absolute": (tar_of("/tmp/outside"), "absolute"),
    "symbolic link": (tar_of("x", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
    "link to above": (tar_of("x", tarfile.SYMTYPE, "../.."), "symbolic link"),
    "hard link": (tar_of("x", tarfile.LNKTYPE, "/etc/passwd"), "hard link"),
    "device": (tar_of("x", tarfile.CHRTYPE), "device"),
    "pipe": (tar_of("x", tarfile.FIFOTYPE), "named pipe"),
    "backslashes": (tar_of("..\\outside"), "backslash"),
    "control character": (tar_of("a\nb"), "control character"),
    "git hook": (tar_of(".git/hooks/pre-commit"), ".git"),
    "many files": (archive.pack({f"{n}": b"" for n in range(21)}), "20 files"),
    "one large file": (archive.pack({"x": bytes(range(256)) * 500}), "MAX_FILE_BYTES"),
    "bomb": (gzip.compress(bytes(100_000_000)), "more than"),
    "bomb in parts": (gzip.compress(bytes(10_000_000)) * 20, "more than"),
    "no archive": (b"PK\x03\x04", "no gzip"),
    "cut off": (archive.pack(FILES)[:-20], "cut off"),
    "nothing": (b"", "`files`"),
}


@pytest.mark.parametrize(("data", "words"), HOSTILE.values(), ids=HOSTILE)
async def test_fault_36_a_hostile_archive_is_refused_and_writes_nothing(
    shared_pair: Pair, data_dir: Path, data: bytes, words: str
) -> None:
    process = psutil.Process(shared_pair.a.replica.pid)
    before = process.memory_info().rss
    body = {"id": fresh_id(), "command": COMMAND}
    if words == "`files`":
        del body["command"]
    create = await shared_pair.a.ask(
        "POST", SESSIONS, params={"session": json.dumps(body)}, data=data, headers=GZIP
    )
    assert words in expect_problem(create, 400, create.body["code"])
    assert await stored(shared_pair, str(body["id"])) == []
    assert process.memory_info().rss - before < 64 << 20
    assert not list(data_dir.rglob("outside"))
    assert not Path("/tmp/outside").exists()


async def test_fault_36_a_hostile_edit_leaves_the_files_as_they_are(shared_pair: Pair) -> None:
    session = await begun(shared_pair.a)
    path = f"{SESSIONS}/{session['id']}/files"
    for method in ("PATCH", "PUT"):
        for name in ("parent", "symbolic link", "bomb", "many files"):
            answer = await shared_pair.b.ask(method, path, data=HOSTILE[name][0], headers=GZIP)
            expect_problem(answer, 400, "bad_files")
    assert await files_of(shared_pair.a, session["id"]) == FILES
    await shared_pair.a.ask("DELETE", f"{SESSIONS}/{session['id']}")


@pytest.mark.parametrize(
    "session",
    [
        '{"files": [{"path": "a", "content": ""}]}',
        '{"packageJson": {"a": 1}}',
        '{"x": 1}',
        "[]",
        "{",
    ],
)
async def test_what_comes_with_an_archive_is_checked_as_ever(
    shared_pair: Pair, session: str
) -> None:
    answer = await shared_pair.a.ask(
        "POST", SESSIONS, params={"session": session}, data=archive.pack(FILES), headers=GZIP
    )
    expect_problem(answer, 400, "bad_request")
