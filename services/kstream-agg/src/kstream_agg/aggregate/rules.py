"""What decides about a trade: windows, watermark, late or future. Pure functions on columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from kstream_agg.core.names import format_period

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NO_WATERMARK", "NO_WINDOW", "EwmaRules", "Judgement", "WindowRules", "Windows", "judge"]

NO_WATERMARK: Final = -(2**62)
"""A watermark before all times (ms): nothing has been read."""
NO_WINDOW: Final = -(2**62)
"""The number of no window."""


@dataclass(frozen=True, slots=True)
class Windows:
    """One family of windows, aligned to the epoch: number n begins at n times the advance.

    Args:
        period_ms: Their length, ms.
        advance_ms: From one begin to the next, at most the length, ms; the length itself makes
            tumbling windows.
    """

    period_ms: int
    advance_ms: int

    @property
    def overlap(self) -> int:
        """How many windows hold one moment, at most."""
        return -(-self.period_ms // self.advance_ms)

    @property
    def name(self) -> str:
        """`5min`, or of hopping windows `5min-by-1min`."""
        name = format_period(self.period_ms // 1000)
        if self.advance_ms != self.period_ms:
            name += f"-by-{format_period(self.advance_ms // 1000)}"
        return name

    def last_ended(self, time_ms: int) -> int:
        """The number of the last window whose end is not after `time_ms`."""
        return (time_ms - self.period_ms) // self.advance_ms

    def oldest(self, timestamp: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the oldest window that holds each moment (ms)."""
        return (timestamp - self.period_ms) // self.advance_ms + 1


@dataclass(frozen=True, slots=True)
class EwmaRules:
    """How the exponentially weighted average is made.

    Args:
        alpha: Weight of a new price; 0 in the time-decayed form.
        tau_ms: Time constant of the time-decayed form, ms; None: by count.
        start: What an average begins with: its first price, or 0.
        reset: Whether each window begins anew.
        limit: Most running averages kept for a partition; beyond it those go first that have not
            moved for longest.
    """

    alpha: float
    tau_ms: float | None = None
    start: Literal["first", "zero"] = "first"
    reset: Literal["never", "window"] = "never"
    limit: int = 200_000


@dataclass(frozen=True, slots=True)
class WindowRules:
    """The settings that decide about windows; times in ms.

    Args:
        families: The windows.
        grace_ms: How long behind its end a window stays open, in event time.
        lateness_ms: How far the watermark stays behind the highest event time.
        skew_ms: How far a trade's event time may be ahead of its receipt.
        retention_ms: How long closed windows are kept for late trades, in event time.
        ewma: How the average is made.
        retained_limit: Most closed windows kept for a partition; beyond it the oldest go first.
        group_by: What trades are counted together by.
    """

    families: tuple[Windows, ...]
    grace_ms: int
    lateness_ms: int
    skew_ms: int
    retention_ms: int
    ewma: EwmaRules
    retained_limit: int = 200_000
    group_by: Literal["instrument", "channel"] = "instrument"

    @property
    def fingerprint(self) -> str:
        """What a kept state depends on: under other rules it means nothing."""
        names = ",".join(family.name for family in self.families)
        ewma = self.ewma
        average = f"{ewma.alpha!r};{ewma.tau_ms!r};{ewma.start};{ewma.reset}"
        return f"{names};{average};{self.group_by}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was decided about the trades of a batch, in offset order.

    Args:
        future: Dated ahead of their receipt; they do not move the watermark.
        late: Of windows that were kept no longer when the trade came.
        behind_ms: How far each trade's event time is behind the watermark before it, or, of
            future ones, ahead of its receipt.
        watermark: The partition's watermark (ms) after the batch.
    """

    future: NDArray[np.bool_]
    late: NDArray[np.bool_]
    behind_ms: NDArray[np.int64]
    watermark: int


def judge(
    timestamp: NDArray[np.int64],
    received_at: NDArray[np.int64],
    watermark: int,
    horizon: int,
    rules: WindowRules,
) -> Judgement:
    """Decide about the trades that follow each other in one partition.

    A trade is judged by the watermark that the trades before it have reached, so that the
    result does not depend on how the partition is cut into batches. It is counted in all of its
    windows or in none: late is what has lost one.

    Args:
        timestamp: Event times, ms.
        received_at: Receipt times, ms.
        watermark: The partition's watermark before the first of them, ms.
        horizon: Windows whose end plus grace is not after it are gone, ms.
        rules: The settings.
    """
    future = timestamp > received_at + rules.skew_ms
    reached = np.where(future, NO_WATERMARK, timestamp - rules.lateness_ms)
    marks = np.maximum.accumulate(np.concatenate(([watermark], reached)))
    before = marks[:-1]
    first_end = np.minimum.reduce(
        [w.oldest(timestamp) * w.advance_ms + w.period_ms for w in rules.families]
    )
    gone = np.maximum(before - rules.retention_ms, horizon)
    late = ~future & (first_end + rules.grace_ms <= gone)
    behind = np.where(future, timestamp - received_at, before - timestamp)
    return Judgement(future, late, behind, int(marks[-1]))
