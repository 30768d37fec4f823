"""Recomputation and verdicts, without Kafka and Postgres."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kstream_agg.verify.reading import TopicPart
from kstream_agg.verify.report import Check, Report
from kstream_agg.verify.seqs import SeqSet
from kstream_agg.verify.testing import at, average_record, trade_record
from kstream_agg.verify.windows import Averages, Recomputation, epoch_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

PART = TopicPart("trades-x", 0)
START = 1_760_000_100_000
MINUTE = 60_000
NAME = "X"


def decoded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it is decoded: times are datetimes."""
    times = {"timestamp", "received_at", "window_start", "window_end"}
    return {key: at(value) if key in times else value for key, value in record.items()}


def judge(
    trades: list[dict[str, Any]],
    records: list[dict[str, Any]],
    *,
    position: int | None = None,
    excluded: Mapping[int, str] | None = None,
) -> dict[int, str | None]:
    """Verdicts by window_start (ms)."""
    averages: Averages = {
        (r["instrument_name"], at(r["window_start"])): decoded(r) for r in records
    }
    positions = {PART: len(trades) if position is None else position}
    recomputation = Recomputation(averages, 300_000, positions, {PART: excluded or {}})
    for offset, trade in enumerate(trades):
        recomputation.add(PART, offset, decoded(trade))
    closed = set(recomputation.closed(0, 0))
    return {epoch_ms(key[1]): wrong for key, wrong in recomputation.verdicts(closed)}


def trade(seq: int, at_ms: int, price: float = 1.0) -> dict[str, Any]:
    return trade_record(NAME, seq, at_ms, price=price)


def test_a_right_record_of_a_closed_window_passes() -> None:
    trades = [trade(1, START), trade(2, START + 10 * MINUTE)]
    assert judge(trades, [average_record(NAME, START)]) == {START: None}


@pytest.mark.parametrize(
    "field",
    ["sma", "vwap", "volume", "current", "open", "close", "high", "low", "last_trade_seq"],
)
def test_each_wrong_field_is_found(field: str) -> None:
    trades = [trade(1, START), trade(2, START + 10 * MINUTE)]
    wrong = judge(trades, [average_record(NAME, START, **{field: 2})])[START]
    assert wrong == f"{field} is 2, not 1" + ("" if field == "last_trade_seq" else ".0")


def test_wrong_window_and_missing_vwap_are_found() -> None:
    trades = [trade(1, START), trade(2, START + 10 * MINUTE)]
    record = average_record(NAME, START, vwap=None, window_end=START + 1, period=1)
    wrong = judge(trades, [record])[START] or ""
    assert wrong.startswith("vwap is None, not 1.0; window_end is 2025-")
    assert wrong.endswith("period is 1")


def test_floats_may_differ_by_rounding_only() -> None:
    trades = [trade(1, START), trade(2, START + 10 * MINUTE)]
    assert judge(trades, [average_record(NAME, START, sma=1 + 5e-10)]) == {START: None}
    assert judge(trades, [average_record(NAME, START, sma=1 + 5e-9)])[START] is not None


def test_current_is_folded_from_the_recorded_seed_in_topic_order() -> None:
    trades = [trade(2, START, 8.0), trade(1, START + 1, 4.0), trade(3, START + 10 * MINUTE)]
    record = average_record(
        NAME, START, seed=16.0, current=0.5 * 4 + 0.5 * (0.5 * 8 + 0.5 * 16), sma=6.0, vwap=6.0,
        open=4.0, close=8.0, high=8.0, low=4.0, volume=2.0, trade_count=2, last_trade_seq=2,
    )  # fmt: skip
    assert judge(trades, [record]) == {START: None}


def test_a_closed_window_must_have_a_record_and_an_open_one_need_not() -> None:
    trades = [trade(1, START), trade(2, START + 10 * MINUTE)]
    assert judge(trades, []) == {START: "it is closed and missing, with 1 trades"}
    assert judge(trades[:1], []) == {}


