"""The running averages of one partition's instruments, in both forms. Pure.

**By count**: e = alpha * p + (1 - alpha) * e, trade by trade in topic order.

**Time-decayed**: sum of p * w over sum of w, with w = exp((t - T) / tau) for any moment T: T
cancels out, and so does the order of the trades. The two sums are kept at a moment of their own
and brought to another one by the factor exp((own - other) / tau).
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kstream_agg.aggregate.rules import EwmaRules
    from kstream_agg.aggregate.runs import Run

__all__ = ["RunningAverages"]


class RunningAverages:
    """What each instrument's trades have made so far; those that moved last stand last.

    Args:
        rules: Form, start, reset and how many are kept.
    """

    def __init__(self, rules: EwmaRules) -> None:
        self._rules = rules
        self._by_count: dict[int, float] = {}
        self._decayed: dict[int, tuple[float, float, int]] = {}
        self._changed: dict[int, None] = {}
        self._gone: set[int] = set()

    def seed(self, instrument: int, first_price: float, begin_ms: int) -> tuple[float, float]:
        """What a window that begins at `begin_ms` starts from, and the weight of that.

        The weight is 0 but in the time-decayed form. There, a window opened after a later one
        has no seed either: what is known by then is not before it.
        """
        seed, weight = self.peek(instrument, first_price, begin_ms)
        if self._rules.tau_ms is None and self._rules.reset == "never":
            self._by_count[instrument] = seed
        return seed, weight

    def peek(self, instrument: int, first_price: float, begin_ms: int) -> tuple[float, float]:
        """As `seed`, for a window whose first trade will not be folded in."""
        rules = self._rules
        if rules.tau_ms is None:
            start = first_price if rules.start == "first" else 0.0
            if rules.reset == "window":
                return start, 0.0
            return self._by_count.get(instrument, start), 0.0
        found = self._decayed.get(instrument)
        if found is None or rules.reset == "window" or found[2] > begin_ms:
            return first_price, 0.0
        price, weight, at_ms = found
        return price / weight, weight * math.exp((at_ms - begin_ms) / rules.tau_ms)

    def fold(self, run: Run, begin_ms: int, first_price: float) -> None:
        """Add a run.

        Args:
            run: Its trades.
            begin_ms: The moment of its decayed sums.
            first_price: Of its trades, in topic order.
        """
        rules, instrument = self._rules, run.instrument
        if rules.reset == "window":
            return
        self._changed.pop(instrument, None)
        self._changed[instrument] = None
        self._gone.discard(instrument)
        if rules.tau_ms is None:
            before = self._by_count.pop(instrument, None)
            if before is None:  # its window is older than what is kept of it
                before = first_price if rules.start == "first" else 0.0
            self._by_count[instrument] = run.decay * before + run.share
            return
        price, weight, at_ms = self._decayed.pop(instrument, (0.0, 0.0, begin_ms))
        older = math.exp(-abs(begin_ms - at_ms) / rules.tau_ms)
        if begin_ms >= at_ms:
            price, weight, at_ms = price * older, weight * older, begin_ms
            older = 1.0
        self._decayed[instrument] = (
            price + run.decayed_price * older,
            weight + run.decayed_weight * older,
            at_ms,
        )

    def forget_oldest(self) -> None:
        """Drop what is beyond the limit: the averages that have not moved for longest."""
        kept = self._kept
        beyond = list(islice(kept, max(0, len(kept) - self._rules.limit)))
        for instrument in beyond:
            del kept[instrument]
            self._changed.pop(instrument, None)
        self._gone.update(beyond)

    def take_changes(self) -> list[tuple[int, Any]]:
        """Instruments whose average has changed since the last call, and what to keep of each.

        None is kept of those that were forgotten.
        """
        kept = self._kept
        # In the order in which they moved: whoever takes them back has them in it.
        changes = [(number, kept[number]) for number in self._changed]
        changes += [(number, None) for number in self._gone]
        self._changed.clear()
        self._gone.clear()
        return changes

    @property
    def _kept(self) -> dict[int, Any]:
        return self._by_count if self._rules.tau_ms is None else self._decayed

    def restore(self, instrument: int, kept: Any) -> None:  # noqa: ANN401 - either form's
        """Take back what `take_changes` gave out.

        Raises:
            TypeError: It is not of this form.
            ValueError: The same.
        """
        if self._rules.tau_ms is None:
            self._by_count[instrument] = float(kept)
        else:
            price, weight, at_ms = kept
            self._decayed[instrument] = (float(price), float(weight), int(at_ms))
