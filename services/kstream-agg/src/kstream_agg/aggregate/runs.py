"""A batch of trades cut into runs: neighbours in topic order of one instrument and one window.

A run's share of the EWMA is linear in the value before it. With n prices p[0] … p[n-1], the fold
e = alpha * p + (1 - alpha) * e ends at decay * e + share, where decay = (1 - alpha)^n and
share = sum of alpha * (1 - alpha)^(n-1-i) * p[i]: two numbers a run, computed for all runs at
once. The same two move the instrument's running value and the window's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Run", "SortedTrades", "Trades", "cut_runs", "run_of"]


@dataclass(frozen=True, slots=True)
class Trades:
    """Trades of one partition by columns, in offset order.

    Args:
        offset: Where they stand in the partition.
        instrument: A number for each instrument, below 2³¹.
        trade_seq: The exchange's number of the trade within its instrument.
        timestamp: Event time, ms.
        received_at: Receipt time, ms.
        price: Price.
        amount: Amount.
    """

    offset: NDArray[np.int64]
    instrument: NDArray[np.int32]
    trade_seq: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    received_at: NDArray[np.int64]
    price: NDArray[np.float64]
    amount: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.offset)


class Run(NamedTuple):
    """What one run adds to its window.

    It stands at `begin` … `end` of the sorted trades, its first trade at `offset`; `low_seq` …
    `high_seq` are its trades' numbers. `rising` says that they rise from trade to trade,
    `gapless` that they rise by 1. A tuple, because there are thousands in a batch.
    """

    instrument: int
    window: int
    begin: int
    end: int
    offset: int
    trades: int
    sum_price: float
    sum_amount: float
    sum_product: float
    low: float
    high: float
    decay: float
    share: float
    low_seq: int
    high_seq: int
    open: float
    close: float
    rising: bool
    gapless: bool


@dataclass(frozen=True, slots=True)
class SortedTrades:
    """The counted columns, sorted by instrument and else in topic order: `Run`s index them."""

    offset: NDArray[np.int64]
    trade_seq: NDArray[np.int64]
    price: NDArray[np.float64]
    amount: NDArray[np.float64]


def cut_runs(
    trades: Trades, window: NDArray[np.int64], keep: NDArray[np.bool_], alpha: float
) -> tuple[SortedTrades, Iterator[Run]]:
    """Sort a batch by instrument and cut it into runs.

    Args:
        trades: The batch.
        window: Number of each trade's window.
        keep: Which trades count.
        alpha: Weight of a new price in the EWMA.

    Returns:
        The sorted trades, and the runs: those of one instrument in topic order.
    """
    order = _stable_order(trades.instrument)
    if not keep.all():
        order = order[keep[order]]
    columns = SortedTrades(
        trades.offset[order], trades.trade_seq[order], trades.price[order], trades.amount[order]
    )
    if not len(order):
        return columns, iter(())
    instrument, windows = trades.instrument[order], window[order]
    changes = (instrument[1:] != instrument[:-1]) | (windows[1:] != windows[:-1])
    begins = np.concatenate(([0], np.flatnonzero(changes) + 1))
    return columns, map(Run._make, _summaries(columns, instrument, windows, begins, alpha))


def run_of(columns: SortedTrades, run: Run, places: list[int], alpha: float) -> Run:
    """A run of some of another run's trades.

    Args:
        columns: What `run` indexes.
        run: The run.
        places: Which of its trades, rising; at least one.
        alpha: Weight of a new price in the EWMA.
    """
    picked = SortedTrades(
        columns.offset[places],
        columns.trade_seq[places],
        columns.price[places],
        columns.amount[places],
    )
    count = len(places)
    summaries = _summaries(
        picked,
        np.full(count, run.instrument, dtype=np.int32),
        np.full(count, run.window),
        np.zeros(1, dtype=np.int64),
        alpha,
    )
    return Run._make(next(summaries))


def _stable_order(instrument: NDArray[np.int32]) -> NDArray[np.int64]:
    # numpy sorts 16-bit numbers by radix, several times faster.
    small = len(instrument) > 0 and int(instrument.max()) < 2**16
    return np.argsort(instrument.astype(np.uint16) if small else instrument, kind="stable")


def _summaries(
    columns: SortedTrades,
    instrument: NDArray[np.int32],
    window: NDArray[np.int64],
    begins: NDArray[np.int64],
    alpha: float,
) -> Iterator[tuple[Any, ...]]:
    """The values of `Run` for each run."""
    price, amount, seq = columns.price, columns.amount, columns.trade_seq
    ends = np.append(begins[1:], len(price))
    count = ends - begins
    powers = np.power(1.0 - alpha, np.arange(int(count.max()) + 1))
    weights = powers[np.repeat(ends, count) - 1 - np.arange(len(price))]
    rises = np.ones(len(seq), dtype=np.bool_)
    rises[1:] = seq[1:] > seq[:-1]
    rises[begins] = True  # a run's first trade follows nothing
    low_seq = np.minimum.reduceat(seq, begins)
    high_seq = np.maximum.reduceat(seq, begins)
    rising = np.logical_and.reduceat(rises, begins)
    opens, closes = price[begins], price[ends - 1]
    for index in np.flatnonzero(~rising):
        span = slice(int(begins[index]), int(ends[index]))
        opens[index] = price[span][np.argmin(seq[span])]
        closes[index] = price[span][np.argmax(seq[span])]
    results = (
        instrument[begins],
        window[begins],
        begins,
        ends,
        columns.offset[begins],
        count,
        np.add.reduceat(price, begins),
        np.add.reduceat(amount, begins),
        np.add.reduceat(price * amount, begins),
        np.minimum.reduceat(price, begins),
        np.maximum.reduceat(price, begins),
        powers[count],
        alpha * np.add.reduceat(price * weights, begins),
        low_seq,
        high_seq,
        opens,
        closes,
        rising,
        rising & (high_seq - low_seq == count - 1),
    )
    return zip(*(column.tolist() for column in results), strict=True)
