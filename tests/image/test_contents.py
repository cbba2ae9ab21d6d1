"""What the images say of themselves, and what is in them."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.image.conftest import ROOT
from tests.image.container import USER, Image

_VERSION: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
_PACKAGE: Final = "opt/gateway/lib/python3.13/site-packages/gateway"
_MODULES: Final[list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"][
    "build"
]["targets"]["wheel"]["hooks"]["custom"]["modules"]
_COMPILERS: Final = re.compile(
    r"(?:.*-)?(?:gcc|g\+\+|cc|c\+\+|cc1|cpp|clang|as|ld|make)(?:-[\d.]+)?"
)
_NODE: Final = frozenset({"node", "nodejs", "npm", "npx", "npm-cli.js"})


def programs(image: Image) -> set[str]:
    """The names of all that can be executed."""
    return {
        path.name
        for path in image.files()
        if (image.root / path).is_symlink() or (image.root / path).stat().st_mode & 0o111
    }


# -- what they say of themselves -----------------------------------------------------------------


def test_the_user_is_a_number_and_not_root(image: Image) -> None:
    assert image.config["User"] == f"{USER}:{USER}"


def test_the_user_has_a_name_for_programs_that_ask(image: Image) -> None:
    users = (image.root / "etc/passwd").read_text().splitlines()
    assert [line for line in users if f":{USER}:" in line] == [
        f"preview:x:{USER}:{USER}::/tmp:/usr/sbin/nologin"
    ]


def test_labels_name_the_version_of_the_package_and_the_revision(image: Image) -> None:
    names = ("title", "description", "licenses", "version", "revision")
    labels = image.config["Labels"]
    assert {name for name in names if labels.get(f"org.opencontainers.image.{name}")} == set(names)
    assert labels["org.opencontainers.image.version"] == _VERSION
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.parametrize("target", ["gateway", "process"])
def test_the_gateway_is_started_under_an_init_and_says_its_ports(
    images: dict[str, Image], target: str
) -> None:
    config = images[target].config
    assert config["Entrypoint"] == ["tini", "--", "preview-gateway"]
    assert config["Cmd"] == ["serve"]
    assert set(config["ExposedPorts"]) == {"8080/tcp", "9090/tcp"}
    assert set(config["Volumes"]) == {"/data"}
    assert config["Healthcheck"]["Test"][:3] == ["CMD", "python", "-c"]
    assert 0 < config["Healthcheck"]["Timeout"] < config["Healthcheck"]["Interval"]


def test_a_preview_image_starts_nothing_that_a_pod_did_not_name(images: dict[str, Image]) -> None:
    config = images["preview"].config
    assert not config["Entrypoint"]
    assert not config.get("Healthcheck")
    assert not config.get("ExposedPorts")


def test_only_the_process_image_runs_dev_servers_itself(images: dict[str, Image]) -> None:
    assert images["gateway"].environ["GATEWAY_SPAWNER"] == "none"
    assert images["process"].environ["GATEWAY_SPAWNER"] == "process"


# -- what is in them -----------------------------------------------------------------------------


def test_node_is_in_the_images_that_run_previews_alone(images: dict[str, Image]) -> None:
    assert programs(images["gateway"]) & _NODE == set()
    for target in ("process", "preview"):
        root = images[target].root
        assert (root / "opt/node/bin/node").read_bytes()[:4] == b"\x7fELF"
        for name in ("npm", "npx"):
            script = (root / "opt/node/bin" / name).resolve()
            assert script.is_relative_to(root / "opt/node/lib/node_modules/npm")
            assert script.stat().st_mode & 0o111


def test_nothing_of_the_gateway_is_in_a_preview_image(images: dict[str, Image]) -> None:
    preview = images["preview"]
    assert not [path for path in preview.files() if "gateway" in path.name or "valkey" in path.name]
    assert not [name for name in programs(preview) if name.startswith(("python", "pip", "git"))]
    assert (preview.root / "bin/sh").exists()


def test_there_is_no_compiler(image: Image) -> None:
    assert [name for name in programs(image) if _COMPILERS.fullmatch(name)] == []


def test_nothing_is_left_of_the_build(image: Image) -> None:
    left = [
        path
        for path in image.files()
        if path.suffix in {".whl", ".deb"}
        or path.name == ".git"
        or path.parts[:2] == ("root", ".cache")
        or (path.parts[:4] == ("var", "lib", "apt", "lists") and path.name != "lock")
        or path.parts[0] in {"src", "wheels", "mnt"}
        or path.as_posix() in {"etc/pip.conf", "etc/apt/apt.conf.d/90build"}
    ]
    assert left == []
    assert list((image.root / "tmp").iterdir()) == []


def test_the_secrets_of_the_build_leave_no_trace(image: Image, pytestconfig: pytest.Config) -> None:
    canary = pytestconfig.getoption("canary").encode()
    assert len(canary) == 32
    assert canary not in repr(image.described).encode()
    assert [path for path in image.files() if canary in _content(image.root / path)] == []


def test_no_private_key_is_in_the_image(image: Image) -> None:
    """Whole ones in files of their own; programs know the words too."""
    begin = re.compile(rb"\A\s*-----BEGIN [A-Z ]*PRIVATE KEY-----")
    assert [path for path in image.files() if begin.match(_content(image.root / path))] == []


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() and not path.is_symlink() else b""


def test_every_file_of_the_package_is_in_the_gateway_images(
    images: dict[str, Image], work: Path
) -> None:
    ours = {
        path.relative_to(work / "context" / "gateway"): path
        for path in (work / "context" / "gateway").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {".py", ".lua", ".mjs", ".html"} <= {path.suffix for path in ours}
    for target in ("gateway", "process"):
        package = images[target].root / _PACKAGE
        differs = [
            name
            for name, path in ours.items()
            if not (package / name).is_file() or (package / name).read_bytes() != path.read_bytes()
        ]
        assert differs == []


def test_the_data_plane_is_compiled(images: dict[str, Image]) -> None:
    for target in ("gateway", "process"):
        package = images[target].root / _PACKAGE
        built = {path.name.partition(".")[0] for path in (package / "proxy").glob("*.so")}
        assert {module.rpartition(".")[2] for module in _MODULES} <= built


def test_the_byte_code_is_made_because_a_container_cannot(images: dict[str, Image]) -> None:
    for target in ("gateway", "process"):
        package = images[target].root / _PACKAGE
        for source in package.rglob("*.py"):
            assert list((source.parent / "__pycache__").glob(f"{source.stem}.cpython-313.pyc"))


def test_the_user_owns_its_data_folder_alone(image: Image) -> None:
    def facts(path: Path) -> Any:
        return (image.root / path).lstat()

    folders = {path.parent for path in image.files()} | {Path("data")}
    owned = [
        path for path in folders if (image.root / path).exists() and facts(path).st_uid == USER
    ]
    assert owned == ([] if image.target == "preview" else [Path("data")])
    assert [path for path in image.files() if facts(path).st_uid == USER] == []
    writable = [
        path
        for path in [*image.files(), *folders]
        if (image.root / path).exists()
        and not stat.S_ISLNK(mode := facts(path).st_mode)
        and not stat.S_ISCHR(mode)
        and mode & stat.S_IWOTH
        and not mode & stat.S_ISVTX
    ]
    assert writable == []
