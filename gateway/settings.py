"""All settings, frozen, in one place. Environment: ``GATEWAY_<NAME>``; command line: ``--<name>``.

An unknown or contradictory setting is refused at start (SettingsError) with its name and remedy.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.errors import SettingsError
from gateway.registry.url import parse_redis_url
from gateway.tokens import parse_token

PREFIX: Final = "GATEWAY_"
_WORKERS_PER_CORE: Final = 4
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY: Final = re.compile(r"\d+(?:\.\d+)?(?:m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_REPLICA_ID: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def _default_data_dir() -> Path:
    root = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(root) / "preview-gateway"


class Settings(BaseSettings):
    """What an operator can set. Lists are JSON arrays or comma-separated."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True
    )

    # -- addresses
    host: str = Field("127.0.0.1", description="Address of the public port.")
    port: int = Field(8080, ge=0, le=65535, description="The public port; 0 takes a free one.")
    admin_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port for `/livez`, `/readyz` and `/metrics` on the same address; 0: none.",
    )
    public_url: str = Field(
        "",
        description="How browsers reach the gateway, e.g. `https://previews.example`; "
        "empty: taken from each request.",
    )
    workers: int = Field(
        0,
        ge=0,
        description="Data-plane processes on the public port, beside one control process (Linux); "
        "0: one process does both.",
    )
    preview_domain: str = Field(
        "",
        description="Turns subdomain mode on: previews live at `<id>.<preview_domain>`. "
        "Empty: path mode, `/preview/<id>/`.",
    )
    header_profile: Literal["local", "public"] = Field(
        "local",
        description="What dev servers are told of the public address: `local`, nothing; "
        "`public` (needs `PREVIEW_DOMAIN`), the browser's `Host` and `Origin` and "
        "`X-Forwarded-*`.",
    )
    advertise_host: str = Field(
        "127.0.0.1",
        description="Address at which this replica's dev servers listen and other replicas "
        "reach them.",
    )
    replica_id: str = Field(
        "", description="Name of this replica, unique among all; empty: host name and port."
    )
    insecure: bool = Field(False, description="Allow a non-loopback address without `API_TOKENS`.")

    # -- access
    api_tokens: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list,
        description="Bearer tokens for the API, each `TOKEN` or `admin:NAME:TOKEN` (everything) or "
        "`create:NAME:TOKEN` (only the sessions made under this name). Empty: no token is asked "
        "for (loopback only).",
    )
    api_tokens_file: Path | None = Field(
        None,
        description="File with further tokens, one a line; read again when it changes, so that "
        "tokens are replaced without a restart.",
    )
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Key with which links to private previews and session tokens are signed, the "
        "same on all replicas. Empty: a random one that the replicas share through the registry.",
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Foreign origins that may call the API and open preview sockets.",
    )
    trusted_proxies: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Networks (CIDR) of the proxies in front. Only from them are "
        "`X-Forwarded-For`, `-Proto` and `-Host` believed; they must set or remove each of these.",
    )
    target_allowlist: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Networks (CIDR) in which the `target` of a session may lie. Empty: no "
        "target sessions.",
    )

    # -- registry
    redis_url: str = Field(
        "",
        repr=False,  # it may hold a password
        description="URL of Redis or Valkey: `redis://`, `rediss://` (TLS), `unix://`, "
        "`redis+sentinel://host,host/service`, `redis+cluster://host,host` (see `docs/redis.md`). "
        "Empty: an embedded Valkey in `DATA_DIR`.",
    )
    registry_replicas: int = Field(
        0, ge=0, description="Replicas of Redis that must acknowledge a registration."
    )
    registry_timeout_seconds: float = Field(
        2.0, gt=0, description="Limit of one call to the registry."
    )
    lease_seconds: float = Field(15.0, ge=1, description="Life of a replica's lease.")
    outage_seconds: float = Field(
        3600.0,
        gt=0,
        description="How long a replica that cannot reach the registry keeps its dev servers "
        "running; after that it stops them.",
    )
    handover_seconds: float = Field(
        15.0,
        ge=0,
        description="On SIGTERM, how long other replicas may take to start what runs here; 0: it "
        "is put to sleep instead.",
    )

    # -- data
    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="Workspaces, dependency cache, embedded Valkey.",
    )

    # -- sessions
    spawner: Literal["process", "kubernetes", "none"] = Field(
        "process",
        description="What runs dev servers: `process` (local), `kubernetes` (a pod each), `none`.",
    )
    session_ttl_seconds: int = Field(86400, ge=1, description="Life of a session.")
    idle_seconds: int = Field(
        1800, ge=0, description="A preview without traffic sleeps after this; 0: never."
    )
    tombstone_seconds: int = Field(
        86400, ge=1, description="How long an ended session is remembered (410 instead of 404)."
    )
    late_event_seconds: float = Field(
        60.0,
        ge=0,
        description="How long after its end a session still takes events; they are marked late.",
    )
    idempotency_seconds: int = Field(
        86400, ge=1, description="How long an `Idempotency-Key` of a create call is remembered."
    )
    max_files: int = Field(2000, ge=1, description="Files per session.")
    max_file_bytes: int = Field(4 * 2**20, ge=1, description="Size of one file.")
    max_session_bytes: int = Field(32 * 2**20, ge=1, description="Size of all files of a session.")

    # -- spawner
    install_scripts: bool = Field(
        False, description="Let npm run the install scripts of dependencies (arbitrary code)."
    )
    install_timeout_seconds: float = Field(300.0, gt=0, description="Limit of an npm install.")
    start_timeout_seconds: float = Field(
        60.0, gt=0, description="Limit from a dev server's start to its first answer."
    )
    stop_grace_seconds: float = Field(
        3.0, ge=0, description="From SIGTERM to SIGKILL for a dev server."
    )

    warm_pool: int = Field(
        0,
        ge=0,
        description="Dev server processes that wait for a project, for each set of dependencies, "
        "so that a preview starts in tens of milliseconds; each takes about 100 MB. 0: none.",
    )
    warm_sets: int = Field(
        2, ge=1, description="Sets of dependencies, those used last, for which processes wait."
    )
    warm_projects: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="Folders of projects whose dependencies are installed at the start, and for "
        "which processes always wait, beside those of `WARM_SETS`.",
    )

    # -- pods (spawner `kubernetes`)
    kube_api_url: str = Field(
        "",
        description="Address of the Kubernetes API server, e.g. that of `kubectl proxy`. Empty: "
        "the cluster this runs in, else the current context of `kubectl`.",
    )
    kube_namespace: str = Field(
        "previews", description="Namespace of the previews' pods, and of nothing else."
    )
    pod_image: str = Field(
        "", description="Image in which previews run: Node.js and npm, for a numeric user."
    )
    pod_agent_image: str = Field(
        "",
        description="Image that brings the agent into a pod: the gateway's own, of this version.",
    )
    pod_template_file: Path | None = Field(
        None,
        description="JSON file that is merged into each pod (node selector, tolerations, volumes "
        "...); what would weaken its isolation is refused.",
    )
    pod_runtime_class: str = Field("", description="RuntimeClass of the pods, e.g. `gvisor`.")
    pod_cpu: str = Field("1", description="CPU limit of a pod; a tenth of it is reserved.")
    pod_memory: str = Field("1Gi", description="Memory limit of a pod; a quarter is reserved.")
    pod_storage: str = Field(
        "2Gi", description="Disk limit of a pod (files, dependencies, log); a quarter is reserved."
    )
    pod_start_seconds: float = Field(
        120.0, gt=0, description="Limit from a pod's creation until its agent answers."
    )
    warm_pods: int = Field(
        0, ge=0, description="Pods that wait for a session, over all replicas; 0: none."
    )

    # -- waits
    registration_wait_seconds: float = Field(
        2.0, ge=0, description="How long a request waits for the registration of its session."
    )
    status_wait_seconds: float = Field(
        5.0,
        ge=0,
        le=300,
        description="How long a call that reads or changes a session waits for its registration.",
    )
    event_wait_seconds: float = Field(
        5.0,
        ge=0,
        le=300,
        description="How long an event that is posted waits for the registration of its session.",
    )
    stream_wait_seconds: float = Field(
        10.0,
        ge=0,
        le=300,
        description="How long an event stream waits for the registration of its session.",
    )
    hold_seconds: float = Field(
        30.0, ge=0, description="How long a request waits for a dev server that is starting."
    )
    route_max_age_seconds: float = Field(
        30.0, gt=0, description="A cached route older than this is read again."
    )
    lookups_per_second: float = Field(
        1000.0,
        gt=0,
        description="Sessions of which nothing is known that each data-plane process looks up in "
        "the registry per second; further requests for such ones wait their turn, or get 503.",
    )
    head_timeout_seconds: float = Field(
        30.0, gt=0, description="Limit for the head of a request to arrive."
    )
    keepalive_seconds: float = Field(
        75.0, gt=0, description="An idle client connection is closed after this."
    )
    connect_timeout_seconds: float = Field(
        5.0, gt=0, description="Limit of a connect to a dev server."
    )
    upgrade_timeout_seconds: float = Field(
        30.0, gt=0, description="Limit for a dev server to answer an upgrade."
    )
    response_timeout_seconds: float = Field(
        300.0,
        ge=0,
        description="Limit for a dev server to begin its answer to a complete request, and for a "
        "pause in taking one. Not for event streams, sockets, or an answer that has begun. "
        "0: none.",
    )
    queue_seconds: float = Field(
        10.0,
        ge=0,
        description="How long a request waits for a dev server that has as many as it may.",
    )
    body_idle_seconds: float = Field(
        60.0, gt=0, description="A client that stops sending its request's content gets 408."
    )
    write_idle_seconds: float = Field(
        60.0, gt=0, description="A client that takes nothing of a response is cut off after this."
    )
    ping_seconds: int = Field(
        20,
        ge=0,
        le=3600,
        description="A WebSocket side that says nothing for this long gets a ping; a browser that "
        "answers none for three times as long is gone. 0: no pings.",
    )
    keep_hmr_sockets: bool = Field(
        True,
        description="When a dev server goes and is started anew, keep the browser's HMR socket and "
        "connect it to the new one.",
    )
    drain_grace_seconds: float = Field(
        5.0,
        ge=0,
        description="On SIGTERM, how long new connections are still accepted, so that a Service "
        "can forget the replica.",
    )
    drain_seconds: float = Field(
        10.0,
        ge=0,
        description="After that, how long requests under way may take to finish; sockets are "
        "closed one by one meanwhile.",
    )

    # -- limits
    max_connections: int = Field(
        16384, ge=1, description="Client connections; further ones get 503."
    )
    max_connections_per_preview: int = Field(
        1024, ge=1, description="Requests under way to one dev server; further ones wait."
    )
    max_queue_per_preview: int = Field(
        512, ge=0, description="Requests that wait for one dev server; further ones get 503."
    )
    max_tunnels_per_preview: int = Field(
        1024,
        ge=1,
        description="Open sockets (WebSocket and other upgrades) of one dev server; further ones "
        "get 503.",
    )
    max_sessions_per_token: int = Field(
        0, ge=0, description="Sessions that have not ended, of one token's name; 0: no limit."
    )
    max_creates_per_minute: int = Field(
        0, ge=0, description="Create calls in a minute, of one token's name; 0: no limit."
    )
    max_files_per_token: int = Field(
        0, ge=0, description="Files of all these sessions together; 0: no limit."
    )
    max_bytes_per_token: int = Field(
        0, ge=0, description="Bytes of all these files together; 0: no limit."
    )
    max_head_bytes: int = Field(65536, ge=1024, description="Size of a request or response head.")
    max_target_bytes: int = Field(32768, ge=256, description="Length of a request target.")
    max_api_body_bytes: int = Field(
        64 * 2**20,
        ge=1024,
        description="Body of an API call with files; all such bodies under way may have four times "
        "as much together.",
    )
    max_event_bytes: int = Field(
        64 * 2**10, ge=1024, le=2**20, description="Data of an event that is posted to a session."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Form of a log line; `auto`: `text` on a terminal, else `json`."
    )

    @field_validator(
        "api_tokens",
        "cors_origins",
        "trusted_proxies",
        "target_allowlist",
        "warm_projects",
        mode="before",
    )
    @classmethod
    def _split_lists(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value.strip()
        if text.startswith("["):
            try:
                return json.loads(text)
            except json.JSONDecodeError as exc:
                raise ValueError("write a JSON array, or values separated by commas") from exc
        return [part.strip() for part in text.split(",") if part.strip()]

    @field_validator("api_tokens")
    @classmethod
    def _strong_tokens(cls, value: list[SecretStr]) -> list[SecretStr]:
        for token in value:
            parse_token(token.get_secret_value())
        return value

    @field_validator("secret_key")
    @classmethod
    def _strong_key(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 32:
            raise ValueError(
                "the key is shorter than 32 characters: make one with `openssl rand -hex 32`"
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _real_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            parts = urlsplit(origin)
            if not parts.scheme or not parts.netloc or parts.path or parts.query:
                raise ValueError(f"{origin!r} is no origin: write scheme://host[:port]")
        return value

    @field_validator("trusted_proxies", "target_allowlist")
    @classmethod
    def _real_networks(cls, value: list[str]) -> list[str]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    @field_validator("public_url")
    @classmethod
    def _real_public_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (
            parts.scheme not in {"http", "https"} or not parts.netloc or parts.path.strip("/")
        ):
            raise ValueError("write scheme://host[:port] without a path")
        return value.rstrip("/")

    @field_validator("workers")
    @classmethod
    def _no_crowd(cls, value: int) -> int:
        if value and sys.platform != "linux":
            raise ValueError("only Linux spreads connections over processes: set it to 0")
        most = _WORKERS_PER_CORE * len(os.sched_getaffinity(0)) if value else 0
        if value > most:
            raise ValueError(
                f"more than {_WORKERS_PER_CORE} for each processor that may be used: "
                f"set it to {most} at most"
            )
        return value

    @field_validator("preview_domain")
    @classmethod
    def _bare_domain(cls, value: str) -> str:
        if value and not re.fullmatch(r"[a-z0-9.-]+(:\d+)?", value):
            raise ValueError("write a lower-case domain, e.g. preview.example or localhost:8080")
        return value

    @field_validator("replica_id")
    @classmethod
    def _short_replica_id(cls, value: str) -> str:
        if value and not _REPLICA_ID.fullmatch(value):
            raise ValueError("use up to 63 of A-Z, a-z, 0-9, '.', '_' and '-'")
        return value

    @field_validator("pod_cpu", "pod_memory", "pod_storage")
    @classmethod
    def _real_quantity(cls, value: str) -> str:
        if not _QUANTITY.fullmatch(value):
            raise ValueError("write a quantity as Kubernetes does, e.g. 500m, 1.5, 512Mi, 2Gi")
        return value

    @field_validator("kube_namespace")
    @classmethod
    def _real_namespace(cls, value: str) -> str:
        if not _LABEL.fullmatch(value):
            raise ValueError("write the name of a namespace: a-z, 0-9 and '-', 63 at most")
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value:
            parse_redis_url(value)
        return value

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        if not is_loopback(self.host) and not self.asks_for_tokens and not self.insecure:
            raise ValueError(
                f"{PREFIX}HOST={self.host} is reachable from other machines and "
                f"{PREFIX}API_TOKENS is empty: set tokens, listen on 127.0.0.1, or give "
                "--insecure if something in front checks access"
            )
        if self.header_profile == "public" and not self.preview_domain:
            raise ValueError(
                f"{PREFIX}HEADER_PROFILE=public needs {PREFIX}PREVIEW_DOMAIN: in path mode "
                "previews share one public address; set a domain, or leave the profile local"
            )
        if self.max_file_bytes > self.max_session_bytes:
            raise ValueError(
                f"{PREFIX}MAX_FILE_BYTES is larger than {PREFIX}MAX_SESSION_BYTES: lower it"
            )
        if self.spawner == "kubernetes" and not (self.pod_image and self.pod_agent_image):
            raise ValueError(
                f"{PREFIX}SPAWNER=kubernetes needs {PREFIX}POD_IMAGE and {PREFIX}POD_AGENT_IMAGE: "
                "set the image in which previews run, and the gateway's own"
            )
        if self.admin_port and self.admin_port == self.port:
            raise ValueError(
                f"{PREFIX}ADMIN_PORT and {PREFIX}PORT are both {self.port}: give them two ports"
            )
        return self

    @property
    def replica(self) -> str:
        """The replica's name: as set, or made of host name and port."""
        return self.replica_id or f"{socket.gethostname()[:50]}-{self.port}"

    def public_host(self, session_id: str) -> str:
        """The host that a session's dev server is asked under, and must allow; "": its own."""
        if self.header_profile != "public":
            return ""
        return f"{session_id}.{self.preview_domain.partition(':')[0]}"

    @property
    def asks_for_tokens(self) -> bool:
        """Whether calls of the API need a token."""
        return bool(self.api_tokens) or self.api_tokens_file is not None

    @property
    def tokens(self) -> frozenset[str]:
        """The API tokens of ``api_tokens`` in the clear, as set; never to be logged."""
        return frozenset(token.get_secret_value() for token in self.api_tokens)


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(arguments: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment, overridden by ``arguments`` (field names).

    Raises SettingsError naming each setting that is unknown, malformed or contradictory.
    """
    problems = [
        f"{name} is no setting{_did_you_mean(key)}"
        for name in sorted(os.environ)
        if name.startswith(PREFIX)
        and (key := name.removeprefix(PREFIX).lower()) not in Settings.model_fields
    ]
    try:
        settings = Settings(**(arguments or {}))
    except ValidationError as exc:
        problems.extend(_problem(error) for error in exc.errors())
    if problems:
        raise SettingsError("; ".join(problems))
    return settings


def _did_you_mean(key: str) -> str:
    close = difflib.get_close_matches(key, Settings.model_fields, n=1)
    return f": did you mean {PREFIX}{close[0].upper()}?" if close else ": unset it"


def _problem(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return str(message)
    return f"{PREFIX}{str(error['loc'][0]).upper()}: {message}"
