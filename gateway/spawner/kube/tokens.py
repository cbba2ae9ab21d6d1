"""Bearer tokens: given once, read from a file, or made by a command.

Tokens of service accounts are bound to their pod and live for an hour; the kubelet replaces the
file when 80 % of that are over. So the file is read again from time to time, and whatever the
source is, it is asked again when the API server does not take a token.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from gateway.errors import KubeUnavailable

_log = logging.getLogger(__name__)

#: How often kubernetes_asyncio reads it, too.
_REREAD_SECONDS: Final = 60.0
_COMMAND_SECONDS: Final = 30.0
#: A token that ends so soon is replaced before it is used.
_MARGIN_SECONDS: Final = 30.0


class TokenSource(Protocol):
    """Where tokens come from. Neither ``str`` nor ``repr`` of a source shows one."""

    async def token(self) -> str:
        """A token that is fit for use now. Raises KubeUnavailable if there is none."""

    def refused(self) -> None:
        """The API server did not take the last one: ask for another next time."""


class FixedToken:
    """A token that stays."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        """Implements ``TokenSource``."""
        return self._token

    def refused(self) -> None:
        """Implements ``TokenSource``: there is no other."""


class FileToken:
    """A token in a file that is replaced from time to time."""

    def __init__(self, path: Path, *, reread_seconds: float = _REREAD_SECONDS) -> None:
        self._path = path
        self._reread_seconds = reread_seconds
        self._token = ""
        self._read_at = 0.0

    async def token(self) -> str:
        """Implements ``TokenSource``."""
        if not self._token or time.monotonic() > self._read_at + self._reread_seconds:
            self._read()
        return self._token

    def refused(self) -> None:
        """Implements ``TokenSource``."""
        self._read_at = float("-inf")

    def _read(self) -> None:
        try:
            self._token = self._path.read_text("utf-8").strip()
        except OSError as exc:
            # While the file is replaced the former token is still good.
            if not self._token:
                raise KubeUnavailable(
                    f"there is no token for the Kubernetes API server in {self._path}: {exc}",
                    uncertain=False,
                ) from exc
            _log.warning("the token in %s cannot be read again: %s", self._path, exc)
        self._read_at = time.monotonic()


class CommandToken:
    """A token that a credential plugin prints as an ExecCredential object."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        api_version: str,
        environment: Mapping[str, str],
        seconds: float = _COMMAND_SECONDS,
    ) -> None:
        self._command = tuple(command)
        self._api_version = api_version
        self._environment = dict(environment)
        self._seconds = seconds
        self._token = ""
        self._ends_at: float | None = None
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """Implements ``TokenSource``. Runs the command once for all who wait."""
        async with self._lock:
            ended = self._ends_at is not None and time.time() > self._ends_at - _MARGIN_SECONDS
            if not self._token or ended:
                self._token, self._ends_at = parse_credential(await self._run(), self._command[0])
            return self._token

    def refused(self) -> None:
        """Implements ``TokenSource``."""
        self._token = ""

    async def _run(self) -> bytes:
        info = {
            "apiVersion": self._api_version,
            "kind": "ExecCredential",
            "spec": {"interactive": False},
        }
        environment = {
            **os.environ,
            **self._environment,
            "KUBERNETES_EXEC_INFO": json.dumps(info),
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
            )
        except OSError as exc:
            raise self._failed(f"cannot be started: {exc}") from exc
        try:
            async with asyncio.timeout(self._seconds):
                output, complaint = await process.communicate()
        except TimeoutError as exc:
            raise self._failed(f"did not end within {self._seconds:g} s") from exc
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            # What it says on stderr is meant for people; the token goes to stdout.
            text = complaint.decode(errors="replace").strip()[-300:]
            raise self._failed(f"ended with {process.returncode}: {text}")
        return output

    def _failed(self, what: str) -> KubeUnavailable:
        return KubeUnavailable(
            f"the credential plugin {self._command[0]} of the kubeconfig {what}", uncertain=False
        )


def parse_credential(output: bytes, command: str) -> tuple[str, float | None]:
    """The token of an ExecCredential object, and when it ends (seconds since 1970, or None)."""
    try:
        status: Any = json.loads(output)["status"]
        token, ends = status.get("token"), status.get("expirationTimestamp")
        ends_at = datetime.fromisoformat(ends).timestamp() if ends else None
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise KubeUnavailable(
            f"the credential plugin {command} of the kubeconfig printed no ExecCredential object",
            uncertain=False,
        ) from exc
    if not isinstance(token, str) or not token:
        raise KubeUnavailable(
            f"the credential plugin {command} of the kubeconfig gave no token (client "
            "certificates of plugins are not supported): run `kubectl proxy` and set "
            "GATEWAY_KUBE_API_URL to its address",
            uncertain=False,
        )
    return token, ends_at
