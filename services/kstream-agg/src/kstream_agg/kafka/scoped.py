"""Things that end with the block they were opened for, blocking or in an event loop."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Scoped"]


class Scoped(ABC):
    """A context manager for `with` and `async with`."""

    @abstractmethod
    def _leave(self, *, failed: bool) -> None:
        """End; `failed` when the block ended with an exception."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(failed=exc_type is not None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._leave, failed=exc_type is not None)
