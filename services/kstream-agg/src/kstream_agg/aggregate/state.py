"""The aggregator's state of one partition. Pure: trades in, results out, the time handed in.

A window is open until the watermark passes its end plus grace, and kept, closed, for the
retention behind that: a late trade opens it again for the time of its batch, and it is shown
again with a higher revision. `horizon` is how far back windows are kept: those whose end plus
grace is not after it are gone. All of it can be taken out as changes (`take_changes`) and put
back (`restore`), so that another process goes on where this one stood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kstream_agg.aggregate.averages import RunningAverages
from kstream_agg.aggregate.counting import count_run
from kstream_agg.aggregate.rules import NO_WATERMARK, NO_WINDOW, WindowRules, judge
from kstream_agg.aggregate.runs import cut_runs
from kstream_agg.aggregate.windows import SeenSeqs, Window, WindowStore, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.aggregate.rules import EwmaRules, Judgement, Windows
    from kstream_agg.aggregate.runs import Run, SortedTrades, Trades
    from kstream_agg.aggregate.windows import Change

__all__ = ["Applied", "ClosedBy", "PartitionState", "Refused", "Result", "average_record"]

ClosedBy = Literal["watermark", "idle", "recompute"]


@dataclass(frozen=True, slots=True)
class Refused:
    """A trade that is not counted: its place in the batch, `late` or `future`, and by how much.

    `behind_ms` is how far its event time is behind the watermark, or ahead of its receipt.
    """

    index: int
    reason: Literal["late", "future"]
    behind_ms: int


class Result(NamedTuple):
    """An `Average` record, and the number of its family of windows."""

    family: int
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch has led to.

    Args:
        refused: Trades for the late topic, in offset order.
        results: Of the windows that have closed, or have changed after their close.
        repeated: How many trades were repeats in the first family's newest window.
    """

    refused: list[Refused]
    results: list[Result]
    repeated: int


class _Lane(NamedTuple):
    """Where a run's windows of one lane are kept."""

    store: WindowStore
    family: Windows


