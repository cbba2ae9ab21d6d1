"""Which trailer fields pass."""

from __future__ import annotations

import pytest

from gateway.proxy.fields import REQUEST_NAMES, RESPONSE_NAMES, Names, Refusal
from gateway.proxy.trailers import TrailerFields


def passing(name: bytes, names: Names = REQUEST_NAMES, connection: bytes = b"") -> list[bytes]:
    trailers = TrailerFields(names, connection=connection, max_bytes=100)
    trailers.add(name, b" 1\t")
    return trailers.lines


@pytest.mark.parametrize("name", [b"X-Sum", b"server-timing", b"ETag", b"X_Own", b"Digest"])
def test_what_nobody_acts_upon_passes_as_it_was_written(name: bytes) -> None:
    assert passing(name) == passing(name, RESPONSE_NAMES) == [name + b": 1"]


@pytest.mark.parametrize(
    "name", [b"Content-Length", b"TE", b"Host", b"cookie", b"Content_Type", b"X-Forwarded-For"]
)
def test_what_belongs_into_a_head_does_not_pass(name: bytes) -> None:
    assert passing(name) == passing(name, RESPONSE_NAMES) == []


def test_what_a_side_acts_upon_does_not_pass_on_that_side() -> None:
    assert passing(b"Sec-WebSocket-Accept", RESPONSE_NAMES) == []
    assert passing(b"Sec-Fetch-Mode") == []


def test_what_connection_names_does_not_pass() -> None:
    assert passing(b"X-Sum", connection=b"close, x-SUM") == []


def test_all_that_comes_counts() -> None:
    trailers = TrailerFields(REQUEST_NAMES, connection=b"", max_bytes=20)
    trailers.add(b"Host", b"12")
    trailers.add(b"a", b"12345")
    with pytest.raises(Refusal) as refused:
        trailers.add(b"b", b"")
    assert refused.value.status == 431
