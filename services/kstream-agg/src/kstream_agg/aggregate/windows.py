"""Windows and what is known of their trades. Pure: no clock, no I/O."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.aggregate.runs import Run

__all__ = ["Change", "SeenSeqs", "Window", "WindowStore", "pack", "unpack"]


class SeenSeqs(msgspec.Struct, array_like=True):
    """A set of trade numbers, kept as intervals: an exchange numbers its trades without holes."""

    starts: list[int] = msgspec.field(default_factory=list)
    ends: list[int] = msgspec.field(default_factory=list)
    """Inclusive."""

    def intervals(self) -> list[tuple[int, int]]:
        """The intervals, first and last number included, rising and never touching."""
        return list(zip(self.starts, self.ends, strict=True))

    def append(self, first: int, last: int) -> None:
        """Add the numbers from `first` to `last`, all of them above those in the set."""
        if self.ends and self.ends[-1] == first - 1:
            self.ends[-1] = last
        else:
            self.starts.append(first)
            self.ends.append(last)

    def add(self, number: int) -> bool:
        """Add a number; False when it was there already."""
        starts, ends = self.starts, self.ends
        at = bisect_right(starts, number)
        if at and number <= ends[at - 1]:
            return False
        joins_left = at > 0 and ends[at - 1] == number - 1
        joins_right = at < len(starts) and starts[at] == number + 1
        if joins_left and joins_right:
            ends[at - 1] = ends.pop(at)
            del starts[at]
        elif joins_left:
            ends[at - 1] = number
        elif joins_right:
            starts[at] = number
        else:
            starts.insert(at, number)
            ends.insert(at, number)
        return True


class Window(msgspec.Struct, array_like=True):
    """The trades of one instrument in one window, summed up.

    The order of the fields is the order in which they are kept: new ones go to the end.
    """

    seed: float
    """The instrument's running average before the window's first trade."""
    current: float
    """The trades folded from the seed; not used in the time-decayed form."""
    seen: SeenSeqs
    count: int = 0
    sum_price: float = 0.0
    sum_amount: float = 0.0
    sum_product: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    first_seq: int = 0
    last_seq: int = 0
    open: float = 0.0
    close: float = 0.0
    revision: int = 0
    """Of its next result."""
    shown_count: int = 0
    """How many trades its last result covered; fewer than `count`: it has changed since."""
    seed_weight: float = 0.0
    """Time-decayed form: the seed's weight at the window's begin."""
    decayed_price: float = 0.0
    """Time-decayed form: the sum of weight times price, at the window's begin."""
    decayed_weight: float = 0.0

    def add(self, run: Run, scale: float) -> None:
        """Add a run's trades; that none of them is a repeat has been seen to.

        Args:
            run: The trades.
            scale: What brings the run's decayed sums to this window's begin.
        """
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
        if scale:
            self.decayed_price += run.decayed_price * scale
            self.decayed_weight += run.decayed_weight * scale


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Window).decode
pack = _encode


def unpack(packed: bytes) -> Window:
    """The window that `pack` was given.

    Raises:
        msgspec.MsgspecError: The bytes are none.
    """
    return _decode(packed)


Change = tuple[int, int, bytes | None]
"""Number and instrument of a window that has changed; its packed form, None once it is gone."""


class WindowStore:
    """The windows of one family in one partition: open ones, and closed ones in packed form."""

    def __init__(self) -> None:
        self._open: dict[int, dict[int, Window]] = {}
        self._closed: dict[int, dict[int, bytes]] = {}
        self._changed: dict[tuple[int, int], None] = {}
        self._gone: dict[tuple[int, int], None] = {}
        self.closed_count = 0
        """How many closed windows are kept."""

    @property
    def open_count(self) -> int:
        """How many windows are open."""
        return sum(map(len, self._open.values()))

    def find(self, number: int, instrument: int) -> Window | None:
        """The window, taken out of the closed ones if it is there; None when it is not kept."""
        group = self._open.get(number)
        window = group.get(instrument) if group is not None else None
        if window is None and number in self._closed:
            packed = self._closed[number].pop(instrument, None)
            if packed is not None:
                self.closed_count -= 1
                window = unpack(packed)
                self.add(number, instrument, window)
        return window

    def add(self, number: int, instrument: int, window: Window) -> None:
        """Keep an open window."""
        self._open.setdefault(number, {})[instrument] = window

    def add_packed(self, number: int, instrument: int, packed: bytes) -> None:
        """Keep a closed window."""
        self._closed.setdefault(number, {})[instrument] = packed
        self.closed_count += 1

    def touch(self, number: int, instrument: int) -> None:
        """A window has changed."""
        self._changed[number, instrument] = None

    def ended(self, last: int) -> Iterator[tuple[int, int, Window]]:
        """The open windows with a number up to `last`, by number and instrument."""
        for number in sorted(number for number in self._open if number <= last):
            group = self._open[number]
            for instrument in sorted(group):
                yield number, instrument, group[instrument]

    def close(self, last: int) -> None:
        """Pack the windows with a number up to `last`."""
        for number in [number for number in self._open if number <= last]:
            for instrument, window in self._open.pop(number).items():
                self.add_packed(number, instrument, pack(window))

    def expire(self, last: int) -> None:
        """Drop the closed windows with a number up to `last`."""
        for number in [number for number in self._closed if number <= last]:
            group = self._closed.pop(number)
            self.closed_count -= len(group)
            for instrument in group:
                self._changed.pop((number, instrument), None)
                self._gone[number, instrument] = None

    def oldest_closed(self) -> int | None:
        """The lowest number of a closed window; None where there is none."""
        return min(self._closed, default=None)

    def take_changes(self) -> list[Change]:
        """What has changed since the last call; gone windows last."""
        changes: list[Change] = []
        for number, instrument in self._changed:
            group = self._open.get(number)
            window = group.get(instrument) if group is not None else None
            packed = self._closed[number][instrument] if window is None else pack(window)
            changes.append((number, instrument, packed))
        changes.extend((number, instrument, None) for number, instrument in self._gone)
        self._changed.clear()
        self._gone.clear()
        return changes
