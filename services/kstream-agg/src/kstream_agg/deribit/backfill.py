"""Fetching a period on request: asked of the running raw-producer, or done by one of its own.

The period is a record of the progress topic, so that a raw-producer that ends goes on with it
after its restart. A trade that the topic holds is not written again, however often it is fetched.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.core.errors import SettingsError, UnavailableError
from kstream_agg.deribit.handover import Inquiry
from kstream_agg.deribit.hosts import open_history
from kstream_agg.deribit.progress import Period
from kstream_agg.deribit.recovery import Recovery

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.core.service import ServiceContext
    from kstream_agg.deribit.handover import HandOver
    from kstream_agg.deribit.publisher import TradePublisher
    from kstream_agg.deribit.settings import RawProducerSettings

__all__ = ["BACKFILL_PATH", "backfill_action", "fetch_period"]

BACKFILL_PATH: Final = "/backfill"
"""Where a raw-producer takes the request `{"channel": …, "from_ms": …, "to_ms": …}`; the answer
says with `at_ms` how far it is. The same request again asks how far it is now."""

_ANSWER_S: Final = 10.0
_LOOK_S: Final = 0.2


def backfill_action(
    handover: HandOver, channels: tuple[str, ...]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The action that a raw-producer offers.

    Args:
        handover: Leads to the thread that publishes.
        channels: Of its settings.
    """

    def ask(wanted: dict[str, Any]) -> dict[str, Any]:
        channel = wanted.get("channel")
        if channel not in channels:
            raise SettingsError(
                f"this raw-producer has no channel '{channel}'",
                remedy=f"it has: {', '.join(channels)}",
            )
        period = _period(wanted.get("from_ms"), wanted.get("to_ms"))
        inquiry = Inquiry(lambda publisher: _ask_for(publisher, str(channel), period))
        handover.try_put(inquiry)
        try:
            found = inquiry.answer.result(_ANSWER_S)
        except TimeoutError as error:
            raise UnavailableError("the raw-producer is busy", remedy="ask again") from error
        return {"from_ms": found.from_ms, "to_ms": found.to_ms, "at_ms": found.at_ms}

    return ask


async def fetch_period(
    settings: RawProducerSettings,
    ctx: ServiceContext,
    handover: HandOver,
    period: Period,
    on_progress: Callable[[Period], None],
) -> None:
    """Fetch a period of the settings' one channel, without a stream.

    Args:
        settings: Of the raw-producer.
        ctx: Clock, metrics and the event that ends it early.
        handover: Leads to the thread that publishes.
        period: What is fetched.
        on_progress: Told how far it is.
    """
    (channel,) = settings.channels
    async with open_history(settings, ctx) as history:
        recovery = Recovery(history, handover, settings.channels, settings.history, ctx.clock)
        searching = asyncio.create_task(recovery.run())
        try:
            while not ctx.stop.is_set() and not searching.done():
                found = await handover.ask(lambda publisher: _ask_for(publisher, channel, period))
                on_progress(found)
                if found.at_ms >= found.to_ms:
                    return
                await asyncio.sleep(_LOOK_S)
        finally:
            searching.cancel()
            await asyncio.gather(searching, return_exceptions=True)


def _ask_for(publisher: TradePublisher, channel: str, period: Period) -> Period:
    found = publisher.lanes[channel].ask_for(period)
    publisher.touch()
    return found


def _period(from_ms: object, to_ms: object) -> Period:
    if not (isinstance(from_ms, int) and isinstance(to_ms, int) and 0 <= from_ms < to_ms):
        raise SettingsError("a period needs from_ms and a later to_ms, in ms since the epoch")
    return Period(from_ms, to_ms, from_ms)
