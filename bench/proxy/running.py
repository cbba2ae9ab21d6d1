"""Processes of a benchmark: started on a core of their own, accounted, stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_STOP_SECONDS: Final = 15.0
_SAMPLE_SECONDS: Final = 0.05


_given: set[int] = set()


def free_port() -> int:
    """A port that nothing listens on and that was not given to another contestant."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core does what: the proxy alone on one, the traffic on another."""

    proxy: frozenset[int]
    load: frozenset[int]
    upstream: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The first core for the proxy, the next for the load, a third for the upstream if any."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(*(frozenset({cores[min(n, len(cores) - 1)]}) for n in range(3)))


@contextlib.contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """Processes started in this block run on ``cores`` (children inherit the affinity)."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Running:
    """A process and its descendants."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cores: frozenset[int],
        log: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        first_line: bool = False,
    ) -> None:
        self._log = log
        with log.open("ab") as errors, pinned(cores):
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd or log.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if first_line else errors,
                stderr=errors,
                start_new_session=True,
                text=True,
            )
        self._tree = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        """The process that was started; its descendants belong to it."""
        return self._process.pid

    def first_line(self) -> str:
        """The first line that it prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def await_port(self, port: int, *, seconds: float) -> None:
        """Wait until it accepts connections. Raises RuntimeError with the end of its log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                last = self.log_tail().strip().splitlines()[-1:]
                raise RuntimeError(f"ended with {self._process.returncode}: {' '.join(last)}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.02)  # a foreign program tells nobody when it listens
        raise RuntimeError(f"does not listen after {seconds:g} s: {self.log_tail()}")

    def log_tail(self) -> str:
        """The end of what it logged."""
        return self._log.read_text(errors="replace")[-400:].strip()

    def _all(self) -> list[psutil.Process]:
        return [self._tree, *self._tree.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time so far, descendants included."""
        total = 0.0
        for process in self._all():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def rss_bytes(self) -> int:
        """Resident memory now, descendants included."""
        total = 0
        for process in self._all():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def stop(self) -> None:
        """End it; what does not go is killed, with its descendants."""
        tree = self._all() if self._process.poll() is None else []
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
        _, alive = psutil.wait_procs(tree[1:], timeout=2.0)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Peak:
    """The most memory that a process has held within a ``with`` block."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory sampler", daemon=True)
        self.bytes = running.rss_bytes()

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._running.rss_bytes())

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, self._running.rss_bytes())
