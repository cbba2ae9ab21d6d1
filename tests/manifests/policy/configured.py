"""The environment that the gateway gets is one that it takes; and no secret is written down."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Sequence
from typing import Final
from unittest import mock

from gateway.errors import SettingsError
from gateway.session import SessionId
from gateway.settings import PREFIX, Settings, load_settings
from gateway.spawner.kube.manifest import Manifests, Purpose
from gateway.spawner.kube.template import Template
from tests.manifests.documents import Document, configuration, gateway_of, of_kind, title

#: What Kubernetes, not these manifests, puts for "$(POD_NAME)" and the like.
GIVEN: Final = {
    "POD_NAME": "preview-gateway-7d4b9c-x2x4v",
    "POD_IP": "10.244.1.7",
    "REDIS_PASSWORD": "0123456789abcdef",
    f"{PREFIX}REDIS_URL": "rediss://gateway:secret@redis.example:6379/0",
}
#: What a made-up credential has to say of itself.
THROW_AWAY: Final = "throw-away"
_REFERENCE: Final = re.compile(r"\$\(([A-Z_]+)\)")
_CREDENTIAL: Final = re.compile(r"TOKEN|PASSWORD|SECRET|KEY")


def problems(documents: Sequence[Document]) -> Iterator[str]:
    """Settings that do not exist or are refused, and credentials in plain sight."""
    yield from _of_settings(documents)
    yield from _of_order(documents)
    for secret in of_kind(documents, "Secret"):
        for key, value in secret.get("data", {}).items():
            if THROW_AWAY not in base64.b64decode(value).decode():
                yield f"{title(secret)}: {key} is a credential that does not say it is none"
    for name, value in configuration(documents).items():
        if value.startswith("<") or name.endswith("_FILE"):
            continue
        if _CREDENTIAL.search(name) or re.search(r"://[^/@]*:(?!\$\()[^/@]+@", value):
            yield f"{name}: a credential in plain sight"


def environment(documents: Sequence[Document]) -> dict[str, str]:
    """The variables of the gateway's container as the process sees them."""
    found = {
        name: GIVEN.get(name, value) if value.startswith("<") else value
        for name, value in configuration(documents).items()
    }
    return {
        name: _REFERENCE.sub(lambda match: found.get(match[1], match[0]), value)
        for name, value in found.items()
    }


def settings(documents: Sequence[Document]) -> Settings:
    """The settings that a replica begins with; SettingsError if it would refuse to."""
    with mock.patch.dict(os.environ, environment(documents), clear=True):
        return load_settings()


def preview_pod(documents: Sequence[Document]) -> Document:
    """The pod that the spawner would ask for, for some session."""
    purpose = Purpose.session(SessionId("quick-fox-1"), 1)
    return Manifests(settings(documents), Template()).pod(purpose)


def _of_settings(documents: Sequence[Document]) -> Iterator[str]:
    try:
        found = settings(documents)
    except SettingsError as exc:
        yield str(exc)
        return
    ports = gateway_of(documents).ports
    if ports != {"http": found.port, "admin": found.admin_port}:
        yield f"the container's ports {ports} are not those of the settings"
    mounts = {
        mount["mountPath"] for mount in gateway_of(documents).spec["containers"][0]["volumeMounts"]
    }
    if str(found.data_dir) not in mounts:
        yield f"nothing is mounted at {found.data_dir}, and the image is read-only"
    if found.api_tokens_file is None or str(found.api_tokens_file.parent) not in mounts:
        yield "the API's tokens are not mounted where they are looked for"


def _of_order(documents: Sequence[Document]) -> Iterator[str]:
    """A variable may refer to earlier ones only; to others it keeps the "$(...)"."""
    (container,) = gateway_of(documents).spec["containers"]
    earlier: set[str] = set()
    for variable in container["env"]:
        for name in _REFERENCE.findall(variable.get("value") or ""):
            if name not in earlier:
                yield f"{variable['name']}: {name} comes after it, or not at all"
        earlier.add(variable["name"])
