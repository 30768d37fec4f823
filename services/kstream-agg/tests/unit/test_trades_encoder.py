"""The hand-written encoder gives fastavro's bytes."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.deribit.trade_encoder import TradeEncoder
from kstream_agg.deribit.trades import MAX_TIMESTAMP_MS, WIRE_FIELDS, Trade
from kstream_agg.kafka.wire import wire_header

_SCHEMA = fastavro.parse_schema(RAW_TRADE)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
_KINDS: dict[str, st.SearchStrategy[Any]] = {
    "string": _TEXTS,
    "long": st.integers(-(2**63), 2**63 - 1) | st.integers(-70, 70),
    "double": st.floats(allow_nan=False),
}


def _values(name: str) -> st.SearchStrategy[Any]:
    kind, required = WIRE_FIELDS[name]
    if name == "timestamp":
        return st.integers(0, MAX_TIMESTAMP_MS)
    if name == "legs":
        return st.sampled_from([None, '[{"price":1.0e3}]'])
    return _KINDS[kind] if required else st.none() | _KINDS[kind]


_TRADES = st.fixed_dictionaries({name: _values(name) for name in WIRE_FIELDS})


def _reference(record: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, _SCHEMA, record)
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    values=_TRADES,
    received_at=st.integers(0, MAX_TIMESTAMP_MS),
    source=st.sampled_from(["stream", "backfill"]),
    extra=st.none() | st.just(json.dumps({"new": 1})) | _TEXTS,
    schema_id=st.integers(0, 2**31 - 1),
)
def test_the_bytes_are_those_of_fastavro(
    values: dict[str, Any], received_at: int, source: str, extra: str | None, schema_id: int
) -> None:
    legs = values["legs"]
    trade = Trade(**{**values, "legs": msgspec.Raw(legs.encode() if legs else b"")})
    encoder = TradeEncoder(schema_id)
    shared = encoder.receipt(received_at, source)
    expected = wire_header(schema_id) + _reference(
        {**values, "received_at": received_at, "source": source, "extra": extra}
    )
    assert encoder.encode(trade, shared, extra) == expected
    assert encoder.encode(trade, shared, extra) == expected  # the second time from its memory


def test_long_texts_have_their_length_in_more_than_one_byte() -> None:
    values = {
        "instrument_name": "é" * 100,
        "trade_seq": 1,
        "trade_id": "x" * 20_000,
        "timestamp": 0,
        "direction": "",
        "price": -0.0,
        "amount": 1.0,
        "tick_direction": -1,
    }
    encoder = TradeEncoder(1)
    got = encoder.encode(Trade(**values), encoder.receipt(0, "stream"))  # type: ignore[arg-type]  # by name, of mixed types
    assert got[5:] == _reference({**values, "received_at": 0, "source": "stream"})
