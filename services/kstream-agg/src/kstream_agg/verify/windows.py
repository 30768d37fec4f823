"""Recomputes the windows, trade by trade, in plain Python that shares nothing with `aggregate`.

A window's record is compared with the trades it says it covers. The trades of one window stand
in one partition, and the aggregator counts them in offset order; so a record of n trades must be
exactly what the window's first n counted trades make. That settles what may still change:

- A window the watermark has closed must have a record, and its n must reach all trades of the
  window before the aggregator's position.
- A window shown early by idle closing is compared over its first n trades; trades that came
  after it was shown make no difference, they will be in its next record.
- A window that is still open and was not shown has nothing to compare and is counted.

Not counted: what the aggregator has put into `-late` or `-dlq`, by partition and offset, and
repeats of (instrument_name, trade_seq) within a window. The same trade_seq in another window is
another trade: a recording played twice has both. Late trades that are not in `-late` are counted
like others. A record with `closed_by = recompute` was made from the raw topic when the aggregator
kept the window no longer: of its window, trades that are in `-late` as late count too, and those
that came after it was made need not be covered.

`current` is folded from the record's own `seed`; a record with a `tau` is of the time-decayed
form, and its seed weighs `seed_weight`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.verify.seqs import SeqSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kstream_agg.verify.reading import TopicPart

__all__ = ["REFUSED", "Averages", "Recomputation", "WindowKey", "compare", "epoch_ms"]

WindowKey = tuple[str, datetime]
"""instrument_name and window_start."""
Averages = dict[WindowKey, dict[str, Any]]
"""The last record of each window, as decoded."""

REFUSED: Final = "refused"
"""Why a record is not counted that the aggregator has put into `-dlq`."""
_LATE: Final = "late"
_RECOMPUTED: Final = "recompute"
_MOVE_NO_WATERMARK: Final = frozenset({"future", REFUSED})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_TOLERANCE: Final = 1e-9
_EXACT: Final = ("trade_count", "first_trade_seq", "last_trade_seq", "open", "close", "high", "low")
_CLOSE: Final = ("sma", "vwap", "volume", "current")


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since the epoch, exactly."""
    return (moment - _EPOCH) // _MS


@dataclass(slots=True)
class _Window:
    """A window's counted trades so far."""

    part: TopicPart
    seed: float
    alpha: float
    current: float
    decay: tuple[float, float] | None = None
    """Of the time-decayed form: tau (ms) and the seed's weight."""
    decayed: tuple[float, float] = (0.0, 0.0)
    """Sums of weight times price, and of weights."""
    prices: list[float] = field(default_factory=list)
    amounts: list[float] = field(default_factory=list)
    seqs: SeqSet = field(default_factory=SeqSet)
    lowest: tuple[int, float] = (0, 0.0)
    highest: tuple[int, float] = (0, 0.0)
    count: int = 0
    settled: int = 0
    """How many of them its record must cover: up to the last one that the aggregator has counted
    before its position."""

    def add(self, seq: int, price: float, amount: float, after_ms: int) -> None:
        """Add a trade; `after_ms` is how long after the window's begin it happened."""
        self.count += 1
        if self.decay is not None:
            weight = math.exp(after_ms / self.decay[0])
            self.decayed = (self.decayed[0] + weight * price, self.decayed[1] + weight)
        self.prices.append(price)
        self.amounts.append(amount)
        self.current = self.alpha * price + (1 - self.alpha) * self.current
        if self.count == 1 or seq < self.lowest[0]:
            self.lowest = (seq, price)
        if self.count == 1 or seq > self.highest[0]:
            self.highest = (seq, price)

    def values(self) -> dict[str, float | None]:
        volume = math.fsum(self.amounts)
        paid = math.fsum(p * a for p, a in zip(self.prices, self.amounts, strict=True))
        return {
            "trade_count": self.count,
            "first_trade_seq": self.lowest[0],
            "last_trade_seq": self.highest[0],
            "open": self.lowest[1],
            "close": self.highest[1],
            "high": max(self.prices),
            "low": min(self.prices),
            "sma": math.fsum(self.prices) / self.count,
            "vwap": paid / volume if volume else None,
            "volume": volume,
            "current": self._average(),
        }

    def _average(self) -> float:
        if self.decay is None:
            return self.current
        weight = self.decay[1]
        return (self.seed * weight + self.decayed[0]) / (weight + self.decayed[1])

    def forget_prices(self) -> None:
        """The record covers no later trade: only the count is needed from here on."""
        self.prices.clear()
        self.amounts.clear()


