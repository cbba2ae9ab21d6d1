"""What this process holds: descriptors, tasks, memory. Nobody else can tell whether it leaks."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.telemetry import Sample

#: Linux; elsewhere some of the samples are missing.
_DESCRIPTORS: Final = Path("/proc/self/fd")
_PAGES: Final = Path("/proc/self/statm")


def samples() -> Iterator[Sample]:
    """Gauges of this process, from within its event loop; those of several add up."""
    yield ("tasks", "Tasks of the event loop.", "gauge", [({}, len(asyncio.all_tasks()))])
    yield (
        "allocated_blocks",
        "Blocks of memory that Python objects take.",
        "gauge",
        [({}, sys.getallocatedblocks())],
    )
    if (count := open_descriptors()) is not None:
        yield ("open_descriptors", "Open file descriptors.", "gauge", [({}, count)])
    if (size := resident_bytes()) is not None:
        yield ("resident_memory_bytes", "Resident memory.", "gauge", [({}, size)])


def open_descriptors() -> int | None:
    """How many file descriptors are open; None where that cannot be told."""
    try:
        # Since Linux 6.2 the size is their number: listing 20,000 would hold up all requests.
        return _DESCRIPTORS.stat().st_size or len(os.listdir(_DESCRIPTORS))
    except OSError:
        return None


def resident_bytes() -> int | None:
    """Resident memory now; None where that cannot be told."""
    try:
        return int(_PAGES.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None