def test_the_watermark_counts_only_up_to_the_aggregators_position() -> None:
    trades = [trade(1, START), trade(2, START + 10 * MINUTE)]
    assert judge(trades, [], position=1) == {}


def test_a_window_shown_by_idle_is_compared_over_the_trades_it_covers() -> None:
    trades = [trade(1, START), trade(2, START + 1, 9.0)]
    assert judge(trades, [average_record(NAME, START, closed_by="idle")]) == {START: None}
    wrong = judge(trades, [average_record(NAME, START, closed_by="idle", low=0.5)])
    assert wrong == {START: "low is 0.5, not 1.0"}


def test_a_closed_window_must_cover_all_its_trades() -> None:
    trades = [trade(1, START), trade(2, START + 1), trade(3, START + 10 * MINUTE)]
    record = average_record(NAME, START)
    assert judge(trades, [record]) == {START: "it is closed and covers 1 of 2 trades"}


def test_a_record_of_more_trades_than_there_are_is_wrong() -> None:
    trades = [trade(1, START), trade(2, START + 10 * MINUTE)]
    record = average_record(NAME, START, trade_count=2)
    assert judge(trades, [record]) == {START: "it covers 2 trades, the raw topic has 1"}
    elsewhere = average_record(NAME, START - 5 * MINUTE)
    assert judge(trades[:1], [elsewhere]) == {
        START - 5 * MINUTE: "it covers 1 trades, the raw topic has 0"
    }


def test_what_stands_in_late_is_not_counted_and_a_future_one_moves_no_watermark() -> None:
    record = average_record(NAME, START)
    late = [trade(1, START), trade(2, START + 10 * MINUTE), trade(3, START + 1, 7.0)]
    assert judge(late, [record], excluded={2: "late"}) == {START: None}
    assert judge(late, [record])[START] == "it is closed and covers 1 of 2 trades"
    future = [trade(1, START), trade(2, START + 10 * MINUTE)]
    assert judge(future, [], excluded={1: "future"}) == {}


def test_a_recomputed_window_counts_what_stands_in_late_and_no_other_does() -> None:
    trades = [
        trade(1, START, price=2.0),
        trade(3, START + 10 * MINUTE),
        trade(2, START + 1, price=4.0),  # late
        trade(4, START + 10 * MINUTE + 1),  # late, in a window that was not recomputed
        trade(5, START + 20 * MINUTE),
        trade(6, START + 2, price=99.0),  # late, came after the recomputation
    ]
    late = dict.fromkeys((2, 3, 5), "late")
    both = {
        "trade_count": 2, "last_trade_seq": 2, "open": 2.0, "low": 2.0, "close": 4.0, "high": 4.0,
        "sma": 3.0, "vwap": 3.0, "volume": 2.0, "seed": 2.0, "current": 3.0,
        "closed_by": "recompute",
    }  # fmt: skip
    other = average_record(
        NAME, START + 10 * MINUTE, first_trade_seq=3, last_trade_seq=3, closed_by="watermark"
    )
    found = judge(trades, [average_record(NAME, START, **both), other], excluded=late)
    assert found == {START: None, START + 10 * MINUTE: None}
    wrong = judge(
        trades, [average_record(NAME, START, **both | {"sma": 2.0}), other], excluded=late
    )
    assert wrong[START] == "sma is 2.0, not 3.0"
    emitted = average_record(NAME, START, **both | {"closed_by": "watermark"})
    wrong = judge(trades, [emitted, other], excluded=late)
    assert wrong[START] == "it covers 2 trades, the raw topic has 1"


def test_a_recomputed_window_must_cover_what_the_aggregator_has_counted() -> None:
    trades = [trade(1, START), trade(2, START + 1), trade(3, START + 10 * MINUTE)]
    record = average_record(NAME, START, closed_by="recompute")
    assert judge(trades, [record])[START] == "it is closed and covers 1 of 2 trades"


