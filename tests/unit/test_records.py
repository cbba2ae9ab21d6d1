"""The registry's writing and reading of records, without a registry."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest, RegistryUnavailable
from gateway.registry import contents, records
from gateway.registry.base import Change, NewSession, Replica, StreamEvent
from gateway.registry.keys import replica_key, session_keys
from gateway.session import Endpoint, Hmr, Recipe, SessionId, State

ID = SessionId("quick-fox-1")

NEW = NewSession(
    id=ID,
    digest="d",
    recipe=Recipe("vite", ("npx", "--port", "{port}"), (("A", "1"), ("B", "ü")), ""),
    files={},
    base="/preview/quick-fox-1/",
    ttl_seconds=60,
    idle_seconds=30,
    metadata='{"k": 1}',
)

#: What the scripts add to the fields of a create call.
ADDED = {
    "digest": "d",
    "owner": "a/1",
    "state": "starting",
    "generation": "1795226794560168",
    "version": "7",
    "revision": "3",
    "created_at": "1000",
    "expires_at": "61000",
}


def stored(new: NewSession = NEW, /, **changes: str | None) -> list[bytes]:
    """A record as HGETALL answers it; None removes a field."""
    flat = records.encode_new(new)
    fields = {name.decode(): value.decode() for name, value in pairs(flat)}
    fields |= ADDED
    for name, value in changes.items():
        if value is None:
            del fields[name]
        else:
            fields[name] = value
    return [part.encode() for item in fields.items() for part in item]


def pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def test_a_session_is_read_as_it_was_written() -> None:
    session = records.decode_session(ID, stored(), now_ms=2000)
    assert session.recipe == NEW.recipe
    assert (session.base, session.metadata, session.idle_seconds) == (NEW.base, NEW.metadata, 30)
    assert (session.state, session.owner, session.replica) == (State.STARTING, "a/1", "a")
    assert (session.generation, session.version) == (1795226794560168, 7)
    assert (session.created_at_ms, session.expires_at_ms, session.expires_in_ms) == (
        *(1000, 61000),
        59000,
    )
    assert session.revision == 3
    assert session.public
    assert session.endpoint is None
    assert (session.reason, session.log_tail, session.ended_at_ms) == ("", "", 0)
    assert session.stop_to is None


def test_a_target_session_is_written_with_its_endpoint() -> None:
    new = dataclasses.replace(NEW, endpoint=Endpoint("::1", 80), public=False)
    fields = dict(pairs(records.encode_new(new)))
    assert fields[b"spawned"] == b"0"
    session = records.decode_session(ID, stored(new), now_ms=0)
    assert session.endpoint == Endpoint("::1", 80)
    assert not session.public


def test_what_moves_add_is_read() -> None:
    session = records.decode_session(
        ID,
        stored(
            reason="r",
            log_tail="l",
            ended_at="5",
            stop_to="expired",
            hmr_path="/h",
            hmr_protocol="vite-hmr",
        ),
        now_ms=0,
    )
    assert (session.reason, session.log_tail, session.ended_at_ms) == ("r", "l", 5)
    assert session.stop_to is State.EXPIRED
    assert session.hmr == Hmr("/h", "vite-hmr")


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (Change(), {}),
        (Change(endpoint=Endpoint("h", 1)), {"host": "h", "port": "1"}),
        (Change(endpoint=Endpoint("h", 1), clear_endpoint=True), {"host": "h", "port": "1"}),
        (Change(clear_endpoint=True), {"host": "", "port": ""}),
        (Change(hmr=Hmr("/p", "x")), {"hmr_path": "/p", "hmr_protocol": "x"}),
        (Change(reason="", log_tail="l\udc80"), {"reason": "", "log_tail": "l?"}),
    ],
)
def test_a_change_writes_what_it_names(change: Change, fields: dict[str, str]) -> None:
    written = {
        name.decode(): value.decode() for name, value in pairs(records.encode_change(change))
    }
    assert written == fields


def test_a_patch_writes_what_it_names() -> None:
    assert records.encode_patch(metadata=None, public=None) == []
    assert records.encode_patch(metadata="{}", public=True) == [
        *(b"metadata", b"{}"),
        *(b"public", b"1"),
    ]
    assert records.encode_patch(metadata=None, public=False) == [b"public", b"0"]


@pytest.mark.parametrize(
    "changes",
    [
        {"v": "2"},
        {"v": None},
        {"id": "another-one"},
        {"state": "dreaming"},
        {"stop_to": "dreaming"},
        {"public": "yes"},
        {"generation": "1e15"},
        {"port": "x", "host": "h"},
        {"recipe": "{"},
        {"recipe": "{}"},
        {"recipe": "[]"},
        {"recipe": '{"framework":"","command":[],"env":[1],"target":""}'},
        {"digest": None},
    ],
)
def test_a_record_that_cannot_be_read_names_its_key(changes: dict[str, Any]) -> None:
    with pytest.raises(RegistryUnavailable, match=r"preview:\{quick-fox-1\}:session"):
        records.decode_session(ID, stored(**changes), now_ms=0)


@pytest.mark.parametrize("flat", [[b"v"], [b"v", b"\xff"], []])
def test_a_record_of_another_form_names_its_key(flat: list[bytes]) -> None:
    with pytest.raises(RegistryUnavailable, match=r"preview:\{quick-fox-1\}:session"):
        records.decode_session(ID, flat, now_ms=0)


def test_a_published_route_is_that_of_the_session() -> None:
    flat = stored(host="h", port="1", reason="r", log_tail="l", hmr_path="/h", hmr_protocol="p")
    fields = {name.decode(): value.decode() for name, value in pairs(flat)}
    session = records.decode_session(ID, flat, now_ms=0)
    assert records.decode_route(json.dumps(fields).encode()) == session.route


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"1", b"\xff", b"{}", b'{"id":"x"}'])
def test_a_route_that_cannot_be_read_names_its_channel(payload: bytes) -> None:
    with pytest.raises(RegistryUnavailable, match="preview:changes"):
        records.decode_route(payload)


@pytest.mark.parametrize(
    ("event_id", "order"),
    [("0", (0, 0)), ("5-7", (5, 7)), ("18446744073709551615-0", (2**64 - 1, 0))],
)
def test_ids_of_events_are_ordered(event_id: str, order: tuple[int, int]) -> None:
    assert records.event_order(event_id) == order


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "1-2-3", "18446744073709551616", "٣"])
def test_what_is_no_id_of_an_event_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest):
        records.event_order(text)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.booleans()))
def test_events_are_read_as_they_were_written(data: dict[str, Any]) -> None:
    written = records.encode_event_data(data)
    assert records.decode_event(ID, [b"1-2", [b"type", b"log", b"data", written]]) == StreamEvent(
        "1-2", "log", data
    )
    pushed = json.dumps(["1-2", "log", written.decode()]).encode()
    assert records.decode_pushed_event(ID, pushed) == StreamEvent("1-2", "log", data)


@pytest.mark.parametrize(
    "entry",
    [
        [],
        [b"1-0", None],
        [b"1-0", [b"type", b"log"]],
        [b"1-0", [b"type", b"odd", b"data", b"{}"]],
        [b"1-0", [b"type", b"log", b"data", b"[]"]],
        [b"1-0", [b"type", b"log", b"data", b"{"]],
    ],
)
def test_an_event_that_cannot_be_read_names_its_stream(entry: list[Any]) -> None:
    with pytest.raises(RegistryUnavailable, match=r"preview:\{quick-fox-1\}:events"):
        records.decode_event(ID, entry)


@pytest.mark.parametrize("payload", [b"", b"{}", b"[1]", b'["1-0","odd","{}"]'])
def test_a_pushed_event_that_cannot_be_read_names_its_stream(payload: bytes) -> None:
    with pytest.raises(RegistryUnavailable, match=r"preview:\{quick-fox-1\}:events"):
        records.decode_pushed_event(ID, payload)


def test_a_replica_is_read_as_it_was_written() -> None:
    replica = Replica("a", "1", "http://a", 5, {"version": "1"})
    assert records.decode_replica("a", records.encode_replica(replica)) == replica


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b'{"id":"a"}'])
def test_a_lease_that_cannot_be_read_names_its_key(value: bytes) -> None:
    with pytest.raises(RegistryUnavailable, match=re.escape(replica_key("a"))):
        records.decode_replica("a", value)


def test_keys_of_a_session_share_one_slot() -> None:
    assert session_keys(ID) == (
        "preview:{quick-fox-1}:session",
        "preview:{quick-fox-1}:files",
        "preview:{quick-fox-1}:events",
    )


@given(st.binary(max_size=300))
def test_contents_come_back_byte_for_byte(content: bytes) -> None:
    assert contents.unpack(contents.pack(content)) == content


def test_contents_are_stored_in_their_smaller_form() -> None:
    assert len(contents.pack(b"x" * 10_000)) < 200
    noise = os.urandom(10_000)
    assert len(contents.pack(noise)) == len(noise) + 33
    assert len(contents.pack(b"x" * 10)) == 43


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: b"",
        lambda value: value[:32] + b"\x07" + value[33:],
        lambda value: value[:36],
        lambda value: value[:-1] + bytes([value[-1] ^ 1]),
        lambda value: b"\x00" + value[1:],
    ],
)
@pytest.mark.parametrize("content", [b"x" * 500, b"short"])
def test_damaged_contents_are_noticed_and_named(damage: Any, content: bytes) -> None:
    value = damage(contents.pack(content))
    with pytest.raises(RegistryUnavailable, match=r"a\.js"):
        contents.unpack_files("key", [b"a.js", value])


def test_files_come_back_under_their_names() -> None:
    files = {"a b/ü": b"1", "lone\udc80": b"2" * 100}
    assert contents.unpack_files("key", contents.pack_files(files)) == files
