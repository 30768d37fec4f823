"""Which trades a raw topic holds: numbers per instrument, and how far a channel is compared.

Pure. A trade is known by its instrument and `trade_seq`, which counts from 1 without holes
(checked on 257,000 recorded trades). What is missing between the first and the highest number is
either a *hole*, which is looked for, or a *gap*, which is not: the exchange did not give it, or
nobody has asked for it. A trade that comes after all is taken in either case.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Admission", "Anchor", "ChannelProgress", "InstrumentLedger", "Ledger", "SeqRun"]

SeqRun: TypeAlias = tuple[int, int]
"""The first and the last of neighbouring numbers."""


_MAX_HOLE: Final = 10_000_000  # no instrument trades so often in years: such a number is wrong


class Anchor(NamedTuple):
    """A trade whose presence in a reply shows that the reply is about what was asked."""

    instrument_name: str
    trade_seq: int
    timestamp: int


@enum.unique
class Admission(enum.Enum):
    """What becomes of a trade."""

    REPEAT = "repeat"
    """The topic holds it."""
    NEXT = "next"
    """It is later than all of its instrument in the topic."""
    LATE = "late"
    """A later one of its instrument is in the topic already."""


@dataclass(slots=True)
class ChannelProgress:
    """How far a channel's topic is complete, in exchange time (ms since the epoch).

    Args:
        started_at: The topic is complete from here on.
        resume_at: Up to here it has been compared with the exchange's history.
        anchor: The last trade of that comparison; None before the first.
        received_at: Last receipt, in our time.
    """

    started_at: int
    resume_at: int
    anchor: Anchor | None
    received_at: int


class InstrumentLedger:
    """The numbers of one instrument.

    Args:
        first: The lowest in the topic.
        highest: The highest.
        holes: Missing ones between, which are looked for; in rising order.
        gaps: Missing ones between, which are not.
    """

    __slots__ = ("first", "gaps", "highest", "holes")

    def __init__(
        self,
        first: int,
        highest: int,
        holes: list[SeqRun] | None = None,
        gaps: list[SeqRun] | None = None,
    ) -> None:
        self.first = first
        self.highest = highest
        self.holes = holes or []
        self.gaps = gaps or []

    def admit(self, seq: int, *, claim: bool) -> Admission:
        """Take a trade's number in.

        Args:
            seq: Its number.
            claim: Whether numbers missing between it and the first are to be looked for; those
                behind the highest always are.
        """
        if seq > self.highest:
            if seq > self.highest + 1:
                missing = self.holes if seq - self.highest <= _MAX_HOLE else self.gaps
                missing.append((self.highest + 1, seq - 1))
            self.highest = seq
            return Admission.NEXT
        if seq < self.first:
            if seq < self.first - 1:
                (self.holes if claim else self.gaps).insert(0, (seq + 1, self.first - 1))
            self.first = seq
            return Admission.LATE
        if _take(self.holes, seq) or _take(self.gaps, seq):
            return Admission.LATE
        return Admission.REPEAT

    def give_up(self, first: int, last: int) -> list[SeqRun]:
        """Make gaps of the holes from `first` to `last`; those that became one."""
        given_up = []
        kept = []
        for low, high in self.holes:
            if high < first or low > last:
                kept.append((low, high))
                continue
            given_up.append((max(low, first), min(high, last)))
            if low < first:
                kept.append((low, first - 1))
            if high > last:
                kept.append((last + 1, high))
        self.holes = kept
        self.gaps = sorted(self.gaps + given_up)
        return given_up


class Ledger:
    """What one raw topic holds.

    Args:
        instruments: By name.
        channel: None before the channel's first trade.
    """

    def __init__(
        self,
        instruments: dict[str, InstrumentLedger] | None = None,
        channel: ChannelProgress | None = None,
    ) -> None:
        self.instruments = instruments or {}
        self.channel = channel
        self.touched: set[str] = set()
        """Instruments whose progress is not yet written."""

    def admit(self, name: str, seq: int, *, claim: bool = True) -> Admission:
        """Take a trade in; arguments as for `InstrumentLedger.admit`.

        An instrument begins with its first trade seen.
        """
        entry = self.instruments.get(name)
        if entry is None:
            self.instruments[name] = InstrumentLedger(seq, seq)
            self.touched.add(name)
            return Admission.NEXT
        admission = entry.admit(seq, claim=claim)
        if admission is not Admission.REPEAT:
            self.touched.add(name)
        return admission

    def give_up(self, name: str, first: int, last: int) -> list[SeqRun]:
        """Look no more for the missing trades of an instrument from `first` to `last`."""
        entry = self.instruments.get(name)
        if entry is None:
            return []
        self.touched.add(name)
        return entry.give_up(first, last)

    def holes(self) -> Iterator[tuple[str, SeqRun]]:
        """Instrument and numbers of each hole."""
        for name, entry in self.instruments.items():
            for run in entry.holes:
                yield name, run


def _take(runs: list[SeqRun], seq: int) -> bool:
    """Remove a number from runs in rising order; False when none holds it."""
    place = bisect_right(runs, seq, key=_first_of) - 1
    if place < 0 or seq > runs[place][1]:
        return False
    first, last = runs[place]
    left, right = (first, seq - 1), (seq + 1, last)
    runs[place : place + 1] = [run for run in (left, right) if run[0] <= run[1]]
    return True


def _first_of(run: SeqRun) -> int:
    return run[0]
