"""Channels of all currencies: how far they count as compared, and what is not a part of them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

from kstream_agg.core.clock import ManualClock
from kstream_agg.deribit.frames import TradeBatch
from kstream_agg.deribit.handover import Inquiry, Receipt
from kstream_agg.deribit.history import WalkStep
from kstream_agg.deribit.history_api import HistoryRefusedError, Page
from kstream_agg.deribit.lane import LaneView
from kstream_agg.deribit.ledger import Anchor
from kstream_agg.deribit.progress import Period
from kstream_agg.deribit.recovery import Recovery
from kstream_agg.deribit.settings import HistorySettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from kstream_agg.deribit.history import History
    from kstream_agg.deribit.publisher import TradePublisher
    from kstream_agg.deribit.scope import Scope

CHANNEL = "trades.option.any.100ms"
START = 1_790_000_000_000


class Lane:
    """Of the channel: what is asked of it is noted."""

    def __init__(self, *periods: Period) -> None:
        self.resume_at = START
        self.periods = periods
        self.ended = asyncio.Event()

    def view(self) -> LaneView:
        latest = Anchor("BTC-1", 9, START + 100_000)
        return LaneView(START, self.resume_at, None, latest, (), self.periods)

    def advance(self, up_to_ms: int, anchor: Anchor | None) -> None:
        assert anchor is None
        self.resume_at = up_to_ms
        self.ended.set()

    def set_period(self, period: Period) -> None:
        self.periods = () if period.at_ms >= period.to_ms else (period,)
        self.ended.set()


class Outlet:
    """Carries inquiries out at once."""

    def __init__(self, lane: Lane) -> None:
        self.lanes = {CHANNEL: lane}
        self.receipts: list[Receipt] = []

    def touch(self) -> None:
        """Nothing is committed here."""

    def try_put(self, item: Receipt | Inquiry[Any]) -> bool:
        if isinstance(item, Inquiry):
            item.carry_out(cast("TradePublisher", self))
        else:
            self.receipts.append(item)
        return True

    async def put(self, item: Receipt | Inquiry[Any]) -> None:
        self.try_put(item)

    async def ask(self, step: Callable[[TradePublisher], Any]) -> Any:  # noqa: ANN401 - of any inquiry
        return step(cast("TradePublisher", self))


class Walks:
    """A history that has one page for each currency but one, which it does not list."""

    def __init__(self, up_to: dict[str, int]) -> None:
        self._up_to = up_to
        self.anchors: list[tuple[str, Anchor | None]] = []

    async def walk(
        self, scope: Scope, from_ms: int, to_ms: int, anchor: Anchor | None
    ) -> AsyncIterator[WalkStep]:
        assert from_ms < to_ms
        currency = scope.params["currency"]
        self.anchors.append((currency, anchor))
        if currency == "EURR":
            raise HistoryRefusedError("no such currency")
        if currency in self._up_to:
            up_to_ms = self._up_to[currency]
            page = Page(TradeBatch("", []), has_more=False)
            yield WalkStep(page, up_to_ms, Anchor(f"{currency}-1", 1, up_to_ms))


async def search(walks: Walks, lane: Lane, *, times: int = 1, compare: bool = True) -> None:
    clock = ManualClock(START + 100_000)
    settings = HistorySettings()
    recovery = Recovery(cast("History", walks), Outlet(lane), [CHANNEL], settings, clock)
    running = asyncio.create_task(recovery.run())
    try:
        for _ in range(times):
            lane.ended.clear()
            if compare:
                recovery.subscribed()
            await asyncio.wait_for(lane.ended.wait(), 20)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def test_what_happens_while_other_currencies_are_walked_is_compared_next_time() -> None:
    async def main() -> None:
        lane = Lane()
        # In the last currency a trade has happened after the first one was walked.
        walks = Walks({"BTC": START + 90_000, "USDC": START + 150_000})
        await search(walks, lane)
        assert lane.resume_at == START + 100_000

    asyncio.run(main())


def test_a_later_comparison_expects_a_known_trade_of_each_currency() -> None:
    async def main() -> None:
        walks = Walks({"BTC": START + 90_000, "ETH": START + 10_000})
        await search(walks, Lane(), times=2)
        assert walks.anchors[:5] == [
            (name, None) for name in ("BTC", "ETH", "USDC", "USDT", "EURR")
        ]
        assert walks.anchors[5:7] == [
            ("BTC", Anchor("BTC-1", 1, START + 90_000)),
            ("ETH", None),  # older than where the comparison begins
        ]

    asyncio.run(main())


def test_a_currency_that_is_not_listed_does_not_keep_a_period_from_ending() -> None:
    async def main() -> None:
        lane = Lane(Period(START, START + 1_000, START))
        walks = Walks({"BTC": START + 500})
        await search(walks, lane, compare=False)
        assert lane.periods == ()
        assert [currency for currency, _ in walks.anchors][-1] == "EURR"

    asyncio.run(main())
