"""The windows of a period made again from one partition of the raw topic. Pure.

It takes the partition's trades from its beginning, in offset order. What differs from
`PartitionState` is only what has become of late trades: here they count, at their place in the
topic. The others are replayed beside it as the aggregator judged them, because a window's seed is
the instrument's running value, which late trades that were refused have never moved:

- A window with a record keeps the record's seed, which was the running value just before its
  first trade; what was added behind that changes nothing about it.
- A window without a record, or one that begins with a trade that was refused as late, gets the
  replayed running value at the place of its first trade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kstream_agg.aggregate.counting import count_run
from kstream_agg.aggregate.rules import NO_WINDOW, judge
from kstream_agg.aggregate.runs import Trades, cut_runs
from kstream_agg.aggregate.state import PartitionState, average_record
from kstream_agg.aggregate.windows import SeenSeqs, Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from kstream_agg.aggregate.intake import Instruments
    from kstream_agg.aggregate.rules import WindowRules

__all__ = ["RECOMPUTED", "Recomputation", "Wanted", "WindowId", "is_same"]

RECOMPUTED: Final = "recompute"
"""`closed_by` of what is emitted."""

_EXACT: Final = ("trade_count", "first_trade_seq", "last_trade_seq", "open", "close", "high", "low")
_CLOSE: Final = ("seed", "current", "sma", "vwap", "volume", "seed_weight", "alpha", "tau")
# The same trades summed in other batches differ by some 1e-16 for each of them.
_TOLERANCE: Final = 1e-9


class WindowId(NamedTuple):
    """A window of an instrument: the number of its family, and its begin (ms)."""

    family: int
    instrument: str
    start_ms: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which windows are made again: those that share a moment with [from_ms, to_ms).

    Args:
        from_ms: Event time, ms.
        to_ms: Event time, ms.
        instruments: Only of these; empty: of all.
    """

    from_ms: int
    to_ms: int
    instruments: frozenset[str] = frozenset()

    def has(self, start_ms: int, period_ms: int) -> bool:
        """Whether a window lies in the period, or a part of it."""
        return start_ms < self.to_ms and start_ms + period_ms > self.from_ms

    def names(self, instrument: str) -> bool:
        """Whether an instrument is wanted."""
        return not self.instruments or instrument in self.instruments


