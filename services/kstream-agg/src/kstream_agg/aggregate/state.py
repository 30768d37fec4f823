"""The aggregator's state of one partition. Pure: trades in, results out, the time handed in.

**Replay.** The offset that is committed is the first trade of the oldest open window, the
position and the watermark go with it. After a restart the trades from there to the position have
all been judged before: those whose windows are open under the watermark were counted and are
counted again, all others have had their place (a result, or the late topic) and are passed over.
From the position on everything is as if there had been no restart. Only the running EWMA is not
carried over: a window that is opened anew is seeded with what the replay knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kstream_agg.aggregate.rules import NO_WATERMARK, WindowRules, judge
from kstream_agg.aggregate.runs import cut_runs, run_of
from kstream_agg.aggregate.windows import OpenWindows, Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.aggregate.rules import Judgement
    from kstream_agg.aggregate.runs import Run, SortedTrades, Trades

__all__ = ["Applied", "ClosedBy", "PartitionState", "Refused", "average_record"]

ClosedBy = Literal["watermark", "idle"]


@dataclass(frozen=True, slots=True)
class Refused:
    """A trade that is not counted: its place in the batch, `late` or `future`, and by how much.

    `behind_ms` is how far its event time is behind the watermark, or ahead of its receipt.
    """

    index: int
    reason: Literal["late", "future"]
    behind_ms: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch has led to.

    Args:
        refused: Trades for the late topic, in offset order.
        results: `Average` records of the windows that have closed.
        repeated: How many trades were repeats.
    """

    refused: list[Refused]
    results: list[dict[str, Any]]
    repeated: int


class PartitionState:
    """Open windows, watermark, position and running averages of one partition.

    Args:
        rules: The settings that decide about windows.
        name_of: The name of an instrument's number.
        start: Where reading begins.
        position: Trades before this offset are a replay.
        watermark: The watermark at `position`, ms.
    """

    def __init__(
        self,
        rules: WindowRules,
        name_of: Callable[[int], str],
        *,
        start: int = 0,
        position: int = 0,
        watermark: int = NO_WATERMARK,
    ) -> None:
        self._rules = rules
        self._name_of = name_of
        self._replay_until = position
        self._windows = OpenWindows()
        self._running: dict[int, float] = {}
        self._read_until = start
        self.position = position
        self.watermark = watermark

    @property
    def open_windows(self) -> int:
        """How many windows are open."""
        return len(self._windows)

    def resume_offset(self) -> int:
        """Where reading must begin to have the open windows again, in a new process."""
        first = self._windows.first_offset()
        # In the middle of a replay there may be windows whose trades have not come again yet.
        here = min(self._read_until, self.position)
        return here if first is None else min(first, here)

    def advance(self, position: int) -> None:
        """Everything before `position` has been read, records that are no trades included."""
        self._read_until = max(self._read_until, position)
        self.position = max(self.position, position)

    def apply(self, trades: Trades) -> Applied:
        """Count a batch and close the windows that its watermark passes."""
        judged = judge(trades.timestamp, trades.received_at, self.watermark, self._rules)
        out = judged.late | judged.future
        repeated = 0
        columns, runs = cut_runs(trades, judged.window, ~out, self._rules.alpha)
        for run in runs:
            repeated += self._count(run, columns)
        self.watermark = judged.watermark
        results = [
            self._show(window, "watermark")
            for window in self._windows.close(self._last_ended(self.watermark))
            if window.count > window.shown_count
        ]
        refused = self._refused(trades, judged) if out.any() else []
        if len(trades):
            self.advance(int(trades.offset[-1]) + 1)
        return Applied(refused, results, repeated)

    def show_ended(self, now_ms: int) -> list[dict[str, Any]]:
        """Results of the windows that the wall clock has passed; they stay open.

        Only windows that have changed since they were last shown.
        """
        return [
            self._show(window, "idle")
            for window in self._windows.ended(self._last_ended(now_ms))
            if window.count > window.shown_count
        ]

    def _last_ended(self, time_ms: int) -> int:
        """The last window whose end plus grace is not after `time_ms`."""
        return (time_ms - self._rules.grace_ms) // self._rules.period_ms - 1

    def _count(self, run: Run, columns: SortedTrades) -> int:
        """Add a run to its window; returns how many repeats were left out."""
        window = self._windows.get(run.window, run.instrument)
        if run.rising and (window is None or run.low_seq > window.last_seq):
            if window is None:
                window = self._open(run, columns)
            if run.gapless:
                window.seen.append(run.low_seq, run.high_seq)
            else:
                for seq in columns.trade_seq[run.begin : run.end].tolist():
                    window.seen.append(seq, seq)
            self._fold(window, run)
            return 0
        if window is None:
            window = self._open(run, columns)
        places = [
            place
            for place, seq in enumerate(columns.trade_seq[run.begin : run.end].tolist(), run.begin)
            if window.seen.add(seq)
        ]
        if places:
            whole = len(places) == run.trades
            self._fold(window, run if whole else run_of(columns, run, places, self._rules.alpha))
        return run.trades - len(places)

    def _open(self, run: Run, columns: SortedTrades) -> Window:
        seed = self._running.setdefault(run.instrument, float(columns.price[run.begin]))
        window = Window(run.instrument, run.window, seed)
        self._windows.add(window, run.offset)
        return window

    def _fold(self, window: Window, run: Run) -> None:
        window.add(run)
        self._running[run.instrument] = run.decay * self._running[run.instrument] + run.share

    def _show(self, window: Window, closed_by: ClosedBy) -> dict[str, Any]:
        record = average_record(window, self._name_of(window.instrument), self._rules, closed_by)
        window.shown_count = window.count
        window.revision += 1
        return record

    def _refused(self, trades: Trades, judged: Judgement) -> list[Refused]:
        fresh = trades.offset >= self._replay_until
        return [
            Refused(
                int(index),
                "future" if judged.future[index] else "late",
                int(judged.behind_ms[index]),
            )
            for index in np.flatnonzero((judged.late | judged.future) & fresh)
        ]


def average_record(
    window: Window, instrument: str, rules: WindowRules, closed_by: ClosedBy
) -> dict[str, Any]:
    """A window as a record of the schema `Average`; times in ms since the epoch."""
    start = window.number * rules.period_ms
    return {
        "instrument_name": instrument,
        "window_start": start,
        "window_end": start + rules.period_ms,
        "period": rules.period_ms // 1000,
        "alpha": rules.alpha,
        "seed": window.seed,
        "current": window.current,
        "sma": window.sum_price / window.count,
        "vwap": window.sum_product / window.sum_amount if window.sum_amount else None,
        "open": window.open,
        "high": window.high,
        "low": window.low,
        "close": window.close,
        "trade_count": window.count,
        "volume": window.sum_amount,
        "first_trade_seq": window.first_seq,
        "last_trade_seq": window.last_seq,
        "revision": window.revision,
        "closed_by": closed_by,
    }
