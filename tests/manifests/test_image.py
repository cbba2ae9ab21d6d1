"""Image and manifests agree: setting names, ports, folders, and the user."""

from __future__ import annotations

import re
from typing import Final

import pytest

from gateway.settings import PREFIX, Settings
from tests.manifests.documents import configuration, gateway_of
from tests.manifests.rendering import OVERLAYS, ROOT, documents

DOCKERFILE: Final = (ROOT / "Dockerfile").read_text()
TARGETS: Final = set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, flags=re.MULTILINE))


def unknown_settings(text: str) -> set[str]:
    used = set(re.findall(rf"\b{PREFIX}[A-Z0-9_]+", text))
    return used - {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


def said_by_the_image(pattern: str) -> str:
    """What the Dockerfile says, once or always the same."""
    (found,) = set(re.findall(pattern, DOCKERFILE, flags=re.MULTILINE))
    return str(found)


@pytest.mark.parametrize(
    "path",
    [ROOT / "Dockerfile", ROOT / "docs/deploy.md", *sorted((ROOT / "k8s").rglob("*.yaml"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_setting_that_is_named_exists(path: object) -> None:
    assert unknown_settings((ROOT / str(path)).read_text()) == set()


def test_a_setting_that_does_not_exist_is_found() -> None:
    assert unknown_settings("  - GATEWAY_PROT=8080\n  - GATEWAY_PORT=1") == {"GATEWAY_PROT"}


@pytest.mark.parametrize("name", ["PORT", "ADMIN_PORT", "DATA_DIR", "HOST"])
def test_image_and_manifests_have_the_same_addresses(name: str) -> None:
    of_image = said_by_the_image(rf"\b{PREFIX}{name}=(\S+?)(?: \\)?$")
    assert configuration(documents("base"))[f"{PREFIX}{name}"] == of_image


def test_image_and_manifests_run_as_the_same_user_who_is_not_root() -> None:
    context = gateway_of(documents("base")).spec["securityContext"]
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    assert user == said_by_the_image(r"^USER (\S+)$") != "0:0"
    assert context["fsGroup"] == context["runAsGroup"]


@pytest.mark.parametrize("name", ["base", "base+kubernetes-spawner", *OVERLAYS])
def test_the_tag_of_the_image_ends_in_a_target_that_can_run_the_spawner(name: str) -> None:
    (container,) = gateway_of(documents(name)).spec["containers"]
    target = re.split("[:-]", container["image"])[-1]
    spawner = configuration(documents(name))[f"{PREFIX}SPAWNER"]
    assert target in TARGETS
    assert target == {"process": "process", "kubernetes": "gateway"}[spawner]
    if spawner == "kubernetes":
        assert configuration(documents(name))[f"{PREFIX}POD_IMAGE"].endswith("preview")
        assert "preview" in TARGETS