class Recomputation:
    """Takes one partition's trades and makes the wanted windows of them.

    Args:
        rules: The aggregator's.
        wanted: Which windows.
        instruments: Numbers the instruments.
        standing: The records of the wanted windows that stand in the output topics, times in ms.
    """

    def __init__(
        self,
        rules: WindowRules,
        wanted: Wanted,
        instruments: Instruments,
        standing: Mapping[WindowId, dict[str, Any]],
    ) -> None:
        self._rules = rules
        self._wanted = wanted
        self._name_of = instruments.name_of
        self._standing = standing
        self._replay = PartitionState(rules, instruments.name_of)
        self._windows: dict[WindowId, Window] = {}
        self._lanes = [
            index for index, family in enumerate(rules.families) for _ in range(family.overlap)
        ]
        self.oldest_ms: int | None = None
        """Event time of the first trade."""

    def apply(self, trades: Trades) -> None:
        """Take the next trades."""
        if not len(trades):
            return
        replay = self._replay
        judged = judge(
            trades.timestamp, trades.received_at, replay.watermark, replay.horizon, self._rules
        )
        self._note_oldest(trades, judged.future)
        counted = ~judged.future & self._is_wanted(trades)
        done = 0
        for row, window_id in self._unopened(trades, counted):
            seed = self._recorded_seed(window_id, late=bool(judged.late[row]))
            if seed is None:
                replay.apply(_slice(trades, done, row))
                done = row
                seed = replay.seed_before(
                    int(trades.instrument[row]), float(trades.price[row]), window_id.start_ms
                )
            self._windows[window_id] = Window(seed[0], seed[0], SeenSeqs(), seed_weight=seed[1])
        replay.apply(_slice(trades, done, len(trades)))
        self._count(trades, counted)

    def records(self) -> Iterator[tuple[WindowId, dict[str, Any]]]:
        """The windows' records, of revision 0."""
        rules = self._rules
        for window_id, window in self._windows.items():
            yield (
                window_id,
                average_record(
                    window,
                    instrument=window_id.instrument,
                    start_ms=window_id.start_ms,
                    family=rules.families[window_id.family],
                    ewma=rules.ewma,
                    closed_by=RECOMPUTED,
                ),
            )

    def _note_oldest(self, trades: Trades, future: NDArray[np.bool_]) -> None:
        if self.oldest_ms is None and not future.all():
            self.oldest_ms = int(trades.timestamp[~future][0])

    def _is_wanted(self, trades: Trades) -> NDArray[np.bool_]:
        """Trades that a wanted window can hold."""
        wanted = self._wanted
        longest = max(family.period_ms for family in self._rules.families)
        near: NDArray[np.bool_] = (trades.timestamp >= wanted.from_ms - longest) & (
            trades.timestamp < wanted.to_ms + longest
        )
        if wanted.instruments:
            numbers = [n for n in np.unique(trades.instrument) if wanted.names(self._name_of(n))]
            near &= np.isin(trades.instrument, numbers)
        return near

    def _unopened(
        self, trades: Trades, counted: NDArray[np.bool_]
    ) -> Iterator[tuple[int, WindowId]]:
        """Rows that are the first of their windows, rising."""
        wanted, windows = self._wanted, self._windows
        for row in np.flatnonzero(counted).tolist():
            at_ms, name = int(trades.timestamp[row]), self._name_of(int(trades.instrument[row]))
            for index, family in enumerate(self._rules.families):
                start_ms = at_ms // family.advance_ms * family.advance_ms
                while at_ms < start_ms + family.period_ms:
                    window_id = WindowId(index, name, start_ms)
                    if window_id not in windows and wanted.has(start_ms, family.period_ms):
                        yield row, window_id
                    start_ms -= family.advance_ms

    def _recorded_seed(self, window_id: WindowId, *, late: bool) -> tuple[float, float] | None:
        """Seed and weight that the window's record has; None where they are not its first trade's.

        Args:
            window_id: The window.
            late: Whether its first trade was refused as late.
        """
        record, ewma = self._standing.get(window_id), self._rules.ewma
        if record is None or (late and record["closed_by"] != RECOMPUTED):
            return None
        tau_s = ewma.tau_ms / 1000 if ewma.tau_ms is not None else None
        if record["alpha"] != ewma.alpha or record["tau"] != tau_s:
            return None  # of an average made by other settings
        return record["seed"], record["seed_weight"] or 0.0

    def _count(self, trades: Trades, counted: NDArray[np.bool_]) -> None:
        families, ewma = self._rules.families, self._rules.ewma
        columns, runs = cut_runs(trades, counted, self._rules)
        for run in runs:
            begin_ms = run.windows[0] * families[0].advance_ms
            name = self._name_of(run.instrument)
            for index, number in zip(self._lanes, run.windows, strict=True):
                if number == NO_WINDOW:
                    continue
                start_ms = number * families[index].advance_ms
                window = self._windows.get(WindowId(index, name, start_ms))
                if window is not None:
                    scale = math.exp((begin_ms - start_ms) / ewma.tau_ms) if ewma.tau_ms else 0.0
                    count_run(window, run, columns, ewma, scale)


def is_same(record: Mapping[str, Any], standing: Mapping[str, Any]) -> bool:
    """Whether two records of a window say the same, apart from revision and `closed_by`."""
    if any(record[name] != standing[name] for name in _EXACT):
        return False
    return all(_is_close(record[name], standing[name]) for name in _CLOSE)


def _is_close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=_TOLERANCE)


def _slice(trades: Trades, begin: int, end: int) -> Trades:
    return Trades(**{item.name: getattr(trades, item.name)[begin:end] for item in fields(Trades)})
