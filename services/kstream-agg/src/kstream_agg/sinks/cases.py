"""When to do what about a sink: pure, the time is an argument."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from kstream_agg.sinks.causes import Cause, cause_of_trace

if TYPE_CHECKING:
    from kstream_agg.sinks.connect_api import ConnectorStatus
    from kstream_agg.sinks.settings import WatchPolicy

__all__ = ["Action", "Case"]

_DOUBLINGS: Final = 30  # enough for any back-off, and no float overflows


@enum.unique
class Action(enum.Enum):
    """What is to be done about a sink now."""

    NOTHING = "nothing"
    RESTART = "restart what has failed"
    RESCUE = "look for a row at fault"


class Case:
    """What is known of one sink's failures.

    Args:
        policy: Waits and limits.
    """

    def __init__(self, policy: WatchPolicy) -> None:
        self._policy = policy
        self._attempts = 0
        self._next_at = 0.0
        self._running_since: float | None = None
        self.trouble: str | None = None
        """What people should know of: it does not run, and why."""

    def judge(self, status: ConnectorStatus, now: float, *, is_narrowed: bool) -> Action:
        """What to do.

        Args:
            status: The sink's.
            now: Seconds on a clock that never goes back.
            is_narrowed: A rescue of it is under way, and was ended.
        """
        if is_narrowed:
            return Action.RESCUE if now >= self._next_at else Action.NOTHING
        if not status.has_failed:
            self._note_state(status, now)
            return Action.NOTHING
        self._running_since = None
        self.trouble = self.trouble or f"it fails: {status.failure}"
        if now < self._next_at:
            return Action.NOTHING
        if status.state == "FAILED" or not self._is_searchable(status):
            return Action.RESTART
        return Action.RESCUE

    def note_attempt(self, now: float) -> float:
        """Something was done that may not help; gives the seconds until the next attempt."""
        wait = self._policy.backoff_initial_s * (1 << min(self._attempts, _DOUBLINGS))
        wait = min(wait, self._policy.backoff_max_s)
        self._attempts += 1
        self._next_at = now + wait
        return wait

    def note_success(self) -> None:
        """It was got past what it failed on: what comes next is another matter."""
        self._attempts = 0
        self._next_at = 0.0
        self.trouble = None

    def _is_searchable(self, status: ConnectorStatus) -> bool:
        causes = {cause_of_trace(task.trace) for task in status.failed_tasks}
        # What does not pass after a few attempts may be a row's doing all the same.
        return Cause.DATA in causes or self._attempts >= self._policy.search_after

    def _note_state(self, status: ConnectorStatus, now: float) -> None:
        if not status.is_running:
            # Stopped or paused by somebody, or on its way: none of our business.
            self._running_since = None
            if status.state in {"STOPPED", "PAUSED"}:
                self.trouble = None
            return
        if self._running_since is None:
            self._running_since = now
        elif now - self._running_since >= self._policy.stable_s:
            self.note_success()