class PartitionState:
    """Windows, watermark, position and running averages of one partition.

    Args:
        rules: The settings that decide about windows.
        name_of: The name of an instrument's number.
        position: The next offset.
        watermark: The watermark there, ms.
        horizon: How far back windows are kept, ms.
    """

    def __init__(
        self,
        rules: WindowRules,
        name_of: Callable[[int], str],
        *,
        position: int = 0,
        watermark: int = NO_WATERMARK,
        horizon: int = NO_WATERMARK,
    ) -> None:
        self._rules = rules
        self._name_of = name_of
        self._stores = tuple(WindowStore() for _ in rules.families)
        self._lanes = [
            _Lane(store, family)
            for store, family in zip(self._stores, rules.families, strict=True)
            for _ in range(family.overlap)
        ]
        self._averages = RunningAverages(rules.ewma)
        self.position = position
        self.watermark = watermark
        self.horizon = horizon

    @property
    def open_windows(self) -> int:
        """How many windows are open."""
        return sum(store.open_count for store in self._stores)

    @property
    def retained_windows(self) -> int:
        """How many closed windows are kept."""
        return sum(store.closed_count for store in self._stores)

    def advance(self, position: int) -> None:
        """Everything before `position` has been read, records that are no trades included."""
        self.position = max(self.position, position)

    def apply(self, trades: Trades) -> Applied:
        """Count a batch, and close and drop the windows that its watermark passes."""
        rules = self._rules
        judged = judge(trades.timestamp, trades.received_at, self.watermark, self.horizon, rules)
        out = judged.late | judged.future
        repeated = 0
        columns, runs = cut_runs(trades, ~out, rules)
        for run in runs:
            repeated += self._count(run, columns)
        self.watermark = judged.watermark
        results = self._show(self.watermark, "watermark")
        for store, family in zip(self._stores, rules.families, strict=True):
            store.close(family.last_ended(self.watermark - rules.grace_ms))
        self._expire()
        self._averages.forget_oldest()
        refused = _refused(judged) if out.any() else []
        if len(trades):
            self.advance(int(trades.offset[-1]) + 1)
        return Applied(refused, results, repeated)

    def show_ended(self, now_ms: int) -> list[Result]:
        """Results of the windows that the wall clock has passed; they stay open.

        Only windows that have changed since they were last shown.
        """
        return self._show(now_ms, "idle")

    def seed_before(
        self, instrument: int, first_price: float, begin_ms: int
    ) -> tuple[float, float]:
        """What a window at `begin_ms` would start from here, and the weight of that."""
        return self._averages.peek(instrument, first_price, begin_ms)

    # --- keeping ---------------------------------------------------------------------------

    def take_changes(self) -> tuple[list[list[Change]], list[tuple[int, Any]]]:
        """What has changed since the last call: windows by family, and running averages."""
        windows = [store.take_changes() for store in self._stores]
        return windows, self._averages.take_changes()

    def restore_window(self, family: int, number: int, instrument: int, packed: bytes) -> None:
        """Put a window back.

        Raises:
            msgspec.MsgspecError: The bytes are no window's.
        """
        closed = self._rules.families[family].last_ended(self.watermark - self._rules.grace_ms)
        if number <= closed:
            self._stores[family].add_packed(number, instrument, packed)
        else:
            self._stores[family].add(number, instrument, unpack(packed))

    def restore_average(self, instrument: int, kept: Any) -> None:  # noqa: ANN401 - either form's
        """Put a running average back.

        Raises:
            TypeError: It is none of this form.
            ValueError: The same.
        """
        self._averages.restore(instrument, kept)

    def _expire(self) -> None:
        rules = self._rules
        self.horizon = max(self.horizon, self.watermark - rules.retention_ms)
        while True:
            for store, family in zip(self._stores, rules.families, strict=True):
                store.expire(family.last_ended(self.horizon - rules.grace_ms))
            if self.retained_windows <= rules.retained_limit:
                return
            self.horizon = max(self.horizon, self._first_end() + rules.grace_ms)

    def _first_end(self) -> int:
        """The first end of a closed window, ms."""
        ends = []
        for store, family in zip(self._stores, self._rules.families, strict=True):
            oldest = store.oldest_closed()
            if oldest is not None:
                ends.append(oldest * family.advance_ms + family.period_ms)
        return min(ends)

    # --- counting --------------------------------------------------------------------------

    def _count(self, run: Run, columns: SortedTrades) -> int:
        """Add a run to its windows; returns how many repeats the first of them left out."""
        begin_ms = run.windows[0] * self._rules.families[0].advance_ms
        counted: Run | None = None
        for place, number in enumerate(run.windows):
            if number == NO_WINDOW:
                continue
            new = self._add(self._lanes[place], number, run, columns, begin_ms)
            if place == 0:
                counted = new
        if counted is None:
            return run.trades
        self._averages.fold(counted, begin_ms, float(columns.price[run.begin]))
        return run.trades - counted.trades

    def _add(
        self, lane: _Lane, number: int, run: Run, columns: SortedTrades, begin_ms: int
    ) -> Run | None:
        """Add to one window what of a run it does not have yet; returns that."""
        start_ms = number * lane.family.advance_ms
        window = lane.store.find(number, run.instrument)
        if window is None:
            price = float(columns.price[run.begin])
            seed, weight = self._averages.seed(run.instrument, price, start_ms)
            window = Window(seed, seed, SeenSeqs(), seed_weight=weight)
            lane.store.add(number, run.instrument, window)
        tau_ms = self._rules.ewma.tau_ms
        scale = math.exp((begin_ms - start_ms) / tau_ms) if tau_ms else 0.0
        new = count_run(window, run, columns, self._rules.ewma, scale)
        if new is None:
            return None
        lane.store.touch(number, run.instrument)
        return new

    def _show(self, time_ms: int, closed_by: ClosedBy) -> list[Result]:
        """Results of the open windows that end at `time_ms` or before and have changed."""
        results = []
        rules = self._rules
        for index, (store, family) in enumerate(zip(self._stores, rules.families, strict=True)):
            for number, instrument, window in store.ended(
                family.last_ended(time_ms - rules.grace_ms)
            ):
                if window.count == window.shown_count:
                    continue
                start_ms = number * family.advance_ms
                record = average_record(
                    window,
                    instrument=self._name_of(instrument),
                    start_ms=start_ms,
                    family=family,
                    ewma=rules.ewma,
                    closed_by=closed_by,
                )
                results.append(Result(index, record))
                window.shown_count = window.count
                window.revision += 1
                store.touch(number, instrument)
        return results


def _refused(judged: Judgement) -> list[Refused]:
    return [
        Refused(
            int(index),
            "future" if judged.future[index] else "late",
            int(judged.behind_ms[index]),
        )
        for index in np.flatnonzero(judged.late | judged.future)
    ]


def average_record(  # noqa: PLR0913 - what a record is made of
    window: Window,
    *,
    instrument: str,
    start_ms: int,
    family: Windows,
    ewma: EwmaRules,
    closed_by: ClosedBy,
) -> dict[str, Any]:
    """A window as a record of the schema `Average`; times in ms since the epoch."""
    current, decayed = window.current, ewma.tau_ms is not None
    if decayed:
        weight = window.seed_weight + window.decayed_weight
        current = (window.seed * window.seed_weight + window.decayed_price) / weight
    return {
        "instrument_name": instrument,
        "window_start": start_ms,
        "window_end": start_ms + family.period_ms,
        "period": family.period_ms // 1000,
        "alpha": ewma.alpha,
        "seed": window.seed,
        "current": current,
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
        "seed_weight": window.seed_weight if decayed else None,
        "tau": ewma.tau_ms / 1000 if ewma.tau_ms is not None else None,
    }
