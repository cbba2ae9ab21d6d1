"""Every kustomization that can be deployed, rendered by the kustomize in kubectl.

What goes together: one way in (or none), any of the optional components, Redis in the cluster or a
managed one, and one of the spawners. What does not:

- ``gateway-api`` and ``ingress``: two ways in to the same hosts; either would do all of it.
- ``gvisor`` or ``warm-pool`` without ``kubernetes-spawner``: settings of pods that nobody makes.
  The pool of the process spawner is ``GATEWAY_WARM_POOL``.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.conftest import require_tool
from tests.manifests.documents import Document, load

ROOT: Final = Path(__file__).resolve().parents[2]
K8S: Final = ROOT / "k8s"

WAYS_IN: Final[tuple[tuple[str, ...], ...]] = ((), ("gateway-api",), ("ingress",))
SPAWNERS: Final[tuple[tuple[str, ...], ...]] = (
    (),
    ("kubernetes-spawner",),
    ("kubernetes-spawner", "gvisor"),
    ("kubernetes-spawner", "warm-pool"),
    ("kubernetes-spawner", "gvisor", "warm-pool"),
)
OPTIONAL: Final = ("hpa", "service-monitor", "redis-embedded")
#: kubectl lives for a tenth of a second: it need not collect garbage.
ENVIRONMENT: Final = {**os.environ, "GOGC": "off"}
OVERLAYS: Final = ("overlays/kind", "overlays/prod")


def combinations() -> Iterator[tuple[str, ...]]:
    """Every set of components that makes sense."""
    optional = [
        chosen
        for count in range(len(OPTIONAL) + 1)
        for chosen in itertools.combinations(OPTIONAL, count)
    ]
    for way_in, chosen, spawner in itertools.product(WAYS_IN, optional, SPAWNERS):
        yield (*way_in, *chosen, *spawner)


#: The names under which ``render`` knows them: a folder of ``k8s``, or components joined by "+".
KUSTOMIZATIONS: Final = (*OVERLAYS, *("+".join(("base", *chosen)) for chosen in combinations()))


def kustomization(components: Sequence[str], *, folder: Path) -> str:
    """A kustomization of the base with components, to be written into ``folder``."""
    up = "/".join([".."] * (len(folder.parts) - 1)) + str(K8S)
    lines = ["resources:", f"  - {up}/base", "components:"]
    lines += [f"  - {up}/components/{name}" for name in components]
    return "\n".join(lines if components else lines[:-1]) + "\n"


@functools.cache
def render(name: str) -> str:
    """The manifests of one of KUSTOMIZATIONS, as ``kubectl apply -k`` would send them."""
    if name in OVERLAYS:
        return kustomize(K8S / name)
    with tempfile.TemporaryDirectory(prefix="kustomize-") as made:
        folder = Path(made).resolve()
        text = kustomization(name.split("+")[1:], folder=folder)
        (folder / "kustomization.yaml").write_text(text)
        return kustomize(folder)


def kustomize(folder: Path) -> str:
    """Render a folder; RuntimeError with what kubectl says if it cannot, or warns."""
    command = [require_tool("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )
    if done.returncode or done.stderr:
        raise RuntimeError(f"{folder}: {done.stderr}")
    return done.stdout


@functools.cache
def documents(name: str) -> tuple[Document, ...]:
    """The documents of one of KUSTOMIZATIONS: shared by all tests, so not to be changed."""
    return tuple(load(render(name)))
