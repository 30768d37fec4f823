"""The Confluent wire format, record by record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.core.schemas import AVERAGE, RAW_TRADE
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder, schema_id_of, wire_header

TRADE: dict[str, Any] = {
    "instrument_name": "BTC-27MAR26-100000-C",
    "trade_seq": 7,
    "trade_id": "415305279",
    "timestamp": 1770984454552,
    "direction": "buy",
    "price": 0.0525,
    "amount": 3,
    "tick_direction": 2,
    "starbase_match_id": 225046781992378368,
    "received_at": 1770984454600,
    "source": "stream",
}


def decoder(schemas: dict[int, dict[str, Any]]) -> RecordDecoder:
    return RecordDecoder(schemas.get)


def test_round_trip_keeps_integers_above_2_to_53_and_fills_nulls() -> None:
    value = RecordEncoder(RAW_TRADE, 3).encode(TRADE)
    record = decoder({3: RAW_TRADE}).decode(value)
    assert record["starbase_match_id"] == 225046781992378368
    assert record["iv"] is None
    assert record["amount"] == 3.0
    assert record["timestamp"] == datetime(2026, 2, 13, 12, 7, 34, 552000, tzinfo=UTC)


def test_header_is_magic_byte_and_big_endian_schema_id() -> None:
    assert wire_header(258) == b"\x00\x00\x00\x01\x02"
    assert schema_id_of(wire_header(258) + b"body") == 258


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "no value"),
        (b"", "wire format"),
        (b"\x00\x00", "wire format"),
        (b'{"a": 1}', "wire format"),
        (wire_header(9) + b"\x02", "no schema with id 9"),
        (wire_header(3) + b"\x02", "does not fit schema 3"),
    ],
)
def test_bad_values_are_refused_with_a_reason(value: bytes | None, says: str) -> None:
    with pytest.raises(InvalidRecordError, match=says):
        decoder({3: RAW_TRADE}).decode(value)


def test_left_over_bytes_are_refused() -> None:
    value = RecordEncoder(RAW_TRADE, 3).encode(TRADE) + b"\x00"
    with pytest.raises(InvalidRecordError, match="1 bytes are left over"):
        decoder({3: RAW_TRADE}).decode(value)


def test_a_missing_required_field_is_refused_before_it_is_sent() -> None:
    incomplete = {key: value for key, value in TRADE.items() if key != "price"}
    with pytest.raises(InvalidRecordError, match="price"):
        RecordEncoder(RAW_TRADE, 3).encode(incomplete)


def test_a_reader_with_a_later_nullable_field_reads_older_records() -> None:
    later = {
        **RAW_TRADE,
        "fields": [
            *RAW_TRADE["fields"],
            {"name": "venue", "type": ["null", "string"], "default": None},
        ],
    }
    value = RecordEncoder(RAW_TRADE, 3).encode(TRADE)
    record = RecordDecoder({3: RAW_TRADE}.get, reader_schema=later).decode(value)
    assert record["venue"] is None
    assert record["trade_seq"] == 7


@pytest.mark.parametrize("schema", [RAW_TRADE, AVERAGE])
def test_schemas_hold_only_what_every_sink_has_a_column_for(schema: dict[str, Any]) -> None:
    scalar = {"string", "double", "long"}
    for field in schema["fields"]:
        kind = field["type"]
        if isinstance(kind, list):
            assert kind[0] == "null"
            assert field["default"] is None
            kind = kind[1]
        if isinstance(kind, dict):
            assert kind == {"type": "long", "logicalType": "timestamp-millis"}
        else:
            assert kind in scalar
