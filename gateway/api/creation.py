"""What a create call makes: checked, promised to whoever repeats the call, registered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from gateway import archive
from gateway.api.operation import HeaderField
from gateway.api.schemas import CreateSession, encode_metadata
from gateway.api.targets import parse_target, resolve_target
from gateway.errors import (
    BadFiles,
    BadRequest,
    BadSessionId,
    GatewayError,
    LimitReached,
    SessionConflict,
    TargetRefused,
    UnsupportedProject,
)
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Charge, Limits, NewSession, Registered, Registry
from gateway.session import (
    Recipe,
    Session,
    SessionId,
    content_digest,
    new_session_id,
    parse_session_id,
)
from gateway.settings import Settings
from gateway.tokens import ANYBODY, Caller, Scope


class KeyReused(GatewayError):
    """An Idempotency-Key came again, with another body."""

    status = 422
    code = "idempotency_key_reused"
    title = "Idempotency-Key used for another call"


#: What can go wrong as a session is made.
CREATION_PROBLEMS: Final = (
    BadSessionId,
    BadFiles,
    UnsupportedProject,
    TargetRefused,
    SessionConflict,
    LimitReached,
)
IDEMPOTENCY_KEY: Final = HeaderField(
    "Idempotency-Key",
    pattern=r"^[!-~]([ -~]{0,253}[!-~])?$",
    meaning="up to 255 printable ASCII characters that tell this call from others",
    example="b0e36f9c",
)


def idempotency_key(key: str | None, caller: Caller) -> str:
    """What tells one create call from another; "" if the caller sends no ``Idempotency-Key``.

    Keys of different callers do not meet; those of one caller last through a change of its token.
    """
    if key is None:
        return ""
    return hashlib.sha256(f"{caller.scope}:{caller.name}:{key}".encode()).hexdigest()


class Creation:
    """Makes sessions of what callers send.

    ``check_files`` raises BadFiles, ``check_project`` UnsupportedProject.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        lifecycle: Lifecycle,
        *,
        check_files: Callable[[Mapping[str, bytes]], None],
        check_project: Callable[[Recipe, Mapping[str, bytes]], None],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._lifecycle = lifecycle
        self.check_files = check_files
        self._check_project = check_project
        self._limits = Limits(
            creates_per_minute=settings.max_creates_per_minute,
            sessions=settings.max_sessions_per_token,
            files=settings.max_files_per_token,
            bytes=settings.max_bytes_per_token,
        )

    async def create(
        self,
        body: CreateSession,
        files: Mapping[str, bytes],
        *,
        key: str = "",
        caller: Caller = ANYBODY,
    ) -> Registered:
        """Register a session and begin to start it.

        The same ``key`` again gives the session that it gave before, whatever has become of it.
        """
        new = replace(await self._checked(body, files), creator=caller.name)
        if key:
            new, before = await self._promised(key, new, asked=body.id)
            if before is not None:
                return Registered(before, created=False)
        if caller.scope is not Scope.ADMIN:  # who may have any session needs no look beforehand
            _check_owner(await self._registry.session(new.id), caller)
        await self.charge(new.creator, new.id, files, creates=True)
        registered = await self._lifecycle.create(new)
        _check_owner(registered.session, caller)
        return registered

    async def charge(
        self, account: str, session_id: SessionId, files: Mapping[str, bytes], *, creates: bool
    ) -> None:
        """Let a session with these files count for who made it; raises LimitReached."""
        if self._limits != Limits():
            size = sum(map(len, files.values()))
            charge = Charge(session_id, files=len(files), bytes=size, creates=creates)
            await self._registry.charge(account, charge, self._limits)

    async def unpacked(self, data: bytes) -> dict[str, bytes]:
        """The files in a tar.gz; raises BadFiles."""
        return await asyncio.to_thread(
            archive.unpack,
            data,
            max_files=self._settings.max_files,
            max_bytes=self._settings.max_session_bytes,
        )

    async def reserve(self, session_id: SessionId, metadata: str = "{}") -> Session:
        """See to it that there is a session of this id, if only as a reservation.

        Others may write to it; the first create call with content begins it.
        """
        recipe = Recipe()
        new = self._new(session_id, recipe, {}, reserved=True, metadata=metadata)
        try:
            return (await self._lifecycle.create(new)).session
        except SessionConflict:
            # It has content already. Only a stop in this very moment makes it disappear.
            return await self._lifecycle.wait(session_id, lambda _: True, seconds=0)

    async def _checked(self, body: CreateSession, files: Mapping[str, bytes]) -> NewSession:
        """What is to be registered, after every check that can be made."""
        session_id = parse_session_id(body.id) if body.id is not None else new_session_id()
        target = parse_target(body.target) if body.target else None
        recipe = body.recipe(str(target or ""))
        self.check_visibility(body.visibility)
        self._check(recipe, files)
        metadata = encode_metadata(body.metadata)
        endpoint = None
        if target:
            known = self._registry.addresses()
            endpoint = await resolve_target(target, self._settings, registry=known)
        new = self._new(session_id, recipe, files, metadata=metadata)
        return replace(
            new,
            ttl_seconds=body.ttl_seconds or new.ttl_seconds,
            idle_seconds=new.idle_seconds if body.idle_seconds is None else body.idle_seconds,
            public=body.visibility == "public",
            endpoint=endpoint,
        )

    def _new(
        self,
        session_id: SessionId,
        recipe: Recipe,
        files: Mapping[str, bytes],
        *,
        metadata: str,
        reserved: bool = False,
    ) -> NewSession:
        return NewSession(
            id=session_id,
            digest=content_digest(recipe, files),
            recipe=recipe,
            files=files,
            base=self._base(session_id),
            ttl_seconds=self._settings.session_ttl_seconds,
            idle_seconds=self._settings.idle_seconds,
            metadata=metadata,
            reserved=reserved,
        )

    def _base(self, session_id: SessionId) -> str:
        return "/" if self._settings.preview_domain else f"/preview/{session_id}/"

    def _check(self, recipe: Recipe, files: Mapping[str, bytes]) -> None:
        """Refuse at once what can be known to fail."""
        if recipe.target:
            if files or recipe.command or recipe.framework or recipe.env:
                raise BadRequest(
                    "a target session runs elsewhere: leave files, command, framework and env out"
                )
            return
        if self._settings.spawner == "none":
            raise BadRequest("this gateway starts no dev servers: create sessions with a target")
        if not files and not recipe.command:
            raise BadRequest("send `files` with a package.json, a `command`, or a `target`")
        self.check_files(files)
        self._check_project(recipe, files)

    def check_visibility(self, visibility: str | None) -> None:
        """Raise BadRequest for what nobody could open."""
        if visibility == "private" and not self._settings.asks_for_tokens:
            raise BadRequest("a private preview needs GATEWAY_API_TOKENS, by which it is opened")

    async def _promised(
        self, key: str, new: NewSession, *, asked: str | None
    ) -> tuple[NewSession, Session | None]:
        """``new`` under the id that this key stands for, and the session that is there already.

        The registry remembers which id a key stands for; the rest is the idempotence of ids. So a
        call that died between the two is completed by its repetition.
        """
        content = _fingerprint(new, asked)
        mine = json.dumps([content, new.id, secrets.token_hex(8)])
        kept = await self._registry.remember(
            f"create:{key}", mine, seconds=self._settings.idempotency_seconds
        )
        promised_content, promised_id, _ = json.loads(kept)
        if promised_content != content:
            raise KeyReused("this Idempotency-Key came with another body before: use a new one")
        session_id = SessionId(promised_id)
        new = replace(new, id=session_id, base=self._base(session_id))
        before = None if kept == mine else await self._registry.session(session_id)
        if before is not None and before.digest != new.digest:
            before = None  # the id is taken by something else: registering says so
        return new, before


def _check_owner(session: Session | None, caller: Caller) -> None:
    """Raise SessionConflict for an id under which somebody else has, or had, a session."""
    if session is not None and not session.reserved and not caller.manages(session.creator):
        raise SessionConflict(session.id)


def _fingerprint(new: NewSession, asked: str | None) -> str:
    """What two calls with one key must have in common, with the id that was ``asked`` for."""
    parts = [
        asked,
        new.digest,
        new.ttl_seconds,
        new.idle_seconds,
        new.public,
        json.loads(new.metadata),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
