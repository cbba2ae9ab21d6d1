"""Container and manifests agree with the code: setting names, ports, and the time to leave."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from gateway.settings import PREFIX, Settings

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOYMENT: Final = (ROOT / "k8s/base/deployment.yaml").read_text()
KUSTOMIZATION: Final = (ROOT / "k8s/base/kustomization.yaml").read_text()
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text()


def files() -> Iterator[Path]:
    yield ROOT / "Dockerfile"
    yield from sorted((ROOT / "k8s").rglob("*.yaml"))


def unknown_settings(text: str) -> set[str]:
    used = set(re.findall(rf"\b{PREFIX}[A-Z0-9_]+", text))
    return used - {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("path", list(files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_that_is_named_exists(path: Path) -> None:
    assert unknown_settings(path.read_text()) == set()


def test_a_setting_that_does_not_exist_is_found() -> None:
    assert unknown_settings("  - GATEWAY_PROT=8080\n  - GATEWAY_PORT=1") == {"GATEWAY_PROT"}


def number(pattern: str, text: str) -> float:
    found = re.findall(pattern, text)
    assert len(found) == 1, f"{pattern}: {found}"
    return float(found[0])


def setting(name: str) -> float:
    """A setting as the base configures it, else its default."""
    given = re.findall(rf"{PREFIX}{name.upper()}=(\d+)", KUSTOMIZATION)
    return float(given[0] if given else Settings.model_fields[name].default)


def test_a_pod_is_given_the_time_that_leaving_takes() -> None:
    pre_stop = number(r"sleep:\s+seconds: (\d+)", DEPLOYMENT)
    grace = number(r"terminationGracePeriodSeconds: (\d+)", DEPLOYMENT)
    names = ("drain_grace_seconds", "drain_seconds", "handover_seconds", "stop_grace_seconds")
    assert grace > pre_stop + sum(setting(name) for name in names)


def test_the_ports_are_those_of_the_settings() -> None:
    for name, port in (("http", "port"), ("admin", "admin_port")):
        declared = number(rf"name: {name}\s+containerPort: (\d+)", DEPLOYMENT)
        assert declared == setting(port) == number(rf"GATEWAY_{port.upper()}=(\d+)", DOCKERFILE)


def test_the_manifest_and_the_image_run_as_the_same_user_who_is_not_root() -> None:
    user = number(r"runAsUser: (\d+)", DEPLOYMENT)
    assert user == number(r"USER (\d+)", DOCKERFILE) != 0


def test_service_links_are_off_because_they_look_like_settings() -> None:
    assert "enableServiceLinks: false" in DEPLOYMENT
