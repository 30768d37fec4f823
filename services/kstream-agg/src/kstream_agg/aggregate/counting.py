"""Adds a run's trades to a window, each trade number once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kstream_agg.aggregate.runs import run_of

if TYPE_CHECKING:
    from kstream_agg.aggregate.rules import EwmaRules
    from kstream_agg.aggregate.runs import Run, SortedTrades
    from kstream_agg.aggregate.windows import Window

__all__ = ["count_run"]


def count_run(
    window: Window, run: Run, columns: SortedTrades, ewma: EwmaRules, scale: float
) -> Run | None:
    """Add to a window what of a run it does not have yet.

    Args:
        window: The window.
        run: Trades of its instrument in it.
        columns: What the run indexes.
        ewma: How the average is made.
        scale: What brings the run's decayed sums to the window's begin; 0 by count.

    Returns:
        What was added; None when all of it are repeats.
    """
    new: Run | None = run
    if run.rising and (not window.count or run.low_seq > window.last_seq):
        if run.gapless:
            window.seen.append(run.low_seq, run.high_seq)
        else:
            for seq in columns.trade_seq[run.begin : run.end].tolist():
                window.seen.append(seq, seq)
    else:
        new = _without_repeats(window, run, columns, ewma)
    if new is not None:
        window.add(new, scale)
    return new


def _without_repeats(
    window: Window, run: Run, columns: SortedTrades, ewma: EwmaRules
) -> Run | None:
    """The run's trades whose numbers the window has not seen; None where there is none."""
    places = [
        place
        for place, seq in enumerate(columns.trade_seq[run.begin : run.end].tolist(), run.begin)
        if window.seen.add(seq)
    ]
    if len(places) == run.trades:
        return run
    return run_of(columns, run, places, ewma) if places else None
