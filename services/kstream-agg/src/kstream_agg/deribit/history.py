"""Finding out what the exchange's history holds, by time or by number, from calls that mislead.

What is known of them (measured by others on the live hosts): `has_more` speaks of the asked range
and proves nothing; times older than a day give an empty reply on the main host without an error;
replies can begin behind the asked edge and end beyond it; many trades share a millisecond; the
order by id, in which pages are cut, disagrees with the order by time by up to 20 ms. So:

- what lies outside of the asked range is dropped, what was asked for is checked number by number;
- a reply must contain a trade that is known to be there (the *anchor*), or another host is asked;
- a page begins before the end of the one before it, whose last trade is its anchor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.deribit.frames import TradeBatch
from kstream_agg.deribit.history_api import HistoryRefusedError, Page
from kstream_agg.deribit.ledger import Anchor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import Protocol

    from kstream_agg.core.clock import Clock
    from kstream_agg.deribit.ledger import SeqRun
    from kstream_agg.deribit.scope import Scope
    from kstream_agg.deribit.trades import Trade

    class Host(Protocol):
        """What gives pages: a `HistoryApi`."""

        @property
        def name(self) -> str:
            """For people."""

        async def trades(self, method: str, params: Mapping[str, str | int]) -> Page:
            """One page."""


__all__ = ["Found", "History", "WalkStep"]

_log = get_logger(__name__)

_MAIN_KEEPS_MS: Final = 23 * 3_600_000  # about a day is what the main host gives by time
_STEP_BACK_MS: Final = 1_000  # far more than the 20 ms by which ids and times disagree
_DISORDER_MS: Final = 50  # by which ids and times disagree at most, with room
_WIDEN: Final = 5  # numbers to ask for beyond the edges when they were left out
_ANCHOR_TRIES: Final = 2  # of a host, before the next is asked


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One page of a walk through time.

    Args:
        page: Its trades within the asked range.
        up_to_ms: All before this exchange time was given.
        anchor: A trade at that time.
    """

    page: Page
    up_to_ms: int
    anchor: Anchor


@dataclass(slots=True)
class Found:
    """What a search by number has found.

    Args:
        pages: Trades that were asked for.
        missing: Numbers that no host gave.
        answered: Whether every host has answered: else what is missing may be there.
    """

    pages: list[Page]
    missing: list[SeqRun]
    answered: bool = True


