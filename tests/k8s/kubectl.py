"""kubectl as a function: the only tool with which these tests touch a cluster."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import select
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Final

#: Contexts whose clusters are there to be tested on, unless PREVIEW_K8S_CONTEXTS says otherwise.
CONTEXTS: Final = "kind-*,k3d-*,minikube"
_FORWARDED: Final = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) -> \d+")
_SECONDS: Final = 60.0


class KubectlFailed(Exception):
    """kubectl says no; its own words."""

    def __init__(self, arguments: Sequence[str], said: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)}: {said.strip()}")
        self.said = said


class ContextRefused(Exception):
    """The cluster that kubectl points to is none to be tested on."""


def allowed_context(environ: Mapping[str, str], context: str) -> str:
    """The context, if PREVIEW_K8S_CONTEXTS (patterns, comma-separated) names it.

    Raises ContextRefused if not: these tests make namespaces, take pods away and cause load.
    """
    patterns = environ.get("PREVIEW_K8S_CONTEXTS") or CONTEXTS
    if any(fnmatch.fnmatchcase(context, each.strip()) for each in patterns.split(",")):
        return context
    raise ContextRefused(
        f"kubectl points to the context {context!r}, and only {patterns} may be tested on: "
        f"`kubectl config use-context` another one, or set PREVIEW_K8S_CONTEXTS={context}"
    )


def forwarded_port(line: str) -> int | None:
    """The local port that a line of `kubectl port-forward` tells of."""
    match = _FORWARDED.match(line)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class Kubectl:
    """kubectl with a context, and a namespace where one is bound."""

    program: str
    context: str = ""
    namespace: str = ""
    #: Instead of a context: the address of an API server that asks for no credentials.
    server: str = ""

    def within(self, namespace: str) -> Kubectl:
        """The same, in a namespace."""
        return replace(self, namespace=namespace)

    def command(self, *arguments: str) -> list[str]:
        """The command line; what is bound comes before the arguments."""
        bound = (("--context", self.context), ("-n", self.namespace), ("--server", self.server))
        options = [word for name, value in bound if value for word in (name, value)]
        if self.server:
            options += ["--kubeconfig", os.devnull]
        return [self.program, *options, *arguments]

    def run(self, *arguments: str, text: str = "", seconds: float = _SECONDS) -> str:
        """What kubectl prints, given ``text`` as its input; KubectlFailed if it fails."""
        try:
            done = subprocess.run(
                self.command(*arguments),
                input=text,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise KubectlFailed(arguments, f"no answer within {seconds:g} s") from exc
        if done.returncode:
            raise KubectlFailed(arguments, done.stderr or done.stdout)
        return done.stdout

    def json(self, *arguments: str, seconds: float = _SECONDS) -> Any:
        """What kubectl prints as JSON, parsed."""
        return json.loads(self.run(*arguments, "-o", "json", seconds=seconds))

    def apply(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """`kubectl apply` of documents."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.run("apply", "-f", "-", text=json.dumps(listed))

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind with these labels."""
        options = ["-l", selector] if selector else []
        found = self.json("get", kind, *options)["items"]
        return list(found)

    def current_context(self) -> str:
        """The context that kubectl points to."""
        return self.run("config", "current-context").strip()

    @contextlib.contextmanager
    def forward(self, target: str, port: int) -> Iterator[int]:
        """A local port that leads to ``port`` of a pod, for as long as the block lasts."""
        arguments = ("port-forward", "--address", "127.0.0.1", target, f":{port}")
        with subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout
            # It says a line for each connection, and would stop at a full pipe.
            rest = threading.Thread(target=process.stdout.read, name="port-forward", daemon=True)
            try:
                local = _first_port(process.stdout, arguments)
                rest.start()
                yield local
            finally:
                process.terminate()
                process.wait(timeout=10)
                if rest.ident:
                    rest.join(timeout=10)


def _first_port(output: IO[str], arguments: Sequence[str], seconds: float = 20.0) -> int:
    """Wait until port-forward says where it listens."""
    deadline, said = time.monotonic() + seconds, ""
    while (left := deadline - time.monotonic()) > 0 and select.select([output], [], [], left)[0]:
        line = output.readline()
        if not line:
            break
        if port := forwarded_port(line):
            return port
        said += line
    raise KubectlFailed(arguments, said or "it does not say where it listens")
