"""Blocking calls as awaitable ones: one body, two names, no second copy.

A class writes `aflush = awaitable(flush)`: `await writer.aflush()` then runs `flush` in a thread of
the event loop's pool, with the same arguments, result and errors. A caller that is cancelled stops
waiting; the call itself ends by its own time-out.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["awaitable"]

SelfT = TypeVar("SelfT")
ResultT = TypeVar("ResultT")
P = ParamSpec("P")


def awaitable(
    method: Callable[Concatenate[SelfT, P], ResultT],
) -> Callable[Concatenate[SelfT, P], Coroutine[Any, Any, ResultT]]:
    """The same method for event loops.

    Args:
        method: A method that blocks and may be called from any thread.
    """

    @functools.wraps(method)
    async def call(self: SelfT, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    call.__name__ = call.__qualname__ = f"a{method.__name__}"
    call.__doc__ = f"`{method.__name__}`, to be awaited."
    return call
