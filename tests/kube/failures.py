"""What befalls pods, in the shapes that a real cluster shows."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

Kind = Literal[
    "unschedulable",  # no node has room
    "image",  # the image cannot be pulled
    "config",  # the container cannot be made: a secret is missing
    "init",  # an init container ends with 1
    "exit",  # the main container ends with 1 as soon as it is started
    "oom",  # the main container is killed for its memory as soon as it is started
    "evicted",  # the node is short of something as soon as it is started
    "never-ready",  # it runs, and its readiness probe fails
    "never",  # nothing of all this
]

UNSCHEDULABLE: Final = (
    "0/3 nodes are available: 3 Insufficient memory. preemption: 0/3 nodes are available: 3 No "
    "preemption victims found for incoming pod."
)
EVICTED: Final = (
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. "
    "Container main was using 3Gi, request is 1Gi, has larger consumption of ephemeral-storage. "
)
MISSING_SECRET: Final = 'secret "preview-token" not found'


@dataclass(slots=True, eq=False)
class Failure:
    """What befalls the next ``times`` pods whose name fits."""

    kind: Kind
    message: str
    pods: str
    times: int


class Failures:
    """Failures that are still to befall pods."""

    def __init__(self) -> None:
        self._waiting: list[Failure] = []

    def add(self, kind: Kind, message: str = "", *, pods: str = "*", times: int = 1) -> None:
        """Let a failure befall the next pods whose names fit a pattern as of file names."""
        self._waiting.append(Failure(kind, message, pods, times))

    def take(self, name: str) -> Failure | None:
        """The failure that befalls a new pod."""
        for failure in self._waiting:
            if fnmatchcase(name, failure.pods):
                failure.times -= 1
                if failure.times <= 0:
                    self._waiting.remove(failure)
                return failure
        return None


def pull_error(image: str, message: str = "") -> tuple[tuple[str, str], tuple[str, str]]:
    """Reason and message while an image is pulled in vain, and while the next try waits."""
    error = message or (
        f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": '
        f"{image}: not found"
    )
    return (
        ("ErrImagePull", error),
        ("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {error}'),
    )
