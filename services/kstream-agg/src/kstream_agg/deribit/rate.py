"""How often calls may be made: a bucket of calls that fills at a steady rate. Pure."""

from __future__ import annotations

__all__ = ["RateLimit"]


class RateLimit:
    """Gives each call its time.

    The exchange counts credits: an ordinary public call costs 500 of a pool that gains 10,000 a
    second (https://docs.deribit.com, "Rate limits"); callers without login share what their
    address is given, which is not published.

    Args:
        per_s: Calls per second in the long run.
        burst: Calls that may be made at once after a pause.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._interval_s = 1 / per_s
        self._ahead_s = (burst - 1) / per_s
        self._free_at = float("-inf")
        self._paused_until = float("-inf")

    def wait_s(self, now: float) -> float:
        """Reserve the next call; how long it has to wait.

        Args:
            now: Monotonic time in seconds.
        """
        begin = max(self._free_at, now - self._ahead_s, self._paused_until)
        self._free_at = begin + self._interval_s
        return max(0.0, begin - now)

    def pause(self, seconds: float, now: float) -> None:
        """No call for a while: the exchange has had too many."""
        self._paused_until = max(self._paused_until, now + seconds)
