"""A bounded wait, handed from step to step so that together they keep within one bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from kstream_agg.core.clock import Clock

__all__ = ["Patience"]

_log = get_logger(__name__)
_POLL_S: Final = 0.5

T = TypeVar("T")


class Patience:
    """How long we wait for others.

    Args:
        clock: Measures the wait.
        stop: Ends it early.
        timeout_s: Its length in seconds, from now.
    """

    def __init__(self, clock: Clock, stop: threading.Event, timeout_s: float) -> None:
        self._clock = clock
        self._deadline = clock.monotonic() + timeout_s
        self.stop = stop

    @property
    def left_s(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._deadline - self._clock.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether the time is spent or the wait was ended."""
        return self.stop.is_set() or self.left_s == 0.0

    def pause(self, seconds: float = _POLL_S) -> None:
        """Wait a little, at most what is left."""
        self.stop.wait(min(seconds, self.left_s))

    def until_available(self, what: str, attempt: Callable[[], T]) -> T:
        """Call `attempt` until it does not raise `UnavailableError`; says once what it waits for.

        Raises:
            UnavailableError: The last one, when patience is over.
        """
        told = False
        while True:
            try:
                return attempt()
            except UnavailableError as error:
                if self.is_over:
                    raise
                if not told:
                    _log.warning("waiting", what=what, because=str(error))
                    told = True
                self.pause()
