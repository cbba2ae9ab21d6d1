"""The HTTP side of the fake API server: pods, as the real one answers about them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import ssl
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from tests.kube import discovery
from tests.kube.admission import admitted, patched
from tests.kube.faults import Faults, Verb
from tests.kube.selectors import parse_selector
from tests.kube.statuses import (
    Refusal,
    bad_request,
    continue_expired,
    not_found,
    quota_exceeded,
    unauthorized,
    version_too_large,
)
from tests.kube.store import Change, Pod, Selected, Store, Watch
from tests.kube.watching import Stream, cut_off

HOST: Final = "127.0.0.1"
_PODS: Final = "/api/v1/namespaces/{namespace}/pods"
_POD: Final = _PODS + "/{name}"
_MERGE_PATCH: Final = "application/merge-patch+json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call that came in."""

    verb: Verb
    name: str
    query: dict[str, str]


class ApiServer:
    """Listens on 127.0.0.1; may be stopped and started again, on the same port, with its pods."""

    def __init__(
        self,
        *,
        namespaces: Collection[str] = ("default", "previews"),
        history: int = 1000,
        bookmark_seconds: float = 1.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.store = Store(history=history)
        self.faults = Faults(self.store)
        self.calls: list[Call] = []
        self._called = asyncio.Event()
        #: Bearer tokens that are taken; none: nobody is asked for one.
        self.tokens: set[str] = set()
        self.read_log: Callable[[str, str], str] | None = None
        self._namespaces = frozenset(namespaces)
        self._bookmark_seconds = bookmark_seconds
        self._tls = tls
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The address, once started."""
        return f"{'https' if self._tls else 'http'}://{HOST}:{self._port}"

    async def start(self) -> None:
        """Listen."""
        app = web.Application(middlewares=[_refusals])
        app.router.add_post(_PODS, self._create)
        app.router.add_get(_PODS, self._list_or_watch)
        app.router.add_get(_POD, self._read)
        app.router.add_get(_POD + "/log", self._log)
        app.router.add_patch(_POD, self._patch)
        app.router.add_delete(_POD, self._delete)
        app.router.add_get("/api/v1/namespaces/{namespace}", self._namespace)
        for path, document in discovery.DOCUMENTS.items():
            app.router.add_get(path, _constant(document))
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        await web.TCPSite(
            self._runner, HOST, self._port, ssl_context=self._tls, reuse_address=True
        ).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port and every connection; pods and versions stay."""
        runner, self._runner = self._runner, None
        if runner:
            self.faults.drop_watches()
            await runner.cleanup()

    def count(self, verb: Verb) -> int:
        """How many calls of a verb have come in."""
        return sum(call.verb == verb for call in self.calls)

    async def until_called(self, verb: Verb, times: int, *, seconds: float = 10.0) -> None:
        """Wait until so many calls of a verb have come in since the beginning."""
        async with asyncio.timeout(seconds):
            while self.count(verb) < times:
                self._called.clear()
                await self._called.wait()

    # -- calls ---------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.StreamResponse:
        pod = await _body(request)
        namespace = request.match_info["namespace"]

        def create() -> tuple[int, Pod]:
            new = admitted(pod, namespace)
            self._check_quota(new)
            return 201, self.store.create(new)

        return await self._answer("create", request, create, str(_name_of(pod)))

    def _check_quota(self, pod: Pod) -> None:
        if self.faults.quota is None:
            return
        name, limit = self.faults.quota
        namespace = pod["metadata"]["namespace"]
        used = [other for other in self.store.all() if _counts(other, namespace)]
        if len(used) >= limit:
            raise quota_exceeded(pod["metadata"]["name"], name, limit)

    async def _read(self, request: web.Request) -> web.StreamResponse:
        where = _where(request)
        return await self._answer("read", request, lambda: (200, self.store.get(*where)))

    async def _patch(self, request: web.Request) -> web.StreamResponse:
        change = await _body(request)
        if request.content_type != _MERGE_PATCH:
            raise Refusal(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: "
                f"{_MERGE_PATCH} (the fake API server has no other)",
            )
        version = (change.get("metadata") or {}).get("resourceVersion")
        where = _where(request)

        def patch() -> tuple[int, Pod]:
            return 200, self.store.update(
                *where, lambda pod: patched(pod, change), version=version or None
            )

        return await self._answer("patch", request, patch)

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        options = await _body(request) if request.can_read_body else {}
        grace = request.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        uid = (options.get("preconditions") or {}).get("uid")
        where = _where(request)

        def delete() -> tuple[int, Pod]:
            return 200, self.store.delete(
                *where, grace=None if grace is None else int(grace), uid=uid
            )

        return await self._answer("delete", request, delete)

    async def _list_or_watch(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") in ("true", "1"):
            return await self._watch(request)
        return await self._answer("list", request, lambda: (200, self._page(request)))

    async def _namespace(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        name = request.match_info["namespace"]
        return web.json_response(
            {
                "kind": "Namespace",
                "apiVersion": "v1",
                "metadata": {"name": name},
                "status": {"phase": "Active"},
            }
        )

    async def _log(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        namespace, name = _where(request)
        self.store.get(namespace, name)
        if self.read_log is None:
            raise bad_request(f'container in pod "{name}" is waiting to start')
        return web.Response(text=self.read_log(namespace, name))

    def _check(self, request: web.Request) -> None:
        """Raise a Refusal for who may not ask, or a namespace that is not there."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens and token not in self.tokens:
            raise unauthorized()
        if (namespace := request.match_info["namespace"]) not in self._namespaces:
            raise not_found(namespace, "namespaces")

    async def _answer(
        self,
        verb: Verb,
        request: web.Request,
        do: Callable[[], tuple[int, dict[str, Any]]],
        name: str = "",
    ) -> web.StreamResponse:
        lost = await self._suffer(verb, request, name)
        status, answer = do()
        return _cut_off(request) if lost else web.json_response(answer, status=status)

    async def _suffer(self, verb: Verb, request: web.Request, name: str = "") -> bool:
        """Let happen to a call what is to happen; whether its answer is to be lost."""
        name = name or request.match_info.get("name", "")
        self.calls.append(Call(verb, name, dict(request.query)))
        self._called.set()
        self._check(request)
        fault = self.faults.next(verb)
        if fault is None:
            return False
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.drop:
            raise _Dropped
        if fault.refusal:
            raise fault.refusal()
        return fault.lose_reply

    # -- lists ---------------------------------------------------------------------------------

    def _page(self, request: web.Request) -> dict[str, Any]:
        """One page of a list, at the version of its first page."""
        query = request.query
        limit = int(query.get("limit") or 0)
        version, after = self._beginning(query.get("continue", ""), query)
        selected = self._selected(request)
        try:
            pods = [pod for pod in self.store.at(version) if selected(pod)]
        except Refusal as exc:
            raise continue_expired() from exc
        pods = [pod for pod in pods if pod["metadata"]["name"] > after]
        page = pods[:limit] if limit else pods
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if len(page) < len(pods):
            metadata["continue"] = _token(version, page[-1]["metadata"]["name"])
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                metadata["remainingItemCount"] = len(pods) - len(page)
        for pod in page:
            # As in the real one: what a list holds does not say what it is.
            del pod["kind"], pod["apiVersion"]
        return {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": page}

    def _beginning(self, token: str, query: Any) -> tuple[int, str]:
        """At which version and after which name a page begins."""
        asked = query.get("resourceVersion", "")
        if not token:
            if query.get("resourceVersionMatch") not in (None, "NotOlderThan"):
                raise bad_request("the fake API server knows no other match than NotOlderThan")
            if (wanted := _version(asked)) > self.store.version:
                raise version_too_large(wanted, self.store.version)
            return self.store.version, ""
        if asked not in ("", "0"):
            raise bad_request("specifying resource version is not allowed when using continue")
        try:
            parts = json.loads(base64.urlsafe_b64decode(token))
            return int(parts["rv"]), str(parts["start"])
        except (ValueError, LookupError, TypeError, binascii.Error) as exc:
            raise bad_request(f"continue key is not valid: {exc}") from exc

    def _selected(self, request: web.Request) -> Selected:
        namespace = request.match_info["namespace"]
        selected = parse_selector(
            request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        )
        return lambda pod: pod["metadata"]["namespace"] == namespace and selected(pod)

    # -- watches -------------------------------------------------------------------------------

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        lost = await self._suffer("watch", request)
        if lost:
            return _cut_off(request)
        selected = self._selected(request)
        version = _version(request.query.get("resourceVersion", ""))
        watch = Watch()
        # A list as the beginning of a watch, which newer clients ask for.
        initial = request.query.get("sendInitialEvents") == "true"
        try:
            if version and not initial:
                for change in self.store.since(version):
                    watch.queue.put_nowait(change)
            else:
                # "Any version": first what is there, as if it had just come.
                for pod in self.store.all():
                    watch.queue.put_nowait(Change(self.store.version, None, pod))
                if initial:
                    watch.queue.put_nowait("shown")
        except Refusal as exc:
            if self.faults.gone_as_status:
                raise
            watch.queue.put_nowait(exc)
        self.store.watches.add(watch)
        try:
            stream = Stream(
                watch,
                selected,
                store=self.store,
                faults=self.faults,
                pause=self._bookmark_seconds,
            )
            return await stream.answer(request)
        finally:
            self.store.watches.discard(watch)


class _Dropped(Exception):
    """The connection is to be closed without an answer."""


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as answers."""
    try:
        return await handler(request)
    except _Dropped:
        return _cut_off(request)
    except Refusal as exc:
        headers = {} if exc.retry_after is None else {"Retry-After": str(exc.retry_after)}
        return web.json_response(exc.status, status=exc.code, headers=headers)
    except web.HTTPNotFound:
        # As for a resource that no API group has.
        status = Refusal(404, "NotFound", "the server could not find the requested resource")
        return web.json_response(status.status, status=404)


def _cut_off(request: web.Request) -> web.Response:
    cut_off(request)
    return web.Response()  # nobody gets it


def _constant(document: dict[str, Any]) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response(document)

    return handler


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError as exc:
        raise bad_request(f"invalid character in the body: {exc}") from exc
    if not isinstance(body, dict):
        raise bad_request("the body is no object")
    return body


def _where(request: web.Request) -> tuple[str, str]:
    return request.match_info["namespace"], request.match_info["name"]


def _name_of(pod: dict[str, Any]) -> object:
    return (pod.get("metadata") or {}).get("name", "")


def _counts(pod: Pod, namespace: str) -> bool:
    """Whether a quota counts a pod: one that has ended it does not."""
    ended = pod["status"].get("phase") in ("Succeeded", "Failed")
    return pod["metadata"]["namespace"] == namespace and not ended


def _version(text: str) -> int:
    """A resource version; 0 for none."""
    if not text:
        return 0
    if not text.isdigit():
        raise bad_request(f'resourceVersion: Invalid value: "{text}": must be a number')
    return int(text)


def _token(version: int, name: str) -> str:
    parts = {"v": "meta.k8s.io/v1", "rv": version, "start": name}
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()
