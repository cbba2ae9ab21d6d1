"""Real servers for tests: Redis, Valkey, a cluster, sentinels, TLS, an ACL user."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

from gateway.registry.exchange import key_of
from gateway.registry.node import Argument, Node
from gateway.registry.url import Address
from tests.conftest import find_valkey, require_tool

ROOT: Final = Path(__file__).resolve().parents[2]
HOST: Final = "127.0.0.1"
#: Commands of tests that concern every server of a cluster.
_EVERYWHERE: Final = frozenset({"CLIENT", "CONFIG", "FLUSHALL", "PUBSUB", "SCRIPT"})
#: What a server logs once its socket is there, which it is while its data are still loaded.
_LISTENS: Final = (
    b"now ready to accept",
    b"Ready to accept",
    b"Loading RDB produced",
    b"+monitor master",
)


class Server:
    """A server process of a test, on a Unix socket in a directory of its own."""

    def __init__(
        self,
        binary: str,
        *options: str,
        folder: Path | None = None,
        sentinel: Path | None = None,
    ) -> None:
        """``sentinel`` is the configuration that makes it a sentinel."""
        self.folder = folder or Path(tempfile.mkdtemp(prefix="registry-", dir="/tmp"))
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"
        self._command = [
            *([binary, str(sentinel), "--sentinel"] if sentinel else [binary, "--save", ""]),
            *("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)),
            *([] if sentinel else ["--enable-debug-command", "yes"]),
            *options,
        ]
        self.restart()

    def restart(self) -> None:
        """Start the server, which is not running, on what its folder holds."""
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._log: list[bytes] = []
        self._ended = False
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._drain, name="server log", daemon=True)
        self._reader.start()
        if not self._listening.wait(20) or self._ended:
            self.close()
            pytest.fail(f"{self._command[0]} does not listen: {b''.join(self._log).decode()}")

    def _drain(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._log.append(line)
            if any(word in line for word in _LISTENS):
                self._listening.set()
        # It has ended, perhaps before it listened: somebody else has its port.
        self._ended = not self._listening.is_set()
        self._listening.set()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        self._process.send_signal(number)

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """The server accepts and says nothing, as a machine that swaps does."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server at once, keeping its folder."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(10)
        self._reader.join(10)
        if self._process.stdout:
            self._process.stdout.close()

    def close(self) -> None:
        """End the server and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def settled(self) -> None:
        """It is as soon as it listens."""

    async def ask(self, *parts: Argument) -> Any:
        """The answer to one command, over a connection of its own."""
        node = Node(self.url, None, limit_seconds=5)
        try:
            return (await node.ask(parts, limit_seconds=5))[0]
        finally:
            await node.close()


class Store(Protocol):
    """What holds a registry under test."""

    @property
    def url(self) -> str:
        """For GATEWAY_REDIS_URL."""

    async def settled(self) -> None:
        """Wait until it works as it should; soon after the start of its servers."""

    async def ask(self, *parts: Argument) -> Any:
        """The answer to one command of a user who may do everything."""

    def close(self) -> None:
        """End all servers and remove their folders."""


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def find_server(kind: str) -> str:
    """The program of a "redis" or "valkey" server."""
    return require_tool("redis-server") if kind == "redis" else find_valkey()


def listening_server(binary: str, *options: str, **more: Path) -> tuple[Server, int]:
    """A server on a free TCP port, too; another one if somebody was faster."""
    for _ in range(3):
        port = free_port()
        with contextlib.suppress(pytest.fail.Exception):
            return Server(binary, "--bind", HOST, "--port", str(port), *options, **more), port
    pytest.fail(f"{binary} finds no free port")


class ClusterStore:
    """Three primaries that share the slots."""

    def __init__(self, binary: str) -> None:
        self.nodes: dict[Address, Server] = {}
        for _ in range(3):
            server, port = listening_server(
                binary,
                *("--cluster-enabled", "yes", "--cluster-node-timeout", "2000"),
                *("--cluster-port", str(free_port())),
            )
            self.nodes[Address(HOST, port)] = server
        names = [str(address) for address in self.nodes]
        self.url = f"redis+cluster://{','.join(names)}"
        try:
            subprocess.run(
                [require_tool("redis-cli"), "--cluster", "create", *names, "--cluster-yes"],
                stdout=subprocess.DEVNULL,
                check=True,
                timeout=60,
            )
        except BaseException:
            self.close()
            raise

    async def settled(self) -> None:
        """Wait until every node knows every other."""
        async with asyncio.timeout(30):
            for server in self.nodes.values():
                # Nodes tell nobody that they have heard of each other.
                while not await _knows_all(server):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def server_of(self, key: str) -> Server:
        """The node that serves a key."""
        (first, *_) = self.nodes.values()
        slot = await first.ask("CLUSTER", "KEYSLOT", key)
        for low, high, (host, port, *_), *_ in await first.ask("CLUSTER", "SLOTS"):
            if low <= slot <= high:
                return self.nodes[Address(host.decode(), port)]
        raise LookupError(f"slot {slot} is served by no node")

    async def ask(self, *parts: Argument) -> Any:
        """The answer of the node that has the key; of every node, added up, to the rest."""
        if parts[0] in _EVERYWHERE:
            answers = [await server.ask(*parts) for server in self.nodes.values()]
            if parts[0] == "PUBSUB":
                return [answers[0][0], sum(answer[1] for answer in answers)]
            return answers[0]
        return await (await self.server_of(key_of(parts) or "")).ask(*parts)

    def close(self) -> None:
        """End all nodes."""
        for server in self.nodes.values():
            server.close()


async def _knows_all(server: Server) -> bool:
    facts = await server.ask("CLUSTER", "INFO")
    return b"cluster_state:ok" in facts and b"cluster_known_nodes:3" in facts


class SentinelStore:
    """A primary, a replica, and three sentinels that watch them."""

    service: Final = "previews"

    def __init__(
        self,
        binary: str,
        *,
        down_after_ms: int = 60_000,
        replica_source: Callable[[int], int] = lambda port: port,
    ) -> None:
        """``down_after_ms``: by default longer than any test, so that no stall is a failover.

        ``replica_source`` tells the port at which the replica finds the primary.
        """
        self._down_after_ms = down_after_ms
        self.servers: dict[int, Server] = {}
        self.sentinels: list[Server] = []
        options = ("--repl-diskless-sync-delay", "0", "--repl-timeout", "5")
        primary, self.port = listening_server(binary, *options)
        self.servers[self.port] = primary
        try:
            source = str(replica_source(self.port))
            replica, port = listening_server(binary, *options, "--replicaof", HOST, source)
            self.servers[port] = replica
            names = [self._watch(binary) for _ in range(3)]
        except BaseException:
            self.close()
            raise
        self.url = f"redis+sentinel://{','.join(names)}/{self.service}"

    def _watch(self, binary: str) -> str:
        folder = Path(tempfile.mkdtemp(prefix="sentinel-", dir="/tmp"))
        (folder / "sentinel.conf").write_text(
            f"sentinel monitor {self.service} {HOST} {self.port} 2\n"
            f"sentinel down-after-milliseconds {self.service} {self._down_after_ms}\n"
            f"sentinel failover-timeout {self.service} 4000\n"
        )
        config = folder / "sentinel.conf"
        sentinel, port = listening_server(binary, folder=folder, sentinel=config)
        self.sentinels.append(sentinel)
        return f"{HOST}:{port}"

    @property
    def primary(self) -> Server:
        """The primary, as it was to begin with."""
        return self.servers[self.port]

    @property
    def replica(self) -> Server:
        """The other one."""
        return next(server for port, server in self.servers.items() if port != self.port)

    async def settled(self) -> None:
        """Wait until the sentinels know the replica and each other, and it has caught up."""
        async with asyncio.timeout(30):
            # Servers tell nobody that they have caught up.
            while b"master_link_status:up" not in await self.replica.ask("INFO", "replication"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            for sentinel in self.sentinels:
                while True:
                    found = await sentinel.ask("SENTINEL", "MASTER", self.service)
                    facts = dict(zip(found[::2], found[1::2], strict=True))
                    if facts[b"num-slaves"] == b"1" and facts[b"num-other-sentinels"] == b"2":
                        break
                    await asyncio.sleep(0.05)

    async def ask(self, *parts: Argument) -> Any:
        """The first primary's answer."""
        return await self.primary.ask(*parts)

    def close(self) -> None:
        """End all servers."""
        for server in (*self.sentinels, *self.servers.values()):
            server.close()


