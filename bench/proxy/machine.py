"""What the figures were measured on, without a name or address of the machine."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from bench.proxy.running import Cores


def describe(cores: Cores) -> dict[str, str]:
    """Processor, cores, memory, kernel, Python, load of the machine at the start."""
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    virtual = " (virtual)" if "hypervisor" in _read("/proc/cpuinfo") else ""
    kernel = re.match(r"[\d.]+\d", platform.release())
    return {
        "processor": (model[1] if model else platform.machine()) + virtual,
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "pinned": f"proxy {_cores(cores.proxy)}, load {_cores(cores.load)}, "
        f"upstream {_cores(cores.upstream)}",
        "kernel": f"{platform.system()} {kernel[0] if kernel else ''}",
        "python": f"{platform.python_version()}, uvloop {version('uvloop')}, "
        f"httptools {version('httptools')}",
        "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def _cores(cores: frozenset[int]) -> str:
    return "core " + ",".join(map(str, sorted(cores)))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
