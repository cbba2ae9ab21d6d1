"""Probes of containers, as the kubelet makes them: httpGet and tcpSocket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.kube.rendering import ConfigError


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe of one container."""

    ip: str
    port: int
    #: The request's path and fields; None: a connection is enough.
    path: str | None
    headers: dict[str, str]
    timeout_seconds: float
    period_seconds: float
    delay_seconds: float
    successes: int
    failures: int

    async def holds(self, http: aiohttp.ClientSession) -> bool:
        """Whether the container answers: with a status from 200 to 399."""
        try:
            async with asyncio.timeout(self.timeout_seconds):
                if self.path is None:
                    _, writer = await asyncio.open_connection(self.ip, self.port)
                    writer.close()
                    return True
                url = f"http://{self.ip}:{self.port}{self.path}"
                async with http.get(url, headers=self.headers, allow_redirects=False) as response:
                    return 200 <= response.status < 400
        except (OSError, aiohttp.ClientError, TimeoutError):
            return False

    async def run(self, http: aiohttp.ClientSession, told: Callable[[bool], None]) -> None:
        """Probe for ever; tell each verdict once it stands, at first that it does not hold."""
        await asyncio.sleep(self.delay_seconds)
        verdict: bool | None = None
        last, count = False, 0
        while True:
            result = await self.holds(http)
            count = count + 1 if result == last else 1
            last = result
            enough = self.successes if result else self.failures
            if result != verdict and count >= enough:
                verdict = result
                told(result)
            await asyncio.sleep(self.period_seconds)


def parse_probe(
    spec: Mapping[str, Any] | None, container: Mapping[str, Any], *, ip: str, longest_period: float
) -> Probe | None:
    """A probe of a container. Tests do not wait for whole periods: ``longest_period`` seconds."""
    if spec is None:
        return None
    if "httpGet" in spec:
        action = spec["httpGet"]
        if action.get("scheme", "HTTP") != "HTTP":
            raise ConfigError("the fake kubelet probes without TLS only")
        path = "/" + str(action.get("path") or "/").removeprefix("/")
    elif "tcpSocket" in spec:
        action, path = spec["tcpSocket"], None
    else:
        raise ConfigError("the fake kubelet probes with httpGet and tcpSocket only")
    headers = {item["name"]: item["value"] for item in action.get("httpHeaders") or ()}
    return Probe(
        ip=str(action.get("host") or ip),
        port=_port(action["port"], container),
        path=path,
        headers={"User-Agent": "kube-probe/1.37", **headers},
        timeout_seconds=float(spec.get("timeoutSeconds", 1)),
        period_seconds=min(float(spec.get("periodSeconds", 10)), longest_period),
        delay_seconds=min(float(spec.get("initialDelaySeconds", 0)), longest_period),
        successes=int(spec.get("successThreshold", 1)),
        failures=int(spec.get("failureThreshold", 3)),
    )


def _port(port: int | str, container: Mapping[str, Any]) -> int:
    if isinstance(port, int):
        return port
    for known in container.get("ports") or ():
        if known.get("name") == port:
            return int(known["containerPort"])
    raise ConfigError(f"couldn't find port: {port}")
