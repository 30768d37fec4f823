"""The history's misleading answers: what was asked for is found, and what is not there is told."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import UnavailableError
from kstream_agg.deribit.frames import TradeBatch
from kstream_agg.deribit.history import History
from kstream_agg.deribit.history_api import HistoryRefusedError, Page
from kstream_agg.deribit.ledger import Anchor
from kstream_agg.deribit.scope import scopes_of
from kstream_agg.deribit.trades import Trade

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NOW_MS = 1_789_344_935_000
(SCOPE,) = scopes_of("trades.option.BTC.100ms")
NAMES = ("BTC-27MAR26-100000-C", "BTC-27MAR26-90000-P", "BTC-5AUG26-58000-P")


def trade(number: int, timestamp: int, name: str = NAMES[0], seq: int | None = None) -> Trade:
    return Trade(
        instrument_name=name,
        trade_seq=seq or number,
        trade_id=str(number),
        timestamp=timestamp,
        direction="buy",
        price=1.0,
        amount=1.0,
        tick_direction=1,
    )


def market(count: int, seed: int = 1) -> list[Trade]:
    """Trades in the order of their ids; their times disagree with it by up to 18 ms."""
    rng = random.Random(seed)  # noqa: S311 - trades, no secrets
    seqs = dict.fromkeys(NAMES, 0)
    trades, at_ms = [], NOW_MS - 3_600_000
    for number in range(1, count + 1):
        name = rng.choice(NAMES)
        seqs[name] += 1
        trades.append(trade(number, at_ms + rng.randint(0, 18), name, seqs[name]))
        at_ms += rng.choice((0, 0, 0, 1, 2, 700))
    return trades


@dataclass
class FakeHost:
    """Answers as the exchange does; `spoil` changes an answer before it is given."""

    held: Sequence[Trade]
    name: str = "main"
    spoil: Callable[[list[Trade], int], list[Trade]] = lambda found, _: found
    calls: list[dict[str, str | int]] = field(default_factory=list)
    failure: Exception | None = None

    async def trades(self, method: str, params: Mapping[str, str | int]) -> Page:
        del method
        self.calls.append(dict(params))
        if self.failure is not None:
            raise self.failure
        found = [item for item in self.held if self._matches(item, params)]
        count = int(params["count"])
        page = self.spoil(found[:count], len(self.calls))
        return Page(TradeBatch("", page), has_more=len(found) > count)

    @staticmethod
    def _matches(item: Trade, params: Mapping[str, str | int]) -> bool:
        if "start_seq" in params:
            inside = int(params["start_seq"]) <= item.trade_seq <= int(params["end_seq"])
            return inside and item.instrument_name == params["instrument_name"]
        low, high = int(params["start_timestamp"]), int(params["end_timestamp"])
        return low <= item.timestamp <= high


def identities(trades: Sequence[Trade]) -> list[tuple[str, int]]:
    return [(item.instrument_name, item.trade_seq) for item in trades]


def walk(
    hosts: Sequence[FakeHost], from_ms: int = 0, anchor: Anchor | None = None, page: int = 50
) -> list[tuple[str, int]]:
    async def main() -> list[tuple[str, int]]:
        history = History(hosts, ManualClock(NOW_MS), page)
        steps = history.walk(SCOPE, from_ms, NOW_MS, anchor)
        return [number async for step in steps for number in identities(step.page.batch.trades)]

    return asyncio.run(main())


@pytest.mark.parametrize("seed", range(5))
def test_a_walk_gives_every_trade_though_pages_are_cut_by_id(seed: int) -> None:
    trades = market(700, seed)
    found = walk([FakeHost(trades)], from_ms=NOW_MS - 3_600_000)
    assert set(found) == set(identities(trades))


def test_a_walk_takes_only_what_lies_in_the_asked_time() -> None:
    trades = market(200)
    leaked = trade(999, NOW_MS + 10, seq=999)
    host = FakeHost(trades, spoil=lambda found, _: [*found, leaked])
    assert (NAMES[0], 999) not in walk([host], from_ms=NOW_MS - 3_600_000)


def test_more_trades_in_a_millisecond_than_a_page_holds_do_not_stop_the_walk() -> None:
    at_ms = NOW_MS - 1_000_000
    trades = [trade(number, at_ms) for number in range(1, 81)] + [trade(81, at_ms + 5)]
    found = walk([FakeHost(trades)], from_ms=at_ms, page=50)
    assert (NAMES[0], 81) in found


def test_an_answer_without_the_known_trade_is_asked_for_again() -> None:
    trades = market(120)
    known = Anchor(trades[0].instrument_name, trades[0].trade_seq, trades[0].timestamp)
    host = FakeHost(trades, spoil=lambda found, call: [] if call % 2 else found)
    found = walk([host], from_ms=NOW_MS - 3_600_000, anchor=known)
    assert set(found) == set(identities(trades))


def test_the_known_trade_may_be_on_a_later_page_but_not_nowhere() -> None:
    trades = market(400)
    known = Anchor(trades[300].instrument_name, trades[300].trade_seq, trades[300].timestamp)
    found = walk([FakeHost(trades)], from_ms=NOW_MS - 3_600_000, anchor=known)
    assert set(found) == set(identities(trades))
    without = FakeHost([item for item in trades if item is not trades[300]])
    with pytest.raises(UnavailableError, match="lacks the known trade"):
        walk([without], from_ms=NOW_MS - 3_600_000, anchor=known)


def test_old_times_are_asked_of_the_archive_first() -> None:
    trades = [trade(1, NOW_MS - 90_000_000)]
    main, archive = FakeHost([]), FakeHost(trades, name="archive")
    assert walk([main, archive], from_ms=NOW_MS - 90_000_001) == [(NAMES[0], 1)]
    assert main.calls == []


def test_a_main_host_that_keeps_less_than_thought_is_found_out_by_the_known_trade() -> None:
    trades = market(20)
    known = Anchor(trades[0].instrument_name, trades[0].trade_seq, trades[0].timestamp)
    main, archive = FakeHost(trades[10:]), FakeHost(trades, name="archive")
    found = walk([main, archive], from_ms=NOW_MS - 3_600_000, anchor=known)
    assert set(found) == set(identities(trades))


def test_a_known_trade_that_nobody_gives_is_an_error() -> None:
    with pytest.raises(UnavailableError, match="lacks the known trade"):
        walk([FakeHost(market(20))], anchor=Anchor(NAMES[0], 999, NOW_MS))


def test_nothing_there_is_no_error() -> None:
    assert walk([FakeHost([])]) == []


def numbers(
    hosts: Sequence[FakeHost], first: int, last: int, page: int = 50
) -> tuple[list[int], list[tuple[int, int]], bool]:
    history = History(hosts, ManualClock(NOW_MS), page)
    found = asyncio.run(history.numbers(NAMES[0], first, last))
    given = [item.trade_seq for page in found.pages for item in page.batch.trades]
    return given, found.missing, found.answered


def test_numbers_are_found_though_the_answer_begins_late_and_ends_late() -> None:
    trades = [trade(number, NOW_MS) for number in range(1, 301)]

    def shifted(found: list[Trade], _: int) -> list[Trade]:
        after = trades[found[-1].trade_seq : found[-1].trade_seq + 3]
        return [*found[2:], *after]

    given, missing, answered = numbers([FakeHost(trades, spoil=shifted)], 101, 230)
    assert sorted(given) == list(range(101, 231))
    assert (missing, answered) == ([], True)


def test_what_the_main_host_lacks_is_asked_of_the_archive() -> None:
    trades = [trade(number, NOW_MS) for number in range(1, 11)]
    main, archive = FakeHost(trades[5:]), FakeHost(trades[1:], name="archive")
    given, missing, answered = numbers([main, archive], 1, 10)
    assert sorted(given) == list(range(2, 11))
    assert (missing, answered) == ([(1, 1)], True)


def test_a_host_that_does_not_answer_proves_nothing_one_that_refuses_does() -> None:
    silent = FakeHost([], failure=UnavailableError("no"))
    refusing = FakeHost([], failure=HistoryRefusedError("no such instrument"))
    assert numbers([silent], 1, 3) == ([], [(1, 3)], False)
    assert numbers([refusing], 1, 3) == ([], [(1, 3)], True)
