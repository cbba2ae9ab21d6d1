"""Replica tests on a real cluster: only with PREVIEW_K8S_TEST=1 (`make test-k8s`)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import require_tool
from tests.k8s.cluster import Cluster, deployed
from tests.k8s.kubectl import Kubectl, allowed_context
from tests.k8s.replica import Replica, replicas

#: Without it these tests are not skipped, they are not there: `make test` has nothing to do with a
#: cluster that kubectl happens to point to.
collect_ignore_glob = [] if os.environ.get("PREVIEW_K8S_TEST") == "1" else ["test_*.py"]


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """kubectl, bound to the context that it points to now, if that one is allowed."""
    program = require_tool("kubectl")
    return Kubectl(program, allowed_context(os.environ, Kubectl(program).current_context()))


@pytest.fixture(scope="session")
def cluster(kubectl: Kubectl) -> Iterator[Cluster]:
    """The overlay `kind`, in namespaces of its own, with three ready replicas; gone afterwards."""
    with deployed(kubectl, os.environ) as cluster:
        yield cluster


@pytest.fixture
async def pods(cluster: Cluster) -> AsyncIterator[list[Replica]]:
    """Every gateway pod that is ready, each reached by a port-forward of its own."""
    async with replicas(cluster) as found:
        yield found
