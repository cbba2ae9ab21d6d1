"""Copies what runs in a preview's pod into a folder: ``python -m gateway.install_agent DIR``.

An init container runs it at the start of every pod, so it imports nothing that takes time.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path


def install_agent(folder: Path) -> None:
    """Copy the agent, which is one file. Raises OSError."""
    agent = resources.files("gateway.spawner") / "launchers" / "agent.mjs"
    (folder / agent.name).write_bytes(agent.read_bytes())


if __name__ == "__main__":
    install_agent(Path(sys.argv[1]))
