"""How sessions, routes, events and replicas are written in the registry. Pure.

A session is a hash of flat strings; a published route is a JSON object with the same fields, so
one reading serves both. What cannot be read (damaged, or written by a later version) becomes
RegistryUnavailable naming its key: it is there, so it is not "not found".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast, get_args

from gateway.errors import BadRequest, RegistryUnavailable
from gateway.registry.base import Change, EventType, NewSession, Replica, StreamEvent
from gateway.registry.keys import CHANGES, events_key, replica_key, session_key
from gateway.session import Endpoint, Hmr, Recipe, Route, Session, SessionId, State

#: Version of the record's form; a record with a later one is not read.
SCHEMA: Final = 1

_EVENT_TYPES: Final = frozenset(get_args(EventType))
_EVENT_ID: Final = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")
_MAX_ID_PART: Final = 2**64 - 1
#: What reading a record of the wrong form raises (decoding errors are ValueErrors).
_UNREADABLE: Final = (KeyError, ValueError, TypeError, AttributeError)


def text(value: str) -> bytes:
    """As stored. A lone surrogate (from undecodable output) becomes a question mark."""
    return value.encode("utf-8", "replace")


# -- sessions ----------------------------------------------------------------------------------


def encode_new(new: NewSession) -> list[bytes]:
    """Field, value, field, value ... of all that a create call decides."""
    endpoint = new.endpoint
    fields = {
        "v": str(SCHEMA),
        "id": new.id,
        "recipe": _encode_recipe(new.recipe),
        "base": new.base,
        "public": "1" if new.public else "0",
        "spawned": "0" if endpoint or new.reserved else "1",
        "reserved": "1" if new.reserved else "0",
        "host": endpoint.host if endpoint else "",
        "port": str(endpoint.port) if endpoint else "",
        "idle_seconds": str(new.idle_seconds),
        "metadata": new.metadata,
        "creator": new.creator,
    }
    return _pairs(fields)


def encode_restored(session: Session) -> list[bytes]:
    """Field, value, field, value ... of a session as its owner knows it."""
    new = NewSession(
        id=session.id,
        digest=session.digest,
        recipe=session.recipe,
        files={},
        base=session.base,
        ttl_seconds=0,
        idle_seconds=session.idle_seconds,
        public=session.public,
        metadata=session.metadata,
        endpoint=session.endpoint,
        creator=session.creator,
    )
    known = {
        "spawned": "1",
        "created_at": str(session.created_at_ms),
        "access": str(session.access),
        "hmr_path": session.hmr.path,
        "hmr_protocol": session.hmr.protocol,
    }
    return encode_new(new) + _pairs(known)


def encode_change(change: Change) -> list[bytes]:
    """Field, value, field, value ... of what a move changes besides the state."""
    fields: dict[str, str] = {}
    if change.endpoint is not None:
        fields |= {"host": change.endpoint.host, "port": str(change.endpoint.port)}
    elif change.clear_endpoint:
        fields |= {"host": "", "port": ""}
    if change.hmr is not None:
        fields |= {"hmr_path": change.hmr.path, "hmr_protocol": change.hmr.protocol}
    if change.reason is not None:
        fields["reason"] = change.reason
    if change.log_tail is not None:
        fields["log_tail"] = change.log_tail
    return _pairs(fields)


def encode_patch(*, metadata: str | None, public: bool | None) -> list[bytes]:
    """Field, value, field, value ... of a patch."""
    fields: dict[str, str] = {}
    if metadata is not None:
        fields["metadata"] = metadata
    if public is not None:
        fields["public"] = "1" if public else "0"
    return _pairs(fields)


def decode_session(session_id: SessionId, stored: Sequence[bytes], *, now_ms: int) -> Session:
    """The session in a hash (field, value, field, value ...) read at ``now_ms``."""
    try:
        texts = [part.decode() for part in stored]
        fields = dict(zip(texts[::2], texts[1::2], strict=True))
        return _session(session_id, fields, now_ms)
    except _UNREADABLE as exc:
        raise _unreadable(session_key(session_id), exc) from exc


def _session(session_id: SessionId, fields: Mapping[str, str], now_ms: int) -> Session:
    if fields["v"] != str(SCHEMA):
        raise ValueError(f"form {fields['v']!r} of a later version")
    if fields["id"] != session_id:
        raise ValueError(f"it is of session {fields['id']!r}")
    expires_at_ms = int(fields["expires_at"])
    return Session(
        id=session_id,
        generation=int(fields["generation"]),
        version=int(fields["version"]),
        state=State(fields["state"]),
        owner=fields["owner"],
        digest=fields["digest"],
        recipe=_decode_recipe(fields["recipe"]),
        base=fields["base"],
        public=_flag(fields["public"]),
        created_at_ms=int(fields["created_at"]),
        expires_at_ms=expires_at_ms,
        expires_in_ms=expires_at_ms - now_ms,
        revision=int(fields["revision"]),
        endpoint=_endpoint(fields),
        hmr=_hmr(fields),
        idle_seconds=int(fields["idle_seconds"]),
        idle_ms=now_ms - int(fields.get("active_at", now_ms)),
        reserved=_flag(fields.get("reserved", "0")),
        forgotten=_flag(fields.get("forgotten", "0")),
        metadata=fields["metadata"],
        reason=fields.get("reason", ""),
        log_tail=fields.get("log_tail", ""),
        ended_at_ms=int(fields.get("ended_at", "0")),
        heir=fields.get("heir", ""),
        heir_generation=int(fields.get("heir_generation") or "0"),
        stop_to=State(fields["stop_to"]) if "stop_to" in fields else None,
        access=int(fields.get("access", "0")),
        creator=fields.get("creator", ""),
    )


def decode_route(payload: bytes) -> Route:
    """The route published on the channel of changes."""
    try:
        fields = json.loads(payload)
        return Route(
            id=SessionId(fields["id"]),
            generation=int(fields["generation"]),
            version=int(fields["version"]),
            state=State(fields["state"]),
            owner=fields["owner"].partition("/")[0],
            endpoint=_endpoint(fields),
            base=fields["base"],
            public=_flag(fields["public"]),
            hmr=_hmr(fields),
            reason=fields.get("reason", ""),
            log_tail=fields.get("log_tail", ""),
            heir=fields.get("heir", ""),
            revision=int(fields.get("revision", "0")),
            access=int(fields.get("access", "0")),
            creator=fields.get("creator", ""),
        )
    except _UNREADABLE as exc:
        raise _unreadable(CHANGES, exc) from exc


def _endpoint(fields: Mapping[str, str]) -> Endpoint | None:
    return Endpoint(fields["host"], int(fields["port"])) if fields["host"] else None


def _hmr(fields: Mapping[str, str]) -> Hmr:
    return Hmr(fields.get("hmr_path", ""), fields.get("hmr_protocol", ""))


def _flag(value: str) -> bool:
    if value not in {"0", "1"}:
        raise ValueError(f"{value!r} is no flag")
    return value == "1"


def _encode_recipe(recipe: Recipe) -> str:
    return json.dumps(
        {
            "framework": recipe.framework,
            "command": recipe.command,
            "env": recipe.env,
            "target": recipe.target,
        }
    )


def _decode_recipe(value: str) -> Recipe:
    fields = json.loads(value)
    return Recipe(
        framework=fields["framework"],
        command=tuple(fields["command"]),
        env=tuple((name, content) for name, content in fields["env"]),
        target=fields["target"],
    )


# -- events ------------------------------------------------------------------------------------


def event_order(event_id: str) -> tuple[int, int]:
    """Sort key of an entry's id; BadRequest if it is none (clients send it to resume)."""
    match = _EVENT_ID.fullmatch(event_id)
    if match:
        order = int(match[1]), int(match[2] or 0)
        if max(order) <= _MAX_ID_PART:
            return order
    raise BadRequest(f"{event_id[:60]!r} is no id of an event: send one that the stream gave")


