"""Blocking work in a thread, waited for even when the caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of ``work`` run in a thread.

    A thread cannot be cancelled: when the caller is, the cancellation goes on only after the
    thread has ended, so that what it touched may be removed then.
    """
    future = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError:
                continue  # already being cancelled
        if not future.cancelled():
            future.exception()  # retrieved: nobody is left to be told
        raise
