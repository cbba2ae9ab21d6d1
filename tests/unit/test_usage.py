"""What a process says of itself is so."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from gateway import usage


def values() -> dict[str, float]:
    return {name: pairs[0][1] for name, _, _, pairs in usage.samples()}


async def test_a_task_that_is_under_way_counts() -> None:
    before = values()["tasks"]
    task = asyncio.create_task(asyncio.sleep(60))
    assert values()["tasks"] == before + 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert values()["tasks"] == before


async def test_an_open_file_counts() -> None:
    before = values()["open_descriptors"]
    with open(os.devnull), open(os.devnull):  # noqa: ASYNC230 - it never blocks
        assert values()["open_descriptors"] == before + 2
    assert values()["open_descriptors"] == before


async def test_objects_count() -> None:
    before = values()["allocated_blocks"]
    kept = [object() for _ in range(10_000)]
    assert values()["allocated_blocks"] >= before + len(kept)


async def test_memory_is_that_of_the_process() -> None:
    assert values()["resident_memory_bytes"] == pytest.approx(
        psutil.Process().memory_info().rss, rel=0.05
    )


@pytest.mark.parametrize("known", [True, False])
def test_descriptors_are_counted_where_the_kernel_does_not_say_how_many(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Folder(os.PathLike[str]):
        """/proc/self/fd, before Linux 6.2 or not."""

        def __fspath__(self) -> str:
            return str(tmp_path)

        def stat(self) -> os.stat_result:
            size = 7 if known else 0
            return os.stat_result((*tmp_path.stat()[:6], size, 0, 0, 0))

    for name in "abc":
        (tmp_path / name).touch()
    monkeypatch.setattr(usage, "_DESCRIPTORS", Folder())
    assert usage.open_descriptors() == (7 if known else 3)


async def test_where_there_is_no_proc_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_DESCRIPTORS", tmp_path / "fd")
    monkeypatch.setattr(usage, "_PAGES", tmp_path / "statm")
    assert set(values()) == {"tasks", "allocated_blocks"}
