"""What the pods of the fake node share, and what the containers of one pod share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.kube.processes import Processes
from tests.kube.rendering import ConfigError
from tests.kube.store import Pod, Store


@dataclass(frozen=True, slots=True)
class Node:
    """``images`` are paths in images, as folders of this machine."""

    store: Store
    http: aiohttp.ClientSession
    folder: Path
    name: str = "node-1"
    ip: str = "127.0.0.1"
    images: Mapping[str, Path] = field(default_factory=dict)
    #: Until a pod has its node and its images.
    schedule_seconds: float = 0.0
    probe_seconds: float = 0.1


@dataclass(frozen=True, slots=True)
class Place:
    """A pod's place on its node. ``report`` writes the pod's status."""

    node: Node
    pod: Pod
    folder: Path
    ip: str
    processes: Processes
    report: Callable[[], None]

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    def current(self) -> Pod:
        """The pod as it is now. Raises a Refusal if it is gone."""
        return self.node.store.get(self.pod["metadata"]["namespace"], self.name)

    def make_folders(self) -> None:
        """Make those of the volumes, and an empty root directory."""
        for volume in self.pod["spec"].get("volumes") or ():
            (self.folder / "volumes" / volume["name"]).mkdir(parents=True)
        (self.folder / "root").mkdir(parents=True)

    def volumes(self) -> dict[str, Path]:
        """The folders of the volumes, by name. Raises ConfigError for one that is not to be had."""
        folders: dict[str, Path] = {}
        for volume in self.pod["spec"].get("volumes") or ():
            if "emptyDir" not in volume:
                raise ConfigError(
                    f'the fake kubelet has no volumes but emptyDir: "{volume["name"]}"'
                )
            folders[volume["name"]] = self.folder / "volumes" / volume["name"]
        return folders
