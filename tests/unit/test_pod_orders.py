"""What an agent is told to run for a project."""

from __future__ import annotations

import json
from typing import Any, Final

from gateway.session import Endpoint, Recipe, SessionId, is_session_id
from gateway.settings import Settings
from gateway.spawner.base import Job
from gateway.spawner.kube.agent_wire import Order
from gateway.spawner.kube.orders import RESERVED, make_order, make_warm_order
from gateway.spawner.recipes import choose

ENDPOINT: Final = Endpoint("10.0.0.7", 5173)
PACKAGE: Final = json.dumps({"devDependencies": {"vite": "^8"}}).encode()
VITE: Final = {"package.json": PACKAGE, "package-lock.json": b"{}"}


def order(files: dict[str, bytes], recipe: Recipe | None = None, **settings: Any) -> Order:
    job = Job(SessionId("quick-fox-1"), 7, recipe or Recipe(), "/preview/quick-fox-1/", files)
    plan = choose(job.recipe, files)
    return make_order(Settings(**settings), job, plan, ENDPOINT)


def test_a_framework_is_started_by_a_launcher_that_comes_along() -> None:
    made = order(VITE)
    assert made.command == (
        *("node", "{launchers}/vite.mjs", "10.0.0.7", "5173", "/preview/quick-fox-1/", ""),
    )
    assert {"vite.mjs", "ahead.mjs"} <= made.launchers.keys()
    assert made.install is not None
    assert made.install.command[:2] == ("npm", "ci")
    assert "--ignore-scripts" in made.install.command
    assert made.env["PREVIEW_SESSION"] == "quick-fox-1.7"


def test_a_process_that_waits_is_told_the_same_in_a_line() -> None:
    line = json.loads(order(VITE, Recipe(env=(("VITE_A", "1"),))).line)
    assert (line["host"], line["port"]) == ("10.0.0.7", 5173)
    assert line["env"] == {"VITE_A": "1", "PREVIEW_SESSION": "quick-fox-1.7"}
    assert order(VITE, Recipe(env=(("NODE_OPTIONS", "-r x"),))).line == ""


def test_a_command_of_the_callers_is_filled_in_and_finds_its_address() -> None:
    recipe = Recipe(command=("serve", "--at={host}:{port}{base}"), env=(("A", "1"),))
    made = order({"a": b""}, recipe)
    assert made.command == ("serve", "--at=10.0.0.7:5173/preview/quick-fox-1/")
    assert (made.install, made.launchers, made.line) == (None, {}, "")
    assert (made.env["HOST"], made.env["PORT"], made.env["A"]) == ("10.0.0.7", "5173", "1")


def test_install_scripts_run_only_where_the_settings_let_them() -> None:
    install = order(VITE, install_scripts=True).install
    assert install is not None
    assert "--ignore-scripts" not in install.command


def test_a_dev_server_that_is_asked_under_a_public_name_is_told_it() -> None:
    made = order(VITE, preview_domain="previews.example", header_profile="public")
    assert made.command[-1] == "quick-fox-1.previews.example"


def test_a_pod_that_waits_loads_what_package_json_lists() -> None:
    framework = choose(Recipe(), VITE).framework
    assert framework is not None
    settings: dict[str, Any] = {}
    made = make_warm_order(Settings(**settings), framework, VITE)
    assert made.command == ("node", "{launchers}/vite.mjs", "--wait", "vite")
    assert made.install is not None
    assert made.generation == 0, "lower than that of any session"
    assert not is_session_id(RESERVED)
