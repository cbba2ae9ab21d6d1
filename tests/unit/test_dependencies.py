"""What an install depends on, and what npm's failures say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gateway.errors import UnsupportedProject
from gateway.spawner.environment import dev_server_environment, npm_environment
from gateway.spawner.hardlinks import link_tree
from gateway.spawner.manifests import cache_key, npm_arguments, npm_files
from gateway.spawner.npm_errors import npm_errors, npm_reason

LOCK = b'{"lockfileVersion": 3}'


def package(**fields: object) -> bytes:
    return json.dumps({"devDependencies": {"vite": "8"}} | fields).encode()


def key(**files: bytes) -> str:
    named = {name.replace("__", "/").replace("_json", ".json"): c for name, c in files.items()}
    return cache_key(npm_files(named), circumstances=["linux"])


def test_a_project_without_dependencies_needs_no_install() -> None:
    assert npm_files({"index.html": b""}) == {}
    assert npm_files({"package.json": b'{"dependencies": {}, "scripts": {"a": "b"}}'}) == {}


def test_the_key_ignores_what_does_not_change_an_install() -> None:
    changed = package(name="x", version="2", scripts={"postinstall": "rm"}, type="module")
    assert key(package_json=package()) == key(package_json=changed, README=b"x")


@pytest.mark.parametrize(
    "files",
    [
        {"package.json": package(dependencies={"react": "19"})},
        {"package.json": package(overrides={"rollup": "4"})},
        {"package.json": package(), "package-lock.json": LOCK},
        {"package.json": package(), "npm-shrinkwrap.json": LOCK},
        {"package.json": package(), ".npmrc": b"legacy-peer-deps=true"},
    ],
)
def test_the_key_covers_all_that_changes_an_install(files: dict[str, bytes]) -> None:
    assert cache_key(npm_files(files), circumstances=["linux"]) != key(package_json=package())


def test_the_key_covers_the_circumstances_and_no_two_splits_of_them_are_equal() -> None:
    given = npm_files({"package.json": package()})
    keys = [cache_key(given, circumstances=list(c)) for c in (["ab", "c"], ["a", "bc"], ["abc"])]
    assert len(set(keys)) == 3


def test_npm_is_given_no_scripts_of_the_project() -> None:
    given = npm_files({"package.json": package(scripts={"postinstall": "touch /tmp/x"})})
    assert b"scripts" not in given["package.json"]
    assert npm_arguments(given, scripts=True)[0] == "install"


def test_a_shrinkwrap_file_comes_before_a_lock_file() -> None:
    files = {"package.json": package(), "package-lock.json": LOCK, "npm-shrinkwrap.json": LOCK}
    given = npm_files(files)
    assert set(given) == {"package.json", "npm-shrinkwrap.json"}
    assert npm_arguments(given, scripts=False)[:3] == ["ci", "--prefer-offline", "--ignore-scripts"]


def test_a_malformed_lock_file_is_refused_with_the_place() -> None:
    with pytest.raises(UnsupportedProject, match=r"package-lock\.json is not valid JSON.*line 1"):
        npm_files({"package.json": package(), "package-lock.json": b"{"})


def test_npmrc_is_reduced_to_what_names_packages() -> None:
    npmrc = b"""
        registry=https://packages.example/
        @mine:registry=https://packages.example/mine/
        //packages.example/mine/:_authToken=abc
        //packages.example/:_authToken=${SECRET}
        git=./evil.sh
        script-shell=./evil.sh
        ignore-scripts=false
        ; a comment
    """
    assert npm_files({"package.json": package(), ".npmrc": npmrc})[".npmrc"].split() == [
        b"registry=https://packages.example/",
        b"@mine:registry=https://packages.example/mine/",
        b"//packages.example/mine/:_authToken=abc",
    ]


def test_packages_inside_the_project_are_given_too() -> None:
    files = {
        "package.json": package(workspaces=["packages/*"]),
        "packages/a/package.json": b'{"name": "a", "scripts": {"postinstall": "x"}, "main": "m"}',
        "packages/a/index.js": b"",
        "vendor/b.tgz": b"packed",
    }
    given = npm_files(files)
    assert set(given) == {"package.json", "packages/a/package.json", "vendor/b.tgz"}
    assert json.loads(given["packages/a/package.json"]) == {"name": "a"}


NOT_FOUND = """npm warn something
npm error code E404
npm error 404 Not Found - GET https://packages.example/nope
npm error 404
npm error 404  The requested resource 'nope@1.0.0' could not be found or you do not have permission.
npm error 404
npm error 404 Note that you can also install from a
npm error 404 tarball, folder, http url, or git url.
npm error A complete log of this run can be found in: /x/_logs/y.log"""

OUT_OF_SYNC = """npm error code EUSAGE
npm error
npm error `npm ci` can only install packages when your files are in sync.
npm error
npm error Missing: react@19.3.1 from lock file
npm error
npm error Clean install a project
npm error
npm error Usage:
npm error npm ci"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            NOT_FOUND,
            "npm install failed (E404): The requested resource 'nope@1.0.0' could not be found "
            "or you do not have permission.",
        ),
        (
            OUT_OF_SYNC,
            "npm install failed (EUSAGE): `npm ci` can only install packages when your files are "
            "in sync. Missing: react@19.3.1 from lock file",
        ),
        ("npm ERR! boom", "npm install failed: boom"),
        ("Killed", "npm install exited with status 1; see the end of the log"),
    ],
)
def test_the_reason_of_a_failed_install_is_what_npm_says_without_its_noise(
    said: str, reason: str
) -> None:
    assert npm_reason("npm install", "exited with status 1", said.splitlines()) == reason


