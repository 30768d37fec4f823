"""What the benchmarks report and what they measure with; the measuring itself is not a test."""

from __future__ import annotations

import json
from collections import defaultdict

import msgspec
import pytest

from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.telemetry import is_sampled
from kstream_agg.deribit.trades import Trade
from kstream_agg.kafka.wire import RecordDecoder
from measurement import Measurement
from workload import encoded, frame_headers, instruments, wire_trades


def test_a_line_is_json_with_the_median_and_its_ratio_to_the_references() -> None:
    found = Measurement("sink.rows_per_s", "rows/s", (30.0, 10.0, 20.0), (40.0,), floor=25.0)
    line = json.loads(found.line())
    assert (line["value"], line["min"], line["max"], line["runs"]) == (20.0, 10.0, 30.0, 3)
    assert (line["reference"], line["ratio"], line["meets_floor"]) == (40.0, 0.5, False)
    assert line["command"] == "make bench ONLY=sink"
    assert {"kstream-agg", "python", "kafka"} <= set(line["versions"])


@pytest.mark.parametrize(
    ("better", "floor", "meets"),
    [
        ("higher", 9.0, True),
        ("higher", 10.0, True),
        ("higher", 11.0, False),
        ("lower", 9.0, False),
        ("lower", 10.0, True),
        ("lower", None, None),
    ],
)
def test_a_floor_is_a_ceiling_where_lower_is_better(
    *, better: str, floor: float | None, meets: bool | None
) -> None:
    assert Measurement("a.b", "s", (10.0,), better=better, floor=floor).meets_floor is meets


def test_repeated_trades_go_on_without_holes_and_in_time() -> None:
    # Beyond the 50,000 generated ones: the seam is what could go wrong.
    seqs: defaultdict[str, int] = defaultdict(int)
    ids: set[str] = set()
    last_ms = 0
    for trade in wire_trades(60_000):
        seqs[trade["instrument_name"]] += 1
        assert trade["trade_seq"] == seqs[trade["instrument_name"]]
        assert trade["timestamp"] >= last_ms
        last_ms = trade["timestamp"]
        ids.add(trade["trade_id"])
    assert len(ids) == 60_000
    assert sorted(seqs) == sorted(instruments("BTC"))
    assert len(seqs) == 300


def test_values_are_raw_trades_under_their_instruments_key() -> None:
    wires = list(wire_trades(10, "SINK1"))
    decoder = RecordDecoder(lambda _id: RAW_TRADE)
    for wire, (key, value) in zip(wires, encoded(wires, schema_id=3), strict=True):
        record = decoder.decode(value)
        trade = msgspec.convert(wire, Trade)
        assert key.decode() == record["instrument_name"] == trade.instrument_name
        assert (record["trade_seq"], record["price"]) == (trade.trade_seq, trade.price)
        assert record["received_at"] > record["timestamp"]


def test_one_frame_in_twenty_is_sampled() -> None:
    sampled = [is_sampled(dict(frame_headers(frame))["traceparent"]) for frame in range(100)]  # type: ignore[arg-type]  # this header is never a text
    assert sum(sampled) == 5
