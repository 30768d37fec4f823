"""What decides about a trade: window, watermark, late or future. Pure functions on columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NO_WATERMARK", "Judgement", "WindowRules", "judge"]

NO_WATERMARK: Final = -(2**62)
"""A watermark before all times (ms): nothing has been read."""


@dataclass(frozen=True, slots=True)
class WindowRules:
    """The settings that decide about windows; times in ms.

    Args:
        period_ms: Length of the tumbling windows, aligned to the epoch.
        grace_ms: How long behind its end a window stays open, in event time.
        lateness_ms: How far the watermark stays behind the highest event time.
        skew_ms: How far a trade's event time may be ahead of its receipt.
        alpha: Weight of a new price in the EWMA.
    """

    period_ms: int
    grace_ms: int
    lateness_ms: int
    skew_ms: int
    alpha: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was decided about the trades of a batch, in offset order.

    Args:
        window: Number of each trade's window: it begins at `window * period_ms`.
        future: Dated ahead of their receipt; they do not move the watermark.
        late: Of windows that had closed when the trade came.
        behind_ms: How far each trade's event time is behind the watermark before it, or, of
            future ones, ahead of its receipt.
        watermark: The partition's watermark (ms) after the batch.
    """

    window: NDArray[np.int64]
    future: NDArray[np.bool_]
    late: NDArray[np.bool_]
    behind_ms: NDArray[np.int64]
    watermark: int


def judge(
    timestamp: NDArray[np.int64],
    received_at: NDArray[np.int64],
    watermark: int,
    rules: WindowRules,
) -> Judgement:
    """Decide about the trades that follow each other in one partition.

    A trade is judged by the watermark that the trades before it have reached, so that the
    result does not depend on how the partition is cut into batches.

    Args:
        timestamp: Event times, ms.
        received_at: Receipt times, ms.
        watermark: The partition's watermark before the first of them, ms.
        rules: The settings.
    """
    future = timestamp > received_at + rules.skew_ms
    reached = np.where(future, NO_WATERMARK, timestamp - rules.lateness_ms)
    marks = np.maximum.accumulate(np.concatenate(([watermark], reached)))
    before = marks[:-1]
    window = timestamp // rules.period_ms
    late = ~future & ((window + 1) * rules.period_ms + rules.grace_ms <= before)
    behind = np.where(future, timestamp - received_at, before - timestamp)
    return Judgement(window, future, late, behind, int(marks[-1]))
