"""Documents against the schemas of Kubernetes, unknown fields and unknown kinds included."""

from __future__ import annotations

import functools
import json
from typing import Final

import kubernetes_validate  # type: ignore[import-untyped]

from tests.manifests.documents import Document, kind_of, title

#: The oldest that is supported, and the newest that there are schemas for.
OLDEST: Final = "1.29"
VERSIONS: Final = (OLDEST, kubernetes_validate.latest_version())
#: Kinds that come with a CRD: (apiVersion, kind). ``test_crds.py`` holds them against theirs.
CUSTOM: Final = frozenset(
    {
        ("gateway.networking.k8s.io/v1", "Gateway"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("monitoring.coreos.com/v1", "ServiceMonitor"),
    }
)


def schema_problems(document: Document, version: str) -> list[str]:
    """What the API server of a version would refuse in a document."""
    if (document["apiVersion"], kind_of(document)) in CUSTOM:
        return []
    return list(_problems(json.dumps(document, sort_keys=True), version))


@functools.cache
def _problems(text: str, version: str) -> tuple[str, ...]:
    """Cached: most documents are the same in most kustomizations."""
    document: Document = json.loads(text)
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as exc:
        where = ".".join(str(step) for step in exc.path)
        return (f"{title(document)}: {where}: {exc.message} (Kubernetes {version})",)
    except kubernetes_validate.SchemaNotFoundError as exc:
        return (f"{title(document)}: {exc.message}",)
    return ()