class History:
    """The exchange's history.

    Args:
        hosts: In the order they are asked: the main one, perhaps an archive.
        clock: What time it is.
        page_trades: Trades a call gives at most, 1,000 on the exchange.
    """

    def __init__(self, hosts: Sequence[Host], clock: Clock, page_trades: int = 1000) -> None:
        self._hosts = tuple(hosts)
        self._clock = clock
        self._page_trades = page_trades

    async def walk(
        self, scope: Scope, from_ms: int, to_ms: int, anchor: Anchor | None
    ) -> AsyncIterator[WalkStep]:
        """Trades of a scope by time, page by page, each trade at least once.

        Args:
            scope: Of which instruments.
            from_ms: Exchange time of the begin.
            to_ms: Of the end, inclusive.
            anchor: A trade that must be among the first page's; None when none is known.

        Raises:
            UnavailableError: No host answers, or none gives the anchor.
            HistoryRefusedError: Every host refuses.
        """
        cursor = from_ms
        known: set[tuple[str, int]] = set()
        anchors = [anchor] if anchor is not None else []
        while True:
            page = await self._page_with(scope, cursor, to_ms, anchors)
            size = len(page.batch.trades) + len(page.batch.rejected)
            trades = _keep(page, cursor, to_ms)
            if not trades:
                return
            last = max(trades, key=lambda trade: trade.timestamp)
            newest = Anchor(last.instrument_name, last.trade_seq, last.timestamp)
            yield WalkStep(page, last.timestamp, newest)
            numbers = {(trade.instrument_name, trade.trade_seq) for trade in trades}
            if (size < self._page_trades and not page.has_more) or numbers <= known:
                return
            known = numbers
            cursor = self._next_cursor(cursor, trades, last.timestamp, size)
            ahead = [item for item in anchors if item[:2] not in numbers]
            anchors = [item for item in (newest, *ahead) if item.timestamp >= cursor]

    def _next_cursor(self, cursor: int, trades: list[Trade], last_ms: int, size: int) -> int:
        first_ms = min(trade.timestamp for trade in trades)
        back_ms = min(_STEP_BACK_MS, (last_ms - first_ms) // 2)
        if last_ms - back_ms > cursor:
            return last_ms - back_ms
        if size >= self._page_trades:
            _log.warning("a page holds one millisecond only", at_ms=cursor, trades=size)
        return cursor + 1

    async def _page_with(
        self, scope: Scope, from_ms: int, to_ms: int, anchors: Sequence[Anchor]
    ) -> Page:
        """The page from `from_ms`; it holds every anchor that cannot be on a later one."""
        params: dict[str, str | int] = {
            **scope.params,
            "start_timestamp": max(0, from_ms),
            "end_timestamp": to_ms,
            "count": self._page_trades,
            "sorting": "asc",
        }
        failure: UnavailableError | HistoryRefusedError | None = None
        empty: Page | None = None
        for host in self._hosts_for(from_ms):
            for _ in range(_ANCHOR_TRIES):
                try:
                    page = await host.trades(scope.method, params)
                except (UnavailableError, HistoryRefusedError) as error:
                    failure = failure or error
                    break
                lacking = self._lacking(page, anchors)
                if not lacking and (anchors or page.batch.trades):
                    return page
                empty = page if not anchors else None
        if empty is not None and failure is None:
            return empty  # every host says so, more than once
        if failure is not None:
            raise failure
        raise UnavailableError(f"the history lacks the known trade {anchors[0]}")

    def _lacking(self, page: Page, anchors: Sequence[Anchor]) -> list[Anchor]:
        trades = page.batch.trades
        given = {(trade.instrument_name, trade.trade_seq) for trade in trades}
        lacking = [item for item in anchors if item[:2] not in given]
        if len(trades) + len(page.batch.rejected) < self._page_trades:
            return lacking
        # Cut by its size: what happened later, or about then, can be on the next one.
        last_ms = max((trade.timestamp for trade in trades), default=0)
        return [item for item in lacking if item.timestamp < last_ms - _DISORDER_MS]

    def _hosts_for(self, from_ms: int) -> tuple[Host, ...]:
        """The main host first, for times that it keeps."""
        if from_ms < self._clock.now_ms() - _MAIN_KEEPS_MS:
            return self._hosts[::-1]
        return self._hosts

    async def numbers(self, instrument: str, first: int, last: int) -> Found:
        """Trades of one instrument by their numbers, from host to host until none is missing.

        Args:
            instrument: Its name.
            first: The first number.
            last: The last one, inclusive.
        """
        found = Found([], _pieces(first, last, self._page_trades))
        for host in self._hosts:
            asked, found.missing = found.missing, []
            for run in asked:
                try:
                    missing = await self._ask(host, instrument, run, found.pages)
                    for widened in missing:
                        found.missing += await self._ask(
                            host, instrument, widened, found.pages, widen=_WIDEN
                        )
                except (UnavailableError, HistoryRefusedError) as error:
                    # A host that refuses an instrument does not have it, which is an answer.
                    found.answered &= isinstance(error, HistoryRefusedError)
                    found.missing.append(run)
            if not found.missing:
                break
        return found

    async def _ask(
        self, host: Host, instrument: str, run: SeqRun, pages: list[Page], widen: int = 0
    ) -> list[SeqRun]:
        """Ask once; the numbers that were not given."""
        low, high = max(1, run[0] - widen), run[1] + widen
        params: dict[str, str | int] = {
            "instrument_name": instrument,
            "start_seq": low,
            "end_seq": high,
            "count": min(self._page_trades, high - low + 1),
            "sorting": "asc",
        }
        page = await host.trades("get_last_trades_by_instrument", params)
        batch = _select(page.batch, instrument, run)
        if batch.trades or batch.rejected:
            pages.append(Page(batch, has_more=False, simulated=page.simulated))
        given = {trade.trade_seq for trade in batch.trades}
        given |= {item.identity[1] for item in batch.rejected if item.identity}
        return _runs_without(run, given)


def _keep(page: Page, from_ms: int, to_ms: int) -> list[Trade]:
    """Drop what lies outside of the asked times."""
    batch = page.batch
    if all(from_ms <= trade.timestamp <= to_ms for trade in batch.trades):
        return batch.trades
    inside = [n for n, trade in enumerate(batch.trades) if from_ms <= trade.timestamp <= to_ms]
    page.batch = _pick(batch, inside)
    return page.batch.trades


def _select(batch: TradeBatch, instrument: str, run: SeqRun) -> TradeBatch:
    """The trades of one instrument within the asked numbers, in their order."""
    places = [
        place
        for place, trade in enumerate(batch.trades)
        if trade.instrument_name == instrument and run[0] <= trade.trade_seq <= run[1]
    ]
    places.sort(key=lambda place: batch.trades[place].trade_seq)
    picked = _pick(batch, places)
    picked.rejected = [
        item
        for item in batch.rejected
        if item.identity and item.identity[0] == instrument and run[0] <= item.identity[1] <= run[1]
    ]
    return picked


def _pick(batch: TradeBatch, places: list[int]) -> TradeBatch:
    extras = {new: batch.extras[old] for new, old in enumerate(places) if old in batch.extras}
    trades = [batch.trades[place] for place in places]
    return TradeBatch(batch.channel, trades, extras, batch.rejected)


def _pieces(first: int, last: int, size: int) -> list[SeqRun]:
    return [(low, min(last, low + size - 1)) for low in range(first, last + 1, size)]


def _runs_without(run: SeqRun, given: set[int]) -> list[SeqRun]:
    """The runs of numbers in `run` that are not in `given`."""
    runs: list[SeqRun] = []
    begin: int | None = None
    for number in range(run[0], run[1] + 1):
        if number in given:
            if begin is not None:
                runs.append((begin, number - 1))
            begin = None
        elif begin is None:
            begin = number
    if begin is not None:
        runs.append((begin, run[1]))
    return runs
