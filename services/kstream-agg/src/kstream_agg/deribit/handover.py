"""The bounded queue between a source of trades and the thread that writes them to Kafka.

What a source has received goes through it, and in the same order what it wants to know of, or do
to, the publisher's state: an `Inquiry` is answered when all that was put in before it is taken.

Bounded by the bytes of the frames in it. Decoded trades take several times as much memory as
their frames, so that beyond a few thousand only the frame is kept and decoded again later.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from kstream_agg.deribit.events import BadFrame
from kstream_agg.deribit.frames import TradeBatch, decode_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.deribit.publisher import TradePublisher

__all__ = ["HandOver", "Inquiry", "Outlet", "Receipt"]

_TRADE_BYTES: Final = 400  # a usual trade in a frame
_ENVELOPE_BYTES: Final = 100
_DECODED_TRADES: Final = 10_000  # about 10 MB
_FULL_PAUSE_S: Final = 0.005

AnswerT = TypeVar("AnswerT")


class Outlet(Protocol):
    """What takes the receipts of a source: a `HandOver`, or something before it."""

    def try_put(self, item: Receipt | Inquiry[Any]) -> bool:
        """Put an item in; False when there is no room."""

    async def put(self, item: Receipt | Inquiry[Any]) -> None:
        """Put an item in, waiting for room."""

    async def ask(self, step: Callable[[TradePublisher], AnswerT]) -> AnswerT:
        """Have the publishing thread do something; its answer."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a source has received at one time.

    Args:
        content: Trades of one channel, or a frame that cannot be understood.
        received_at_ms: When, in ms since the epoch.
        source: `stream` or `backfill`, as in the record.
        simulated: Whether it comes from a simulator.
        claim: Whether what is missing between these trades and later ones is to be looked for.
        frame: The bytes `content` was decoded from; empty when there are none.
    """

    content: TradeBatch | BadFrame
    received_at_ms: int
    source: str = "stream"
    simulated: bool = False
    claim: bool = True
    frame: bytes = field(default=b"", repr=False, compare=False)

    @property
    def weight(self) -> int:
        """How much of the queue it takes, in bytes of frames."""
        if isinstance(self.content, BadFrame):
            return _ENVELOPE_BYTES + len(self.content.frame)
        if self.frame:
            return len(self.frame)
        return _ENVELOPE_BYTES + _TRADE_BYTES * self.trades

    @property
    def trades(self) -> int:
        """How many trades it holds."""
        content = self.content
        return 0 if isinstance(content, BadFrame) else len(content.trades) + len(content.rejected)


class Inquiry(Generic[AnswerT]):
    """Something to be done by the thread that publishes, between two receipts.

    Args:
        step: Takes the publisher; what it returns or raises is the answer.
    """

    def __init__(self, step: Callable[[TradePublisher], AnswerT]) -> None:
        self._step = step
        self.answer: Future[AnswerT] = Future()

    def carry_out(self, publisher: TradePublisher) -> None:
        """Do it, and give the answer."""
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            result = self._step(publisher)
        except BaseException as error:
            self.answer.set_exception(error)
            raise
        self.answer.set_result(result)


@dataclass(frozen=True, slots=True)
class _Packed:
    """A receipt whose trades wait in their frame."""

    frame: bytes
    received_at_ms: int
    source: str
    simulated: bool
    claim: bool

    def unpack(self) -> Receipt:
        content = decode_frame(self.frame)
        assert isinstance(content, TradeBatch)  # noqa: S101 - it was, when it was packed
        return Receipt(
            content, self.received_at_ms, self.source, self.simulated, self.claim, self.frame
        )


class HandOver:
    """A queue bounded by the bytes in it: full, it slows its source down.

    Args:
        limit: How many bytes of frames it holds. A larger receipt is taken when it is empty.
        decoded: So many trades are kept decoded, further ones in their frames. Those that have
            none are not taken meanwhile, unless no other is kept decoded.
    """

    def __init__(self, limit: int, decoded: int = _DECODED_TRADES) -> None:
        self._limit = limit
        self._decoded_limit = decoded
        self._items: deque[tuple[Receipt | _Packed | Inquiry[Any], int, int]] = deque()
        self._weight = 0
        self._decoded = 0
        self._condition = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Bytes of frames that wait."""
        return self._weight

    @property
    def finished(self) -> bool:
        """Whether it is closed and empty."""
        return self._closed and not self._items

    def try_put(self, item: Receipt | Inquiry[Any]) -> bool:
        """Put an item in; False when there is no room. There is always room for an inquiry."""
        if isinstance(item, Inquiry):
            with self._condition:
                if self._closed:
                    item.answer.cancel()
                self._items.append((item, 0, 0))
                self._condition.notify()
            return True
        weight, trades = item.weight, item.trades
        with self._condition:
            if self._weight and self._weight + weight > self._limit:
                return False
            # What has no frame to wait in, as the history's pages, waits outside: decoded, a trade
            # takes more than twice its bytes in a frame.
            is_full = 0 < self._decoded < self._decoded + trades > self._decoded_limit
            if is_full and not item.frame:
                return False
            kept: Receipt | _Packed = item
            if item.frame and trades and self._decoded + trades > self._decoded_limit:
                kept = _Packed(
                    item.frame, item.received_at_ms, item.source, item.simulated, item.claim
                )
                trades = 0
            self._items.append((kept, weight, trades))
            self._weight += weight
            self._decoded += trades
            self._condition.notify()
        return True

    async def put(self, item: Receipt | Inquiry[Any]) -> None:
        """Put an item in, waiting for room."""
        while not self.try_put(item):  # noqa: ASYNC110 - room is made by another thread
            await asyncio.sleep(_FULL_PAUSE_S)

    async def ask(self, step: Callable[[TradePublisher], AnswerT]) -> AnswerT:
        """Have the publishing thread do something; its answer.

        Args:
            step: Takes the publisher.
        """
        inquiry = Inquiry(step)
        await self.put(inquiry)
        return await asyncio.wrap_future(inquiry.answer)

    def get(self, timeout_s: float) -> Receipt | Inquiry[Any] | None:
        """Take the oldest item; None when none came within the time or the queue is closed."""
        with self._condition:
            if not self._items and not self._closed:
                self._condition.wait(timeout_s)
            if not self._items:
                return None
            item, weight, trades = self._items.popleft()
            self._weight -= weight
            self._decoded -= trades
        return item.unpack() if isinstance(item, _Packed) else item

    def close(self) -> None:
        """Nothing more will be put in."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
