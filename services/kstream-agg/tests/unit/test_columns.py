"""A batch by columns gives what fastavro gives record by record."""

from __future__ import annotations

import copy
import io
from typing import Any

import fastavro
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kstream_agg.core.errors import InvalidRecordError, UnavailableError
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.kafka.columns import ColumnDecoder
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder

COLUMNS: dict[str, type[pl.DataType]] = {
    "instrument_name": pl.String,
    "trade_seq": pl.Int64,
    "timestamp": pl.Int64,
    "price": pl.Float64,
    "amount": pl.Float64,
    "received_at": pl.Int64,
}


def evolved() -> dict[str, Any]:
    schema = copy.deepcopy(RAW_TRADE)
    schema["fields"].insert(3, {"name": "venue", "type": ["null", "string"], "default": None})
    return schema


def with_map() -> dict[str, Any]:
    """A schema that polars cannot read."""
    schema = copy.deepcopy(RAW_TRADE)
    schema["fields"].append({"name": "tags", "type": {"type": "map", "values": "string"}})
    return schema


def without_price() -> dict[str, Any]:
    schema = copy.deepcopy(RAW_TRADE)
    schema["fields"] = [item for item in schema["fields"] if item["name"] != "price"]
    return schema


def nullable_price() -> dict[str, Any]:
    schema = copy.deepcopy(RAW_TRADE)
    for item in schema["fields"]:
        if item["name"] == "price":
            item["type"] = ["null", "double"]
    return schema


SCHEMAS: dict[int, dict[str, Any]] = {
    1: RAW_TRADE,
    2: evolved(),
    3: with_map(),
    4: without_price(),
    5: nullable_price(),
}
ENCODERS = {schema_id: RecordEncoder(schema, schema_id) for schema_id, schema in SCHEMAS.items()}
INSTRUMENTS = ("BTC-PERPETUAL", "BTC-27MAR26-100000-C", "Ä")


def make_trade(number: int, instrument: str = "BTC-PERPETUAL", **fields: object) -> dict[str, Any]:
    return {
        "instrument_name": instrument,
        "trade_seq": number,
        "trade_id": f"id-{number}",
        "timestamp": 1_700_000_000_000 + number,
        "direction": "buy",
        "price": 0.05 + number,
        "amount": 1.5,
        "tick_direction": 1,
        "received_at": 1_700_000_000_100 + number,
        "source": "stream",
        "tags": {"a": "b"},
    } | fields


def make_decoder() -> ColumnDecoder:
    return ColumnDecoder(SCHEMAS.get, COLUMNS, "instrument_name")