class Recomputation:
    """Takes a raw topic's trades in offset order and judges the records of its windows.

    Args:
        averages: The last record of each window.
        period_ms: Length of the windows.
        positions: The aggregator's position in each partition: the next offset it will read.
        excluded: Offsets of the records in `-late` and `-dlq`, with the reason, by partition.
        advance_ms: From one window's begin to the next; None for windows that do not overlap.
    """

    def __init__(
        self,
        averages: Averages,
        period_ms: int,
        positions: Mapping[TopicPart, int],
        excluded: Mapping[TopicPart, Mapping[int, str]],
        advance_ms: int | None = None,
    ) -> None:
        self._averages = averages
        self._period_ms = period_ms
        self._advance_ms = advance_ms or period_ms
        self._positions = positions
        self._excluded = excluded
        self._windows: dict[WindowKey, _Window] = {}
        self._newest_ms: dict[TopicPart, int] = {}
        self._oldest_ms: dict[TopicPart, int] = {}
        self._wrong: dict[WindowKey, str] = {}
        self.repeats = 0
        self.excluded_count = 0

    def add(self, part: TopicPart, offset: int, trade: Mapping[str, Any]) -> None:
        """The next trade of a partition."""
        settled = offset < self._positions.get(part, 0)
        at_ms = epoch_ms(trade["timestamp"])
        reason = self._excluded.get(part, {}).get(offset)
        if reason not in _MOVE_NO_WATERMARK:
            if settled:
                self._newest_ms[part] = max(at_ms, self._newest_ms.get(part, at_ms))
            self._oldest_ms.setdefault(part, at_ms)
        if reason is not None:
            self.excluded_count += 1
            if reason != _LATE:
                return
        newest = at_ms // self._advance_ms * self._advance_ms
        start_ms = newest
        while at_ms < start_ms + self._period_ms:
            key = (trade["instrument_name"], _EPOCH + start_ms * _MS)
            if reason is None:
                is_repeat = self._count(part, key, trade, at_ms - start_ms, settled=settled)
            else:
                is_repeat = self._count_late(part, key, trade, at_ms - start_ms)
            self.repeats += is_repeat and start_ms == newest
            start_ms -= self._advance_ms

    def _count(
        self,
        part: TopicPart,
        key: WindowKey,
        trade: Mapping[str, Any],
        after_ms: int,
        *,
        settled: bool,
    ) -> bool:
        """Count a trade in one window; True when it is a repeat there.

        Args:
            part: Where it stands.
            key: The window.
            trade: The trade.
            after_ms: How long after the window's begin it happened.
            settled: Whether the window's record must cover it, once the window is closed.
        """
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = self._open(part, key, trade["price"])
        if not window.seqs.add(trade["trade_seq"]):
            return True
        window.add(trade["trade_seq"], trade["price"], trade["amount"], after_ms)
        if settled:
            window.settled = window.count
        record = self._averages.get(key)
        covered = record["trade_count"] if record is not None else 0
        if record is not None and window.count == covered:
            wrong = compare(record, window.values(), self._period_ms)
            if wrong:
                self._wrong[key] = wrong
        if window.count >= covered:
            window.forget_prices()
        return False

    def _count_late(
        self, part: TopicPart, key: WindowKey, trade: Mapping[str, Any], after_ms: int
    ) -> bool:
        """Count a trade that the aggregator has refused, where the window was recomputed."""
        record = self._averages.get(key)
        if record is None or record.get("closed_by") != _RECOMPUTED:
            return False
        return self._count(part, key, trade, after_ms, settled=False)

    def _open(self, part: TopicPart, key: WindowKey, price: float) -> _Window:
        record = self._averages.get(key)
        if record is None:
            return _Window(part, price, 0.0, price)
        tau, weight = record.get("tau"), record.get("seed_weight")
        decay = (tau * 1000, weight or 0.0) if tau is not None else None
        return _Window(part, record["seed"], record["alpha"], record["seed"], decay)

    def oldest_ms(self, part: TopicPart) -> int | None:
        """Event time (ms) of the first trade seen in a partition."""
        return self._oldest_ms.get(part)

    def watermark_ms(self, part: TopicPart, lateness_ms: int) -> int | None:
        """The watermark at the aggregator's position; None before its first trade."""
        newest = self._newest_ms.get(part)
        return None if newest is None else newest - lateness_ms

    def closed(self, lateness_ms: int, grace_ms: int) -> Iterator[WindowKey]:
        """The windows that the watermark has closed at the aggregator's position."""
        for key, window in self._windows.items():
            watermark = self.watermark_ms(window.part, lateness_ms)
            end_ms = epoch_ms(key[1]) + self._period_ms
            if window.settled and watermark is not None and end_ms + grace_ms <= watermark:
                yield key

    def verdicts(self, closed: set[WindowKey]) -> Iterator[tuple[WindowKey, str | None]]:
        """What is wrong with each window that has a record or must have one; None: nothing."""
        for key, record in self._averages.items():
            window = self._windows.get(key)
            count = window.count if window is not None else 0
            if count < record["trade_count"]:
                yield key, f"it covers {record['trade_count']} trades, the raw topic has {count}"
            elif key in self._wrong:
                yield key, self._wrong[key]
            elif window is not None and key in closed and window.settled > record["trade_count"]:
                covered = record["trade_count"]
                yield key, f"it is closed and covers {covered} of {window.settled} trades"
            else:
                yield key, None
        for key in closed:
            if key not in self._averages:
                yield key, f"it is closed and missing, with {self._windows[key].settled} trades"

    def part_of(self, key: WindowKey) -> TopicPart | None:
        """The partition a window's trades stand in."""
        window = self._windows.get(key)
        return window.part if window is not None else None

    def has_record(self, key: WindowKey) -> bool:
        """Whether the window has a record."""
        return key in self._averages

    def count_open(self, closed: set[WindowKey]) -> int:
        """Windows neither closed nor shown."""
        return sum(key not in closed and key not in self._averages for key in self._windows)


def compare(
    record: Mapping[str, Any], expected: Mapping[str, float | None], period_ms: int
) -> str | None:
    """How a window's record differs from what its trades make; None where it does not.

    Args:
        record: The record; `revision` and `closed_by` are not looked at.
        expected: The recomputed values.
        period_ms: Length of the windows.
    """
    wrong = [
        f"{name} is {record[name]}, not {expected[name]}"
        for name in _EXACT
        if record[name] != expected[name]
    ]
    wrong += [
        f"{name} is {record[name]}, not {expected[name]}"
        for name in _CLOSE
        if not _is_close(record[name], expected[name])
    ]
    if epoch_ms(record["window_end"]) - epoch_ms(record["window_start"]) != period_ms:
        wrong.append(f"window_end is {record['window_end']}")
    if record["period"] * 1000 != period_ms:
        wrong.append(f"period is {record['period']}")
    return "; ".join(wrong) or None


def _is_close(found: float | None, expected: float | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, rel_tol=_TOLERANCE)