class TlsStore:
    """A server that speaks TLS only, with a certificate of a CA that nobody else knows."""

    def __init__(self, binary: str, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tls-", dir="/tmp"))
        self._make_certificates()
        files = ("--tls-cert-file", "server.pem", "--tls-key-file", "server.key")
        self.port = free_port()
        self._server = Server(
            binary,
            *("--tls-port", str(self.port), "--bind", HOST, *files, "--tls-ca-cert-file", "ca.pem"),
            *("--tls-auth-clients", "optional", *options),
            folder=self.folder,
        )
        self.plain_url = f"rediss://{HOST}:{self.port}/0"
        self.url = f"{self.plain_url}?ssl_ca_certs={self.folder / 'ca.pem'}"
        self.ask = self._server.ask
        self.settled = self._server.settled
        self.close = self._server.close

    def _make_certificates(self) -> None:
        self._openssl("req -x509 -keyout ca.key -out ca.pem -subj /CN=test-ca")
        (self.folder / "names").write_text(f"subjectAltName=IP:{HOST}")
        self._openssl("req -keyout server.key -out server.csr -subj /CN=registry")
        self._openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 "
            "-extfile names -out server.pem"
        )

    def _openssl(self, command: str) -> None:
        verb, *rest = command.split()
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        subprocess.run(
            [require_tool("openssl"), verb, *(new if verb == "req" else []), *rest],
            cwd=self.folder,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=30,
        )


def acl_rule(user: str) -> list[str]:
    """The rule of docs/redis.md for a user, word by word, without its password."""
    text = (ROOT / "docs" / "redis.md").read_text()
    found = re.search(rf"^user {user} on (?:>\S+ )?((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert found, f"docs/redis.md has no rule for {user}"
    return found[1].replace("\\\n", " ").split()


class AclStore:
    """A server on which the gateway's user may do only what docs/redis.md lets it do."""

    def __init__(self, binary: str) -> None:
        self._server = Server(binary)
        self.url = self._server.url.replace("unix://", "unix://gateway:word@")
        self.close = self._server.close

        self.ask = self._server.ask

    async def settled(self) -> None:
        """Make the gateway's user."""
        await self.ask("ACL", "SETUSER", "gateway", "on", ">word", *acl_rule("gateway"))


#: How to start each kind of store.
STORES: Final[dict[str, Callable[[], Store]]] = {
    "redis": lambda: Server(find_server("redis")),
    "valkey": lambda: Server(find_server("valkey")),
    "cluster": lambda: ClusterStore(find_server("redis")),
    "sentinel": lambda: SentinelStore(find_server("redis")),
    "tls": lambda: TlsStore(find_server("redis")),
    "acl": lambda: AclStore(find_server("redis")),
}