def row_of(trade: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(trade[name] for name in COLUMNS)


def test_a_batch_of_good_records_keeps_order_and_values() -> None:
    trades = [make_trade(number, INSTRUMENTS[number % 3]) for number in range(100)]
    values = [ENCODERS[1].encode(trade) for trade in trades]
    batch = make_decoder().decode(values, [t["instrument_name"].encode() for t in trades])
    assert batch.rejected == []
    assert batch.frame.schema == pl.Schema(COLUMNS)
    assert batch.frame.rows() == [row_of(trade) for trade in trades]
    assert batch.rows.tolist() == list(range(100))


def test_several_schema_ids_come_back_in_order() -> None:
    trades = [make_trade(number, venue="x") for number in range(60)]
    ids = [(1, 2, 3, 5)[number % 4] for number in range(60)]
    values = [ENCODERS[schema_id].encode(t) for schema_id, t in zip(ids, trades, strict=True)]
    batch = make_decoder().decode(values, [b"BTC-PERPETUAL"] * 60)
    assert batch.rejected == []
    assert batch.frame.rows() == [row_of(trade) for trade in trades]
    assert batch.rows.tolist() == list(range(60))


@pytest.mark.parametrize(
    ("value", "key", "stage", "says"),
    [
        (None, b"BTC-PERPETUAL", "decode", "no value"),
        (b"", b"BTC-PERPETUAL", "decode", "header"),
        (b"\0\0\0\0", b"BTC-PERPETUAL", "decode", "header"),
        (b"\1\0\0\0\1rest", b"BTC-PERPETUAL", "decode", "header"),
        (b"\0\0\0\0\x63rest", b"BTC-PERPETUAL", "decode", "no schema with id 99"),
        (b"\0\0\0\0\1", b"BTC-PERPETUAL", "decode", "does not fit"),
        (ENCODERS[1].encode(make_trade(9))[:-3], b"BTC-PERPETUAL", "decode", "does not fit"),
        (ENCODERS[1].encode(make_trade(9)) + b"\0", b"BTC-PERPETUAL", "decode", "left over"),
        (ENCODERS[4].encode(make_trade(9)), b"BTC-PERPETUAL", "decode", "no field 'price'"),
        (ENCODERS[5].encode(make_trade(9, price=None)), b"BTC-PERPETUAL", "validate", "is null"),
        (ENCODERS[1].encode(make_trade(9)), b"BTC-OTHER", "validate", "'BTC-OTHER'"),
        (ENCODERS[1].encode(make_trade(9)), None, "validate", "key is null"),
    ],
)
@pytest.mark.parametrize("place", [0, 20, 39])
def test_a_bad_record_is_rejected_and_its_neighbours_are_not(
    value: bytes | None, key: bytes | None, stage: str, says: str, place: int
) -> None:
    trades = [make_trade(number) for number in range(40)]
    values: list[bytes | None] = [ENCODERS[1].encode(trade) for trade in trades]
    keys: list[bytes | None] = [b"BTC-PERPETUAL"] * 40
    values[place], keys[place] = value, key
    batch = make_decoder().decode(values, keys)
    assert [(item.index, item.error.stage) for item in batch.rejected] == [(place, stage)]
    assert says in str(batch.rejected[0].error)
    del trades[place]
    assert batch.frame.rows() == [row_of(trade) for trade in trades]


def test_nothing_but_bad_records_gives_an_empty_frame() -> None:
    batch = make_decoder().decode([None, b"x"], [None, None])
    assert batch.frame.schema == pl.Schema(COLUMNS)
    assert batch.frame.height == 0
    assert [item.index for item in batch.rejected] == [0, 1]


def test_a_registry_that_does_not_answer_is_no_bad_record() -> None:
    def unavailable(schema_id: int) -> dict[str, Any] | None:
        raise UnavailableError(f"no answer for {schema_id}")

    decoder = ColumnDecoder(unavailable, COLUMNS, "instrument_name")
    with pytest.raises(UnavailableError):
        decoder.decode([ENCODERS[1].encode(make_trade(1))], [b"BTC-PERPETUAL"])


def good_values(schema_id: int) -> st.SearchStrategy[tuple[bytes, bytes]]:
    def encode(trade: dict[str, Any]) -> tuple[bytes, bytes]:
        return ENCODERS[schema_id].encode(trade), trade["instrument_name"].encode()

    return st.builds(
        make_trade,
        st.integers(0, 2**43),
        st.sampled_from(INSTRUMENTS),
        timestamp=st.integers(0, 2**41),
        price=st.floats(allow_nan=False),
        legs=st.none() | st.text("aé中", max_size=5),
        iv=st.none() | st.floats(allow_nan=False),
        starbase_match_id=st.none() | st.integers(2**53, 2**62),
    ).map(encode)


@st.composite
def records(draw: st.DrawFn) -> tuple[bytes | None, bytes | None]:
    value, key = draw(st.sampled_from((1, 1, 1, 2, 3, 5)).flatmap(good_values))
    kind = draw(st.sampled_from(("good",) * 6 + ("cut", "tail", "noise", "none", "key", "flip")))
    if kind == "key":
        return value, draw(st.none() | st.binary(max_size=5))
    place = draw(st.integers(0, 12))  # within the wire header and the instrument's name
    flipped = value[:place] + draw(st.binary(min_size=1, max_size=1)) + value[place + 1 :]
    changed = {
        "cut": value[: draw(st.integers(0, len(value) - 1))],
        "tail": value + draw(st.binary(min_size=1, max_size=5)),
        "noise": value[:5] + draw(st.binary(max_size=80)),
        "none": None,
        "flip": flipped,
    }
    return changed.get(kind, value), key


def one_by_one(value: bytes | None, key: bytes | None) -> tuple[Any, ...] | None:
    """The obvious way: fastavro on each record."""
    try:
        record = RecordDecoder(SCHEMAS.get).decode(value)
    except InvalidRecordError:
        return None
    if record["instrument_name"].encode() != key:
        return None
    body = io.BytesIO(value or b"")
    schema_id = int.from_bytes(body.read(5)[1:], "big")
    plain = copy.deepcopy(SCHEMAS[schema_id])
    for item in plain["fields"]:
        if isinstance(item["type"], dict) and "logicalType" in item["type"]:
            item["type"] = item["type"]["type"]
    raw: Any = fastavro.schemaless_reader(body, fastavro.parse_schema(plain), None)
    return tuple(raw[name] for name in COLUMNS)


# The first example waits for the schemas to be compiled, on a machine that does other things.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(records(), max_size=40))
def test_any_mix_gives_what_fastavro_gives_one_by_one(
    mix: list[tuple[bytes | None, bytes | None]],
) -> None:
    batch = make_decoder().decode([value for value, _ in mix], [key for _, key in mix])
    expected = [one_by_one(value, key) for value, key in mix]
    good = [index for index, row in enumerate(expected) if row is not None]
    assert batch.rows.tolist() == good
    assert batch.frame.rows() == [expected[index] for index in good]
    assert [item.index for item in batch.rejected] == sorted(set(range(len(mix))) - set(good))