def test_repeats_count_once_within_a_window() -> None:
    trades = [trade(1, START), trade(1, START), trade(1, START + 10 * MINUTE)]
    assert judge(trades, [average_record(NAME, START)]) == {START: None}


@given(st.lists(st.integers(-30, 30)))
def test_a_seq_set_is_a_set(numbers: list[int]) -> None:
    seqs, model = SeqSet(), set[int]()
    for number in numbers:
        assert seqs.add(number) == (number not in model)
        model.add(number)
    assert len(seqs) == len(model)
    assert [n for n in range(-32, 33) if n in seqs] == sorted(model)
    if model:
        assert seqs.lowest == min(model)
    runs = sum(number - 1 not in model for number in model)
    assert len(seqs._firsts) == runs


def test_hopping_windows_count_a_trade_in_each_and_its_repeat_once() -> None:
    trades = [trade(1, START), trade(1, START), trade(2, START + 20 * MINUTE)]
    begins = range(START, START - 5 * MINUTE, -MINUTE)
    averages: Averages = {
        (NAME, at(begin)): decoded(average_record(NAME, begin)) for begin in begins
    }
    recomputation = Recomputation(averages, 300_000, {PART: 3}, {}, MINUTE)
    for offset, found in enumerate(trades):
        recomputation.add(PART, offset, decoded(found))
    closed = set(recomputation.closed(0, 0))
    assert dict(recomputation.verdicts(closed)) == dict.fromkeys(averages)
    assert recomputation.repeats == 1


def test_a_time_decayed_average_is_recomputed_from_seed_and_weight() -> None:
    trades = [trade(1, START, 2.0), trade(2, START + MINUTE, 4.0), trade(3, START + 9 * MINUTE)]
    weights = (0.5, 1.0, math.e)
    record = average_record(
        NAME, START, trade_count=2, last_trade_seq=2, seed=1.0, seed_weight=weights[0], tau=60.0,
        current=(0.5 * 1.0 + 2.0 + math.e * 4.0) / sum(weights), sma=3.0, vwap=3.0, open=2.0,
        low=2.0, high=4.0, close=4.0, volume=2.0, alpha=0.0,
    )  # fmt: skip
    assert judge(trades, [record]) == {START: None}
    wrong = judge(trades, [record | {"seed_weight": 0.6}])[START]
    assert wrong is not None
    assert wrong.startswith("current is")


@given(st.sets(st.integers(0, 60)), st.integers(0, 60), st.integers(0, 60))
def test_a_seq_set_counts_what_it_has_between_two_numbers(
    numbers: set[int], first: int, last: int
) -> None:
    seqs = SeqSet()
    for number in numbers:
        seqs.add(number)
    assert seqs.count(first, last) == sum(first <= number <= last for number in numbers)


def test_exit_codes() -> None:
    def report(*counts: tuple[str, int, int]) -> int:
        checks = [Check(n, "t", compared=c, differences=d) for n, c, d in counts]
        return Report(tuple(checks)).exit_code

    assert report(("trades", 5, 0), ("windows", 1, 0)) == 0
    assert report(("trades", 5, 0), ("windows", 1, 1)) == 1
    assert report(("trades", 0, 1), ("windows", 0, 0)) == 1
    assert report(("trades", 5, 0), ("windows", 0, 0)) == 2
    assert report(("trades", 0, 0), ("windows", 0, 0)) == 2
    # Of several topics one may be quiet.
    assert report(("trades", 0, 0), ("trades", 5, 0), ("windows", 1, 0)) == 0
    assert report() == 2


def test_only_the_first_examples_are_kept() -> None:
    check = Check("c", "t")
    for number in range(1000):
        check.differs(str(number))
    assert (check.differences, check.examples) == (1000, ["0", "1", "2", "3", "4"])
