"""A container as the manifests have it run, by crun alone: there is no engine.

Root is read-only, the user is a number, there are no capabilities and no new privileges, and what
Docker forbids by default (seccomp) is forbidden. Its network is a loopback device of its own.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import platform
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

USER: Final = 10001
_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.05
_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
#: Of the package golang-github-containers-common, on which buildah depends.
_SECCOMP: Final = Path("/usr/share/containers/seccomp.json")
_CRUN: Final = Path(__file__).resolve().parents[2] / "scripts" / "image-crun"
_CAPABILITIES: Final = ("bounding", "effective", "inheritable", "permitted", "ambient")
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its file system, and what it says of itself as Docker has it."""

    target: str
    root: Path
    described: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """User, environment, entry point and so on."""
        found: Mapping[str, Any] = self.described["config"]
        return found

    @property
    def environ(self) -> dict[str, str]:
        """The environment that it sets."""
        return dict(item.split("=", 1) for item in self.config["Env"])

    def files(self) -> Iterator[Path]:
        """All its files and links, as paths from its root."""
        for parent, folders, names in os.walk(self.root):
            links = [name for name in folders if (Path(parent) / name).is_symlink()]
            for name in [*names, *links]:
                yield (Path(parent) / name).relative_to(self.root)


def allowed_calls(profile: Mapping[str, Any], machine: str) -> dict[str, Any]:
    """Docker's form of a seccomp profile as a runtime wants it, for who has no capability."""
    arch = _MACHINES[machine]
    rules = []
    for rule in profile["syscalls"]:
        needs, spares = rule.get("includes") or {}, rule.get("excludes") or {}
        if needs.get("caps") or arch not in needs.get("arches", [arch]):
            continue
        if arch in spares.get("arches", []):
            continue
        known = ("names", "action", "args", "errnoRet")
        kept = {key: rule[key] for key in known if rule.get(key)}
        rules.append(kept)
    architectures = next(
        [entry["architecture"], *entry["subArchitectures"]]
        for entry in profile["archMap"]
        if entry["architecture"] == f"SCMP_ARCH_{machine.upper()}"
    )
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": architectures,
        "syscalls": rules,
    }


class Container:
    """One container: start it, ask it, signal it, end it. Folders in it are kept until its end."""

    def __init__(
        self,
        image: Image,
        work: Path,
        *,
        command: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
        folders: Mapping[str, Path] | None = None,
    ) -> None:
        """``command`` replaces entry point and arguments; ``folders`` are mounted under paths."""
        self.image = image
        self.id = f"{image.target}-{secrets.token_hex(4)}"
        self.bundle = work / "bundles" / self.id
        self._state = work / "crun"
        config = image.config
        self._command = command or [*(config["Entrypoint"] or ()), *(config["Cmd"] or ())]
        self._environ = image.environ | dict(environ or {})
        self._folders = dict(folders or {})
        for path in config.get("Volumes") or {}:
            self._folders.setdefault(path, self.bundle / path.strip("/").replace("/", "-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it; returns when its first process runs, or has run."""
        self.bundle.mkdir(parents=True)
        for folder in self._folders.values():
            folder.mkdir(exist_ok=True)
            os.chown(folder, USER, USER)
        (self.bundle / "config.json").write_text(json.dumps(self._runtime_config()))
        pid_file = self.bundle / "pid"
        with (self.bundle / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._crun("run", f"--bundle={self.bundle}", f"--pid-file={pid_file}", self.id),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.until(lambda: pid_file.exists() and bool(pid_file.read_text()), or_ended=True)
        self.pid = int(pid_file.read_text()) if pid_file.exists() else 0

    def signal(self, name: str) -> None:
        """Send a signal to its first process."""
        subprocess.run(self._crun("kill", self.id, name), check=True, timeout=_SECONDS)

    def ended(self, seconds: float = _SECONDS) -> int:
        """Wait for its end; the status of its first process."""
        assert self._process is not None
        return self._process.wait(seconds)

    def end(self) -> None:
        """Kill what is left of it. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            subprocess.run(self._crun("delete", "--force", self.id), check=True, timeout=_SECONDS)
            self._process.wait(_SECONDS)

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.bundle / "log").read_text("utf-8", "replace")

    # -- questions ---------------------------------------------------------------------------------

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as its user and with its environment."""
        return subprocess.run(
            self._crun(
                "exec", f"--user={self.image.config['User']}", "--no-new-privs", self.id, *command
            ),
            capture_output=True, text=True, timeout=_SECONDS,
        )  # fmt: skip

    def ask(
        self,
        port: int,
        target: str,
        *,
        method: str = "GET",
        json_body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """An HTTP request from inside its network: status and content."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
        connection.sock = self._connect(port)
        body = None if json_body is None else json.dumps(json_body)
        fields = {"Content-Type": "application/json"} if body else {}
        try:
            connection.request(method, target, body, {**fields, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def answers(self, port: int, target: str) -> bool:
        """Whether it answers 200."""
        try:
            return self.ask(port, target)[0] == 200
        except OSError:
            return False

    def until(self, is_so: Callable[[], bool], *, or_ended: bool = False) -> None:
        """Wait until something is so. Nothing in a container tells us; so it is asked again."""
        assert self._process is not None
        limit = time.monotonic() + _SECONDS
        while not is_so():
            if self._process.poll() is not None:
                if or_ended:
                    return
                raise AssertionError(f"it has ended: {self.log}")
            assert time.monotonic() < limit, self.log
            time.sleep(_PAUSE_SECONDS)

    def _connect(self, port: int) -> socket.socket:
        """A connection that was made in its network; it stays there, this thread does not."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            Path("/proc/self/ns/net").open() as ours,
            Path(f"/proc/{self.pid}/ns/net").open() as its,
        ):
            if libc.setns(its.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "cannot enter the container's network")
            try:
                return socket.create_connection(("127.0.0.1", port), _SECONDS)
            finally:
                assert not libc.setns(ours.fileno(), _NEW_NETWORK)

    # -- for crun ----------------------------------------------------------------------------------

    def _crun(self, command: str, *arguments: str) -> list[str]:
        return [str(_CRUN), f"--root={self._state}", command, *arguments]

    def _runtime_config(self) -> dict[str, Any]:
        user, _, group = self.image.config["User"].partition(":")
        nothing: list[str] = []
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(self.image.root), "readonly": True},
            "hostname": self.id,
            "process": {
                "user": {"uid": int(user), "gid": int(group)},
                "args": list(self._command),
                "env": [f"{name}={value}" for name, value in self._environ.items()],
                "cwd": self.image.config["WorkingDir"] or "/",
                "noNewPrivileges": True,
                "capabilities": dict.fromkeys(_CAPABILITIES, nothing),
            },
            "mounts": [*_SYSTEM_MOUNTS, *self._mounts()],
            "linux": {
                "namespaces": [
                    {"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")
                ],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"],
                "seccomp": allowed_calls(
                    json.loads(_SECCOMP.read_text()), platform.machine()
                ),
            },
        }  # fmt: skip

    def _mounts(self) -> list[dict[str, Any]]:
        return [
            {
                "destination": path,
                "type": "bind",
                "source": str(folder),
                "options": ["bind", "rw", "nosuid", "nodev"],
            }
            for path, folder in self._folders.items()
        ]


def _mount(path: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": path, "type": kind, "source": kind, "options": list(options)}


_SYSTEM_MOUNTS: Final = (
    _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
    _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
    _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
    _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    _mount("/tmp", "tmpfs", "nosuid", "nodev", "mode=1777", "size=1g"),
)
