"""The dashboard at ``/``: shows sessions and replicas, through the API as anybody sees it.

The page and what belongs to it hold nothing secret and are open to all who reach the API; what it
shows it asks for with an API token that its reader types in. Whatever a stranger has put into ids,
metadata or logs is shown as text: nothing can be added to the page but by its own scripts, which it
names by a nonce. In path mode it shares its origin with previews, hence the nonce instead of an
address, no frames, and an opener policy.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from string import Template
from typing import Final

from aiohttp import web

from gateway import __version__

#: Asked for without a token.
OPEN_ROUTES: Final = frozenset({"/", "/dashboard/{name}"})
_TYPES: Final = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_FIELDS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: Frames could trick people into clicks; Trusted Types refuse text as HTML, also from own scripts.
_POLICY: Final = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


class Dashboard:
    """Serves the page. All of it is read once."""

    def __init__(self) -> None:
        static = files("gateway.api.dashboard").joinpath("static")
        self._page = Template(static.joinpath("index.html").read_text("utf-8"))
        self._parts = dict(_parts(static, ""))

    def routes(self) -> list[web.RouteDef]:
        """The page, and what belongs to it."""
        return [web.get("/", self.page), web.get("/dashboard/{name:.+}", self.part)]

    async def page(self, _: web.Request) -> web.Response:
        """The page; its content security policy is new each time."""
        nonce = secrets.token_urlsafe(16)
        return web.Response(
            text=self._page.substitute(nonce=nonce, version=__version__),
            content_type="text/html",
            headers={
                "Content-Security-Policy": _POLICY.format(nonce=nonce),
                "Cache-Control": "no-store",
                "X-Frame-Options": "DENY",
                **_FIELDS,
            },
        )

    async def part(self, request: web.Request) -> web.Response:
        """A script, the style, the icon."""
        name = request.match_info["name"]
        if name not in self._parts:
            raise web.HTTPNotFound
        return web.Response(
            body=self._parts[name],
            content_type=_TYPES[name.rpartition(".")[2]],
            charset="utf-8",
            headers={"Cache-Control": "no-cache", **_FIELDS},
        )


def _parts(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Every file below ``folder`` that the page may ask for, by its name in addresses."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _parts(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            yield f"{prefix}{entry.name}", entry.read_bytes()
