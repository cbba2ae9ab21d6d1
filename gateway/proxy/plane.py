"""What all connections of one data plane share: routes, pools, access rules, counters."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, cast
from urllib.parse import urlsplit

from gateway.proxy.access import Access
from gateway.proxy.deadlines import Limits
from gateway.proxy.forwarded import Forwarding
from gateway.proxy.outbox import Outbox
from gateway.proxy.place import Places
from gateway.proxy.profile import LocalProfile, Profile, PublicProfile
from gateway.proxy.routes import Entry, RouteTable, Waker
from gateway.proxy.turns import Crowd
from gateway.proxy.upstream import Pool, PoolLimits, UpstreamBusy, tcp_connect, unix_connect
from gateway.proxy.viewers import Viewers
from gateway.settings import Settings
from gateway.tokens import Tokens

#: aiohttp keeps idle connections for 75 s; ours let go before that. Each holds two descriptors and
#: a task, and over a Unix socket a new one costs little.
_CONTROL_IDLE_SECONDS: Final = 5.0
#: A status has three digits (RFC 9110 15).
_STATUSES: Final = 1000


class PlaneStats:
    """Plain counters, since start; ``/metrics`` reads them."""

    def __init__(self) -> None:
        self._responses = [0] * _STATUSES
        self.errors: Counter[str] = Counter()
        self.tunnels = 0
        #: HMR sockets that were connected to another dev server, and those that could not be.
        self.hmr_resumed = 0
        self.hmr_given_up = 0

    def count(self, status: int) -> None:
        """A response with this status was sent on."""
        self._responses[status] += 1

    @property
    def responses(self) -> dict[int, int]:
        """How many responses were sent on, by status."""
        return {status: count for status, count in enumerate(self._responses) if count}


class DataPlane:
    """The state of the data plane. One event loop; nothing here waits."""

    def __init__(
        self, settings: Settings, *, routes: RouteTable, waker: Waker, control_socket: str
    ) -> None:
        self.settings = settings
        self.routes = routes
        self.waker = waker
        self.stats = PlaneStats()
        self.places = Places(settings.preview_domain)
        self.access = Access(
            tokens=Tokens(settings.tokens, settings.api_tokens_file),
            allowed_origins=settings.cors_origins,
            public_url=settings.public_url,
            preview_domain=settings.preview_domain,
            listen_host=settings.host,
        )
        self.viewers = Viewers(settings.secret_key.get_secret_value())
        self.forwarding = Forwarding(
            settings.trusted_proxies, scheme=urlsplit(settings.public_url).scheme or "http"
        )
        self.profile: Profile = (
            PublicProfile(self.forwarding, preview_domain=settings.preview_domain)
            if settings.header_profile == "public"
            else LocalProfile(self.access)
        )
        self.limits = Limits(settings)
        self.replica_field = f"X-Preview-Replica: {settings.replica}\r\n".encode()
        # The clock itself: the loop's is a moment old, and that moment may have been a long one.
        self.now: Callable[[], float] = time.monotonic
        self.outbox = Outbox(asyncio.get_running_loop().call_soon, self.now)
        #: The pools that have connections.
        self.pools: set[Pool] = set()
        #: Sessions with traffic since it was last noted in the registry.
        self.active: set[str] = set()
        self._pool_limits = PoolLimits(
            requests=settings.max_connections_per_preview,
            tunnels=settings.max_tunnels_per_preview,
            queue=settings.max_queue_per_preview,
            queue_seconds=settings.queue_seconds,
        )
        # As many as its dev server takes on and lets wait: all of them, once it is ready.
        held = settings.max_connections_per_preview + settings.max_queue_per_preview
        #: Requests held until a session is found and its dev server is ready.
        self.held = Crowd(held, full=_too_many_held)
        #: Those of who may not see a session: held as for an unknown one, but in nobody's way.
        self.denied = Crowd(held, full=_too_many_held)
        self.control = Pool(
            unix_connect(control_socket),
            name="the control plane",
            connect_timeout_seconds=settings.connect_timeout_seconds,
            limits=PoolLimits(
                requests=settings.max_connections,
                tunnels=settings.max_connections,
                queue=0,
                queue_seconds=0,
            ),
            max_head=settings.max_head_bytes,
            outbox=self.outbox,
            idle_seconds=_CONTROL_IDLE_SECONDS,
            active=self.pools,
        )

    def pool(self, entry: Entry) -> Pool:
        """The pool of a ready route's generation; it ends when the route is replaced."""
        if entry.pool is None:
            endpoint = entry.route.endpoint
            assert endpoint is not None  # noqa: S101 - a ready route has one
            authority = b"localhost:%d" % endpoint.port
            entry.pool = Pool(
                tcp_connect(endpoint),
                name=f"the dev server of {entry.route.id}",
                connect_timeout_seconds=self.settings.connect_timeout_seconds,
                limits=self._pool_limits,
                max_head=self.settings.max_head_bytes,
                outbox=self.outbox,
                host=authority,
                origin=b"http://" + authority,
                address=endpoint.host.encode(),
                active=self.pools,
            )
        return cast("Pool", entry.pool)

    def sweep_pools(self) -> None:
        """Close what is idle, cut what does not end."""
        now = self.now()
        for pool in tuple(self.pools):
            pool.sweep(now)


def _too_many_held(session_id: str, most: int) -> UpstreamBusy:
    return UpstreamBusy(f"{most} requests wait for {session_id} already; try again")
