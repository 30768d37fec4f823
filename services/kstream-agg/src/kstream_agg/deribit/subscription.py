"""Which channels are on, which are asked for and which are still to be asked for. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MAX_CHANNELS", "MAX_CHANNEL_BYTES", "Subscription", "split_channels"]

# A frame above 32 kB is refused; the envelope needs some hundred bytes and names are ASCII.
MAX_CHANNEL_BYTES: Final = 24_000
MAX_CHANNELS: Final = 500  # the exchange's own limit of a call
# A call costs 3,000 credits of a pool of 30,000 that gains 10,000 a second.
_SECONDS_PER_CALL: Final = 1 / 3


def split_channels(
    channels: Iterable[str], max_bytes: int = MAX_CHANNEL_BYTES
) -> list[tuple[str, ...]]:
    """Split channels into calls that the exchange takes.

    `.raw` channels go into calls of their own: without a login they make their whole call fail.

    Args:
        channels: Their names.
        max_bytes: How long the names of one call may be together, quotes and commas included.
    """
    batches: list[tuple[str, ...]] = []
    for raw in (False, True):
        batch: list[str] = []
        size = 0
        for channel in channels:
            if channel.endswith(".raw") is not raw:
                continue
            length = len(channel.encode()) + 3
            if batch and (size + length > max_bytes or len(batch) == MAX_CHANNELS):
                batches.append(tuple(batch))
                batch, size = [], 0
            batch.append(channel)
            size += length
        if batch:
            batches.append(tuple(batch))
    return batches


class Subscription:
    """The state of one session's subscription.

    Args:
        wanted: The channels asked for by the settings.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
        self.wanted = tuple(dict.fromkeys(wanted))
        self.acknowledged: set[str] = set()
        self._max_bytes = MAX_CHANNEL_BYTES
        self._calls: list[tuple[str, ...]] = []
        self._next_call_at = 0.0

    @property
    def missing(self) -> tuple[str, ...]:
        """Channels that are not on, in the settings' order."""
        return tuple(channel for channel in self.wanted if channel not in self.acknowledged)

    @property
    def has_calls(self) -> bool:
        """Whether calls wait to be sent."""
        return bool(self._calls)

    def ask_for_missing(self) -> None:
        """Plan calls for all channels that are not on."""
        self._calls = split_channels(self.missing, self._max_bytes)

    def make_calls_smaller(self) -> None:
        """Halve the size of later calls: the exchange has found one too large."""
        self._max_bytes = max(64, self._max_bytes // 2)

    def next_call(self, now: float) -> tuple[str, ...] | None:
        """The channels of the call to send now; None when there is none or it is too early."""
        if not self._calls or now < self._next_call_at:
            return None
        self._next_call_at = now + _SECONDS_PER_CALL
        return self._calls.pop(0)
