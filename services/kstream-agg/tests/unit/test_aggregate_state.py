"""The aggregator's state against a slow, obvious reference, and by hand."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kstream_agg.aggregate.rules import NO_WATERMARK, WindowRules
from kstream_agg.aggregate.runs import Trades
from kstream_agg.aggregate.state import PartitionState

NAMES = ("BTC-A", "BTC-B", "BTC-C")
RULES = WindowRules(period_ms=10_000, grace_ms=2_000, lateness_ms=1_000, skew_ms=500, alpha=0.1)
BASE = 1_700_000_000_000 // 10_000 * 10_000


class T(NamedTuple):
    """A trade; times in ms after the beginning of a window."""

    instrument: int
    seq: int
    at: int
    price: float
    amount: float = 1.0
    receipt: int | None = None

    @property
    def received(self) -> int:
        return self.at if self.receipt is None else self.receipt


def columns(trades: list[T], first_offset: int = 0) -> Trades:
    return Trades(
        offset=np.arange(first_offset, first_offset + len(trades), dtype=np.int64),
        instrument=np.array([t.instrument for t in trades], dtype=np.int32),
        trade_seq=np.array([t.seq for t in trades], dtype=np.int64),
        timestamp=np.array([BASE + t.at for t in trades], dtype=np.int64),
        received_at=np.array([BASE + t.received for t in trades], dtype=np.int64),
        price=np.array([t.price for t in trades], dtype=np.float64),
        amount=np.array([t.amount for t in trades], dtype=np.float64),
    )


Results = dict[tuple[str, int], dict[str, Any]]


@dataclass
class Outcome:
    results: Results = field(default_factory=dict)
    refused: set[tuple[int, str]] = field(default_factory=set)
    repeated: int = 0
    order: list[tuple[int, str]] = field(default_factory=list)

    def add(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self.results[record["instrument_name"], record["window_start"] - BASE] = record
            self.order.append((record["window_end"], record["instrument_name"]))


def new_state(start: int = 0, position: int = 0, watermark: int = NO_WATERMARK) -> PartitionState:
    return PartitionState(
        RULES, NAMES.__getitem__, start=start, position=position, watermark=watermark
    )


def feed(state: PartitionState, trades: list[T], first_offset: int, outcome: Outcome) -> None:
    applied = state.apply(columns(trades, first_offset))
    outcome.add(applied.results)
    outcome.refused |= {(first_offset + item.index, item.reason) for item in applied.refused}
    outcome.repeated += applied.repeated


def run_state(trades: list[T], cuts: list[int]) -> Outcome:
    state, outcome = new_state(), Outcome()
    edges = sorted({0, *cuts, len(trades)})
    for begin, end in itertools.pairwise(edges):
        feed(state, trades[begin:end], begin, outcome)
    return outcome


def reference(trades: list[T]) -> Outcome:
    """Trade by trade, from the definitions."""
    outcome = Outcome()
    highest: int | None = None
    counted: dict[tuple[int, int], list[T]] = {}
    seeds: dict[tuple[int, int], float] = {}
    running: dict[int, float] = {}

    def is_closed(window: int) -> bool:
        closes = window + RULES.period_ms + RULES.grace_ms
        return highest is not None and closes <= highest - RULES.lateness_ms

    for offset, trade in enumerate(trades):
        window = trade.at // RULES.period_ms * RULES.period_ms
        if trade.at > trade.received + RULES.skew_ms:
            outcome.refused.add((offset, "future"))
            continue
        if is_closed(window):
            outcome.refused.add((offset, "late"))
        elif any(trade.seq == t.seq for t in counted.get((trade.instrument, window), [])):
            outcome.repeated += 1
        else:
            seeds.setdefault((trade.instrument, window), running.get(trade.instrument, trade.price))
            before = running.get(trade.instrument, trade.price)
            running[trade.instrument] = RULES.alpha * trade.price + (1 - RULES.alpha) * before
            counted.setdefault((trade.instrument, window), []).append(trade)
        highest = trade.at if highest is None else max(highest, trade.at)
    for (instrument, window), inside in counted.items():
        if is_closed(window):
            seed = seeds[instrument, window]
            outcome.results[NAMES[instrument], window] = expected(inside, seed)
    return outcome


def expected(trades: list[T], seed: float) -> dict[str, Any]:
    current = seed
    for trade in trades:
        current = RULES.alpha * trade.price + (1 - RULES.alpha) * current
    volume = math.fsum(trade.amount for trade in trades)
    product = math.fsum(trade.amount * trade.price for trade in trades)
    by_seq = sorted(trades, key=lambda trade: trade.seq)
    return {
        "seed": seed,
        "current": current,
        "sma": math.fsum(trade.price for trade in trades) / len(trades),
        "vwap": product / volume if volume else None,
        "open": by_seq[0].price,
        "high": max(trade.price for trade in trades),
        "low": min(trade.price for trade in trades),
        "close": by_seq[-1].price,
        "trade_count": len(trades),
        "volume": volume,
        "first_trade_seq": by_seq[0].seq,
        "last_trade_seq": by_seq[-1].seq,
    }


def assert_same(found: Results, wanted: Results, *, but: frozenset[str] = frozenset()) -> None:
    assert found.keys() == wanted.keys()
    for key, record in wanted.items():
        for name in ("trade_count", "first_trade_seq", "last_trade_seq"):
            assert found[key][name] == record[name]
        for name in {"seed", "current", "sma", "vwap", "open", "high", "low", "close"} - but:
            value = record[name]
            assert found[key][name] == (value and pytest.approx(value, rel=1e-12)), name


trades_lists = st.lists(
    st.builds(
        T,
        instrument=st.integers(0, 2),
        seq=st.integers(1, 30),
        at=st.integers(0, 45_000),
        price=st.integers(1, 10**8).map(lambda n: n / 1000),
        amount=st.sampled_from([0.0, 0.1, 25.0]),
        receipt=st.none(),
    ),
    max_size=30,
).flatmap(lambda trades: st.permutations(trades) | st.just(sorted(trades, key=lambda t: t.at)))
future_lists = trades_lists.map(
    lambda trades: [
        t._replace(receipt=t.at - 501 + t.seq % 3) if t.seq % 7 == 0 else t for t in trades
    ]
)


def stream(seed: int) -> list[T]:
    """What a partition looks like: nearly in order, now and then late, repeated or too early."""
    chance = random.Random(seed)  # noqa: S311 - a test's data
    trades: list[T] = []
    seqs = [chance.randrange(5) for _ in NAMES]
    for number in range(chance.randrange(30, 80)):
        instrument = chance.randrange(len(NAMES))
        at = max(0, number * 600 - int(chance.expovariate(1 / 1_500)))
        if trades and chance.random() < 0.05:
            trades.append(chance.choice(trades))
            continue
        seqs[instrument] += 1 if chance.random() < 0.9 else chance.randrange(-3, 3)
        receipt = at - 600 if chance.random() < 0.03 else None
        price, amount = chance.randrange(1, 10**6) / 1000, chance.choice([0.0, 0.1, 25.0])
        trades.append(T(instrument, seqs[instrument], at, price, amount, receipt))
    return trades


streams = st.integers(0, 2**32).map(stream)
cut_lists = st.lists(st.integers(0, 80), max_size=5)


def within(cuts: list[int], trades: list[T]) -> list[int]:
    return [cut for cut in cuts if cut <= len(trades)]


@settings(deadline=None, max_examples=150)
@given(future_lists | streams, cut_lists)
def test_results_equal_the_reference_however_the_partition_is_cut(
    trades: list[T], cuts: list[int]
) -> None:
    wanted = reference(trades)
    found = run_state(trades, within(cuts, trades))
    assert_same(found.results, wanted.results)
    assert found.refused == wanted.refused
    assert found.repeated == wanted.repeated
    assert found.order == run_state(trades, []).order


@settings(deadline=None, max_examples=150)
@given(future_lists | streams, st.lists(st.integers(0, 30), max_size=6), st.integers(0, 5))
def test_a_restart_anywhere_changes_neither_results_nor_what_is_late(
    trades: list[T], lengths: list[int], unsaved: int
) -> None:
    """Read so much, commit, read `unsaved` trades more, crash; also in the middle of a replay."""
    outcome = Outcome()
    resume, position, watermark = 0, 0, NO_WATERMARK
    for length in [*lengths, len(trades)]:
        state = new_state(resume, position, watermark)
        end = min(resume + length, len(trades))
        feed(state, trades[resume:end], resume, outcome)
        resume, position, watermark = state.resume_offset(), state.position, state.watermark
        assert resume <= position
        feed(state, trades[end : end + unsaved], end, outcome)
    wanted = reference(trades)
    # Each restart forgets the running value: it is recomputed from the seed that is recorded.
    assert_same(outcome.results, wanted.results, but=frozenset({"seed", "current"}))
    assert outcome.refused == wanted.refused


@settings(deadline=None, max_examples=150)
@given(trades_lists | streams, cut_lists, st.integers(0, 60_000))
def test_showing_windows_early_changes_no_final_result(
    trades: list[T], cuts: list[int], now: int
) -> None:
    state, outcome = new_state(), Outcome()
    edges = sorted({0, *within(cuts, trades), len(trades)})
    shown: dict[tuple[str, int], int] = {}
    for begin, end in itertools.pairwise(edges):
        for records in (
            state.apply(columns(trades[begin:end], begin)).results,
            state.show_ended(BASE + now),
        ):
            for record in records:
                key = record["instrument_name"], record["window_start"]
                assert record["revision"] == shown.get(key, -1) + 1
                shown[key] = record["revision"]
            outcome.add(records)
        assert state.show_ended(BASE + now) == []
    final = reference(trades).results
    assert_same({key: outcome.results[key] for key in final}, final)


def test_a_worked_example() -> None:
    outcome = run_state(
        [
            T(0, 11, 1_000, price=100.0, amount=2.0),
            T(0, 10, 2_000, price=110.0, amount=1.0),
            T(1, 5, 3_000, price=7.0, amount=0.0),
            T(0, 12, 9_999, price=90.0, amount=1.0),
            T(0, 13, 10_000, price=95.0),  # the end belongs to the next window
            T(0, 11, 9_998, price=100.0, amount=2.0),  # a repeat
            T(0, 14, 13_000, price=95.0),  # watermark 12,000 = 10,000 + grace: closed
            T(0, 15, 9_000, price=1.0),  # late
        ],
        cuts=[],
    )
    assert outcome.repeated == 1
    assert outcome.refused == {(7, "late")}
    assert outcome.results["BTC-A", 0] == {
        "instrument_name": "BTC-A",
        "window_start": BASE,
        "window_end": BASE + 10_000,
        "period": 10,
        "alpha": 0.1,
        "seed": 100.0,
        "current": pytest.approx(0.1 * 90 + 0.9 * (0.1 * 110 + 0.9 * 100)),
        "sma": 100.0,
        "vwap": 100.0,
        "open": 110.0,
        "high": 110.0,
        "low": 90.0,
        "close": 90.0,
        "trade_count": 3,
        "volume": 4.0,
        "first_trade_seq": 10,
        "last_trade_seq": 12,
        "revision": 0,
        "closed_by": "watermark",
    }
    assert outcome.results["BTC-B", 0]["vwap"] is None
    assert len(outcome.results) == 2


def test_a_trade_that_arrives_exactly_at_the_close_is_late_and_one_before_is_not() -> None:
    just_open = run_state([T(0, 1, 12_999, 1.0), T(0, 2, 9_999, 2.0)], [])
    closed = run_state([T(0, 1, 13_000, 1.0), T(0, 2, 9_999, 2.0)], [])
    assert just_open.refused == set()
    assert closed.refused == {(1, "late")}


def test_how_far_behind_and_ahead_refused_trades_are() -> None:
    state = new_state()
    applied = state.apply(
        columns([T(0, 1, 20_000, 1.0), T(0, 2, 4_000, 2.0), T(0, 3, 30_000, 1.0, receipt=29_000)])
    )
    assert [(r.index, r.reason, r.behind_ms) for r in applied.refused] == [
        (1, "late", 15_000),
        (2, "future", 1_000),
    ]
    assert state.watermark == BASE + 19_000


def test_the_running_average_goes_on_from_window_to_window_and_skips_late_trades() -> None:
    outcome = run_state(
        [
            T(0, 1, 0, 10.0),
            T(0, 2, 20_000, 20.0),
            T(0, 3, 1_000, 99.0),  # late: not folded
            T(0, 4, 40_000, 30.0),
        ],
        [],
    )
    assert outcome.results["BTC-A", 0]["current"] == pytest.approx(10.0)
    second = outcome.results["BTC-A", 20_000]
    assert second["seed"] == pytest.approx(10.0)
    assert second["current"] == pytest.approx(11.0)


def test_an_idle_window_is_shown_once_and_again_when_it_has_changed() -> None:
    state = new_state()
    state.apply(columns([T(0, 1, 0, 10.0)]))
    assert state.show_ended(BASE + 11_999) == []
    [first] = state.show_ended(BASE + 12_000)
    assert (first["closed_by"], first["revision"], first["trade_count"]) == ("idle", 0, 1)
    assert state.show_ended(BASE + 99_000) == []
    assert state.resume_offset() == 0
    [again] = state.apply(columns([T(0, 2, 5_000, 12.0), T(0, 3, 15_000, 12.0)], 1)).results
    assert (again["closed_by"], again["revision"], again["trade_count"]) == ("watermark", 1, 2)
    [_] = state.show_ended(BASE + 99_000)
    assert state.apply(columns([T(1, 1, 50_000, 1.0)], 3)).results == []
    assert state.resume_offset() == 3
    assert state.open_windows == 1
