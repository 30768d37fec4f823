"""Windows made again from a whole partition, compared with the definitions, trade by trade."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from kstream_agg.aggregate.intake import Instruments
from kstream_agg.aggregate.recomputation import Recomputation, Wanted, WindowId, is_same
from kstream_agg.aggregate.rules import EwmaRules, WindowRules, Windows
from kstream_agg.aggregate.runs import Trades
from kstream_agg.aggregate.state import PartitionState

START = 1_700_000_040_000  # begin of a minute
MINUTE = 60_000
ALPHA = 0.25
Row = tuple[str, int, int, float]  # instrument, trade_seq, ms behind START, price


def rules(**changes: Any) -> WindowRules:  # noqa: ANN401 - fields of the rules, checked by them
    values: dict[str, Any] = {
        "families": (Windows(MINUTE, MINUTE),),
        "grace_ms": 0,
        "lateness_ms": 0,
        "skew_ms": 60_000,
        "retention_ms": MINUTE,
        "ewma": EwmaRules(ALPHA),
    }
    return WindowRules(**values | changes)


def columns(rows: list[Row], instruments: Instruments, first_offset: int = 0) -> Trades:
    times = np.array([START + at for _, _, at, _ in rows], dtype=np.int64)
    return Trades(
        offset=np.arange(first_offset, first_offset + len(rows), dtype=np.int64),
        instrument=np.array([instruments[name.encode()] for name, *_ in rows], dtype=np.int32),
        trade_seq=np.array([seq for _, seq, _, _ in rows], dtype=np.int64),
        timestamp=times,
        received_at=times + 5,
        price=np.array([price for *_, price in rows]),
        amount=np.ones(len(rows)),
    )


def made(
    rows: list[Row],
    wanted: Wanted,
    standing: dict[WindowId, dict[str, Any]] | None = None,
    batch: int = 10_000,
    chosen: WindowRules | None = None,
) -> dict[WindowId, dict[str, Any]]:
    instruments = Instruments()
    recomputation = Recomputation(chosen or rules(), wanted, instruments, standing or {})
    for begin in range(0, len(rows), batch):
        recomputation.apply(columns(rows[begin : begin + batch], instruments, begin))
    return dict(recomputation.records())


def emitted(rows: list[Row], chosen: WindowRules) -> dict[WindowId, dict[str, Any]]:
    """What the aggregator has shown last of each window."""
    instruments = Instruments()
    state = PartitionState(chosen, instruments.name_of)
    found = {}
    for family, record in state.apply(columns(rows, instruments)).results:
        found[WindowId(family, record["instrument_name"], record["window_start"])] = record
    return found


def first_window(name: str) -> WindowId:
    return WindowId(0, name, START)


FIRST_MINUTE = Wanted(START, START + MINUTE)


def test_a_late_trade_counts_at_its_place_and_the_recorded_seed_stays() -> None:
    ordered: list[Row] = [
        ("A", 1, -MINUTE, 8.0),
        ("A", 2, 1_000, 16.0),
        ("A", 4, 2_000, 32.0),
        ("A", 5, 5 * MINUTE, 64.0),
    ]
    standing = emitted(ordered, rules())
    assert standing[first_window("A")]["seed"] == 8.0
    late: list[Row] = [*ordered, ("A", 3, 1_500, 4.0)]
    [(window_id, record)] = made(late, FIRST_MINUTE, standing).items()
    assert window_id == first_window("A")
    assert record["closed_by"] == "recompute"
    assert (record["trade_count"], record["seed"]) == (3, 8.0)
    assert (record["open"], record["close"], record["low"]) == (16.0, 32.0, 4.0)
    current = 8.0
    for price in (16.0, 32.0, 4.0):
        current = ALPHA * price + (1 - ALPHA) * current
    assert record["current"] == current


def test_a_window_without_a_record_starts_from_the_running_value_where_its_first_trade_stands() -> (
    None
):
    rows: list[Row] = [
        ("A", 1, -MINUTE, 8.0),
        ("A", 4, 5 * MINUTE, 16.0),
        ("A", 2, 10_000, 4.0),  # late: refused, moves no running value
        ("A", 3, 20_000, 2.0),
        ("A", 5, 6 * MINUTE, 100.0),
    ]
    [record] = made(rows, FIRST_MINUTE).values()
    running = ALPHA * 16.0 + (1 - ALPHA) * 8.0
    assert record["seed"] == running
    assert record["current"] == ALPHA * 2.0 + (1 - ALPHA) * (ALPHA * 4.0 + (1 - ALPHA) * running)
    again = made(rows, FIRST_MINUTE, {first_window("A"): record})
    assert is_same(again[first_window("A")], record)


def test_the_first_trade_of_all_may_be_a_late_one() -> None:
    rows: list[Row] = [("B", 1, 5 * MINUTE, 1.0), ("A", 1, 0, 4.0), ("A", 2, 6 * MINUTE, 2.0)]
    [record] = made(rows, FIRST_MINUTE).values()
    assert (record["seed"], record["current"]) == (4.0, 4.0)
    # It was never counted: the running value begins with the one that was.
    [later] = made(rows, Wanted(START + 6 * MINUTE, START + 7 * MINUTE)).values()
    assert (later["seed"], later["current"]) == (2.0, 2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"families": (Windows(MINUTE, MINUTE), Windows(5 * MINUTE, 5 * MINUTE))},
        {"families": (Windows(2 * MINUTE, 30_000),)},
        {"ewma": EwmaRules(0.0, tau_ms=45_000.0)},
        {"ewma": EwmaRules(ALPHA, start="zero", reset="window")},
    ],
    ids=["tumbling", "two periods", "hopping", "time-decayed", "reset"],
)
def test_without_late_trades_it_makes_what_the_aggregator_has_made(changes: dict[str, Any]) -> None:
    chosen = rules(retention_ms=10 * MINUTE, **changes)
    rng = random.Random(5)  # noqa: S311 - a test's data
    rows: list[Row] = [
        (f"I{rng.randrange(5)}", number, number * 700 - rng.randrange(3_000), rng.random() + 1)
        for number in range(1_500)
    ]
    rows += rng.sample(rows, 20)  # repeats
    rows.append(("I0", 9_999, 100 * MINUTE, 1.0))  # closes all the others
    shown = emitted(rows, chosen)
    found = made(rows, Wanted(START, START + 10 * MINUTE), None, 97, chosen)
    assert len(found) >= 50
    assert [item for item in found if not is_same(found[item], shown[item])] == []


def test_trades_out_of_the_period_of_other_instruments_and_of_the_future_are_left_out() -> None:
    rows: list[Row] = [("A", 1, 0, 1.0), ("B", 1, 0, 1.0), ("A", 2, MINUTE, 1.0)]
    only_a = Wanted(START, START + 1, frozenset({"A"}))
    assert list(made(rows, only_a)) == [first_window("A")]
    instruments = Instruments()
    recomputation = Recomputation(rules(), FIRST_MINUTE, instruments, {})
    trades = columns(rows[:1], instruments)
    trades.received_at[:] = START - 60_001
    recomputation.apply(trades)
    assert list(recomputation.records()) == []
    assert recomputation.oldest_ms is None


def test_records_differ_by_more_than_rounding() -> None:
    rows: list[Row] = [("A", 1, 0, 1.0), ("A", 2, 1, 3.0)]
    [record] = made(rows, FIRST_MINUTE).values()
    assert is_same(record, record | {"sma": record["sma"] * (1 + 1e-12), "revision": 7})
    for name, wrong in (("sma", 2.1), ("trade_count", 3), ("seed", 0.9), ("seed_weight", 1.0)):
        assert not is_same(record, record | {name: wrong})
