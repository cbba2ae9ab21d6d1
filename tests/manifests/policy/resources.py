"""What pods ask for and what they may take, disk included; and images by tag."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Final

from gateway.errors import SettingsError
from tests.manifests.documents import (
    Document,
    configuration,
    find,
    gateway_of,
    has,
    pods_of,
)
from tests.manifests.policy.configured import preview_pod
from tests.manifests.policy.quantities import quantity

#: CPU has no limit: throttling a gateway holds up every preview at once.
REQUESTS: Final = ("cpu", "memory", "ephemeral-storage")
LIMITS: Final = ("memory", "ephemeral-storage")
_PINNED: Final = re.compile(
    r"[\w./-]+(?::\d+)?(?:/[\w./-]+)?(?::(?P<tag>[\w.-]+)|@sha256:[0-9a-f]{64})"
)


def problems(documents: Sequence[Document]) -> Iterator[str]:
    """Containers without requests or limits, more disk than there is, images that may change."""
    for pods in pods_of(documents):
        for container in pods.containers:
            for problem in of_container(container):
                yield f"{pods.title}: {container['name']}: {problem}"
        for problem in _of_disk(pods.spec):
            yield f"{pods.title}: {problem}"
    yield from _of_images(documents)
    if has(documents, "Namespace", "previews"):
        yield from _of_previews(documents)


def of_container(container: Document) -> Iterator[str]:
    """The same for one container."""
    if not is_pinned(container["image"]):
        yield f"image {container['image']} may be another one tomorrow"
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in REQUESTS:
        if name not in requests:
            yield f"requests no {name}"
    for name in LIMITS:
        if name not in limits:
            yield f"has no limit of {name}"
    for name in requests.keys() & limits.keys():
        if quantity(requests[name]) > quantity(limits[name]):
            yield f"requests more {name} than its limit"


def is_pinned(image: str) -> bool:
    """Whether an image is named with a tag that is not ``latest``, or by its digest."""
    match = _PINNED.fullmatch(image)
    return match is not None and match["tag"] != "latest"


def _of_disk(spec: Document) -> Iterator[str]:
    """The volumes of a pod in its containers' share of the disk."""
    volumes = [volume for volume in spec.get("volumes", []) if "emptyDir" in volume]
    for volume in volumes:
        if "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} has no limit"
    taken = sum(quantity(volume["emptyDir"].get("sizeLimit", 0)) for volume in volumes)
    limits = [container.get("resources", {}).get("limits", {}) for container in spec["containers"]]
    if taken > sum(quantity(limit.get("ephemeral-storage", 0)) for limit in limits):
        yield "its volumes may hold more than its limit of ephemeral-storage"


def _of_images(documents: Sequence[Document]) -> Iterator[str]:
    found = configuration(documents)
    if found["GATEWAY_SPAWNER"] != "kubernetes":
        return
    if not is_pinned(found["GATEWAY_POD_IMAGE"]):
        yield f"GATEWAY_POD_IMAGE {found['GATEWAY_POD_IMAGE']} may be another one tomorrow"
    # The agent is of the gateway's version: both sides of one protocol.
    (container,) = gateway_of(documents).spec["containers"]
    if found["GATEWAY_POD_AGENT_IMAGE"] != container["image"]:
        yield "GATEWAY_POD_AGENT_IMAGE is not the gateway's own image"
    if found["GATEWAY_POD_IMAGE"] != container["image"].removesuffix("gateway") + "preview":
        yield "GATEWAY_POD_IMAGE is of another place or version than the gateway"


def _of_previews(documents: Sequence[Document]) -> Iterator[str]:
    """The pods of previews fit the limits, and as many of them as there may be fit the quota."""
    hard = find(documents, "ResourceQuota", "previews", "previews")["spec"]["hard"]
    limits = find(documents, "LimitRange", "previews", "previews")["spec"]["limits"]
    (range_,) = [limit for limit in limits if limit["type"] == "Container"]
    for name in REQUESTS:
        if quantity(range_["default"][name]) > quantity(range_["max"][name]):
            yield f"LimitRange: the default of {name} is more than the greatest"
    try:
        spec = preview_pod(documents)["spec"]
    except SettingsError:  # said by ``configured``
        return
    for container in [*spec["initContainers"], *spec["containers"]]:
        for problem in of_container(container):
            yield f"pods of previews: {container['name']}: {problem}"
        for name, limit in container["resources"]["limits"].items():
            if quantity(limit) > quantity(range_["max"][name]):
                yield f"LimitRange: {limit} of {name} for a preview is more than the greatest"
    pods = quantity(hard["pods"])
    for what in ("requests", "limits"):
        for name in REQUESTS:
            # Init containers run before the others: the greater of both counts.
            each = max(_sum(spec[kind], what, name) for kind in ("containers", "initContainers"))
            if pods * each > quantity(hard[f"{what}.{name}"]):
                yield f"ResourceQuota: {what}.{name} is too little for {pods} pods"


def _sum(containers: Sequence[Document], what: str, name: str) -> Decimal:
    return sum((quantity(each["resources"][what][name]) for each in containers), Decimal())
