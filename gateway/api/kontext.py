"""The older shape of the create call, kept for callers that were written against it."""

from __future__ import annotations

import json

from aiohttp import web
from pydantic import BaseModel, ConfigDict, JsonValue

from gateway.api.problems import parse_body
from gateway.api.schemas import CreateSession, SourceFile
from gateway.api.sessions import SessionApi


class _OldFile(BaseModel):
    model_config = ConfigDict(extra="ignore")

    path: str
    content: str


class _OldCreate(BaseModel):
    """``files`` is a list, or an object from path to content."""

    model_config = ConfigDict(extra="ignore")

    files: list[_OldFile] | dict[str, str]
    packageJson: dict[str, JsonValue] | str | None = None  # noqa: N815 - the shape is given
    sessionId: str | None = None  # noqa: N815


class KontextApi:
    """``POST /kontext/preview`` in terms of the session calls."""

    def __init__(self, sessions: SessionApi) -> None:
        self._sessions = sessions

    def routes(self) -> list[web.RouteDef]:
        """The routes of these calls."""
        return [web.post("/kontext/preview", self.preview)]

    async def preview(self, request: web.Request) -> web.Response:
        """``{success, sessionId, previewUrl, wsUrl}``; for errors see ``problems``."""
        body = await parse_body(request, _OldCreate)
        request["session_id"] = body.sessionId
        session, _ = await self._sessions.register(_translated(body))
        urls = self._sessions.urls(request)
        return web.json_response(
            {
                "success": True,
                "sessionId": session.id,
                "previewUrl": urls.preview(session.id),
                "wsUrl": urls.hmr(session.id),
            }
        )


def _translated(body: _OldCreate) -> CreateSession:
    files = body.files
    listed = (
        [SourceFile(path=path, content=content) for path, content in files.items()]
        if isinstance(files, dict)
        else [SourceFile(path=file.path, content=file.content) for file in files]
    )
    package = body.packageJson
    if package is not None:
        # Callers of this shape send package.json in both places; the separate one counts.
        text = package if isinstance(package, str) else json.dumps(package, indent=2)
        listed = [file for file in listed if file.path != "package.json"]
        listed.append(SourceFile(path="package.json", content=text))
    return CreateSession(id=body.sessionId, files=listed)
