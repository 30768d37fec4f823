"""A batch of trades cut into runs: neighbours in topic order of one instrument and its windows.

A run's share of the EWMA is linear in the value before it. With n prices p[0] … p[n-1], the fold
e = alpha * p + (1 - alpha) * e ends at decay * e + share, where decay = (1 - alpha)^n and
share = sum of alpha * (1 - alpha)^(n-1-i) * p[i]: two numbers a run, computed for all runs at
once. The same two move the instrument's running value and the windows'. Of the time-decayed form
a run has its two sums at the begin of its newest window of the first family: all exponents are
then at least 0, and the settings bound them.

Where several windows hold a trade, each has a lane: the first family's newest, then its older
ones, then the next family's. A run ends where any lane's window changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kstream_agg.aggregate.rules import NO_WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from kstream_agg.aggregate.rules import EwmaRules, WindowRules

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
    """What one run adds to its windows.

    `windows` are their numbers, by lane. It stands at `begin` … `end` of the sorted trades;
    `low_seq` … `high_seq` are its trades' numbers. `rising` says that they rise from trade to
    trade, `gapless` that they rise by 1. A tuple, because there are thousands in a batch.
    """

    windows: tuple[int, ...]
    instrument: int
    begin: int
    end: int
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
    decayed_price: float
    decayed_weight: float


@dataclass(frozen=True, slots=True)
class SortedTrades:
    """The counted columns, sorted by instrument and else in topic order: `Run`s index them.

    Args:
        trade_seq: The exchange's number of the trade within its instrument.
        price: Price.
        amount: Amount.
        weight: Time-decayed form: each trade's weight; None by count.
    """

    trade_seq: NDArray[np.int64]
    price: NDArray[np.float64]
    amount: NDArray[np.float64]
    weight: NDArray[np.float64] | None


def cut_runs(
    trades: Trades, keep: NDArray[np.bool_], rules: WindowRules
) -> tuple[SortedTrades, Iterator[Run]]:
    """Sort a batch by instrument and cut it into runs.

    Args:
        trades: The batch.
        keep: Which trades count.
        rules: Windows and averages.

    Returns:
        The sorted trades, and the runs: those of one instrument in topic order.
    """
    order = _stable_order(trades.instrument)
    if not keep.all():
        order = order[keep[order]]
    timestamp = trades.timestamp[order]
    lanes = _lanes(timestamp, rules)
    columns = SortedTrades(
        trades.trade_seq[order],
        trades.price[order],
        trades.amount[order],
        _weights(timestamp, lanes[0], rules),
    )
    if not len(order):
        return columns, iter(())
    instrument = trades.instrument[order]
    changes = instrument[1:] != instrument[:-1]
    for lane in lanes:
        changes |= lane[1:] != lane[:-1]
    begins = np.concatenate(([0], np.flatnonzero(changes) + 1))
    windows = zip(*(lane[begins].tolist() for lane in lanes), strict=True)
    summaries = _summaries(columns, begins, rules.ewma)
    return columns, map(
        Run._make, zip(windows, instrument[begins].tolist(), *summaries, strict=True)
    )


def run_of(columns: SortedTrades, run: Run, places: list[int], ewma: EwmaRules) -> Run:
    """A run of some of another run's trades.

    Args:
        columns: What `run` indexes.
        run: The run.
        places: Which of its trades, rising; at least one.
        ewma: How the average is made.
    """
    picked = SortedTrades(
        columns.trade_seq[places],
        columns.price[places],
        columns.amount[places],
        columns.weight[places] if columns.weight is not None else None,
    )
    summaries = _summaries(picked, np.zeros(1, dtype=np.int64), ewma)
    return Run(run.windows, run.instrument, *(column[0] for column in summaries))


def _stable_order(instrument: NDArray[np.int32]) -> NDArray[np.int64]:
    # numpy sorts 16-bit numbers by radix, several times faster.
    small = len(instrument) > 0 and int(instrument.max()) < 2**16
    return np.argsort(instrument.astype(np.uint16) if small else instrument, kind="stable")


def _lanes(timestamp: NDArray[np.int64], rules: WindowRules) -> list[NDArray[np.int64]]:
    """For each lane the number of each trade's window, `NO_WINDOW` where the lane has none."""
    lanes = []
    for family in rules.families:
        newest = timestamp // family.advance_ms
        lanes.append(newest)
        if family.overlap > 1:
            oldest = family.oldest(timestamp)
            for back in range(1, family.overlap):
                lane = newest - back
                lanes.append(np.where(lane >= oldest, lane, NO_WINDOW))
    return lanes


def _weights(
    timestamp: NDArray[np.int64], newest: NDArray[np.int64], rules: WindowRules
) -> NDArray[np.float64] | None:
    tau_ms = rules.ewma.tau_ms
    if tau_ms is None:
        return None
    weights: NDArray[np.float64] = np.exp(
        (timestamp - newest * rules.families[0].advance_ms) / tau_ms
    )
    return weights


def _summaries(
    columns: SortedTrades, begins: NDArray[np.int64], ewma: EwmaRules
) -> list[list[Any]]:
    """The values of `Run` from `begin` on, a list for each."""
    price, amount, seq = columns.price, columns.amount, columns.trade_seq
    ends = np.append(begins[1:], len(price))
    count = ends - begins
    powers = np.power(1.0 - ewma.alpha, np.arange(int(count.max()) + 1))
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
    if columns.weight is None:
        decayed_price = decayed_weight = np.zeros(len(begins))
    else:
        decayed_price = np.add.reduceat(price * columns.weight, begins)
        decayed_weight = np.add.reduceat(columns.weight, begins)
    results = (
        begins,
        ends,
        count,
        np.add.reduceat(price, begins),
        np.add.reduceat(amount, begins),
        np.add.reduceat(price * amount, begins),
        np.minimum.reduceat(price, begins),
        np.maximum.reduceat(price, begins),
        powers[count],
        ewma.alpha * np.add.reduceat(price * weights, begins),
        low_seq,
        high_seq,
        opens,
        closes,
        rising,
        rising & (high_seq - low_seq == count - 1),
        decayed_price,
        decayed_weight,
    )
    return [column.tolist() for column in results]