def encode_event_data(data: Mapping[str, Any]) -> bytes:
    """The data of an entry as stored."""
    return json.dumps(data, separators=(",", ":")).encode()


def decode_event(session_id: SessionId, entry: Sequence[Any]) -> StreamEvent:
    """An entry as XRANGE answers it: id, then a list of field, value, field, value ..."""
    try:
        event_id, pairs = entry
        fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
        return _event(event_id.decode(), fields[b"type"].decode(), fields[b"data"])
    except _UNREADABLE as exc:
        raise _unreadable(events_key(session_id), exc) from exc


def decode_pushed_event(session_id: SessionId, payload: bytes) -> StreamEvent:
    """An entry as published on the session's channel: id, type, data."""
    try:
        event_id, kind, data = json.loads(payload)
        return _event(event_id, kind, data)
    except _UNREADABLE as exc:
        raise _unreadable(events_key(session_id), exc) from exc


def _event(event_id: str, kind: str, data: str | bytes) -> StreamEvent:
    content = json.loads(data)
    if kind not in _EVENT_TYPES or not isinstance(content, dict):
        raise ValueError(f"entry {event_id} is of unknown form")
    return StreamEvent(event_id, cast(EventType, kind), content)


# -- replicas ----------------------------------------------------------------------------------


def encode_replica(replica: Replica) -> bytes:
    """The value of a replica's lease."""
    return json.dumps(
        {
            "id": replica.id,
            "incarnation": replica.incarnation,
            "url": replica.url,
            "started_at_ms": str(replica.started_at_ms),
            "info": replica.info,
        }
    ).encode()


def decode_replica(replica_id: str, value: bytes) -> Replica:
    """The replica that holds a lease."""
    try:
        fields = json.loads(value)
        return Replica(
            id=fields["id"],
            incarnation=fields["incarnation"],
            url=fields["url"],
            started_at_ms=int(fields["started_at_ms"]),
            info=dict(fields["info"]),
        )
    except _UNREADABLE as exc:
        raise _unreadable(replica_key(replica_id), exc) from exc


# -- shared ------------------------------------------------------------------------------------


def _pairs(fields: Mapping[str, str]) -> list[bytes]:
    return [part for name, value in fields.items() for part in (name.encode(), text(value))]


def _unreadable(key: str, error: Exception) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"the registry holds something in {key} that this gateway cannot read "
        f"({type(error).__name__}: {error}): it is damaged, or a later version wrote it"
    )
