"""The files of a session: read, edited, replaced; as JSON, or as tar.gz."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web

from gateway import archive
from gateway.api import query
from gateway.api.bodies import is_archive, parse_body, read_archive
from gateway.api.creation import Creation
from gateway.api.lookup import Lookup, check_has_files, check_is_live, session_id_of
from gateway.api.schemas import PatchFiles, PutFiles, SourceFile
from gateway.errors import BadRequest, RevisionConflict, SessionEnded
from gateway.lifecycle import Lifecycle
from gateway.registry.base import Registry
from gateway.session import ENDED, Session

_LARGEST_REVISION: Final = 2**53
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

    def routes(self) -> list[web.RouteDef]:
        """The routes of these calls."""
        address = "/api/v1/sessions/{id}/files"
        return [
            web.get(address, self.get, allow_head=False),
            web.patch(address, self.patch),
            web.put(address, self.put),
        ]

    async def get(self, request: web.Request) -> web.Response:
        """All files, as JSON, or with ``?format=tar.gz`` as an archive; ``ETag`` is the revision.

        Those of an ended session are there until its tombstone goes; 410 once they are deleted.
        """
        form = query.choice(request, "format", ("json", "tar.gz"))
        session = await self._lookup.known(session_id_of(request))
        check_has_files(session)
        # Read after the revision: at worst newer, so that an edit based on it is refused.
        files = await self._registry.files(session.id)
        if not files and session.state in ENDED:
            raise SessionEnded(session.id, state=session.state, reason="its files are deleted")
        headers = {"ETag": f'"{session.revision}"'}
        if form == "tar.gz":
            packed = await asyncio.to_thread(archive.pack, files)
            headers["Content-Disposition"] = f'attachment; filename="{session.id}.tar.gz"'
            return web.Response(body=packed, content_type="application/gzip", headers=headers)
        listed = [SourceFile.of(path, content) for path, content in sorted(files.items())]
        return web.json_response(
            {
                "id": session.id,
                "revision": session.revision,
                "files": [file.model_dump() for file in listed],
            },
            headers=headers,
        )

    async def patch(self, request: web.Request) -> web.Response:
        """Hot edit: write some files, delete others; answers the new revision.

        As tar.gz: its files are written, ``?delete=`` names those to delete, ``?baseRevision=`` is
        the revision that the edit is based on. 409 with ``currentRevision`` if that is not current.
        """
        if is_archive(request):
            write = await self._creation.unpacked(await read_archive(request))
            body = PatchFiles(delete=request.query.getall("delete", []))
            base = _base_revision(request)
        else:
            body = await parse_body(request, PatchFiles, with_files=True)
            write, base = body.contents(), body.base_revision
        if not write and not body.delete:
            raise BadRequest("nothing to `write` and nothing to `delete`")
        session = await self._editable(request)
        self._check_files(dict.fromkeys(body.delete, b""))
        self._check_files(write)
        # Deleted before written, as the registry does it: a file may become a folder.
        files = await self._registry.files(session.id)
        for path in body.delete:
            files.pop(path, None)
        self._check_files(files | write)
        await self._creation.charge(session.creator, session.id, files | write, creates=False)
        return _answer(await self._edit(session, write, body.delete, base))

    async def put(self, request: web.Request) -> web.Response:
        """Replace all files by these (JSON or tar.gz); answers the new revision.

        A file that stays the same is not written, so that no dev server takes notice of it.
        """
        if is_archive(request):
            files = await self._creation.unpacked(await read_archive(request))
            base = _base_revision(request)
        else:
            body = await parse_body(request, PutFiles, with_files=True)
            files, base = body.contents(), body.base_revision
        if not files:
            raise BadRequest("send the `files`, or delete the session")
        self._check_files(files)
        current = 0
        for _ in range(_MOST_ROUNDS):
            session = await self._editable(request)
            if base is not None and base != session.revision:
                raise RevisionConflict(session.revision)
            present = await self._registry.files(session.id)
            write = {path: text for path, text in files.items() if present.get(path) != text}
            delete = [path for path in present if path not in files]
            if not write and not delete:
                return _answer(session)
            await self._creation.charge(session.creator, session.id, files, creates=False)
            try:
                return _answer(await self._edit(session, write, delete, session.revision))
            except RevisionConflict as exc:
                if base is not None:
                    raise
                current = exc.current
        raise RevisionConflict(current)

    async def _editable(self, request: web.Request) -> Session:
        session = await self._lookup.known(session_id_of(request))
        check_has_files(session)
        check_is_live(session)
        return session

    async def _edit(
        self, session: Session, write: Mapping[str, bytes], delete: Sequence[str], base: int | None
    ) -> Session:
        return await self._lifecycle.edit(
            session.id, write=write, delete=delete, base_revision=base
        )


def _base_revision(request: web.Request) -> int | None:
    if "baseRevision" not in request.query:
        return None
    return query.whole_number(request, "baseRevision", default=1, high=_LARGEST_REVISION)


def _answer(session: Session) -> web.Response:
    return web.json_response(
        {"id": session.id, "revision": session.revision, "state": session.state}
    )
