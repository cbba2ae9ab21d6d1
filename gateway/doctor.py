"""``preview-gateway doctor``: looks at a set-up from outside and says what is wrong with it.

It asks the registry, every replica by its own address, and, for a session, the way of a page and of
an HMR socket through every replica. It is a client like any other: an API token is enough, where
the gateway asks for one. Looking at a session that sleeps wakes it, as any request does.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from gateway.errors import GatewayError
from gateway.findings import (
    Answer,
    Finding,
    Server,
    Verdict,
    judge_answer,
    judge_dev_server,
    judge_server,
    judge_state,
    judge_versions,
)

_CALL_SECONDS: Final = 5.0
#: The first request may wake a dev server.
_PREVIEW_SECONDS: Final = 45.0
_GREETING_SECONDS: Final = 5.0
#: Replicas that are looked at at a time.
_AT_A_TIME: Final = 8
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not listened on
_HMR: Final = "vite-hmr"


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica with a lease: its name, and the address it gives."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; status 0 if nothing did, and then ``text`` says why."""

    status: int
    text: str
    seconds: float
    replica: str = ""

    def json(self) -> dict[str, Any]:
        """The JSON object in the body; empty if there is none."""
        try:
            found = json.loads(self.text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class Doctor:
    """Looks at the gateway at ``url``. Use as an async context manager.

    ``examine`` looks at the registry's servers (None: where they are is not known here) and raises
    GatewayError if they do not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str,
        examine: Callable[[], Awaitable[list[Server]]] | None,
        replicas_needed: int = 0,
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._examine = examine
        self._replicas_needed = replicas_needed
        self._versions: dict[str, str] = {}

    async def __aenter__(self) -> Doctor:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._http = aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def look(self, session_id: str = "") -> AsyncGenerator[Finding, None]:
        """Every finding, as it is made."""
        async for finding in self._registry():
            yield finding
        replicas: list[Replica] = []
        async for finding in self._gateway(replicas):
            yield finding
        async for finding in self._each(replicas, self._replica):
            yield finding
        if self._versions:
            yield judge_versions(self._versions)
        if session_id and replicas:
            async for finding in self._session(session_id, replicas):
                yield finding

    # -- the registry ----------------------------------------------------------------------------

    async def _registry(self) -> AsyncGenerator[Finding, None]:
        if self._examine is None:
            yield Finding(
                "registry",
                "reach",
                Verdict.UNKNOWN,
                "where it is, is not set here; the replicas are asked for it",
                "set GATEWAY_REDIS_URL as it is set for the gateway",
            )
            return
        try:
            servers = await self._examine()
        except GatewayError as exc:
            remedy = "previews that run go on; start it, or mend the way to it"
            yield Finding("registry", "reach", Verdict.FAILURE, str(exc), remedy)
            return
        for server in servers:
            for finding in judge_server(server, replicas_needed=self._replicas_needed):
                yield finding

    # -- replicas --------------------------------------------------------------------------------

    async def _gateway(self, replicas: list[Replica]) -> AsyncGenerator[Finding, None]:
        """The gateway that was named; fills ``replicas`` with all that have a lease."""
        reply = await self._get(f"{self._url}/api/v1/replicas")
        if reply.status == 200:
            found = reply.json().get("replicas", [])
            replicas += [Replica(str(one["id"]), str(one["url"])) for one in found]
            names = ", ".join(replica.name for replica in replicas)
            seen = f"{self._url} answers; {len(replicas)} with a lease: {names}"
            yield Finding("replicas", "list", Verdict.OK, seen)
            return
        remedies = {
            0: "start one with `preview-gateway serve`, or name another with --url",
            401: "name an API token with --token, or set GATEWAY_API_TOKENS",
            403: "name a token that may list replicas with --token",
            503: "it cannot reach its registry: see there",
        }
        remedy = remedies.get(reply.status, "is this the address of a preview gateway?")
        seen = f"{self._url}: {_said(reply)}"
        yield Finding("replicas", "list", Verdict.FAILURE, seen, remedy)

    async def _each(
        self, replicas: list[Replica], look: Callable[[Replica], Awaitable[list[Finding]]]
    ) -> AsyncGenerator[Finding, None]:
        """What ``look`` finds at each replica, a few of them at a time, in order."""
        for start in range(0, len(replicas), _AT_A_TIME):
            some = replicas[start : start + _AT_A_TIME]
            for findings in await asyncio.gather(*map(look, some)):
                for finding in findings:
                    yield finding

    async def _replica(self, replica: Replica) -> list[Finding]:
        about = f"replica {replica.name}"
        if urlsplit(replica.url).hostname in _EVERYWHERE:
            remedy = "run doctor beside it, with --url; or set its GATEWAY_HOST to its own address"
            seen = f"it listens on all addresses ({replica.url}), and names none"
            return [Finding(about, "reach", Verdict.UNKNOWN, seen, remedy)]
        alive = await self._get(f"{replica.url}/livez")
        if alive.status != 200:
            seen = f"{replica.url}: {_said(alive)}"
            remedy = "is it running, and may this machine connect to it?"
            return [Finding(about, "reach", Verdict.FAILURE, seen, remedy)]
        if alive.replica != replica.name:
            seen = f"{alive.replica or 'something else'} answers at its address {replica.url}"
            remedy = "run doctor where its address leads to it, for example in a pod of it"
            return [Finding(about, "reach", Verdict.FAILURE, seen, remedy)]
        version = self._versions[replica.name] = str(alive.json().get("version", "?"))
        seen = f"{replica.url}, version {version}, {alive.seconds * 1000:.1f} ms"
        return [
            Finding(about, "reach", Verdict.OK, seen),
            await self._readiness(about, replica),
            await self._registry_of(about, replica),
            await self._way_of(about, replica),
        ]

    async def _readiness(self, about: str, replica: Replica) -> Finding:
        reply = await self._get(f"{replica.url}/readyz")
        if reply.status == 200:
            return Finding(about, "ready", Verdict.OK, "ready")
        remedy = "it leaves, or has not come up yet; otherwise see its log"
        return Finding(about, "ready", Verdict.WARNING, _said(reply), remedy)

    async def _registry_of(self, about: str, replica: Replica) -> Finding:
        reply = await self._get(f"{replica.url}/api/v1/replicas")
        if reply.status == 200:
            seen = f"reached in {reply.seconds * 1000:.1f} ms"
            return Finding(about, "registry", Verdict.OK, seen)
        remedy = "degraded: it serves what it knows; mend its way to the registry"
        return Finding(about, "registry", Verdict.FAILURE, _said(reply), remedy)

    async def _way_of(self, about: str, replica: Replica) -> Finding:
        """The way of a preview: an id that nobody has is looked up, and not found."""
        reply = await self._get(f"{replica.url}/preview/doctor-{secrets.token_hex(8)}/")
        # With subdomains the preview would be elsewhere, and the replica says so.
        if reply.json().get("code") == "session_not_found" or reply.status in {307, 308}:
            return Finding(about, "previews", Verdict.OK, "sessions are looked up")
        remedy = "see the findings on its registry, and its log"
        return Finding(about, "previews", Verdict.FAILURE, _said(reply), remedy)

    # -- a session -------------------------------------------------------------------------------

    async def _session(
        self, session_id: str, replicas: list[Replica]
    ) -> AsyncGenerator[Finding, None]:
        about = f"session {session_id}"
        reply = await self._get(f"{self._url}/api/v1/sessions/{session_id}", seconds=15.0)
        if reply.status != 200:
            remedy = "preview-gateway ls shows those that there are"
            yield Finding(about, "state", Verdict.FAILURE, _said(reply), remedy)
            return
        session = reply.json()
        finding = judge_state(session_id, session["state"], session["reason"])
        yield finding
        if session["state"] not in {"ready", "sleeping"}:
            return
        yield _owner(about, session, replicas)
        reachable = [replica for replica in replicas if replica.name in self._versions]
        answers = await asyncio.gather(*(self._ask(session, replica) for replica in reachable))
        yield judge_dev_server(session_id, answers)
        for answer in answers:
            yield judge_answer(session_id, answer)
        served = {answer.replica for answer in answers if not answer.code}
        able = [replica for replica in reachable if replica.name in served]

        async def hmr(replica: Replica) -> list[Finding]:
            return [await self._hmr(session, replica)]

        async for finding in self._each(able, hmr):
            yield finding

    async def _ask(self, session: dict[str, Any], replica: Replica) -> Answer:
        path, headers = _address(session["previewUrl"])
        reply = await self._get(replica.url + path, headers=headers, seconds=_PREVIEW_SECONDS)
        if not reply.status:
            return Answer(replica.name, 0, "unreachable", reply.text)
        problem = reply.json() if reply.status >= 400 else {}
        code = str(problem.get("code", "")) if "title" in problem else ""
        return Answer(replica.name, reply.status, code, str(problem.get("detail", "")))

    async def _hmr(self, session: dict[str, Any], replica: Replica) -> Finding:
        about, check = f"session {session['id']}", f"HMR socket through {replica.name}"
        path, headers = _address(session["wsUrl"])
        began = time.perf_counter()
        try:
            async with asyncio.timeout(_CALL_SECONDS + _GREETING_SECONDS):
                async with self._http.ws_connect(
                    replica.url + path, protocols=(_HMR,), headers=headers, max_msg_size=0
                ) as socket:
                    first = await socket.receive()
        except (aiohttp.ClientError, TimeoutError) as exc:
            why = str(exc) or "no answer in time"
        else:
            if first.type is aiohttp.WSMsgType.TEXT and '"connected"' in first.data:
                seen = f"upgraded and greeted in {(time.perf_counter() - began) * 1000:.0f} ms"
                return Finding(about, check, Verdict.OK, seen)
            why = "it opens, but says no `connected`"
        if await self._is_vite(session, replica):
            remedy = f"see preview-gateway logs {session['id']}; a page has no HMR until then"
            return Finding(about, check, Verdict.FAILURE, why, remedy)
        seen = f"none ({why}); its dev server is not Vite"
        return Finding(about, check, Verdict.UNKNOWN, seen, "look at the page's own sockets")

    async def _is_vite(self, session: dict[str, Any], replica: Replica) -> bool:
        path, headers = _address(session["previewUrl"])
        reply = await self._get(f"{replica.url}{path}@vite/client", headers=headers)
        return reply.status == 200 and _HMR in reply.text

    async def _get(
        self, url: str, *, headers: dict[str, str] | None = None, seconds: float = _CALL_SECONDS
    ) -> Reply:
        began = time.perf_counter()
        try:
            async with self._http.get(
                url,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                text = await response.text(errors="replace")
                replica = response.headers.get("X-Preview-Replica", "")
                return Reply(response.status, text, time.perf_counter() - began, replica)
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            why = str(exc) or f"no answer within {seconds:g} s"
            return Reply(0, why, time.perf_counter() - began)


def _said(reply: Reply) -> str:
    if not reply.status:
        return reply.text
    problem = reply.json()
    said = problem.get("detail") or problem.get("title") or problem.get("status") or ""
    return f"{reply.status} {said}".strip()


def _owner(about: str, session: dict[str, Any], replicas: Iterable[Replica]) -> Finding:
    owner = session["owner"]
    if session["target"]:
        return Finding(about, "owner", Verdict.OK, f"none: it is at {session['target']}")
    if session["state"] == "sleeping":
        return Finding(about, "owner", Verdict.OK, "none: it sleeps; this look wakes it")
    if owner in {replica.name for replica in replicas}:
        return Finding(about, "owner", Verdict.OK, f"{owner}, which holds its lease")
    return Finding(
        about,
        "owner",
        Verdict.WARNING,
        f"{owner}, which has lost its lease",
        "another replica takes it over with the next request, if one spawns dev servers",
    )


def _address(url: str) -> tuple[str, dict[str, str]]:
    """Path and further headers under which any replica knows a public address."""
    parts = urlsplit(url)
    in_path = parts.path.startswith("/preview/")
    return parts.path, {} if in_path else {"Host": parts.netloc}
