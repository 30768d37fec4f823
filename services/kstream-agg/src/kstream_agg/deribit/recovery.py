"""Looks for the trades that the stream did not bring, and says which there are not.

Three ways a trade is missed, three searches, all of which go through the same hand-over as the
stream, so that the ledger alone decides what is written:

1. *Comparison.* From where the topic was last compared with the history, less an overlap, until
   now: at every start and reconnect, and regularly, since an instrument's last trade leaves no
   hole behind it. Each page found moves the place where the next comparison begins.
2. *Holes* in an instrument's numbers are asked for by number. One that every host has denied
   often enough is given up: it is named in the gaps topic.
3. *Periods* that somebody has asked to fetch.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import KStreamError
from kstream_agg.core.logs import get_logger
from kstream_agg.deribit.handover import Inquiry, Receipt
from kstream_agg.deribit.history_api import HistoryRefusedError
from kstream_agg.deribit.progress import Period
from kstream_agg.deribit.scope import scopes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.core.clock import Clock
    from kstream_agg.deribit.handover import Outlet
    from kstream_agg.deribit.history import History
    from kstream_agg.deribit.history_api import Page
    from kstream_agg.deribit.lane import LaneView
    from kstream_agg.deribit.ledger import Anchor, SeqRun
    from kstream_agg.deribit.publisher import TradePublisher
    from kstream_agg.deribit.scope import Scope
    from kstream_agg.deribit.settings import HistorySettings

__all__ = ["Recovery"]

_log = get_logger(__name__)

_LOOK_S: Final = 0.25  # between two looks at the ledger
# What happened right before a subscription may be in the history a little later only.
_SECOND_LOOK_S: Final = 5.0
_RETRY_MAX_S: Final = 60.0
_AHEAD_MS: Final = 5_000  # how far the exchange's clock may be ahead of ours without loss
_ANCHOR_ATTEMPTS: Final = 6  # comparisons that fail before one is made without an anchor

_HoleKey = tuple[str, str, int, int]


@dataclass(slots=True)
class _Search:
    """How often a hole was asked for, and when to ask again (monotonic seconds)."""

    next_at: float
    attempts: int = 0


class _Comparison:
    """When a channel is compared next."""

    def __init__(self) -> None:
        self.due_at: float | None = None
        self.again = False
        self.failures = 0
        self.anchors: dict[Scope, Anchor] = {}
        """Of a channel of several scopes: a trade of each that the history has given."""


class Recovery:
    """Searches for missing trades, for all channels.

    Args:
        history: Where they are.
        handover: Takes what is found.
        channels: Of the settings.
        settings: How patient it is.
        clock: What time it is.
    """

    def __init__(
        self,
        history: History,
        handover: Outlet,
        channels: Sequence[str],
        settings: HistorySettings,
        clock: Clock,
    ) -> None:
        self._history = history
        self._handover = handover
        self._settings = settings
        self._clock = clock
        self._comparisons = {channel: _Comparison() for channel in channels}
        self._searches: dict[_HoleKey, _Search] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(settings.concurrency)

    def subscribed(self) -> None:
        """A session has every channel: what came before it is to be fetched now."""
        for comparison in self._comparisons.values():
            comparison.due_at = self._clock.monotonic()
            comparison.again = True

    async def run(self) -> None:
        """Search until cancelled."""
        try:
            while True:
                views = await self._handover.ask(_views)
                for channel, view in views.items():
                    if channel not in self._busy:
                        self._start(channel, view)
                await asyncio.sleep(_LOOK_S)
        finally:
            tasks = list(self._busy.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, channel: str, view: LaneView) -> None:
        now = self._clock.monotonic()
        due_at = self._comparisons[channel].due_at
        compare = view.started_at is not None and due_at is not None and due_at <= now
        holes = self._due_holes(channel, view, now)
        if not (compare or holes or view.periods):
            return
        task = asyncio.create_task(self._work(channel, view, holes, compare=compare))
        self._busy[channel] = task
        task.add_done_callback(lambda _: self._busy.pop(channel, None))

    async def _work(
        self, channel: str, view: LaneView, holes: list[tuple[str, SeqRun]], *, compare: bool
    ) -> None:
        if compare:
            await self._compare(channel, view, self._comparisons[channel])
            return  # it may have filled the holes
        await asyncio.gather(*(self._fill(channel, name, run) for name, run in holes))
        if not holes and view.periods:
            await self._fetch(channel, view.periods[0])

    # --- 1. comparison ---------------------------------------------------------------------

    async def _compare(self, channel: str, view: LaneView, comparison: _Comparison) -> None:
        begun = self._clock.monotonic()
        try:
            await self._compare_once(channel, view, comparison)
        except KStreamError as error:
            comparison.failures += 1
            wait = min(_RETRY_MAX_S, 2.0 ** min(comparison.failures, 10) / 4)
            comparison.due_at = self._clock.monotonic() + wait
            _log.warning(
                "the history cannot be compared with",
                channel=channel,
                reason=str(error),
                retry_in_s=wait,
            )
            return
        comparison.failures = 0
        if (comparison.due_at or 0.0) > begun:
            return  # a new session has begun in the meantime
        again, comparison.again = comparison.again, False
        wait = min(_SECOND_LOOK_S, self._settings.compare_every_s)
        comparison.due_at = begun + (wait if again else self._settings.compare_every_s)

    async def _compare_once(self, channel: str, view: LaneView, comparison: _Comparison) -> None:
        overlap_ms = round(self._settings.overlap_s * 1000)
        from_ms = max(view.started_at or 0, view.resume_at - overlap_ms)
        latest_ms = view.latest.timestamp if view.latest else 0
        to_ms = max(self._clock.now_ms(), latest_ms) + _AHEAD_MS
        scopes = scopes_of(channel)
        anchor = view.anchor if len(scopes) == 1 else None
        if comparison.failures >= _ANCHOR_ATTEMPTS and anchor is not None:
            _log.warning("comparing without a known trade", channel=channel, lacking=anchor)
            anchor = None
        if len(scopes) > 1:
            # What happens while the first parts are walked is in none of their pages, but may be
            # in a later part's: all parts are compared up to what had happened at the begin.
            cap_ms = max(latest_ms, view.resume_at)
            await self._compare_parts(channel, scopes, (from_ms, to_ms), cap_ms, comparison)
            return
        async for step in self._history.walk(scopes[0], from_ms, to_ms, anchor):
            await self._put(channel, step.page)
            await self._advance(channel, step.up_to_ms, step.anchor)

    async def _compare_parts(
        self,
        channel: str,
        scopes: Sequence[Scope],
        times: tuple[int, int],
        cap_ms: int,
        comparison: _Comparison,
    ) -> None:
        """A channel of several currencies: it is compared when all of them are."""
        up_to_ms = from_ms = times[0]
        for scope in scopes:
            known = comparison.anchors.get(scope)
            lost = known is None or known.timestamp < from_ms
            anchor = None if lost or comparison.failures >= _ANCHOR_ATTEMPTS else known
            try:
                async for step in self._history.walk(scope, *times, anchor):
                    await self._put(channel, step.page)
                    up_to_ms = max(up_to_ms, step.up_to_ms)
                    comparison.anchors[scope] = step.anchor
            except HistoryRefusedError as error:
                _log.debug("not a part of the channel", scope=scope.params, reason=str(error))
        await self._advance(channel, min(up_to_ms, cap_ms), None)

    async def _advance(self, channel: str, up_to_ms: int, anchor: Anchor | None) -> None:
        def step(publisher: TradePublisher) -> None:
            publisher.lanes[channel].advance(up_to_ms, anchor)
            publisher.touch()

        await self._handover.put(Inquiry(step))

    async def _put(self, channel: str, page: Page, *, claim: bool = True) -> None:
        page.batch.channel = channel
        receipt = Receipt(page.batch, self._clock.now_ms(), "backfill", page.simulated, claim=claim)
        await self._handover.put(receipt)

    # --- 2. holes --------------------------------------------------------------------------

    def _due_holes(self, channel: str, view: LaneView, now: float) -> list[tuple[str, SeqRun]]:
        """The holes whose time has come; what is filled is forgotten."""
        known = {(channel, name, *run) for name, run in view.holes}
        for key in [key for key in self._searches if key[0] == channel and key not in known]:
            del self._searches[key]
        due = []
        for name, run in view.holes:
            search = self._searches.setdefault(
                (channel, name, *run), _Search(now + self._settings.hole_patience_s)
            )
            if search.next_at <= now:
                due.append((name, run))
        return due

    async def _fill(self, channel: str, name: str, run: SeqRun) -> None:
        search = self._searches[channel, name, *run]
        async with self._slots:
            found = await self._history.numbers(name, *run)
        for page in found.pages:
            await self._put(channel, page)
        search.attempts += found.answered
        wait = max(0.05, self._settings.hole_patience_s) * 2.0 ** min(search.attempts, 10)
        search.next_at = self._clock.monotonic() + min(_RETRY_MAX_S, wait)
        if found.missing and search.attempts >= self._settings.hole_attempts:
            for first, last in found.missing:
                await self._give_up(channel, name, first, last)

    async def _give_up(self, channel: str, name: str, first: int, last: int) -> None:
        reason = "the exchange's history does not give them"
        await self._handover.ask(
            lambda publisher: publisher.give_up(channel, name, first, last, reason)
        )

    # --- 3. periods ------------------------------------------------------------------------

    async def _fetch(self, channel: str, period: Period) -> None:
        scopes = scopes_of(channel)
        try:
            for scope in scopes:
                await self._fetch_part(channel, scope, period, alone=len(scopes) == 1)
        except KStreamError as error:
            _log.warning("a period cannot be fetched yet", channel=channel, reason=str(error))
            await asyncio.sleep(2.0)
            return
        await self._set_period(channel, Period(period.from_ms, period.to_ms, period.to_ms))
        _log.info(
            "a period is fetched", channel=channel, from_ms=period.from_ms, to_ms=period.to_ms
        )

    async def _fetch_part(self, channel: str, scope: Scope, period: Period, *, alone: bool) -> None:
        """Fetch a period of one currency or instrument; `alone`: it is the whole channel."""
        try:
            async for step in self._history.walk(scope, period.at_ms, period.to_ms, None):
                await self._put(channel, step.page, claim=False)
                if alone:
                    at_ms = min(step.up_to_ms, period.to_ms - 1)
                    await self._set_period(channel, Period(period.from_ms, period.to_ms, at_ms))
        except HistoryRefusedError as error:
            if alone:
                raise
            # Not every exchange lists every currency.
            _log.debug("not a part of the channel", scope=scope.params, reason=str(error))

    async def _set_period(self, channel: str, period: Period) -> None:
        def step(publisher: TradePublisher) -> None:
            publisher.lanes[channel].set_period(period)
            publisher.touch()

        await self._handover.put(Inquiry(step))


def _views(publisher: TradePublisher) -> dict[str, LaneView]:
    return {channel: lane.view() for channel, lane in publisher.lanes.items()}
