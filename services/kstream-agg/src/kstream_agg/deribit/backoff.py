"""Exponential back-off with full jitter, so that many clients do not come back at once.

https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """How long to wait before the next attempt.

    Args:
        min_s: Upper bound of the first wait, in seconds.
        max_s: Upper bound of all waits, in seconds.
        jitter: A random number in [0, 1).
    """

    def __init__(self, min_s: float, max_s: float, jitter: Callable[[], float]) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._jitter = jitter
        self._failures = 0

    def next_wait(self, at_least_s: float = 0.0) -> float:
        """Seconds to wait after a failure: `at_least_s` and a random part of the current bound."""
        # The exponent stops growing where any bound is reached, long before floats overflow.
        bound = min(self._max_s, self._min_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return at_least_s + bound * self._jitter()

    def reset(self) -> None:
        """All is well again: begin with the smallest wait."""
        self._failures = 0
