"""Requests from within the cluster, through the Service, while something happens to the replicas.

A port-forward leads to one pod and ends with it, so the load comes from a pod of its own: a script
that asks one preview over and over, by new connections and kept ones, and holds an HMR socket.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.k8s.cluster import Cluster, until
from tests.k8s.manifests import GATEWAY, confined_pod

STOP: Final = "/tmp/stop"

SCRIPT: Final = """
const http = require("node:http"), fs = require("node:fs");
const [page, socketUrl] = process.argv.slice(1);
const seen = {requests: 0, failed: {}, replicas: {}, sockets: 0, lost: 0};
const fail = (why) => { seen.failed[why] = (seen.failed[why] || 0) + 1; };
const kept = new http.Agent({keepAlive: true, maxSockets: 4});
const once = (agent) => new Promise((done) => {
  const ask = http.get(page, {agent, timeout: 30000}, (answer) => {
    answer.resume();
    answer.on("end", () => {
      seen.requests += 1;
      const replica = answer.headers["x-preview-replica"];
      seen.replicas[replica] = (seen.replicas[replica] || 0) + 1;
      if (answer.statusCode !== 200) fail(answer.statusCode);
      done();
    });
    answer.on("error", (error) => { seen.requests += 1; fail("cut off: " + error.code); done(); });
  });
  ask.on("timeout", () => ask.destroy(new Error("timeout")));
  ask.on("error", (error) => { seen.requests += 1; fail(error.code || error.message); done(); });
});
const stopped = () => fs.existsSync("/tmp/stop");
const work = async (agent) => {
  while (!stopped()) {
    await once(agent);
    await new Promise((go) => setTimeout(go, 20));
  }
};
const hold = async () => {
  while (!stopped()) {
    await new Promise((closed) => {
      const socket = new WebSocket(socketUrl, "vite-hmr");
      const look = setInterval(() => stopped() && socket.close(), 200);
      socket.onopen = () => { seen.sockets += 1; };
      socket.onclose = () => { clearInterval(look); if (!stopped()) seen.lost += 1; closed(); };
    });
    await new Promise((go) => setTimeout(go, 200));
  }
};
const say = setInterval(() => console.log(JSON.stringify(seen)), 1000);
Promise.all([work(kept), work(kept), work(false), work(false), hold()]).then(() => {
  clearInterval(say);
  console.log(JSON.stringify({...seen, done: true}));
  process.exit(0);
});
"""


@dataclass(frozen=True)
class Report:
    """What the load has seen so far."""

    requests: int
    #: How often each kind of failure came.
    failed: Mapping[str, int]
    replicas: Mapping[str, int]
    sockets: int
    lost: int
    done: bool


def parse_report(log: str) -> Report | None:
    """The newest line of the script's log; None before the first."""
    lines = [line for line in log.splitlines() if line.startswith("{")]
    if not lines:
        return None
    seen: dict[str, Any] = json.loads(lines[-1])
    return Report(
        requests=seen["requests"],
        failed=seen["failed"],
        replicas=seen["replicas"],
        sockets=seen["sockets"],
        lost=seen["lost"],
        done=seen.get("done", False),
    )


@dataclass
class Load:
    """A running load."""

    cluster: Cluster
    pod: str

    def report(self) -> Report | None:
        return parse_report(self.cluster.gateway.run("logs", self.pod, "--tail=5"))

    def stop(self) -> Report:
        """End it; all that it has seen."""
        self.cluster.gateway.run(
            "exec", self.pod, "--", "node", "-e", f"fs.writeFileSync('{STOP}', '')"
        )
        until(60, True, lambda: bool((seen := self.report()) and seen.done))
        seen = self.report()
        assert seen is not None
        assert seen.done, seen
        return seen


@contextlib.contextmanager
def load_on(cluster: Cluster, session_id: str) -> Iterator[Load]:
    """A load on one preview, from when its first requests are answered."""
    service = f"preview-gateway.{cluster.names.namespace(GATEWAY)}.svc"
    page, name = f"{service}/preview/{session_id}", f"load-{secrets.token_hex(3)}"
    arguments = (f"http://{page}/main.js", f"ws://{page}/hmr")
    # Labels of its own: in the gateway's namespace, but let out by its own policy only.
    labels = {"preview-gateway.dev/test": name}
    pod = confined_pod(
        name, cluster.gateway.namespace, cluster.pod_image, SCRIPT, *arguments, labels=labels
    )
    cluster.kubectl.apply([pod, way_out(name, cluster.gateway.namespace, labels)])
    try:
        wait = ("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=120s")
        cluster.gateway.run(*wait, seconds=130)
        load = Load(cluster, name)
        assert until(60, True, lambda: bool((seen := load.report()) and seen.requests > 20))
        yield load
    finally:
        cluster.gateway.run("delete", f"pod/{name}", f"networkpolicy/{name}", "--wait=false")


def way_out(name: str, namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Lets the load's pod out: by default nothing leaves the namespace."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "podSelector": {"matchLabels": dict(labels)},
            "policyTypes": ["Egress"],
            "egress": [{}],
        },
    }
