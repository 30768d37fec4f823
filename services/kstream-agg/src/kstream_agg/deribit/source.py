"""Where trades come from: the seam behind which an exchange, or a file, is one module.

A source gives receipts, in order, from where an earlier start ended. What it has given again is
not written again, so that it may begin too early but never too late. `docs/adding-a-source.md`
walks through a source.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

from kstream_agg.core.logs import get_logger
from kstream_agg.deribit.client import StreamClient
from kstream_agg.deribit.frames import TradeBatch
from kstream_agg.deribit.handover import Inquiry, Receipt
from kstream_agg.deribit.hosts import open_history
from kstream_agg.deribit.ledger import Anchor
from kstream_agg.deribit.recording import read_recording
from kstream_agg.deribit.recovery import Recovery
from kstream_agg.deribit.trades import read_trade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from kstream_agg.core.service import ServiceContext
    from kstream_agg.deribit.lane import LaneView
    from kstream_agg.deribit.publisher import TradePublisher
    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.deribit.settings import RawProducerSettings

__all__ = ["DeribitSource", "RecordedSource", "Resume", "Source", "SourceItem", "make_source"]

_log = get_logger(__name__)

SourceItem: TypeAlias = "Receipt | Inquiry[Any]"
"""Trades, or a step to be done between them: to move the place where the next start resumes."""
Resume: TypeAlias = "Mapping[str, LaneView]"
"""Channel → how far an earlier start came."""

AnswerT = TypeVar("AnswerT")

_QUEUE_ITEMS: Final = 16  # between the source's tasks and its reader: enough to keep both busy
_FILE_BATCH: Final = 100


class Source(Protocol):
    """Gives what it receives, for ever or to its end."""

    def items(self, resume: Resume) -> AsyncIterator[SourceItem]:
        """Receipts in order; slow readers slow the source down.

        Args:
            resume: Where to go on; `started_at` of a channel is None on its first start.
        """


class _Outlet:
    """What the source's tasks put into: a bounded queue that `items` reads."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[SourceItem] = asyncio.Queue(_QUEUE_ITEMS)

    def try_put(self, item: SourceItem) -> bool:
        """Put an item in; False when there is no room."""
        if self.queue.full():
            return False
        self.queue.put_nowait(item)
        return True

    async def put(self, item: SourceItem) -> None:
        """Put an item in, waiting for room."""
        await self.queue.put(item)

    async def ask(self, step: Callable[[TradePublisher], AnswerT]) -> AnswerT:
        """Have the publishing thread do something; its answer."""
        inquiry = Inquiry(step)
        await self.put(inquiry)
        return await asyncio.wrap_future(inquiry.answer)


class DeribitSource:
    """The live exchange: the stream, and the history of what it did not bring.

    Args:
        settings: Of the raw-producer.
        ctx: Of the service; its `stop` ends the source.
    """

    def __init__(self, settings: RawProducerSettings, ctx: ServiceContext) -> None:
        self._settings = settings
        self._ctx = ctx

    async def items(self, resume: Resume) -> AsyncIterator[SourceItem]:
        """Receipts of stream and history until the service is asked to stop."""
        del resume  # the history search asks for it as it goes
        outlet = _Outlet()
        settings, ctx = self._settings, self._ctx
        async with open_history(settings, ctx) as history:
            recovery = Recovery(history, outlet, settings.channels, settings.history, ctx.clock)
            client = StreamClient(
                settings.exchange,
                settings.channels,
                outlet,
                ctx,
                on_subscribed=recovery.subscribed,
            )
            tasks = [asyncio.create_task(client.run()), asyncio.create_task(recovery.run())]
            ended = asyncio.ensure_future(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
            try:
                while (item := await _next(outlet.queue, ended)) is not None:
                    yield item
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                ended.cancel()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, ended, return_exceptions=True)


async def _next(queue: asyncio.Queue[SourceItem], ended: asyncio.Future[Any]) -> SourceItem | None:
    """The next item; None when there is none left and none will come."""
    if not queue.empty():
        return queue.get_nowait()
    if ended.done():
        return None
    waiting = asyncio.ensure_future(queue.get())
    try:
        await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
    finally:
        if not waiting.done():
            waiting.cancel()
    return queue.get_nowait() if not queue.empty() else None


class RecordedSource:
    """A recording's trades as those of one channel, as fast as they are taken; then it ends.

    Args:
        path: A `.csv.gz` or `.jsonl` file, as the simulator plays them.
        channel: Whose trades they are taken for.
        ctx: Of the service.
    """

    def __init__(self, path: Path, channel: str, ctx: ServiceContext) -> None:
        self._path = path
        self._channel = channel
        self._ctx = ctx

    async def items(self, resume: Resume) -> AsyncIterator[SourceItem]:
        """The trades from the time on up to which an earlier start had come."""
        recording = read_recording(self._path)
        from_ms = resume[self._channel].resume_at
        trades = [trade for trade in recording.trades if trade["timestamp"] >= from_ms]
        _log.info("playing a file", file=self._path.name, trades=len(trades), from_ms=from_ms)
        self._ctx.health.set_ready()
        for batch in _batches(trades, self._channel):
            if self._ctx.stop.is_set():
                return
            yield Receipt(batch, self._ctx.clock.now_ms(), simulated=True)
            yield Inquiry(self._advance_to(batch))
            await asyncio.sleep(0)

    def _advance_to(self, batch: TradeBatch) -> Callable[[TradePublisher], None]:
        last = batch.trades[-1]
        anchor = Anchor(last.instrument_name, last.trade_seq, last.timestamp)

        def step(publisher: TradePublisher) -> None:
            publisher.lanes[self._channel].advance(last.timestamp, anchor)
            publisher.touch()

        return step


def _batches(trades: list[WireTrade], channel: str) -> Iterator[TradeBatch]:
    for start in range(0, len(trades), _FILE_BATCH):
        batch = TradeBatch(channel, [])
        for wire in trades[start : start + _FILE_BATCH]:
            trade, extra = read_trade(wire)
            if extra is not None:
                batch.extras[len(batch.trades)] = extra
            batch.trades.append(trade)
        yield batch


def make_source(settings: RawProducerSettings, ctx: ServiceContext) -> Source:
    """The source that the settings name."""
    if settings.source.recording is not None:
        return RecordedSource(settings.source.recording, settings.channels[0], ctx)
    return DeribitSource(settings, ctx)
