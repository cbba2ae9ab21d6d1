"""The files of a session: read, edited, replaced; as JSON, or as tar.gz."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web

from gateway import archive
from gateway.api.bodies import ARCHIVE_TYPE, Archive
from gateway.api.creation import Creation
from gateway.api.lookup import Lookup, check_has_files, check_is_live
from gateway.api.operation import MANAGERS, Answer, Call, operation
from gateway.api.query import EditQuery, FilesQuery, PatchFilesQuery
from gateway.api.schemas import PatchFiles, PutFiles
from gateway.api.views import EditView, FilesView, FileView
from gateway.errors import (
    BadFiles,
    BadRequest,
    LimitReached,
    RevisionConflict,
    SessionEnded,
    SessionNotFound,
)
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Registry
from gateway.session import ENDED, Session, SessionId

FILES: Final = "/api/v1/sessions/{id}/files"
EDIT_PROBLEMS: Final = (BadFiles, SessionNotFound, RevisionConflict, SessionEnded, LimitReached)
#: Whoever loses this often has lost to as many others who edited.
_MOST_ROUNDS: Final = 20


class FilesApi:
    """Handlers of ``/api/v1/sessions/{id}/files``."""

    def __init__(
        self,
        registry: Registry,
        lifecycle: Lifecycle,
        *,
        lookup: Lookup,
        creation: Creation,
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._lookup = lookup
        self._creation = creation
        self._check_files = creation.check_files

    @operation(
        "getFiles",
        "GET",
        FILES,
        tag="files",
        scopes=MANAGERS,
        answers={
            200: Answer(
                "All files; an archive with `?format=tar.gz`.",
                FilesView,
                also=(ARCHIVE_TYPE,),
                fields={"ETag": "The revision."},
            )
        },
        problems=(SessionNotFound, SessionEnded),
    )
    async def get(self, call: Call[FilesQuery, None]) -> web.Response:
        """Read all files.

        `ETag` is the revision. Files of an ended session are there until its tombstone goes, or
        until it is deleted (410).
        """
        session = await self._lookup.known(call.session_id)
        check_has_files(session)
        # Read after the revision: at worst newer, so that an edit based on it is refused.
        files = await self._registry.files(session.id)
        if not files and session.state in ENDED:
            raise SessionEnded(session.id, state=session.state, reason="its files are deleted")
        headers = {"ETag": f'"{session.revision}"'}
        if call.query.format == "tar.gz":
            packed = await asyncio.to_thread(archive.pack, files)
            headers["Content-Disposition"] = f'attachment; filename="{session.id}.tar.gz"'
            return call.content(packed, ARCHIVE_TYPE, headers=headers)
        listed = [FileView.of(path, content) for path, content in sorted(files.items())]
        view = FilesView(id=session.id, revision=session.revision, files=listed)
        return call.answer(view, headers=headers)

    @operation(
        "patchFiles",
        "PATCH",
        FILES,
        tag="files",
        scopes=MANAGERS,
        answers={200: Answer("The new revision.", EditView)},
        problems=EDIT_PROBLEMS,
        with_files=True,
    )
    async def patch(self, call: Call[PatchFilesQuery, PatchFiles | Archive]) -> web.Response:
        """Write some files, delete others.

        409 `revision_conflict` with `currentRevision` if `baseRevision` is not current; 410
        `session_ended`. As tar.gz: its files are written, `?delete=` (any number of times) names
        those to delete.
        """
        base = _base_revision(call)
        delete = list(call.query.delete)
        if isinstance(call.body, Archive):
            write = await self._creation.unpacked(call.body.data)
        else:
            write = call.body.contents()
            delete += call.body.delete
        if not write and not delete:
            raise BadRequest("nothing to `write` and nothing to `delete`")
        session = await self._editable(call.session_id)
        self._check_files(dict.fromkeys(delete, b""))
        self._check_files(write)
        # Deleted before written, as the registry does it: a file may become a folder.
        files = await self._registry.files(session.id)
        for path in delete:
            files.pop(path, None)
        self._check_files(files | write)
        await self._creation.charge(session.creator, session.id, files | write, creates=False)
        return call.answer(_edited(await self._edit(session, write, delete, base)))

    @operation(
        "putFiles",
        "PUT",
        FILES,
        tag="files",
        scopes=MANAGERS,
        answers={200: Answer("The new revision.", EditView)},
        problems=EDIT_PROBLEMS,
        with_files=True,
    )
    async def put(self, call: Call[EditQuery, PutFiles | Archive]) -> web.Response:
        """Replace all files.

        These files instead of all that are there, in one step. Files that stay the same are not
        written, so that no dev server takes notice of them.
        """
        base = _base_revision(call)
        if isinstance(call.body, Archive):
            files = await self._creation.unpacked(call.body.data)
        else:
            files = call.body.contents()
        if not files:
            raise BadRequest("send the `files`, or delete the session")
        self._check_files(files)
        current = 0
        for _ in range(_MOST_ROUNDS):
            session = await self._editable(call.session_id)
            if base is not None and base != session.revision:
                raise RevisionConflict(session.revision)
            present = await self._registry.files(session.id)
            write = {path: text for path, text in files.items() if present.get(path) != text}
            delete = [path for path in present if path not in files]
            if not write and not delete:
                return call.answer(_edited(session))
            await self._creation.charge(session.creator, session.id, files, creates=False)
            try:
                edited = await self._edit(session, write, delete, session.revision)
                return call.answer(_edited(edited))
            except RevisionConflict as exc:
                if base is not None:
                    raise
                current = exc.current
        raise RevisionConflict(current)

    async def _editable(self, session_id: SessionId) -> Session:
        session = await self._lookup.known(session_id)
        check_has_files(session)
        check_is_live(session)
        return session

    async def _edit(
        self, session: Session, write: Mapping[str, bytes], delete: Sequence[str], base: int | None
    ) -> Session:
        return await self._lifecycle.edit(
            session.id, write=write, delete=delete, base_revision=base
        )


def _base_revision(
    call: Call[PatchFilesQuery, PatchFiles | Archive] | Call[EditQuery, PutFiles | Archive],
) -> int | None:
    """The revision that an edit is based on, wherever the call says it."""
    named = call.query.base_revision
    in_body = None if isinstance(call.body, Archive) else call.body.base_revision
    if named is not None and in_body is not None and named != in_body:
        raise BadRequest("baseRevision: the address and the body name different ones")
    return in_body if named is None else named


def _edited(session: Session) -> EditView:
    return EditView(id=session.id, revision=session.revision, state=session.state)