def test_npms_usage_is_no_error() -> None:
    assert npm_errors(OUT_OF_SYNC.splitlines())[-1] == "Missing: react@19.3.1 from lock file"


def test_a_linked_tree_shares_files_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / ".bin").mkdir(parents=True)
    (source / "pkg").mkdir()
    (source / "pkg/cli.js").write_text("1")
    (source / ".bin/cli").symlink_to("../pkg/cli.js")
    link_tree(source, tmp_path / "target")
    linked = tmp_path / "target"
    assert (linked / "pkg/cli.js").samefile(source / "pkg/cli.js")
    assert os.readlink(linked / ".bin/cli") == "../pkg/cli.js"
    (linked / "pkg/new.js").write_text("2")
    assert not (source / "pkg/new.js").exists()


def test_where_links_are_refused_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_text("1")
    monkeypatch.setattr(os, "link", refuse)
    link_tree(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target/a").read_text() == "1"
    assert not (tmp_path / "target/a").samefile(tmp_path / "source/a")


OURS = {
    "PATH": "/bin",
    "HOME": "/",
    "LANG": "C.UTF-8",
    "LC_ALL": "C",
    "GATEWAY_API_TOKENS": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "NODE_ENV": "production",
    "CI": "true",
    "https_proxy": "http://proxy:1",
    "NODE_EXTRA_CA_CERTS": "/ca.pem",
    "npm_config_registry": "https://packages.example/",
}


def test_a_dev_server_sees_only_what_is_on_the_list() -> None:
    env = dev_server_environment(
        OURS, node=Path("/n/node"), app=Path("/w/app"), home=Path("/w/home"), tmp=Path("/w/tmp")
    )
    assert env == {
        "PATH": "/w/app/node_modules/.bin:/n:/bin",
        "HOME": "/w/home",
        "TMPDIR": "/w/tmp",
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
        "NODE_EXTRA_CA_CERTS": "/ca.pem",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "FORCE_COLOR": "0",
    }


def test_npm_sees_proxies_and_its_own_settings_besides(tmp_path: Path) -> None:
    ours = OURS | {"HOME": str(tmp_path)}
    env = npm_environment(ours, node=Path("/n/node"), fallback_home=Path("/d"))
    assert env["https_proxy"] == "http://proxy:1"
    assert env["npm_config_registry"] == "https://packages.example/"
    assert env["HOME"] == str(tmp_path)
    assert not {"GATEWAY_API_TOKENS", "AWS_SECRET_ACCESS_KEY", "NODE_ENV", "CI"} & set(env)


def test_npm_gets_a_cache_of_ours_where_there_is_no_usable_home() -> None:
    ours = OURS | {"HOME": "/does/not/exist"}
    env = npm_environment(ours, node=Path("/n/node"), fallback_home=Path("/d"))
    assert env["HOME"] == env["npm_config_cache"] == "/d"
