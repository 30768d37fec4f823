"""The hand-written encoder of results gives fastavro's bytes."""

from __future__ import annotations

import io
from typing import Any, get_args

import fastavro
from hypothesis import given, settings
from hypothesis import strategies as st

from kstream_agg.aggregate.average_encoder import AverageEncoder
from kstream_agg.aggregate.state import ClosedBy
from kstream_agg.core.schemas import AVERAGE
from kstream_agg.kafka.wire import wire_header

_SCHEMA = fastavro.parse_schema(AVERAGE)
_LONGS = st.integers(-(2**63), 2**63 - 1) | st.integers(-70, 70)
_DOUBLES = st.floats(allow_nan=False)


def _values(field: dict[str, Any]) -> st.SearchStrategy[Any]:
    match field["type"]:
        case "string" if field["name"] == "closed_by":
            return st.sampled_from(get_args(ClosedBy))
        case "string":
            return st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
        case "double":
            return _DOUBLES
        case "long" | {"type": "long"}:
            return _LONGS
        case ["null", "double"]:
            return st.none() | _DOUBLES
        case other:
            raise AssertionError(f"no sample for {other}")


_RECORDS = st.fixed_dictionaries({field["name"]: _values(field) for field in AVERAGE["fields"]})


@settings(max_examples=60, deadline=None)
@given(records=st.lists(_RECORDS, min_size=1, max_size=3), schema_id=st.integers(0, 2**31 - 1))
def test_the_bytes_are_those_of_fastavro(records: list[dict[str, Any]], schema_id: int) -> None:
    encoder = AverageEncoder(schema_id)
    # Twice: the second time some of it comes from caches.
    for record in records * 2:
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, _SCHEMA, record)
        assert encoder.encode(record) == wire_header(schema_id) + buffer.getvalue()
