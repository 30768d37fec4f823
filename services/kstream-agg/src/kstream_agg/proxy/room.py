"""Where requests wait while librdkafka's queue is full: in their order, and not for long.

A short wait turns a full queue into slower answers instead of errors; a client that is answered
slowly sends slowly. After `queue_wait_s` it is told to come back later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kstream_agg.proxy.outcomes import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kstream_agg.proxy.outbox import Outbox
    from kstream_agg.proxy.pushing import PushInProgress

__all__ = ["AWAY", "WaitingRoom"]

AWAY: Final = Failure(503, "Kafka is away: try again later", 1)
_QUEUE_FULL: Final = Failure(503, "the queue to Kafka is full: try again later", 1)
_RETRY_S: Final = 0.005
_SEATS: Final = 4096


@dataclass(slots=True)
class _Waiting:
    request: PushInProgress
    indexes: Sequence[int]
    deadline: float


class WaitingRoom:
    """Requests that wait for room in librdkafka's queue.

    Args:
        outbox: The queue.
        wait_s: How long each may wait, in seconds; 0 turns all away.
        send: Tries again; what finds no room comes back through `enter`.
        fail: Ends records with a failure.
    """

    def __init__(
        self,
        outbox: Outbox,
        wait_s: float,
        send: Callable[[PushInProgress, Sequence[int]], None],
        fail: Callable[[PushInProgress, Sequence[int], Failure], None],
    ) -> None:
        self._outbox = outbox
        self._wait_s = wait_s
        self._send = send
        self._fail = fail
        self._seats: deque[_Waiting] = deque()
        self._served: _Waiting | None = None
        self._again: _Waiting | None = None

    @property
    def is_occupied(self) -> bool:
        """Whether someone waits: who comes now must wait behind them."""
        return bool(self._seats)

    def enter(self, request: PushInProgress, indexes: Sequence[int]) -> None:
        """Let some of a request's records wait."""
        if self._served is not None:  # it was tried again, and the queue is full again
            self._again = _Waiting(request, indexes, self._served.deadline)
            return
        if len(self._seats) >= _SEATS or not self._wait_s:
            self._fail(request, indexes, _QUEUE_FULL)
            return
        loop = asyncio.get_running_loop()
        self._seats.append(_Waiting(request, indexes, loop.time() + self._wait_s))
        self._outbox.poll_soon()
        if len(self._seats) == 1:
            loop.call_later(_RETRY_S, self._try_all)

    def _try_all(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._seats:
            first = self._seats[0]
            if self._outbox.away or now >= first.deadline:
                self._seats.popleft()
                self._fail(first.request, first.indexes, AWAY if self._outbox.away else _QUEUE_FULL)
                continue
            self._served = first
            self._send(first.request, first.indexes)
            self._served = None
            if self._again is not None:
                self._seats[0], self._again = self._again, None
                break
            self._seats.popleft()
        if self._seats:
            loop.call_later(_RETRY_S, self._try_all)
