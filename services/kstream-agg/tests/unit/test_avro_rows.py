"""Columns of many records at once hold what fastavro gives record by record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder
from kstream_agg.sinks.avro_rows import RowsDecoder
from kstream_agg.sinks.rows import Texts

if TYPE_CHECKING:
    from kstream_agg.sinks.rows import Rows

PLAIN: dict[str, Any] = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "string": st.text(max_size=5) | st.text("xä", min_size=60, max_size=140),
    "bytes": st.binary(max_size=200),
}
FIELDS = [
    *({"name": kind, "type": kind} for kind in PLAIN),
    *({"name": f"{kind}_or_null", "type": [kind, "null"]} for kind in PLAIN),
    *({"name": f"null_or_{kind}", "type": ["null", kind]} for kind in PLAIN),
]
SCHEMA: dict[str, Any] = {"type": "record", "name": "all_types", "fields": FIELDS}
RECORDS = st.fixed_dictionaries(
    PLAIN
    | {f"{kind}_or_null": st.none() | values for kind, values in PLAIN.items()}
    | {f"null_or_{kind}": st.none() | values for kind, values in PLAIN.items()}
)
ENCODER = RecordEncoder(SCHEMA, 1)
SINGLE = RecordDecoder({1: SCHEMA}.get)


def records(rows: Rows) -> list[dict[str, Any]]:
    return [
        {
            name: found.decode()
            if isinstance(column, Texts)
            and column.is_text
            and isinstance(found := column.item(row), bytes)
            else column.item(row)
            for name, column in rows.columns.items()
        }
        for row in range(rows.height)
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(RECORDS, max_size=6))
def test_columns_hold_what_was_encoded(wanted: list[dict[str, Any]]) -> None:
    rows, bad = RowsDecoder(SCHEMA).decode([ENCODER.encode(record) for record in wanted])
    assert bad is None
    assert records(rows) == wanted


@settings(max_examples=80, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=4), st.data())
def test_what_fastavro_refuses_is_refused_and_nothing_else(
    wanted: list[dict[str, Any]], data: st.DataObject
) -> None:
    values = [bytearray(ENCODER.encode(record)) for record in wanted]
    for _ in range(data.draw(st.integers(1, 3))):
        value = data.draw(st.sampled_from(values))
        place = data.draw(st.integers(5, len(value) - 1))
        match data.draw(st.sampled_from(["change", "cut", "add"])):
            case "change":
                value[place] = data.draw(st.integers(0, 255))
            case "cut":
                del value[place : place + data.draw(st.integers(1, 20))]
            case "add":
                value[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        if len(value) == 5:
            value += b"\0"
    damaged = [bytes(value) for value in values]
    rows, bad = RowsDecoder(SCHEMA).decode(damaged)
    refused = [False] * len(damaged) if bad is None else bad.tolist()
    kept = iter([rows.take(slice(row, row + 1)) for row in range(rows.height)])
    for raw, is_refused in zip(damaged, refused, strict=True):
        expected = decoded_alone(raw)
        if is_refused:
            # fastavro takes branch -1 of a union for its last.
            assert expected is None or ENCODER.encode(expected) != raw
            continue
        row = next(kept)
        if expected is None:
            assert has_bad_text(row)  # which is found when it is written
        else:
            # As they are shown: NaN is like NaN.
            assert repr(records(row)) == repr([expected])
    assert next(kept, None) is None


def decoded_alone(value: bytes) -> dict[str, Any] | None:
    try:
        return SINGLE.decode(value)
    except InvalidRecordError:
        return None


def has_bad_text(rows: Rows) -> bool:
    return any(
        column.not_utf8() is not None
        for column in rows.columns.values()
        if isinstance(column, Texts)
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80" * 9,
        b"\xff" * 9 + b"\x03",  # more than 64 bits
        b"\xff" * 12,
        b"\x02",  # bytes are missing
        b"\x01",  # a text of -1 bytes
        b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # of 2**63 - 1
        b"\0\0",  # one too many
    ],
)
def test_lengths_that_cannot_be_are_found(body: bytes) -> None:
    schema = {"type": "record", "name": "r", "fields": [{"name": "s", "type": "string"}]}
    header, good = b"\0\0\0\0\1", b"\0\0\0\0\1\x04ab"
    rows, bad = RowsDecoder(schema).decode([good, header + body, good])
    assert bad is not None
    assert bad.tolist() == [False, True, False]
    assert [rows["s"].item(row) for row in range(rows.height)] == [b"ab", b"ab"]
