"""Open windows and what is known of their trades. Pure: no clock, no I/O."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.aggregate.runs import Run

__all__ = ["OpenWindows", "SeenSeqs", "Window"]


class SeenSeqs:
    """A set of trade numbers, kept as intervals: an exchange numbers its trades without holes."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # inclusive

    def intervals(self) -> list[tuple[int, int]]:
        """The intervals, first and last number included, rising and never touching."""
        return list(zip(self._starts, self._ends, strict=True))

    def append(self, first: int, last: int) -> None:
        """Add the numbers from `first` to `last`, all of them above those in the set."""
        if self._ends and self._ends[-1] == first - 1:
            self._ends[-1] = last
        else:
            self._starts.append(first)
            self._ends.append(last)

    def add(self, number: int) -> bool:
        """Add a number; False when it was there already."""
        at = bisect_right(self._starts, number)
        if at and number <= self._ends[at - 1]:
            return False
        joins_left = at > 0 and self._ends[at - 1] == number - 1
        joins_right = at < len(self._starts) and self._starts[at] == number + 1
        if joins_left and joins_right:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif joins_left:
            self._ends[at - 1] = number
        elif joins_right:
            self._starts[at] = number
        else:
            self._starts.insert(at, number)
            self._ends.insert(at, number)
        return True


class Window:
    """The trades of one instrument in one window, summed up.

    Args:
        instrument: The instrument's number.
        number: The window's: it begins at `number * period`.
        seed: The instrument's running EWMA before the window's first trade.
    """

    __slots__ = (
        "close",
        "count",
        "current",
        "first_seq",
        "high",
        "instrument",
        "last_seq",
        "low",
        "number",
        "open",
        "revision",
        "seed",
        "seen",
        "shown_count",
        "sum_amount",
        "sum_price",
        "sum_product",
    )

    def __init__(self, instrument: int, number: int, seed: float) -> None:
        self.instrument = instrument
        self.number = number
        self.seed = seed
        self.current = seed
        self.seen = SeenSeqs()
        self.count = 0
        self.sum_price = 0.0
        self.sum_amount = 0.0
        self.sum_product = 0.0
        self.low = float("inf")
        self.high = float("-inf")
        self.first_seq = 0
        self.last_seq = 0
        self.open = 0.0
        self.close = 0.0
        self.revision = 0
        self.shown_count = 0
        """How many trades its last result covered; fewer than `count`: it has changed since."""

    def add(self, run: Run) -> None:
        """Add a run's trades; that none of them is a repeat has been seen to."""
        if self.count == 0:
            self.first_seq, self.open = run.low_seq, run.open
            self.last_seq, self.close = run.high_seq, run.close
        else:
            if run.low_seq < self.first_seq:
                self.first_seq, self.open = run.low_seq, run.open
            if run.high_seq > self.last_seq:
                self.last_seq, self.close = run.high_seq, run.close
        self.current = run.decay * self.current + run.share
        self.count += run.trades
        self.sum_price += run.sum_price
        self.sum_amount += run.sum_amount
        self.sum_product += run.sum_product
        self.low = min(self.low, run.low)
        self.high = max(self.high, run.high)


class OpenWindows:
    """The open windows of one partition, by number and instrument."""

    def __init__(self) -> None:
        self._by_number: dict[int, dict[int, Window]] = {}
        self._first_offset: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_number.values()))

    def get(self, number: int, instrument: int) -> Window | None:
        """The window, None when it is not open."""
        group = self._by_number.get(number)
        return group.get(instrument) if group is not None else None

    def add(self, window: Window, offset: int) -> None:
        """Open a window; `offset` is where its first trade stands."""
        number = window.number
        self._by_number.setdefault(number, {})[window.instrument] = window
        known = self._first_offset.get(number)
        if known is None or offset < known:
            self._first_offset[number] = offset

    def first_offset(self) -> int | None:
        """The smallest offset of all open windows' first trades; None when none is open."""
        return min(self._first_offset.values(), default=None)

    def ended(self, closes_by: int) -> Iterator[Window]:
        """The windows with a number up to `closes_by`, by number and instrument."""
        for number in sorted(number for number in self._by_number if number <= closes_by):
            group = self._by_number[number]
            for instrument in sorted(group):
                yield group[instrument]

    def close(self, closes_by: int) -> list[Window]:
        """Take out the windows with a number up to `closes_by`, by number and instrument."""
        closed = list(self.ended(closes_by))
        for number in {window.number for window in closed}:
            del self._by_number[number], self._first_offset[number]
        return closed
