"""A page of 1,000 modules in Chromium, through the gateway, through nginx, and without a proxy.

The browser has the load's core, all servers share the other one; contestants take turns, each
time with an empty cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Final

from playwright.sync_api import Browser, sync_playwright

from bench.proxy.cases import Effort, Metric
from bench.proxy.contestants import SUBJECTS, contestants, upstream
from bench.proxy.figures import Figure
from bench.proxy.report import CaseResult
from bench.proxy.running import Cores, pinned
from bench.proxy.upstream import MODULES

KEY: Final = "browser"
_TITLE: Final = "1,000-module page in Chromium"
_METRICS: Final = (Metric("load", "until all have run", "ms", 1.15, 1.05),)
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_CONTESTANTS: Final = (*SUBJECTS, "nginx")
_SECONDS: Final = 60.0
_FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
)


def find_browser() -> str | None:
    """The path of a Chromium."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def load_page(browser: Browser, url: str) -> float:
    """Milliseconds from the navigation until the last module has run, cache empty."""
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(url, wait_until="commit", timeout=_SECONDS * 1000)
        loaded = page.wait_for_function("window.loaded", timeout=_SECONDS * 1000)
        total = page.evaluate("window.sum")
        if total != sum(range(MODULES)):
            raise RuntimeError(f"modules are missing: their sum is {total}")
        return float(loaded.json_value())
    finally:
        context.close()


def run(names: Sequence[str], effort: Effort, cores: Cores) -> CaseResult:
    """All rounds."""
    errors: dict[str, str] = {}
    values: dict[str, list[float]] = {}
    result = CaseResult(KEY, _TITLE, _METRICS, {}, errors, base="direct")
    if (program := find_browser()) is None:
        errors["all"] = "no Chromium: apt-get install chromium"
        return result
    wanted = [name for name in _CONTESTANTS if name in names]
    with (
        upstream(cores.proxy) as port,
        contestants(wanted, port, cores, errors, direct=True) as running,
        pinned(cores.load),
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=list(_FLAGS)) as browser,
    ):
        for contestant in running:
            load_page(browser, contestant.url(""))  # connections, code caches
        for number in range(effort.pages):
            for contestant in running if number % 2 == 0 else running[::-1]:
                taken = load_page(browser, contestant.url(""))
                values.setdefault(contestant.name, []).append(taken)
    result.figures = {name: {"load": Figure(tuple(times))} for name, times in values.items()}
    return result
