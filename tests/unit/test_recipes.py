"""Which dev server a project gets."""

from __future__ import annotations

import json

import pytest

from gateway.errors import UnsupportedProject
from gateway.session import Hmr, Recipe
from gateway.spawner.recipes import choose, command_environment


def project(**fields: object) -> dict[str, bytes]:
    return {"package.json": json.dumps(fields).encode()}


@pytest.mark.parametrize("field", ["dependencies", "devDependencies"])
def test_vite_is_found_from_the_dependencies(field: str) -> None:
    plan = choose(Recipe(), project(**{field: {"vite": "^8"}}))
    assert plan.framework is not None
    assert plan.framework.launcher == "vite.mjs"
    assert plan.hmr == Hmr(path="", protocol="vite-hmr")


def test_a_framework_that_is_named_needs_not_be_listed() -> None:
    assert choose(Recipe(framework="vite"), {}).title == "vite"


def test_a_command_comes_before_any_framework_and_gets_its_address() -> None:
    command = ("serve", "--listen={host}:{port}", "{base}", "{other}", "{{port}}")
    plan = choose(Recipe(command=command), project(devDependencies={"vite": "^8"}))
    assert plan.framework is None
    assert plan.hmr == Hmr()
    assert plan.arguments(host="::1", port=81, base="/preview/{port}/") == [
        "serve", "--listen=::1:81", "/preview/{port}/", "{other}", "{81}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "can"),
    [
        (Recipe(), True),
        (Recipe(env=(("VITE_A", "1"), ("VITE_B", "2"))), True),
        (Recipe(env=(("VITE_A", "1"), ("NODE_OPTIONS", "-r x"))), False),
        (Recipe(command=("serve",)), False),
    ],
)
def test_a_process_can_wait_for_what_it_need_not_know_before_it_loads(
    recipe: Recipe, can: bool
) -> None:
    assert choose(recipe, project(devDependencies={"vite": "^8"})).can_be_warm is can


@pytest.mark.parametrize("public_host", ["", "some-id-1.previews.example"])
def test_a_command_finds_its_address_in_its_environment(public_host: str) -> None:
    env = command_environment(host="::1", port=81, base="/", public_host=public_host)
    own = {"HOST": "::1", "PORT": "81", "BASE_PATH": "/"}
    names = ("PUBLIC_HOST", "__VITE_ADDITIONAL_SERVER_ALLOWED_HOSTS")
    assert env == (own | dict.fromkeys(names, public_host) if public_host else own)


@pytest.mark.parametrize(
    ("recipe", "files", "why"),
    [
        (Recipe(framework="rails"), {}, "'rails' is not known: supported are vite"),
        (Recipe(), {}, "there is no package.json: supported are vite"),
        (Recipe(), project(dependencies={"left-pad": "1"}), "lists none of them: supported"),
        (Recipe(), {"package.json": b'{"a": 1,\n]'}, "not valid JSON: .* line 2, column 1"),
        (Recipe(), {"package.json": b"\xff\xff"}, "UTF-8"),
        (Recipe(), {"package.json": b"[]"}, "must be a JSON object"),
        (Recipe(), project(dependencies=["vite"]), "dependencies must be an object"),
        (Recipe(), project(dependencies={"vite": 8}), "dependencies must be an object"),
        (Recipe(command=("",)), {}, "empty program name"),
        (Recipe(command=("a", "\0")), {}, "NUL"),
        (Recipe(command=("a",), env=(("A-B", "1"),)), {}, "'A-B' is no name"),
        (Recipe(command=("a",), env=(("A", "\0"),)), {}, "NUL"),
    ],
)
def test_what_cannot_be_started_is_refused_with_the_remedy(
    recipe: Recipe, files: dict[str, bytes], why: str
) -> None:
    with pytest.raises(UnsupportedProject, match=why):
        choose(recipe, files)


def test_a_byte_order_mark_does_no_harm() -> None:
    files = {"package.json": b'\xef\xbb\xbf{"devDependencies": {"vite": "8"}}'}
    assert choose(Recipe(), files).title == "vite"
