"""The pure parts of the benchmark of event streams."""

from __future__ import annotations

import resource

import pytest

from bench import streams
from bench._listeners import Crowd, Listener

BYTES = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"e\r\n: connected\n\n\r\n"
    b'2c\r\nid: 1-0\nevent: state\ndata: {"state":"ready"}\n\n\r\n'
    b"f\r\n: keep-alive\n\n\r\n"
    b'2b\r\nid: 2-0\nevent: event\ndata: {"type":"tick"}\n\n\r\n'
)


@pytest.mark.parametrize("size", [1, 2, 5, 7, 8, 1000])
async def test_a_listener_counts_each_event_once_however_bytes_are_cut(size: int) -> None:
    crowd = Crowd("127.0.0.1", 1, "/")
    listener = Listener(crowd)
    crowd.listeners.append(listener)
    for start in range(0, len(BYTES), size):
        listener.data_received(BYTES[start : start + size])
    assert listener.events == 2
    assert crowd.counts == [1, 1]
    assert await crowd.until(1)


def test_no_process_needs_more_descriptors_than_it_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 20_000))
    assert streams.workers_for(1000) == 0
    assert streams.workers_for(10_000) == 2
