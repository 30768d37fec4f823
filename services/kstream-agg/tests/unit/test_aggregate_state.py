"""The aggregator's state against a slow, obvious reference, and by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kstream_agg.aggregate.intake import Instruments
from kstream_agg.aggregate.kept import Note, changes_of, restore
from kstream_agg.aggregate.rules import NO_WATERMARK, EwmaRules, WindowRules, Windows
from kstream_agg.aggregate.runs import Trades
from kstream_agg.aggregate.state import PartitionState, Result

NAMES = ("BTC-A", "BTC-B", "BTC-C")
PERIOD_MS, ALPHA = 10_000, 0.1
RULES = WindowRules(
    families=(Windows(PERIOD_MS, PERIOD_MS),),
    grace_ms=2_000,
    lateness_ms=1_000,
    skew_ms=500,
    retention_ms=5_000,
    ewma=EwmaRules(ALPHA),
)
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


Results = dict[tuple[str, int, int], dict[str, Any]]
"""By instrument, begin of the window after BASE, and its length."""


@dataclass
class Outcome:
    results: Results = field(default_factory=dict)
    refused: set[tuple[int, str]] = field(default_factory=set)
    repeated: int = 0
    order: list[tuple[int, str]] = field(default_factory=list)

    def add(self, results: list[Result]) -> None:
        for _, record in results:
            start, end = record["window_start"], record["window_end"]
            self.results[record["instrument_name"], start - BASE, end - start] = record
            self.order.append((record["window_end"], record["instrument_name"]))


def feed(state: PartitionState, trades: list[T], first_offset: int, outcome: Outcome) -> None:
    applied = state.apply(columns(trades, first_offset))
    outcome.add(applied.results)
    outcome.refused |= {(first_offset + item.index, item.reason) for item in applied.refused}
    outcome.repeated += applied.repeated


def run_state(trades: list[T], cuts: list[int], rules: WindowRules = RULES) -> Outcome:
    state, outcome = PartitionState(rules, NAMES.__getitem__), Outcome()
    edges = sorted({0, *cuts, len(trades)})
    for begin, end in itertools.pairwise(edges):
        feed(state, trades[begin:end], begin, outcome)
    return outcome


def windows_of(at: int, family: Windows) -> list[int]:
    """The begins of the windows that hold a moment, newest first."""
    newest = at // family.advance_ms * family.advance_ms
    begins = range(newest, newest - family.period_ms - family.advance_ms, -family.advance_ms)
    return [begin for begin in begins if begin <= at < begin + family.period_ms]


def reference(trades: list[T], rules: WindowRules = RULES) -> Outcome:
    """Trade by trade, from the definitions."""
    outcome = Outcome()
    highest: int | None = None
    counted: dict[tuple[int, int, int], list[T]] = {}
    seeds: dict[tuple[int, int, int], float] = {}
    running: dict[int, float] = {}

    def is_past(end: int, behind: int = 0) -> bool:
        return highest is not None and end + rules.grace_ms + behind <= highest - rules.lateness_ms

    for offset, trade in enumerate(trades):
        places = [
            (begin, family.period_ms)
            for family in rules.families
            for begin in windows_of(trade.at, family)
        ]
        if trade.at > trade.received + rules.skew_ms:
            outcome.refused.add((offset, "future"))
            continue
        if any(is_past(begin + period, rules.retention_ms) for begin, period in places):
            outcome.refused.add((offset, "late"))
        else:
            fresh = False
            before = running.get(trade.instrument, trade.price)
            for place, (begin, period) in enumerate(places):
                key = trade.instrument, begin, period
                inside = counted.setdefault(key, [])
                seeds.setdefault(key, before)
                is_new = all(trade.seq != known.seq for known in inside)
                if is_new:
                    inside.append(trade)
                if place == 0:
                    fresh = is_new
            outcome.repeated += not fresh
            if fresh:
                running[trade.instrument] = ALPHA * trade.price + (1 - ALPHA) * before
        highest = trade.at if highest is None else max(highest, trade.at)
    for (instrument, begin, period), inside in counted.items():
        if is_past(begin + period):
            seed = seeds[instrument, begin, period]
            outcome.results[NAMES[instrument], begin, period] = expected(inside, seed)
    return outcome


def expected(trades: list[T], seed: float) -> dict[str, Any]:
    current = seed
    for trade in trades:
        current = ALPHA * trade.price + (1 - ALPHA) * current
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


def assert_same(found: Results, wanted: Results) -> None:
    assert found.keys() == wanted.keys()
    for key, record in wanted.items():
        for name in ("trade_count", "first_trade_seq", "last_trade_seq"):
            assert found[key][name] == record[name]
        for name in ("seed", "current", "sma", "vwap", "open", "high", "low", "close"):
            value = record[name]
            assert found[key][name] == (value and pytest.approx(value, rel=1e-11)), name


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


FAMILIES = {
    "tumbling": (Windows(10_000, 10_000),),
    "several": (Windows(5_000, 5_000), Windows(10_000, 10_000), Windows(20_000, 20_000)),
    "hopping": (Windows(10_000, 5_000),),
    "hopping unevenly": (Windows(10_000, 4_000), Windows(20_000, 4_000)),
}
rules_made = st.builds(
    lambda name, retention: dataclasses.replace(
        RULES, families=FAMILIES[name], retention_ms=retention
    ),
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from([0, 5_000, 10**9]),
)


@settings(deadline=None, max_examples=200)
@given(future_lists | streams, cut_lists, rules_made)
def test_results_equal_the_reference_however_the_partition_is_cut(
    trades: list[T], cuts: list[int], rules: WindowRules
) -> None:
    wanted = reference(trades, rules)
    found = run_state(trades, within(cuts, trades), rules)
    assert_same(found.results, wanted.results)
    assert found.refused == wanted.refused
    assert found.repeated == wanted.repeated


class Kept:
    """A changelog in a dict."""

    def __init__(self, rules: WindowRules) -> None:
        self.rules = rules
        self.values: dict[bytes, bytes] = {}
        self.note = Note(0, NO_WATERMARK, NO_WATERMARK, rules.fingerprint)

    def save(self, state: PartitionState, instruments: Instruments) -> None:
        values, gone = changes_of(state, self.rules, instruments.name_of)
        for key, value in values:
            self.values.pop(key, None)  # as the changelog: in the order of the last values
            self.values[key] = value
        for key in gone:
            self.values.pop(key, None)
        self.note = Note(state.position, state.watermark, state.horizon, self.rules.fingerprint)

    def load(self) -> tuple[PartitionState, Instruments]:
        instruments = Instruments()
        for name in NAMES:
            assert instruments[name.encode()] == NAMES.index(name)
        state = restore(self.note, self.values, self.rules, instruments, instruments.name_of)
        return state, instruments


@settings(deadline=None, max_examples=200)
@given(
    future_lists | streams,
    st.lists(st.integers(0, 30), max_size=6),
    st.integers(0, 5),
    rules_made,
)
def test_a_restart_anywhere_changes_nothing(
    trades: list[T], lengths: list[int], unsaved: int, rules: WindowRules
) -> None:
    """Read so much, save, read `unsaved` trades more, crash: those are read again."""
    outcome = Outcome()
    kept = Kept(rules)
    for length in [*lengths, len(trades)]:
        state, instruments = kept.load()
        end = min(state.position + length, len(trades))
        feed(state, trades[state.position : end], state.position, outcome)
        kept.save(state, instruments)
        feed(state, trades[end : end + unsaved], end, Outcome())
    wanted = reference(trades, rules)
    assert_same(outcome.results, wanted.results)
    assert outcome.refused == wanted.refused
    assert outcome.repeated == wanted.repeated


@settings(deadline=None, max_examples=100)
@given(trades_lists | streams, cut_lists, st.integers(0, 60_000))
def test_showing_windows_early_changes_no_final_result(
    trades: list[T], cuts: list[int], now: int
) -> None:
    state, outcome = PartitionState(RULES, NAMES.__getitem__), Outcome()
    edges = sorted({0, *within(cuts, trades), len(trades)})
    shown: dict[tuple[str, int], int] = {}
    for begin, end in itertools.pairwise(edges):
        for results in (
            state.apply(columns(trades[begin:end], begin)).results,
            state.show_ended(BASE + now),
        ):
            for _, record in results:
                key = record["instrument_name"], record["window_start"]
                assert record["revision"] == shown.get(key, -1) + 1
                shown[key] = record["revision"]
            outcome.add(results)
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
            T(0, 14, 18_000, price=95.0),  # watermark 17,000: the first window is kept no longer
            T(0, 15, 9_000, price=1.0),  # late
        ],
        cuts=[],
    )
    assert outcome.repeated == 1
    assert outcome.refused == {(7, "late")}
    assert outcome.results["BTC-A", 0, PERIOD_MS] == {
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
        "seed_weight": None,
        "tau": None,
    }
    assert outcome.results["BTC-B", 0, PERIOD_MS]["vwap"] is None
    assert len(outcome.results) == 2


def test_a_late_trade_shows_its_window_again_until_the_retention_has_passed() -> None:
    state, outcome = PartitionState(RULES, NAMES.__getitem__), Outcome()
    feed(state, [T(0, 1, 0, 1.0), T(0, 2, 13_000, 1.0)], 0, outcome)
    assert (state.open_windows, state.retained_windows) == (1, 1)
    [again] = state.apply(columns([T(0, 3, 9_999, 3.0)], 2)).results
    assert (again.record["trade_count"], again.record["revision"]) == (2, 1)
    assert again.record["sma"] == 2.0
    assert (state.open_windows, state.retained_windows) == (1, 1)
    assert state.apply(columns([T(0, 3, 9_998, 3.0)], 3)).repeated == 1
    [new] = state.apply(columns([T(1, 1, 9_998, 3.0)], 4)).results
    assert (new.record["trade_count"], new.record["revision"]) == (1, 0)
    # Kept while the watermark is below end + grace + retention: 17,000.
    assert state.apply(columns([T(0, 4, 17_999, 1.0), T(0, 5, 9_000, 1.0)], 5)).refused == []
    applied = state.apply(columns([T(0, 6, 18_000, 1.0), T(0, 7, 9_000, 1.0)], 7))
    assert [(item.index, item.reason) for item in applied.refused] == [(1, "late")]
    assert state.retained_windows == 0


def test_what_is_kept_is_bounded_and_what_goes_first_is_oldest() -> None:
    rules = dataclasses.replace(RULES, retention_ms=10**9, retained_limit=3)
    state = PartitionState(rules, NAMES.__getitem__)
    state.apply(columns([T(0, n, n * 10_000, 1.0) for n in range(10)]))
    assert state.retained_windows == 3
    applied = state.apply(columns([T(0, 90, 40_000, 1.0), T(0, 91, 50_000, 1.0)], 10))
    assert [item.index for item in applied.refused] == [0]
    assert [result.record["window_start"] - BASE for result in applied.results] == [50_000]


def test_how_far_behind_and_ahead_refused_trades_are() -> None:
    state = PartitionState(RULES, NAMES.__getitem__)
    applied = state.apply(
        columns([T(0, 1, 30_000, 1.0), T(0, 2, 4_000, 2.0), T(0, 3, 40_000, 1.0, receipt=39_000)])
    )
    assert [(r.index, r.reason, r.behind_ms) for r in applied.refused] == [
        (1, "late", 25_000),
        (2, "future", 1_000),
    ]
    assert state.watermark == BASE + 29_000


def test_the_running_average_goes_on_from_window_to_window() -> None:
    outcome = run_state(
        [T(0, 1, 0, 10.0), T(0, 2, 20_000, 20.0), T(0, 4, 40_000, 30.0)],
        [],
    )
    assert outcome.results["BTC-A", 0, PERIOD_MS]["current"] == pytest.approx(10.0)
    second = outcome.results["BTC-A", 20_000, PERIOD_MS]
    assert second["seed"] == pytest.approx(10.0)
    assert second["current"] == pytest.approx(11.0)


@pytest.mark.parametrize("tau_ms", [None, 20_000.0])
def test_running_averages_are_bounded_and_what_has_not_moved_for_longest_goes_first(
    tau_ms: float | None,
) -> None:
    ewma = EwmaRules(ALPHA if tau_ms is None else 0.0, tau_ms=tau_ms, limit=2)
    rules = dataclasses.replace(RULES, ewma=ewma, retention_ms=10**9)
    kept = Kept(rules)
    state, instruments = kept.load()

    def trade(instrument: int, seq: int, at: int, price: float) -> None:
        state.apply(columns([T(instrument, seq, at, price)], state.position))
        kept.save(state, instruments)

    trade(0, 1, 0, 10.0)
    trade(1, 1, 1, 10.0)
    trade(0, 2, 2, 10.0)
    assert {key for key in kept.values if key.endswith(b"|ewma")} == {
        f"{NAMES[number]}|ewma".encode() for number in (0, 1)
    }
    # Also of a state that was restored: the changelog tells the order.
    state, instruments = kept.load()
    trade(2, 1, 3, 10.0)
    assert {key for key in kept.values if key.endswith(b"|ewma")} == {
        f"{NAMES[number]}|ewma".encode() for number in (0, 2)
    }
    # The forgotten one's window is still open and goes on; its average begins with this trade.
    trade(1, 2, 4, 20.0)
    trade(1, 3, 20_000, 30.0)
    [*_, last] = state.apply(columns([T(1, 4, 60_000, 1.0)], state.position)).results
    assert last.record["seed"] == pytest.approx(20.0)


def test_windows_can_begin_anew_and_from_zero() -> None:
    trades = [T(0, 1, 0, 10.0), T(0, 2, 1, 20.0), T(0, 3, 12_000, 10.0), T(0, 4, 40_000, 1.0)]
    ewma = EwmaRules(ALPHA, start="zero", reset="window")
    found = run_state(trades, [], dataclasses.replace(RULES, ewma=ewma)).results
    assert found["BTC-A", 0, PERIOD_MS]["current"] == pytest.approx(0.9 * 1.0 + 0.1 * 20)
    assert found["BTC-A", 10_000, PERIOD_MS]["current"] == pytest.approx(1.0)
    going_on = dataclasses.replace(RULES, ewma=EwmaRules(ALPHA, start="zero"))
    found = run_state(trades, [], going_on).results
    assert found["BTC-A", 0, PERIOD_MS]["seed"] == 0.0
    assert found["BTC-A", 10_000, PERIOD_MS]["seed"] == pytest.approx(2.9)


TAU_MS = 7_000.0
BY_TIME = dataclasses.replace(RULES, ewma=EwmaRules(0.0, tau_ms=TAU_MS), retention_ms=10**9)


@settings(deadline=None, max_examples=100)
@given(trades_lists, cut_lists, st.sampled_from(sorted(FAMILIES)), st.randoms())
def test_the_time_decayed_average_is_that_of_the_formula_in_any_order_within_windows(
    trades: list[T], cuts: list[int], family: str, chance: random.Random
) -> None:
    rules = dataclasses.replace(BY_TIME, families=FAMILIES[family])
    # Numbers of their own, and instruments apart: neither repeats nor order matter here.
    trades = sorted(trades, key=lambda trade: trade.at)
    ordered = [trade._replace(seq=number) for number, trade in enumerate(trades)]
    edge = math.gcd(*(ms for w in rules.families for ms in (w.period_ms, w.advance_ms)))
    mixed = []
    for _, group in itertools.groupby(ordered, key=lambda trade: trade.at // edge):
        inside = list(group)
        mixed += chance.sample(inside, len(inside))
    found = run_state(mixed, within(cuts, mixed), rules)
    for (name, begin, period), record in found.results.items():
        before = [t for t in ordered if NAMES[t.instrument] == name and t.at < begin + period]
        last = max(trade.at for trade in before)
        weights = [math.exp((trade.at - last) / TAU_MS) for trade in before]
        prices = math.fsum(w * t.price for w, t in zip(weights, before, strict=True))
        assert record["current"] == pytest.approx(prices / math.fsum(weights), rel=1e-9)
        assert (record["alpha"], record["tau"]) == (0.0, TAU_MS / 1000)


def test_the_time_decayed_average_survives_a_restart() -> None:
    trades = [T(0, n, n * 3_000, float(n)) for n in range(12)]
    kept, outcome = Kept(BY_TIME), Outcome()
    for begin in range(0, 12, 3):
        state, instruments = kept.load()
        feed(state, trades[begin : begin + 3], begin, outcome)
        kept.save(state, instruments)
    assert outcome.results == run_state(trades, [3, 6, 9], BY_TIME).results


def test_an_idle_window_is_shown_once_and_again_when_it_has_changed() -> None:
    state = PartitionState(RULES, NAMES.__getitem__)
    state.apply(columns([T(0, 1, 0, 10.0)]))
    assert state.show_ended(BASE + 11_999) == []
    [(_, first)] = state.show_ended(BASE + 12_000)
    assert (first["closed_by"], first["revision"], first["trade_count"]) == ("idle", 0, 1)
    assert state.show_ended(BASE + 99_000) == []
    [(_, again)] = state.apply(columns([T(0, 2, 5_000, 12.0), T(0, 3, 15_000, 12.0)], 1)).results
    assert (again["closed_by"], again["revision"], again["trade_count"]) == ("watermark", 1, 2)
    [_] = state.show_ended(BASE + 99_000)
    assert state.apply(columns([T(1, 1, 50_000, 1.0)], 3)).results == []
    assert state.open_windows == 1


def test_what_was_shown_early_is_not_shown_again_after_a_restart() -> None:
    kept = Kept(RULES)
    state, instruments = kept.load()
    state.apply(columns([T(0, 1, 0, 10.0)]))
    assert len(state.show_ended(BASE + 12_000)) == 1
    kept.save(state, instruments)
    state, _ = kept.load()
    assert state.show_ended(BASE + 99_000) == []
    [(_, again)] = state.apply(columns([T(0, 2, 5_000, 12.0), T(0, 3, 15_000, 1.0)], 1)).results
    assert (again["revision"], again["trade_count"]) == (1, 2)
