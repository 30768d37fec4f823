"""The bounded queue between a source of trades and the thread that writes them to Kafka."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kstream_agg.deribit.events import BadFrame

if TYPE_CHECKING:
    from kstream_agg.deribit.frames import TradeBatch

__all__ = ["HandOver", "Receipt"]

_TRADE_BYTES: Final = 256  # a usual trade in a frame
_FULL_PAUSE_S: Final = 0.005  # at full speed this is 1% of the queue's default length


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a source has received at one time.

    Args:
        content: Trades of one channel, or a frame that cannot be understood.
        received_at_ms: When, in ms since the epoch.
        source: `stream` or `backfill`, as in the record.
        simulated: Whether it comes from a simulator.
    """

    content: TradeBatch | BadFrame
    received_at_ms: int
    source: str = "stream"
    simulated: bool = False

    @property
    def weight(self) -> int:
        """How much of the queue it takes: its trades, or as many as would be as long."""
        if isinstance(self.content, BadFrame):
            return 1 + len(self.content.frame) // _TRADE_BYTES
        return max(1, len(self.content.trades) + len(self.content.rejected))


class HandOver:
    """A queue bounded by the trades in it: full, it slows its source down.

    Args:
        limit: How many trades it holds. A receipt larger than that is taken when it is empty.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[Receipt, int]] = deque()
        self._weight = 0
        self._condition = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return self._weight

    @property
    def finished(self) -> bool:
        """Whether it is closed and empty."""
        return self._closed and not self._items

    def try_put(self, receipt: Receipt) -> bool:
        """Put a receipt in; False when there is no room."""
        weight = receipt.weight
        with self._condition:
            if self._items and self._weight + weight > self._limit:
                return False
            self._items.append((receipt, weight))
            self._weight += weight
            self._condition.notify()
        return True

    async def put(self, receipt: Receipt) -> None:
        """Put a receipt in, waiting for room."""
        while not self.try_put(receipt):  # noqa: ASYNC110 - room is made by another thread
            await asyncio.sleep(_FULL_PAUSE_S)

    def get(self, timeout_s: float) -> Receipt | None:
        """Take the oldest receipt; None when none came within the time or the queue is closed."""
        with self._condition:
            if not self._items and not self._closed:
                self._condition.wait(timeout_s)
            if not self._items:
                return None
            receipt, weight = self._items.popleft()
            self._weight -= weight
            return receipt

    def close(self) -> None:
        """Nothing more will be put in."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
