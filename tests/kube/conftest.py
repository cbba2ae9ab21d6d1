"""A fake API server, a fake node, and clients of theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.spawner.kube.client import KubeApi
from gateway.spawner.kube.config import load_config
from tests.kube.cluster import FakeCluster


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """An API server whose pods nothing runs."""
    async with FakeCluster(nodes=False) as cluster:
        yield cluster


@pytest.fixture
async def node() -> AsyncIterator[FakeCluster]:
    """An API server and a node that runs its pods."""
    async with FakeCluster() as cluster:
        yield cluster


def client(cluster: FakeCluster, **limits: float) -> KubeApi:
    """A client of a fake cluster's API server, with short limits."""
    short = {"attempt_seconds": 2.0, "call_seconds": 5.0, "watch_margin_seconds": 1.0}
    config = load_config(api_url=cluster.url, namespace=cluster.namespace)
    return KubeApi(config, **{**short, **limits})


@pytest.fixture
async def api(cluster: FakeCluster) -> AsyncIterator[KubeApi]:
    """A client of ``cluster``."""
    async with client(cluster) as api:
        yield api
