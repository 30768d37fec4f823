"""The trades that the history calls know, in blocks: times are found without reading them all."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KeptTrades"]

_BLOCK: Final = 1_000


class _Timed(Protocol):
    @property
    def timestamp(self) -> int: ...


TradeT = TypeVar("TradeT", bound=_Timed)


@dataclass(slots=True)
class _Block(Generic[TradeT]):
    oldest_ms: int
    newest_ms: int
    trades: list[TradeT] = field(default_factory=list)


class KeptTrades(Generic[TradeT]):
    """The newest trades, in the order they happened.

    Args:
        limit: So many are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: deque[_Block[TradeT]] = deque()
        self._gone = 0  # of the first block
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[TradeT]:
        return self._from(None, None)

    def append(self, trade: TradeT) -> TradeT | None:
        """Add the newest trade; the oldest one when there is no room for it any more."""
        at_ms, blocks = trade.timestamp, self._blocks
        if not blocks or len(blocks[-1].trades) == _BLOCK:
            blocks.append(_Block(at_ms, at_ms))
        block = blocks[-1]
        block.trades.append(trade)
        block.oldest_ms = min(block.oldest_ms, at_ms)
        block.newest_ms = max(block.newest_ms, at_ms)
        self._count += 1
        return self._drop() if self._count > self._limit else None

    def between(self, low_ms: int, high_ms: int) -> Iterator[TradeT]:
        """Those from one time to another, both included (ms)."""
        return (
            trade for trade in self._from(low_ms, high_ms) if low_ms <= trade.timestamp <= high_ms
        )

    def newest(self, count: int) -> list[TradeT]:
        """The newest, the last one first."""
        newest = (trade for block in reversed(self._blocks) for trade in reversed(block.trades))
        return list(islice(newest, min(count, self._count)))

    def _from(self, low_ms: int | None, high_ms: int | None) -> Iterator[TradeT]:
        gone = self._gone
        for block in self._blocks:
            if (low_ms is None or block.newest_ms >= low_ms) and (
                high_ms is None or block.oldest_ms <= high_ms
            ):
                yield from islice(block.trades, gone, None)
            gone = 0

    def _drop(self) -> TradeT:
        trade = self._blocks[0].trades[self._gone]
        self._gone += 1
        self._count -= 1
        if self._gone == _BLOCK:
            self._blocks.popleft()
            self._gone = 0
        return trade
