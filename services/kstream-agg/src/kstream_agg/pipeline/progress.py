"""Whether a consumer makes progress: written by its loop, read by /healthz."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kstream_agg.core.clock import Clock

__all__ = ["Progress"]


class Progress:
    """What the loop last did and when.

    Args:
        clock: Its monotonic time is used.
        stuck_after_s: How long a batch may be in work, and records wait without progress.
    """

    def __init__(self, clock: Clock, stuck_after_s: float) -> None:
        self._clock = clock
        self._stuck_after_s = stuck_after_s
        self._batch_began: float | None = None
        self._last_progress = clock.monotonic()
        self.lag = 0
        """Records behind the ends of the partitions, as last seen."""

    def batch_begins(self) -> None:
        """A batch was handed to the processor."""
        self._batch_began = self._clock.monotonic()

    def batch_ends(self, *, done: bool) -> None:
        """The processor has returned; `done` says whether it took the batch."""
        self._batch_began = None
        if done:
            self._last_progress = self._clock.monotonic()

    def check(self) -> str | None:
        """None while all is well, else a sentence that says what is not."""
        now = self._clock.monotonic()
        began = self._batch_began
        if began is not None and now - began > self._stuck_after_s:
            return f"a batch has been in work for {now - began:.0f} s"
        waited = now - self._last_progress
        if self.lag > 0 and waited > self._stuck_after_s:
            return f"{self.lag} records wait and none was read for {waited:.0f} s"
        return None

    def set_lag(self, lag: int) -> None:
        """Tell how many records are behind; from none to some, waiting begins anew."""
        if self.lag == 0 and lag > 0:
            self._last_progress = self._clock.monotonic()
        self.lag = lag
